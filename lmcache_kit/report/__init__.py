"""Reports of runs, and the numbers in them."""

from lmcache_kit.report.build import SCHEMA_VERSION, build_report, read_report
from lmcache_kit.report.machine import machine_facts, write_machine_facts
from lmcache_kit.report.percentiles import percentile, summarize
from lmcache_kit.report.trace_info import trace_info

__all__ = [
    "SCHEMA_VERSION",
    "build_report",
    "machine_facts",
    "percentile",
    "read_report",
    "summarize",
    "trace_info",
    "write_machine_facts",
]
