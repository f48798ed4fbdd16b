"""Printed tables of evaluations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyrovae.evidence import KHAT_LIMIT

KHAT_DRAWS = 21  # fewer leave no tail to fit


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Format summaries, by name, as the closing table, with log p(x) and ELBO in nats per datum.

    An additional estimate of log p(x) by the guide alone has a separate line.
    """
    return aligned(table_lines(summaries))


def table_lines(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of the closing table, its header first."""
    lines = [["", "ELBO", "log p(x)", "s.e. data", "s.e. MC", "k-hat > 0.7", "bits/dim"]]
    for name, summary in summaries.items():
        marginal, published = summary["log_marginal"], summary.get("log_marginal_guide")
        lines.append(
            [name, _number(summary["elbo"]["mean"], 2), *_marginal(marginal), _number(summary["bits_per_dim"], 4)]
        )
        if published and published["proposal"] != marginal["proposal"]:
            lines.append([f"  L_{published['num_particles']:,}, guide alone", "-", *_marginal(published), "-"])
    return lines


def ladder_lines(summary: Mapping[str, Any]) -> str:
    """Format the ladder: log p(x) from fewer of the same draws, in nats per datum."""
    lines = [["K", "lower bound", "bias corrected", "s.e. MC"]]
    for rung in summary["log_marginal"]["ladder"]:
        numbers = (_number(rung["lower_bound"], 3), _number(rung["bias_corrected"], 3))
        lines.append([f"{rung['num_particles']:,}", *numbers, _number(rung["mc_std_error"], 3)])
    return aligned(lines)


def _marginal(marginal: Mapping[str, Any]) -> list[str]:
    khat = marginal["khat"]
    known = khat is not None and marginal["num_particles"] >= KHAT_DRAWS
    return [
        _number(marginal["mean"], 2),
        _number(marginal["std_error"], 2),
        _number(marginal["mc_std_error"], 3),
        f"{100 * khat['share_above_0.7']:.1f} %" if known else "-",
    ]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Format a table with the first column aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def caution(summary: Mapping[str, Any]) -> str:
    """Explain how reliable the Monte Carlo errors are, by the k-hat of the weights of the chosen proposal."""
    marginal = summary["log_marginal"]
    share, draws = marginal["khat"]["share_above_0.7"], marginal["num_particles"]
    if draws < KHAT_DRAWS:
        return f"k-hat, which judges the Monte Carlo error, needs at least {KHAT_DRAWS} draws, got {draws:g}."
    if not share:
        return "k-hat is below 0.7 for all data. This is no proof of reliable errors: a tail may be missed."
    return (
        f"k-hat is above {KHAT_LIMIT} for {100 * share:.1f} % of the data: few draws carry most of their weight,\n"
        "so their s.e. MC is unreliable and their log p(x) may be too low."
    )


def khat_line(khat: Tensor, num_particles: int, rows: str = "rows") -> str:
    """Say for how many rows k-hat is above 0.7.

    Args:
        khat: k-hat of each row, with shape (N,).
        num_particles: Number of draws K.
        rows: Name of the rows.
    """
    if num_particles < KHAT_DRAWS:
        return f"k-hat, which judges the weights, needs at least {KHAT_DRAWS} draws per row, got {num_particles}"
    count = int((khat > KHAT_LIMIT).sum())
    few = ", whose weights few draws carry" if count else ""
    return f"k-hat is above {KHAT_LIMIT} in {count:,} of {len(khat):,} {rows}{few}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
