"""Pictures of the training by epoch, from the snapshots of the run."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pyrovae.diagnostics import Snapshot
from pyrovae.page.blocks import Block, Folded, Picture, Words
from pyrovae.page.fit import Fit
from pyrovae.plots import (
    is_image,
    plot_codes_by_epoch,
    plot_reconstructions_by_epoch,
    plot_samples_by_epoch,
)

_MOST_LINES = 200  # columns of a datum that is shown as a line


def by_epoch(fit: Fit) -> Iterator[Block]:
    """Codes, samples and reconstructions by epoch."""
    found = fit.snapshots
    if found is None:
        return
    if isinstance(found, str):
        yield Words(f"No pictures by epoch: {found}.")
        return
    split = getattr(fit.data, found.split)
    if int(found.rows.max()) >= len(split):
        yield Words("No pictures by epoch: the snapshots are of other data.")
        return
    if found.reason or not found.by_epoch:
        yield Words(f"No {'further ' * bool(found.by_epoch)}pictures by epoch: {found.reason or 'none was kept'}.")
    if not found.by_epoch:
        return
    x, taken = split[found.rows], found.by_epoch
    size = len(next(iter(taken.values())).mean)
    labels = None if fit.data.labels is None else fit.data.labels[found.split][found.rows][:size]
    yield from _codes(fit, taken, labels, found.split)
    pictures = list(_decoded(fit, taken, x, found.split))
    if pictures:
        yield Folded("Samples and reconstructions by epoch", pictures)


def _codes(fit: Fit, taken: Mapping[int, Snapshot], labels: Tensor | None, split: str) -> Iterator[Block]:
    first, last = min(taken), max(taken)
    names = taken[first].names
    chosen = [names.index(fit.codes.names[j]) for j in fit.order if fit.codes.names[j] in names][:2]
    if len(chosen) < 2:
        return
    dims = (min(chosen), max(chosen)) if len(names) == 2 else (chosen[0], chosen[1])
    spread = [_spread(taken[epoch])[list(dims)].tolist() for epoch in (first, last)]
    alt = (
        f"The codes spread {spread[0][0]:.2g} and {spread[0][1]:.2g} times as far as the prior {_when(first)}, "
        f"{spread[1][0]:.2g} and {spread[1][1]:.2g} times {_when(last)}."
    )
    which = "" if len(names) == 2 else " The two latents with the largest KL divergence of the final model."
    caption = (
        f"Posterior means of {len(taken[first].mean):,} {split} data at {len(taken)} epochs{_coloured(labels)}, on the "
        f"same axes.{which} The grey regions hold 50, 90 and 99 % of the prior."
    )
    figure = plot_codes_by_epoch(
        taken, dims=dims, labels=labels, names=fit.label_names, best_epoch=fit.history.best_epoch
    )
    yield Picture("Codes by epoch", figure, caption, alt, **_SMALL)


def _decoded(fit: Fit, taken: Mapping[int, Snapshot], x: Tensor, split: str) -> Iterator[Block]:
    """Samples and reconstructions, if they have the columns of the data."""
    shape, first, last = fit.data.shape, taken[min(taken)], taken[max(taken)]
    if fit.columns.of_table or first.samples.shape[1:] != x.shape[1:]:
        return
    if not is_image(shape) and x.shape[1] > _MOST_LINES:
        return
    on_one_scale, units = fit.columns.on_one_scale, ""
    if fit.columns.in_several_units:
        units = " Each column is in standard deviations of the data from their mean."
    taken = {
        epoch: one._replace(samples=on_one_scale(one.samples), reconstructions=on_one_scale(one.reconstructions))
        for epoch, one in taken.items()
    }
    x, first, last = on_one_scale(x), taken[min(taken)], taken[max(taken)]
    small = {**_SMALL, "small": len(shape) < 3 or shape[0] == 1}  # colours need more than a palette
    seen = x[~x.isnan()]
    limits, best = (float(seen.min()), float(seen.max())), fit.history.best_epoch
    means = [float(one.samples.clamp(*limits).nanmean()) for one in (first, last)]
    yield Picture(
        "Samples by epoch",
        plot_samples_by_epoch(taken, shape, limits=limits, best_epoch=best),
        f"Means E[x|z] of the same {len(first.samples)} draws of the prior, cut to the range of the data.{units}",
        f"The mean value goes from {means[0]:.3g} {_when(min(taken))} to {means[1]:.3g} {_when(max(taken))}; that of "
        f"the data is {seen.mean():.3g}.",
        **small,
    )
    data = x[: len(first.reconstructions)]
    errors = [(one.reconstructions.clamp(*limits) - data).square().nanmean().sqrt() for one in (first, last)]
    yield Picture(
        "Reconstructions by epoch",
        plot_reconstructions_by_epoch(taken, data, shape, best_epoch=best),
        f"The first row are {split} data, below them their means E[x|z] at one draw z of q(z|x).{units}",
        f"The root mean square difference from the data goes from {errors[0]:.3g} {_when(min(taken))} to "
        f"{errors[1]:.3g} {_when(max(taken))}.",
        **small,
    )


_SMALL: dict[str, Any] = {"pixels": True, "small": True}


def _spread(one: Snapshot) -> Tensor:
    """Compute the standard deviations of the codes over those of the prior, with shape (J,)."""
    return one.mean.double().std(0) / one.prior.double().std(0)


def _when(epoch: int) -> str:
    return f"in epoch {epoch}" if epoch else "before training"


def _coloured(labels: Tensor | None) -> str:
    return "" if labels is None or not bool((labels >= 0).any()) else ", by label"
