"""Numbers about a fit that are neither log p(x) nor an objective, such as the latent dimensions in use."""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, unit_activity
from pyrovae.diagnostics.codes import Codes, DecodedGrid, decode_means, decoded_grid, encode_codes

__all__ = [
    "ACTIVE_FROM",
    "Codes",
    "DecodedGrid",
    "decode_means",
    "decoded_grid",
    "encode_codes",
    "unit_activity",
]
