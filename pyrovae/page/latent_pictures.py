"""Pictures of latent space: codes, decoded places, walks between them, and posteriors of single data.

To add one, write a function from a `Fit` to blocks and add it to `LATENT_PICTURES`. It yields nothing where the picture
makes no sense.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyrovae.diagnostics import OutsideSupportError, decoded_grid
from pyrovae.page.blocks import Block, Folded, Picture
from pyrovae.page.fit import Fit
from pyrovae.plots import (
    is_image,
    is_skewed,
    plot_codes,
    plot_decoded_grid,
    plot_interpolation,
    plot_label_grids,
    plot_latent_posteriors,
    plot_redraws,
    plot_traversals,
    plot_tsne,
)

_GRID_PIXELS = 320  # along a side of a decoded grid
_LONGEST_LINE = 200  # columns of data that are drawn as lines
_POSTERIOR_DIMS = 8
_FEWEST_TSNE = 20  # data


def codes(fit: Fit) -> Iterator[Block]:
    """Codes by label, beside the prior."""
    if len(fit.codes.names) < 2:
        return
    dims, names = fit.dims, fit.label_names
    chosen = "" if len(fit.codes.names) == 2 else " The two latents with the largest KL divergence."
    coloured = " by label" if fit.labels is not None else ""
    for draws, what in ((False, "Posterior means"), (True, "One draw of q(z|x) each")):
        z = (fit.codes.draw if draws else fit.codes.mean)[:, dims]
        picture = plot_codes(fit.codes, dims=dims, labels=fit.labels, names=names, draws=draws)
        use = (
            " Only draws can be compared with the prior, whose contours hold 50, 90 and 99 %."
            if draws
            else " The contours hold 50, 90 and 99 % of the prior."
        )
        caption = f"{what} of {len(z):,} {fit.split} data{coloured}.{chosen}{use}"
        alt = _where(fit, z, fit.codes.prior[:, dims])
        yield Picture(f"Codes, {'draws' if draws else 'means'}", picture, caption, alt)


def components(fit: Fit) -> Iterator[Block]:
    """Codes by principal components."""
    if _num_latents(fit) < 3 or not float(fit.codes.mean.var(0).sum()) > 0:
        return
    found = fit.pca
    coloured = " by label" if fit.labels is not None else ""
    caption = (
        f"Posterior means of {len(found.mean):,} {fit.split} data{coloured}, along the two directions in which they "
        f"vary most of {len(fit.codes.names)} dimensions. The contours hold 50, 90 and 99 % of the prior's draws, put "
        "through the same map."
    )
    alt = f"The two components have {100 * float(found.share.sum()):.0f} % of the variance. "
    alt += _where(fit, found.mean, found.prior)
    picture = plot_codes(found, labels=fit.labels, names=fit.label_names)
    yield Picture("Codes by principal components", picture, caption, alt)


def neighbours(fit: Fit) -> Iterator[Block]:
    """Codes by t-SNE."""
    if _num_latents(fit) < 3 or len(fit.x) < _FEWEST_TSNE or not float(fit.codes.mean.var(0).sum()) > 0:
        return
    found = fit.tsne
    places, labels = found.places, None if fit.labels is None else fit.labels[: len(found.places)]
    alt = f"{len(places)} codes; the KL divergence between their neighbourhoods and the drawn ones is "
    alt += f"{found.divergence:.2f} nats."
    if labels is not None and len(fit.classes) > 1:
        distance = torch.cdist(places, places).fill_diagonal_(torch.inf)
        same = (labels[distance.argmin(1)] == labels)[labels >= 0]
        alt += f" The nearest neighbour of {100 * float(same.double().mean()):.0f} % of them has their own class."
    caption = f"Posterior means of {len(places):,} {fit.split} data in all dimensions. {found.caution}"
    picture = plot_tsne(found, labels=labels, names=fit.label_names)
    picture.set_xlabel("")  # the caution, which is in the caption
    yield Folded("Codes by t-SNE, which is not a map", [Picture("Codes by t-SNE", picture, caption, alt)])


def decoded(fit: Fit) -> Iterator[Block]:
    """Decoded grid over latent space."""
    if _num_latents(fit) < 2 or not _drawable(fit):
        return
    dims, shape = fit.dims, fit.data.shape
    count = max(5, min(11, _GRID_PIXELS // shape[-1])) if is_image(shape) else 7
    steps = torch.linspace(0, len(fit.codes.levels) - 1, count).round().long()
    args, kwargs = fit.arguments(slice(0, 1))
    x, y = (fit.codes.quantiles[steps, j] for j in dims)
    grid = decoded_grid(fit.vae.model, *args, codes=fit.codes, dims=dims, places=(x, y), **kwargs)
    grid = grid._replace(means=fit.columns.on_one_scale(grid.means))
    change = (grid.means[:, 1:] - grid.means[:, :-1]).abs().mean(), (grid.means[1:] - grid.means[:-1]).abs().mean()
    alt = (
        f"From cell to cell the mean changes by {change[0]:.3g} on average along {grid.names[0]} and by "
        f"{change[1]:.3g} along {grid.names[1]}; all means lie from {grid.means.min():.3g} to {grid.means.max():.3g}."
    )
    caption = "Means E[x|z] through the prior's quantiles from 0.5 to 99.5 %, in steps of equal prior shares."
    caption += _lines(fit, grid.means)
    caption += " The other latents are at the prior's medians." if grid.others else ""
    caption += _given(fit, "the first datum")
    yield Picture("Decoded grid", plot_decoded_grid(grid, shape), caption, alt)


def grids_by_label(fit: Fit) -> Iterator[Block]:
    """Decoded grids by label."""
    if _num_latents(fit) < 2 or not _drawable(fit) or not fit.label_covariates:
        return
    found = fit.label_grids
    on_one_scale = fit.columns.on_one_scale
    found = found._replace(grids=tuple(grid._replace(means=on_one_scale(grid.means)) for grid in found.grids))
    means = torch.stack([grid.means for grid in found.grids])  # (L, H, W, D)
    between, within = means.std(0).mean(), means.flatten(1, 2).std(1).mean()
    mean = means.flatten(1).mean(1)
    low, high = found.labels[int(mean.argmin())], found.labels[int(mean.argmax())]
    alt = (
        f"At one place the means of {len(means)} labels have a standard deviation of {between:.3g}, those of one label "
        f"over all places {within:.3g}. The mean value is smallest for {low}, {mean.min():.3g}, and largest for "
        f"{high}, {mean.max():.3g}."
    )
    more = len(fit.label_covariates) - len(found.labels)
    caption = (
        f"Means E[x|z, label] over {found.grids[0].names[0]} (to the right) and {found.grids[0].names[1]} (upwards), "
        "through the quantiles from 2.5 to 97.5 % of the prior given the label. Equal places have equal z."
    )
    caption += _lines(fit, means) + (f" {more} more labels are not shown." if more else "")
    yield Picture("Decoded grid of each label", plot_label_grids(found, fit.data.shape), caption, alt)


def traversals(fit: Fit) -> Iterator[Block]:
    """Walks along single latents."""
    if not _num_latents(fit) or not _drawable(fit):
        return
    try:
        found = fit.traversals
    except OutsideSupportError:  # no latent of a simplex can move alone
        return
    found = found._replace(means=fit.columns.on_one_scale(found.means))
    change = (found.means[:, -1] - found.means[:, 0]).abs().mean(-1)
    said = [
        f"{name}{f', with {kl:.2f} nats,' if kl == kl else ''} {size:.3g}"
        for name, kl, size in zip(found.names, found.kl.tolist(), change.tolist(), strict=True)
    ]
    alt = f"From the left end to the right one an entry of the mean changes on average along {'; '.join(said)}."
    total = len(fit.codes.names)
    rows = f"the {len(found.names)} of {total} latents" if len(found.names) < total else "each latent"
    caption = (
        f"Means E[x|z] along {rows} with the largest KL divergence, which stands at the row, through the prior's "
        f"quantiles. The others stay at the code of a datum ({_name(fit, fit.chosen[0])})."
    ).replace("each latent with the largest KL divergence, which", "each latent, by falling KL divergence, which")
    caption += _lines(fit, found.means) + _given(fit, "this datum")
    yield Picture("Traversals", plot_traversals(found, fit.data.shape), caption, alt)


def posteriors(fit: Fit) -> Iterator[Block]:
    """Posteriors of single data."""
    if not _num_latents(fit) or len(fit.chosen) < 2:
        return
    found, names = fit.latent_posteriors, [_name(fit, row) for row in fit.chosen]
    dims = fit.order[:_POSTERIOR_DIMS]
    width = (1 - found.contraction[:, dims]).clamp(min=0).sqrt()  # (N, dims), of the prior's
    said = []
    for side, place in (("narrowest", int(width.argmin())), ("widest", int(width.argmax()))):
        n, j = divmod(place, len(dims))
        said.append(f"{side} in {found.names[dims[j]]} of {names[n]}, {width[n, j]:.2f} times as wide as the prior")
    outside = (found.posterior[2] < found.prior[0]) | (found.posterior[2] > found.prior[-1])
    alt = (
        f"The posterior is {' and '.join(said)}. {int(outside[:, dims].sum())} of {len(names) * len(dims)} medians lie "
        "outside the middle 90 % of the prior."
    )
    what = "the first of their classes" if fit.classes[1:] else "named by their rows in the source"
    caption = (
        f"q(z|x) of {len(names)} {fit.split} data, {what}: thin from 5 to 95 %, thick the quartiles, a mark at the "
        "median. Grey is the prior, in the same steps. Latents by falling KL divergence."
    )
    caption += f" {len(found.names) - len(dims)} latents are not shown." if len(found.names) > len(dims) else ""
    yield Picture("Posteriors of single data", plot_latent_posteriors(found, names=names, dims=dims), caption, alt)


def interpolation(fit: Fit) -> Iterator[Block]:
    """Way between two data."""
    if not _num_latents(fit) or not _drawable(fit):
        return
    found, names = fit.interpolation, [_name(fit, row) for row in fit.ends]
    if names[0] == names[1]:
        names = [f"{name}, {_row(fit, row)}" for name, row in zip(names, fit.ends, strict=True)]
    found = found._replace(means=fit.columns.on_one_scale(found.means))
    middle = len(found.share) // 2
    means, log_p = found.means[0], found.log_prior[0]
    away = [(means[middle] - means[end]).square().mean().sqrt() for end in (0, -1)]
    alt = (
        f"Halfway on the straight line the mean differs by {away[0]:.3g} (root mean square) from {names[0]} and by "
        f"{away[1]:.3g} from {names[1]}; log p(z) goes from {log_p[0]:.1f} over {log_p[middle]:.1f} to "
        f"{log_p[-1]:.1f}."
    )
    caption = (
        f"Means E[x|z] from the code of a datum ({names[0]}) to that of another ({names[1]}); in the middle is what "
        f"lies halfway between {names[0]} and {names[1]}."
    )
    if len(found.kinds) > 1:
        caption += " The lower row turns about the prior's mean, where draws of the prior are."
    caption += _lines(fit, means) + _given(fit, "the first of them")
    picture = plot_interpolation(found, fit.data.shape, names=(names[0], names[1]))
    yield Picture("Interpolation", picture, caption, alt)


def redraws(fit: Fit) -> Iterator[Block]:
    """One datum, many encodings."""
    if not _num_latents(fit) or not _drawable(fit):
        return
    found = fit.redraws
    x, means = (fit.columns.on_one_scale(values) for values in (found.x, found.means))
    found = found._replace(x=x, means=means, spread=means.std(0))
    error = (found.means - found.x).square().nanmean().sqrt()
    alt = (
        f"The {len(found.means)} means differ among each other by {found.spread.mean():.3g} on average over entries, "
        f"at most by {found.spread.max():.3g} (standard deviations), and from the datum by {error:.3g} (root mean "
        "square)."
    )
    caption = (
        f"A datum ({_name(fit, fit.chosen[0])}), framed, and what the guide leaves open about it: means E[x|z] at "
        "draws z of q(z|x)."
    )
    caption += _lines(fit, found.means)
    yield Picture("One datum, many codes", plot_redraws(found, fit.data.shape), caption, alt)


LATENT_PICTURES: tuple[Callable[[Fit], Iterator[Block]], ...] = (
    codes,
    components,
    decoded,
    neighbours,
    grids_by_label,
    traversals,
    interpolation,
    redraws,
    posteriors,
)
"""Pictures of latent space in the order of the page."""


def _num_latents(fit: Fit) -> int:
    """Return the number of dimensions of the codes; 0 if there are no codes, which the picture of codes says."""
    return len(fit.codes.names) if fit.has_codes else 0


def _name(fit: Fit, row: int) -> str:
    """Name one of the data by its class, or by its row in the source if there are no classes."""
    if fit.labels is None or len(fit.classes) < 2:
        return _row(fit, row)
    return fit.label_names[int(fit.labels[row])]


def _row(fit: Fit, row: int) -> str:
    return f"row {int(getattr(fit.data, f'{fit.split}_index')[row])}"


def _drawable(fit: Fit) -> bool:
    """Whether decoded means can be drawn: images, or lines over columns."""
    return is_image(fit.data.shape) or (fit.x.shape[1] <= _LONGEST_LINE and not fit.columns.of_table)


def _lines(fit: Fit, means: Tensor) -> str:
    """Say how data are drawn that are no images."""
    if is_image(fit.data.shape):
        return ""
    if fit.columns.in_several_units:
        return " Lines run over the columns, each in standard deviations of the data from their mean."
    return " Lines run over the columns" + (", log(1 + x)." if is_skewed(means) else ".")


def _given(fit: Fit, whose: str) -> str:
    return f" Covariates are those of {whose}." if fit.data.covariates is not None else ""


def _where(fit: Fit, z: Tensor, prior: Tensor) -> str:
    """Say where codes lie, with shape (N, 2): the classes farthest left, right, down and up, or their spread."""
    spread = z.std(0) / prior.std(0)
    text = f"The codes spread {spread[0]:.2f} and {spread[1]:.2f} times as far as the prior."
    if fit.labels is None or len(fit.classes) < 2:
        return text
    medians = torch.stack([z[fit.labels == label].median(0).values for label in fit.classes])
    ends = [(medians[:, 0].argmin(), "left"), (medians[:, 0].argmax(), "right")]
    ends += [(medians[:, 1].argmin(), "bottom"), (medians[:, 1].argmax(), "top")]
    said = ", ".join(f"{fit.label_names[fit.classes[int(place)]]} {side}" for place, side in ends)
    return f"{text} Farthest out are the classes {said}."
