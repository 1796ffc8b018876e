"""Calibration: the costs of virtual time, fitted to a wall run, and the error that they leave."""

from lmcache_kit.calibration.calibrate import calibrate, costs_document, figures, judged, play
from lmcache_kit.calibration.fitting import WARM_UP, fit_costs
from lmcache_kit.calibration.judging import judge, request_pairs

__all__ = ["WARM_UP", "calibrate", "costs_document", "figures", "fit_costs", "judge", "judged", "play", "request_pairs"]
