"""Numbers about a fit that are neither log p(x) nor an objective: dimensions in use, calibration of the guide.

active_units   latent dimensions that a guide uses
uniformity     tests of uniform ranks and PIT values, and p-values of several tests together
simulation     data simulated with their latents from any model
calibration    `sbc`, simulation-based calibration of a guide
weighted_calibration  `weighted_sbc`, calibration of importance weights
nuts           `nuts_check`, a guide against NUTS for chosen data
"""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, UnitActivity, unit_activity
from pyrovae.diagnostics.bits import Entropies, entropies
from pyrovae.diagnostics.calibration import Calibration, sbc
from pyrovae.diagnostics.collapse import Collapse, collapse
from pyrovae.diagnostics.disentanglement import (
    DCI,
    Score,
    beta_vae_score,
    dci,
    factor_vae_score,
    half_sample_error,
    mig,
    sap,
)
from pyrovae.diagnostics.information import Ends, Information, information
from pyrovae.diagnostics.kl import KLByDimension, kl_by_dimension
from pyrovae.diagnostics.nuts import NutsCheck, nuts_check
from pyrovae.diagnostics.pca import PCAAlignment, decoded_axes, pca_alignment
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
    "DCI",
    "Calibration",
    "Collapse",
    "EcdfBand",
    "Ends",
    "Entropies",
    "Information",
    "KLByDimension",
    "NutsCheck",
    "PCAAlignment",
    "Score",
    "Uniformity",
    "UnitActivity",
    "WeightedCalibration",
    "beta_vae_score",
    "cauchy_combination",
    "check_uniform",
    "collapse",
    "dci",
    "decoded_axes",
    "ecdf_band",
    "entropies",
    "factor_vae_score",
    "half_sample_error",
    "holm",
    "information",
    "kl_by_dimension",
    "mig",
    "nuts_check",
    "pca_alignment",
    "randomised_pit",
    "sap",
    "sbc",
    "unit_activity",
    "weighted_sbc",
]
