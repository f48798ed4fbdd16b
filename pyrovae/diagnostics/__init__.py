"""Numbers about a fit that are neither log p(x) nor an objective, such as the latent dimensions in use.

active_units     activity of latent dimensions, relative to the prior
kl               KL divergence by latent dimension
collapse         latent dimensions at the prior, by the guide or by the decoder
information      brackets of I_q(x; z), of KL(q(z), p(z)), and of the total correlation
bits             entropy, cross-entropy and KL divergence, in nats and bits
disentanglement  scores of codes against known factors
pca              latent axes against principal components
draws            draws of the real latents, and their densities by dimension
"""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, UnitActivity, unit_activity
from pyrovae.diagnostics.bits import Entropies, entropies
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
from pyrovae.diagnostics.pca import PCAAlignment, decoded_axes, pca_alignment

__all__ = [
    "ACTIVE_FROM",
    "DCI",
    "Collapse",
    "Ends",
    "Entropies",
    "Information",
    "KLByDimension",
    "PCAAlignment",
    "Score",
    "UnitActivity",
    "beta_vae_score",
    "collapse",
    "dci",
    "decoded_axes",
    "entropies",
    "factor_vae_score",
    "half_sample_error",
    "information",
    "kl_by_dimension",
    "mig",
    "pca_alignment",
    "sap",
    "unit_activity",
]
