"""Arrays as texts of a page: zlib and base64, which page.js unpacks."""

import base64
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_TYPES = {"u1": "<u1", "f2": "<f2", "f4": "<f4"}


def pack(values: Tensor, kind: str) -> dict[str, Any]:
    """Pack values as bytes ("u1", from [0, 1]), half floats ("f2") or floats ("f4").

    The first bytes of all numbers come first, then the second ones, which compresses better.
    """
    array = values.detach().cpu().double().numpy()
    if kind == "u1":
        array = np.rint(255 * array.clip(0, 1))
    bytes_of = np.ascontiguousarray(array, dtype=_TYPES[kind]).reshape(-1, 1).view(np.uint8)
    data = zlib.compress(bytes_of.T.tobytes(), 9)
    return {"type": kind, "shape": list(values.shape), "data": base64.b64encode(data).decode()}


class DataScale(NamedTuple):
    """Map of data to [0, 1], by column, or by one range for images.

    Attributes:
        low: Values that become 0, with shape (D,) or (1,).
        high: Values that become 1, with the shape of low.
        image: Whether bytes suffice.
    """

    low: Tensor
    high: Tensor
    image: bool

    @classmethod
    def of(cls, values: list[Tensor], *, image: bool) -> "DataScale":
        """Make the map that covers values, each with shape (N, D), NaN where missing."""
        joined = torch.cat([value.double() for value in values])
        low = joined.nan_to_num(torch.inf).amin(0).nan_to_num(0.0, 0.0)
        high = joined.nan_to_num(-torch.inf).amax(0).nan_to_num(0.0, 0.0, 0.0)
        if image:
            low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        return cls(low, torch.where(high > low, high, low + 1), image)

    def pack(self, values: Tensor) -> dict[str, Any]:
        """Pack values with shape (..., D); missing ones become 0."""
        unit = ((values.double() - self.low) / (self.high - self.low)).nan_to_num(0.0)
        return pack(unit, "u1" if self.image else "f2")

    def to_json(self) -> dict[str, Any]:
        """Return the map for page.js."""
        return {"low": self.low.tolist(), "high": self.high.tolist()}
