"""Numbers about a fit that are neither log p(x) nor an objective: dimensions in use, tests of uniformity.

active_units   latent dimensions that a guide uses
uniformity     tests of uniform ranks and PIT values, and p-values of several tests together
"""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, unit_activity
from pyrovae.diagnostics.uniformity import (
    EcdfBand,
    Uniformity,
    cauchy_combination,
    check_uniform,
    ecdf_band,
    holm,
    randomised_pit,
)

__all__ = [
    "ACTIVE_FROM",
    "EcdfBand",
    "Uniformity",
    "cauchy_combination",
    "check_uniform",
    "ecdf_band",
    "holm",
    "randomised_pit",
    "unit_activity",
]
