"""Numbers about a fit that are neither log p(x) nor an objective: dimensions in use, calibration of the guide.

active_units   latent dimensions that a guide uses
uniformity     tests of uniform ranks and PIT values, and p-values of several tests together
simulation     data simulated with their latents from any model
calibration    `sbc`, simulation-based calibration of a guide
weighted_calibration  `weighted_sbc`, calibration of importance weights
nuts           `nuts_check`, a guide against NUTS for chosen data
"""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, unit_activity
from pyrovae.diagnostics.calibration import Calibration, sbc
from pyrovae.diagnostics.nuts import NutsCheck, nuts_check
from pyrovae.diagnostics.uniformity import (
    EcdfBand,
    Uniformity,
    cauchy_combination,
    check_uniform,
    ecdf_band,
    holm,
    randomised_pit,
)
from pyrovae.diagnostics.weighted_calibration import WeightedCalibration, weighted_sbc

__all__ = [
    "ACTIVE_FROM",
    "Calibration",
    "EcdfBand",
    "NutsCheck",
    "Uniformity",
    "WeightedCalibration",
    "cauchy_combination",
    "check_uniform",
    "ecdf_band",
    "holm",
    "nuts_check",
    "randomised_pit",
    "sbc",
    "unit_activity",
    "weighted_sbc",
]
