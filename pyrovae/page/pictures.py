"""Pictures of the page, in its order.

To add a picture, write a function from a `Fit` to blocks, with a caption and an alt text that says what is seen, and
add it to `PICTURES`. It yields nothing where the picture makes no sense.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyrovae.columns import LEVELLED
from pyrovae.diagnostics import decoded_grid
from pyrovae.page.blocks import Block, Picture, Table
from pyrovae.page.epoch_pictures import by_epoch
from pyrovae.page.fit import Fit
from pyrovae.plots import (
    is_image,
    is_skewed,
    plot_codes,
    plot_columns,
    plot_decoded_grid,
    plot_grids,
    plot_history,
    reconstructions,
)

_IMAGES = 40  # in a grid of samples
_COLUMNS = 24  # of a table or an array in one picture
_GRID_PIXELS = 320  # along a side of a decoded grid


def training(fit: Fit) -> Iterator[Block]:
    """Training curves."""
    history = fit.history
    known = [value for value in history["validation_elbo"] if value is not None]
    if not known:
        return
    way = "rises" if known[-1] > known[0] else "falls"
    alt = (
        f"The validation ELBO {way} from {known[0]:.1f} in epoch 1 to {known[-1]:.1f} in epoch {len(known)}; the epoch "
        f"kept is {history.best_epoch}."
    )
    caption = "ELBO per datum by epoch. The training curve is a mean while the weights change."
    yield Picture("Training", plot_history(history), caption, alt)
    parts = [value for value in history["validation_kl"] if value is not None]
    if parts:
        alt = f"The KL divergence goes from {parts[0]:.1f} to {parts[-1]:.1f} nats."
        caption = "KL(q(z|x), p(z)) per datum of the validation data. At 0 the latents carry nothing."
        yield Picture("Cost of the code", plot_history(history, part="kl"), caption, alt)


def codes(fit: Fit) -> Iterator[Block]:
    """Codes by label, beside the prior."""
    if len(fit.codes.names) < 2:
        return
    dims, names = _dims(fit), fit.label_names
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
        yield Picture(f"Codes, {'draws' if draws else 'means'}", picture, caption, _where(fit, z))


def decoded(fit: Fit) -> Iterator[Block]:
    """Decoded grid over latent space."""
    if len(fit.codes.names) < 2:
        return
    dims, shape = _dims(fit), fit.data.shape
    if not is_image(shape) and (fit.x.shape[1] > 200 or fit.column_names):
        return
    count = max(5, min(11, _GRID_PIXELS // shape[-1])) if is_image(shape) else 7
    steps = torch.linspace(0, len(fit.codes.levels) - 1, count).round().long()
    args, kwargs = fit.arguments(slice(0, 1))
    x, y = (fit.codes.quantiles[steps, j] for j in dims)
    grid = decoded_grid(fit.vae.model, *args, codes=fit.codes, dims=dims, places=(x, y), **kwargs)
    change = (grid.means[:, 1:] - grid.means[:, :-1]).abs().mean(), (grid.means[1:] - grid.means[:-1]).abs().mean()
    alt = (
        f"From cell to cell the mean changes by {change[0]:.3g} on average along {grid.names[0]} and by "
        f"{change[1]:.3g} along {grid.names[1]}; all means lie from {grid.means.min():.3g} to {grid.means.max():.3g}."
    )
    caption = "Means E[x|z] through the prior's quantiles from 0.5 to 99.5 %, in steps of equal prior shares."
    if not is_image(shape):
        caption += " Lines run over the columns" + (", log(1 + x)." if is_skewed(grid.means) else ".")
    caption += " The other latents are at the prior's medians." if grid.others else ""
    caption += " Covariates are those of the first datum." if fit.data.covariates is not None else ""
    yield Picture("Decoded grid", plot_decoded_grid(grid, shape), caption, alt)


def samples(fit: Fit) -> Iterator[Block]:
    """Samples and reconstructions."""
    if not is_image(fit.data.shape):
        return
    (x,), kwargs = fit.arguments(slice(0, _IMAGES))
    again = reconstructions(fit.vae.model, fit.vae.guide, x, seed=fit.seed, **kwargs)
    both = torch.stack([x, again], 1).flatten(0, 1)[:_IMAGES]
    error = (again - x).square().nanmean().sqrt()
    yield Picture(
        "Data and reconstructions",
        plot_grids([("", both)], fit.data.shape),
        f"Pairs: a {fit.split} datum, and to its right the mean E[x|z] at one draw z of q(z|x).",
        f"{len(both) // 2} pairs; the root mean square difference in a pair is {error:.3g}.",
        pixels=True,
    )
    drawn = fit.samples[:_IMAGES]
    yield Picture(
        "Samples",
        plot_grids([("", drawn)], fit.data.shape),
        "Draws from the model: z from the prior, x from p(x|z).",
        f"{len(drawn)} draws; their mean value is {drawn.mean():.3g}, that of the data {fit.x.nanmean():.3g}.",
        pixels=True,
    )


def columns(fit: Fit) -> Iterator[Block]:
    """Columns of data beside draws from the model."""
    if is_image(fit.data.shape):
        return
    names = fit.column_names
    kinds = ["real"] * fit.x.shape[1] if fit.data.table is None else [c.kind for c in fit.data.table.columns.data]
    places = [d for d, kind in enumerate(kinds) if kind not in LEVELLED][:_COLUMNS]
    if places:
        data, drawn = fit.x[:, places], fit.samples[:, places]
        named = None if names is None else [names[d] for d in places]
        off = _largest_shift(data, drawn)
        label = f"column {places[off[0]]}" if names is None else names[places[off[0]]]
        caption = f"Columns of {len(data):,} {fit.split} data beside draws of the model: median, quartiles, 5 to 95 %."
        alt = f"The medians differ most in {label}, by {off[1]:.2f} standard deviations of the data."
        yield Picture("Columns", plot_columns(data, drawn, names=named), caption, alt)
    rows = [row for d, kind in enumerate(kinds) if kind in LEVELLED for row in _shares(fit, d)]
    if rows:
        yield Table("Shares of levels, in the data and in draws from the model.", ["", "data", "model"], rows)


PICTURES: tuple[Callable[[Fit], Iterator[Block]], ...] = (training, codes, by_epoch, decoded, samples, columns)
"""Pictures in the order of the page."""


def _dims(fit: Fit) -> tuple[int, int]:
    """Return both dimensions of a 2-D latent, else the two with the largest KL divergence."""
    first, second = (0, 1) if len(fit.codes.names) == 2 else fit.order[:2]
    return first, second


def _where(fit: Fit, z: Tensor) -> str:
    """Say where codes lie, with shape (N, 2): the classes farthest left, right, down and up, or their spread."""
    spread = z.std(0) / fit.codes.prior[:, _dims(fit)].std(0)
    text = f"The codes spread {spread[0]:.2f} and {spread[1]:.2f} times as far as the prior."
    if fit.labels is None:
        return text
    classes = [int(label) for label in fit.labels.unique() if label >= 0]
    if len(classes) < 2:
        return text
    medians = torch.stack([z[fit.labels == label].median(0).values for label in classes])
    ends = [(medians[:, 0].argmin(), "left"), (medians[:, 0].argmax(), "right")]
    ends += [(medians[:, 1].argmin(), "bottom"), (medians[:, 1].argmax(), "top")]
    said = ", ".join(f"{fit.label_names[classes[int(place)]]} {side}" for place, side in ends)
    return f"{text} Farthest out are the classes {said}."


def _largest_shift(data: Tensor, draws: Tensor) -> tuple[int, float]:
    """Return the column whose median differs most, and by how many standard deviations of the data."""
    spread = (data - data.nanmean(0)).square().nanmean(0).sqrt()
    shift = (data.nanmedian(0).values - draws.nanmedian(0).values).abs() / spread.where(spread > 0, torch.ones(()))
    place = int(shift.nan_to_num(0.0).argmax())
    return place, float(shift[place])


def _shares(fit: Fit, d: int) -> list[list[str]]:
    assert fit.data.table is not None
    column, seen = fit.data.table.columns.data[d], fit.x[:, d][~fit.x[:, d].isnan()]
    drawn = fit.samples[:, d]

    def share(values: Tensor, code: int) -> str:
        return f"{100 * float((values == code).double().mean()):.1f} %"

    levels = enumerate(column.levels[:12])
    return [[f"{column.name}: {level}", share(seen, code), share(drawn, code)] for code, level in levels]
