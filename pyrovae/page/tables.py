"""Diagnostics of the page, in its order: tables and words.

To add a diagnostic, write a function from a `Fit` to blocks, and add it to `DIAGNOSTICS` with its title. Pictures of
diagnostics are in diagnostic_pictures.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import SupportsFloat

import torch
from torch import Tensor

from pyrovae.page.blocks import Block, Cell, Folded, Number, Picture, Table, Words
from pyrovae.page.diagnostic_checks import pit_tests
from pyrovae.page.diagnostic_pictures import (
    MOST_PIXELS,
    aggregate_picture,
    calibration_pictures,
    khat_pictures,
    latent_pictures,
    predictive_picture,
    transform_picture,
    typical_pictures,
)
from pyrovae.page.digits import in_digits
from pyrovae.page.fit import Fit
from pyrovae.plots import is_image, plot_grids
from pyrovae.stats import mean_and_std_error

_ROWS = 12  # of a table that is not folded
_WORST = 10  # data with the largest k-hat
_COLUMNS = 6  # of such data that are no images
_FOLDED = 40  # rows, at most

_Rows = list[list[Cell]]


def latents(fit: Fit) -> Iterator[Block]:
    """Latent dimensions."""
    codes, collapse = fit.codes, fit.collapse
    verdicts = dict(zip(collapse.labels, collapse.verdict, strict=True))
    rows: _Rows = []
    for j in fit.order:
        spread = codes.sd[:, j].square().mean().sqrt() / codes.prior[:, j].std()
        name = codes.names[j]
        found = [_number(fit.kl[j]), _number(codes.activity[j], 3), _number(spread, 3)]
        rows.append([name, *found, verdicts.get(name, "-")])
    caption = (
        "Latent dimensions by falling KL(q(z_j|x), p(z_j)) in nats; variance of the posterior means, and width of the "
        "posterior, relative to the prior; use."
    )
    yield from _folded(Table(caption, ["", "KL", "activity", "posterior sd / prior sd", "use"], rows))


def aggregate(fit: Fit) -> Iterator[Block]:
    """Aggregate posterior."""
    found = fit.information
    dimensions: _Rows = [
        [label, _number(found.dimension_kl[j], 3), _number(found.dimension_kl_error[j], 3)]
        for j, label in enumerate(found.labels)
    ]
    caption = "KL(q(z_j), p(z_j)) in nats, of the codes of all data together against the prior, by dimension."
    yield from _folded(Table(caption, ["", "nats", "s.e."], dimensions))
    pairs = (
        ("I(x; z) under the guide", found.information),
        ("KL(q(z), p(z))", found.aggregate_kl),
        ("total correlation of q(z)", found.total_correlation),
    )
    rows: _Rows = [
        [name, _number(ends.lower), _number(ends.upper)] for name, ends in pairs if bool(ends.lower.isfinite())
    ]
    yield Table(
        f"All dimensions together, in nats, between two ends, from {found.num_data} data.", ["", "from", "to"], rows
    )
    yield Words(f"I(x; z): {found.words}.")


def bits(fit: Fit) -> Iterator[Block]:
    """Entropies in bits."""
    found = fit.entropies.in_bits()
    rows: _Rows = [
        [label, *(_with_spread(value[j], error[j]) for value, error in _triple(found))]
        for j, label in enumerate(found.labels)
    ]
    total = [_number(value.sum()) for value, _ in _triple(found)]
    rows.append(["sum", *total])
    table = Table(
        "Bits per datum with standard errors: cross-entropy = entropy + KL divergence.",
        ["", "entropy", "cross-entropy", "KL"],
        rows,
    )
    yield Folded("Entropy of the guide by dimension, in bits", [table])


def _triple(found: object) -> list[tuple[Tensor, Tensor]]:
    names = ("entropy", "cross_entropy", "kl")
    return [(getattr(found, name), getattr(found, f"{name}_error")) for name in names]


def gaps(fit: Fit) -> Iterator[Block]:
    """Gaps of the guide."""
    found, rows = fit.refined, _Rows()
    for name, gap in (
        ("log p(x) - ELBO", found.total_gap),
        ("approximation gap", found.approximation_gap),
        ("amortisation gap", found.amortisation_gap),
    ):
        known = gap[gap.isfinite()]
        if len(known) > 1:
            mean, error = mean_and_std_error(known)
            rows.append([name, _number(mean, 3), _number(error, 3), _number(known.max()), _number(len(known), 0)])
    caption = f"Gaps of the guide in nats, over some {fit.split} data."
    yield Table(caption, ["", "mean", "s.e. data", "largest", "data"], rows)


def calibration(fit: Fit) -> Iterator[Block]:
    """Calibration of the guide and of the weights (SBC)."""
    found, weighted = fit.calibration, fit.weighted_calibration
    rows: _Rows = []
    for name, test in found.uniformity.items():
        p = weighted.adjusted.get(name, math.nan)
        shape = {"none": "-", "other": "another shape"}.get(test.shape, test.shape)
        rows.append([name, _cell(found.adjusted[name]), shape, _cell(p)])
    caption = (
        f"p-values of {len(next(iter(found.ranks.values())))} simulations, adjusted for the number of rows: of the "
        "guide, with its fault, and of the log weights."
    )
    yield from _folded(Table(caption, ["", "p, guide", "guide is", "p, weights"], rows))
    yield Words(
        f"Of {found.num_draws} draws, {weighted.ess.median():.1f} count in the test of the weights (median); with few "
        "it has little power."
    )


def predictive(fit: Fit) -> Iterator[Block]:
    """Predictive checks."""
    found = fit.predictive
    order = found.z.abs().nan_to_num(torch.inf).argsort(descending=True, stable=True)[:_FOLDED].tolist()
    rows: _Rows = [
        [
            found.names[m],
            _in_digits(found.observed[m]),
            _in_digits(found.replicated[:, m].mean(), found.replicated[:, m].std()),
            _number(found.p_value[m], 3),
        ]
        for m in order
    ]
    shown = f"The {len(rows)} farthest apart of {len(found.names)} statistics" if rows else "Statistics"
    caption = (
        f"{shown}: data beside {len(found.replicated)} data sets of the model (mean ± sd). The p-values are each for "
        f"itself; together p {_p(found.joint_p_value)}."
    )
    header = ["", "data", "model", "p"]
    yield Table(caption, header, rows[:5])
    if len(rows) > 5:
        yield Folded(f"All {len(rows)} of them", [Table(caption, header, rows)])


def transform(fit: Fit) -> Iterator[Block]:
    """Randomised PIT of columns."""
    if is_image(fit.data.shape) and fit.x.shape[1] > MOST_PIXELS:
        return
    tests = pit_tests(fit)
    rows: _Rows = [
        [name, _cell(p), "-" if test.shape == "none" else test.shape, *(_signed(z) for z in (test.shift, test.spread))]
        for name, test, p in tests[:_FOLDED]
    ]
    caption = (
        f"Columns whose PIT is farthest from uniform, of {len(tests)}: p-value adjusted for their number, fault of the "
        "predictive distribution, z-scores of the mean of the PIT and of its spread."
    )
    yield Folded(
        f"The {len(rows)} columns farthest from uniform, of {len(tests)}",
        [Table(caption, ["", "p", "predicted", "z of mean", "z of spread"], rows)],
    )


def typical(fit: Fit) -> Iterator[Block]:
    """Typicality and foreign data."""
    found = fit.typicality
    u = found.value[~found.value.isnan()]
    shares = torch.histc(u, 5, 0, 1) / len(u)
    yield Table(
        f"Ranks of log p(x) of {len(u)} data among the model's own draws: share in each fifth, 20 % each if the model "
        f"is right (p {_p(found.p_value)}).",
        ["", "lowest", "second", "middle", "fourth", "highest"],
        [["share of data", *(Number(share, f"{100 * share:.0f} %") for share in shares.tolist())]],
    )
    rows: _Rows = []
    for name, one in fit.foreign.items():
        difference = float(one.log_p.nanmean() - one.foreign_log_p.nanmean())
        rows.append([name, _number(one.auc.value, 3), _number(one.auc.std_error, 3), _signed(difference)])
    yield Table(
        "Foreign data: probability (AUC) that log p(x) of a test datum is the larger one, and difference of the means "
        "in nats.",
        ["", "AUC", "s.e.", "difference"],
        rows,
    )


def worst_data(fit: Fit) -> Iterator[Block]:
    """Data that the guide approximates worst."""
    found, places = fit.khat_map, fit.rows(len(fit.khat_map.khat))
    worst = found.worst[:_WORST]
    rows: _Rows = [
        [
            f"{places[int(row['index'])]}",
            _number(row["khat"]),
            _number(row["ess"], 0),
            _with_spread(row["gap"], row["gap_error"]),
            _number(row["log_p"], 1),
        ]
        for row in found.rows(_WORST)
    ]
    header = ["row", "k-hat", "draws that count", "log p(x) - ELBO", "log p(x)"]
    (x,), _ = fit.arguments(places[worst])
    x = x.cpu()
    blocks: list[Block] = []
    if is_image(fit.data.shape):
        blocks.append(
            Picture(
                "Worst data",
                plot_grids([("", x)], fit.data.shape),
                f"The {len(x)} data with the largest k-hat, in the order of the table.",
                f"{len(x)} data, k-hat from {found.khat[worst[-1]]:.2f} to {found.khat[worst[0]]:.2f}; their mean "
                f"value is {in_digits(x.nanmean(), 3)}, that of all {in_digits(fit.x.nanmean(), 3)}.",
                pixels=True,
            )
        )
    else:
        names = fit.columns.names
        header += names[:_COLUMNS]
        rows = [row + _cells(fit, values) for row, values in zip(rows, x, strict=True)]
    caption = (
        f"The worst of {len(found.khat)} data by k-hat of {found.num_particles:,} draws of the guide. "
        f"{found.num_unreliable} are above {found.limit:.2f}."
    )
    yield Folded(f"The worst {len(rows)} data", [Table(caption, header, rows), *blocks])


def _cells(fit: Fit, values: Tensor) -> list[Cell]:
    found: list[Cell] = []
    for d, value in enumerate(values[:_COLUMNS].tolist()):
        levels: Sequence[str] = fit.columns.levels.get(d, ())
        found.append("-" if math.isnan(value) else levels[int(value)] if levels else _in_digits(value))
    return found


Diagnostic = tuple[str, tuple[Callable[[Fit], Iterator[Block]], ...]]

DIAGNOSTICS: tuple[Diagnostic, ...] = (
    ("Predictive checks", (predictive, predictive_picture)),
    ("Predictive distribution of each column (PIT)", (transform, transform_picture)),
    ("Typicality and foreign data", (typical, typical_pictures)),
    ("Latent dimensions", (latents, latent_pictures)),
    ("Information and the aggregate posterior", (aggregate, bits, aggregate_picture)),
    ("Calibration of the guide and of the weights (SBC)", (calibration, calibration_pictures)),
    ("Gaps of the guide", (gaps,)),
    ("Data that the guide approximates worst", (worst_data, khat_pictures)),
)
"""Diagnostics in their order: a title, and functions from a `Fit` to blocks."""


def _folded(table: Table) -> Iterator[Block]:
    """Fold a table of many rows."""
    yield table if len(table.rows) <= _ROWS else Folded(f"{table.caption} {len(table.rows)} rows.", [table])


def _number(value: SupportsFloat, digits: int = 2) -> Number:
    value = float(value)
    return Number(value, f"{value:.{digits}f}" if math.isfinite(value) else "-")


def _signed(value: SupportsFloat) -> Number:
    return Number(float(value), f"{float(value):+.1f}")


def _with_spread(value: SupportsFloat, spread: SupportsFloat) -> Number:
    return Number(float(value), f"{_number(value)} ± {_number(spread)}", float(spread))


def _in_digits(value: SupportsFloat, spread: SupportsFloat | None = None) -> Number:
    if spread is None:
        return Number(float(value), in_digits(value, 4))
    return Number(float(value), f"{in_digits(value, 4)} ± {in_digits(spread, 2)}", float(spread))


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"= {value:.3f}" if value >= 1e-3 else "< 0.001"


def _cell(p: float) -> Number:
    return Number(float(p), _p(p).removeprefix("= "))
