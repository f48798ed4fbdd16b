"""The interactive part of the page: places of latent space and what the model decodes there."""

from typing import Any

import torch
from torch import Tensor

from pyrovae.page.fit import Fit
from pyrovae.page.live import LiveDecoder, live_decoder
from pyrovae.page.packed import DataScale, pack
from pyrovae.plots import is_image

_SHEET = 21  # places along each axis of a sheet
_BEYOND = 3  # more of them on each side where codes lie outside the prior's range
_SHEET_NUMBERS = 400_000  # in a sheet, at most
_POINTS = 500  # data that can be clicked, at most
_POINT_NUMBERS = 400_000  # in all their values, at most
_PLACES = 64  # at which a live decoder is compared with the model
_SLIDERS = 10
_STEPS = 11
_CHOSEN = 4  # data with traversals


def plane(fit: Fit) -> dict[str, Any]:
    """Make the content of the interactive part for page.js.

    Args:
        fit: Trained model.

    Raises:
        ValueError: If the model has no real latents.
    """
    codes, image = fit.codes, is_image(fit.data.shape)
    size = len(fit.columns.decoded_names)
    count = max(2, min(_POINTS, len(fit.x), _POINT_NUMBERS // size))
    order = fit.order
    order = sorted(order) if len(order) < 3 else order
    dims = order[:2]
    median = codes.prior.median(0).values
    places = _places(fit)
    live = live_decoder(fit.vae.model, fit.decode, places, _covariates(fit))
    means = fit.decode(places)
    sheet: dict[str, Any] | None = None
    traversals: dict[str, Any] | None = None
    if live is None and len(codes.names) == 2:
        nodes = [_nodes(codes.quantiles[:, j], codes.mean[:, j], size) for j in dims]
        x, y = nodes
        z = median.repeat(len(y), len(x), 1)
        z[..., dims[0]], z[..., dims[1]] = x, y[:, None]
        means = fit.decode(z.flatten(0, 1))
        sheet = {"nodes": [x.tolist(), y.tolist()], "means": means.reshape(len(y), len(x), -1)}
    elif live is None:
        traversals = _traversals(fit, order[:_SLIDERS])
        means = traversals["means"].flatten(0, 2)
    scale = DataScale.of([means, fit.columns.as_decoded(fit.x[:count])], image=image)
    if sheet is not None:
        sheet["means"] = scale.pack(sheet["means"])
    if traversals is not None:
        traversals["means"] = scale.pack(traversals["means"])
    low = torch.minimum(codes.quantiles[0], codes.mean.amin(0))
    high = torch.maximum(codes.quantiles[-1], codes.mean.amax(0))
    return {
        "names": list(codes.names),
        "dims": dims,
        "sliders": order[: _SLIDERS if live is None else 2 * _SLIDERS],
        "range": torch.stack([low, high], 1).tolist(),
        "start": median.tolist(),
        "split": fit.split,
        "image": list(fit.data.shape) if image else None,
        "columns": [] if image else fit.columns.decoded_names,
        "scale": scale.to_json(),
        "points": _points(fit, scale, count),
        "live": None if live is None else live.to_json(),
        "sheet": sheet,
        "traversals": traversals,
    }


def decoder_of(fit: Fit) -> tuple[LiveDecoder | None, Tensor, Tensor]:
    """Return the live decoder of a fit, if any, with the places of its comparison and the model's means there."""
    places = _places(fit)
    return live_decoder(fit.vae.model, fit.decode, places, _covariates(fit)), places, fit.decode(places)


def _covariates(fit: Fit) -> Tensor | None:
    """Return the covariates of the datum whose means are decoded, with shape (C,); None if there are none."""
    return None if fit.data.covariates is None else fit.data.covariates[fit.split][0]


def _places(fit: Fit) -> Tensor:
    """Return codes and draws from the prior in equal parts, with shape (M, J)."""
    codes = fit.codes
    rows = torch.linspace(0, len(codes.mean) - 1, _PLACES // 2).long()
    return torch.cat([codes.mean[rows], codes.prior[: _PLACES // 2]])


def _nodes(quantiles: Tensor, means: Tensor, size: int) -> Tensor:
    """Return places along an axis of a sheet: quantiles of the prior, and beyond them where codes lie."""
    steps = _SHEET
    while steps > 5 and (steps + 2 * _BEYOND) ** 2 * size > _SHEET_NUMBERS:
        steps -= 2
    chosen = quantiles[torch.linspace(0, len(quantiles) - 1, steps).round().long()]
    low, high = float(means.amin()), float(means.amax())
    parts = [chosen]
    if low < float(chosen[0]):
        parts.insert(0, torch.linspace(low, float(chosen[0]), _BEYOND + 1, dtype=chosen.dtype)[:-1])
    if high > float(chosen[-1]):
        parts.append(torch.linspace(float(chosen[-1]), high, _BEYOND + 1, dtype=chosen.dtype)[1:])
    return torch.cat(parts).unique()


def _traversals(fit: Fit, dims: list[int]) -> dict[str, Any]:
    """Decode lines through the codes of a few data, along each dimension through the prior's quantiles."""
    codes = fit.codes
    chosen = torch.linspace(0, len(codes.mean) - 1, _CHOSEN).round().long().unique()
    steps = torch.linspace(0, len(codes.levels) - 1, _STEPS).round().long()
    z = codes.mean[chosen][:, None, None].repeat(1, len(dims), len(steps), 1)
    for place, j in enumerate(dims):
        z[:, place, :, j] = codes.quantiles[steps, j]
    means = fit.decode(z.flatten(0, 2)).reshape(*z.shape[:3], -1)
    nodes = [codes.quantiles[steps, j].tolist() for j in dims]
    return {"data": chosen.tolist(), "nodes": nodes, "means": means}


def _points(fit: Fit, scale: DataScale, count: int) -> dict[str, Any]:
    """Return the data that can be clicked: codes, classes, rows in the source, values."""
    x, index = fit.columns.as_decoded(fit.x[:count]), getattr(fit.data, f"{fit.split}_index")
    labels = [] if fit.labels is None else fit.labels[:count].tolist()
    return {
        "z": pack(fit.codes.mean[:count], "f4"),
        "values": scale.pack(x),
        "missing": pack(x.isnan().double(), "u1") if bool(x.isnan().any()) else None,
        "rows": index[:count].tolist(),
        "labels": labels,
        "labelNames": fit.label_names,
    }
