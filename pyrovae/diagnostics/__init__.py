"""Numbers about a fit that are neither log p(x) nor an objective, such as the latent dimensions in use."""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, unit_activity

__all__ = [
    "ACTIVE_FROM",
    "unit_activity",
]
