"""Numbers about a fit."""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, unit_activity

__all__ = [
    "ACTIVE_FROM",
    "unit_activity",
]
