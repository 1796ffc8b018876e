"""Scenarios: one strict YAML file that declares a fleet, its workloads and what must come out."""

from lmcache_kit.scenario.catalog import find_scenario, shipped_folder, shipped_scenarios
from lmcache_kit.scenario.expectations import Outcome, evaluate, parse_expectations
from lmcache_kit.scenario.loader import dump_scenario, load_scenario, parse_scenario, scenario_to_data
from lmcache_kit.scenario.model import InstanceSpec, Scenario
from lmcache_kit.scenario.schema import scenario_schema
from lmcache_kit.scenario.validate import fault_plan, validate

__all__ = [
    "InstanceSpec",
    "Outcome",
    "Scenario",
    "dump_scenario",
    "evaluate",
    "fault_plan",
    "find_scenario",
    "load_scenario",
    "parse_expectations",
    "parse_scenario",
    "scenario_schema",
    "scenario_to_data",
    "shipped_folder",
    "shipped_scenarios",
    "validate",
]
