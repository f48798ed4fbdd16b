"""Scores of rows: log p(x), its rank among training rows, and the column that makes a row odd."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Table
from pyrovae.densities import nonfinite_sites, take
from pyrovae.evidence import Score, rank_among, score
from pyrovae.programs import ProgramPair
from pyrovae.runs.table_files import trained_rows
from pyrovae.stats import mean_and_std_error

MOST_PATTERNS = 50  # of missing cells whose ranks are computed
FEWEST_REFERENCES = 20  # training rows below which a rank says nothing
_MOST_REASONS = 10  # printed
_AT_ONCE = 256  # rows that are compared with all training rows at once
_REFERENCE_DRAWS = 200  # per training row, at most
_REFERENCES_AT_ONCE = 2000  # training rows that are scored together, about

SCORE_NAMES = (
    *("row", "log_marginal", "std_error", "khat", "observed", "rank", "references", "share_below"),
    *("worst_column", "worst_log_p", "worst_std_error", "worst_khat", "worst_share_below", "trained_on", "reason"),
)
CELL_NAMES = ("row", "column", "log_p", "std_error", "khat", "share_below")


@dataclass(frozen=True)
class RowScores:
    """Scores of N rows and their cells.

    Attributes:
        columns: Names of the D columns.
        score: Log p(x) of the rows, and of each cell given the others.
        below: Number of training rows that are less probable in the same columns, with shape (N,), float64; NaN if they
            were not compared.
        references: Number of training rows compared, with shape (N,), int64.
        cells_below: Share of the training rows whose cell is less probable given the others, with shape (N, D); NaN
            for missing cells, and rows that were not compared.
        mask: Whether each cell is observed, with shape (N, D), bool.
        trained: Whether each row equals a training row, with shape (N,), bool.
        reasons: Why a row, counted from 0, has no log p(x).
    """

    columns: tuple[str, ...]
    score: Score
    below: Tensor
    references: Tensor
    cells_below: Tensor
    mask: Tensor
    trained: Tensor
    reasons: Mapping[int, str]

    @property
    def worst(self) -> Tensor:
        """Column of each row with the smallest share, with shape (N,), int64; -1 if there is none.

        Of equal shares the column with the smaller log p comes first.
        """
        log_p = self.score.conditional
        order = torch.where(self.cells_below.isnan(), torch.inf, self.cells_below)
        ties = order == order.amin(1, keepdim=True)
        place = torch.where(ties & order.isfinite(), log_p, torch.inf).argmin(1)
        return torch.where(order.isfinite().any(1), place, -1)

    def rows(self) -> Iterator[Sequence[Any]]:
        """Iterate over the rows of scores.csv, whose columns are `SCORE_NAMES`; rows of the file count from 1."""
        marginal, worst = self.score.log_marginal, self.worst.tolist()
        observed = self.mask.sum(1).tolist()
        for n, place in enumerate(worst):
            count, below = int(self.references[n]), float(self.below[n])
            known = count > 0 and not math.isnan(below)
            cell = (self.score.conditional, self.score.std_error, self.score.khat, self.cells_below)
            yield (
                n + 1,
                *(_known(value[n]) for value in (marginal.value, marginal.std_error, marginal.khat)),
                observed[n],
                *((int(below) + 1, count, below / count) if known else (None, count, None)),
                *((self.columns[place], *(float(value[n, place]) for value in cell)) if place >= 0 else (None,) * 5),
                "yes" if self.trained[n] else "no",
                self.reasons.get(n),
            )

    def cells(self) -> Iterator[Sequence[Any]]:
        """Iterate over the rows of cells.csv, whose columns are `CELL_NAMES`: every observed cell."""
        found = (self.score.conditional, self.score.std_error, self.score.khat, self.cells_below)
        for n in range(len(self.below)):
            for d, name in enumerate(self.columns):
                if not self.score.conditional[n, d].isnan():
                    yield n + 1, name, *(float(value[n, d]) for value in found)


def score_rows(
    vae: ProgramPair,
    table: Table,
    reference: Table,
    training: Table,
    *,
    num_particles: int,
    chunk_size: int | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> RowScores:
    """Score the rows of a table, and compare each with training rows in the columns that it has.

    Log p(x) of rows with different missing cells are of different columns, and no order of them means anything. So the
    training rows that have all cells of a row are scored without their other cells. A row whose log p(x) is NaN has no
    rank, and a reason.

    Args:
        vae: Trained model.
        table: N rows.
        reference: Training rows that rows are compared with.
        training: All training rows.
        num_particles: Number of draws K per row; training rows have at most 200.
        chunk_size: Number of latents decoded at once.
        device: Device of the model.
        on_progress: Function that is called with the number of further rows that are done.

    Raises:
        ValueError: If the likelihood is no product over columns, or as `score`.
    """
    given = _arguments(table, table.mask, device)
    found = _on_cpu(_score(vae, given, num_particles=num_particles, chunk_size=chunk_size))
    below, references, cells_below = _compare(
        vae,
        found,
        table,
        reference,
        num_particles=min(num_particles, _REFERENCE_DRAWS),
        chunk_size=chunk_size,
        device=device,
        on_progress=on_progress,
    )
    names = tuple(column.name for column in table.columns.data)
    bad = found.log_marginal.value.isnan().nonzero().flatten().tolist()
    reasons = {n: _reason(vae, given, n) for n in bad}
    return RowScores(names, found, below, references, cells_below, table.mask, trained_rows(table, training), reasons)


def _compare(
    vae: ProgramPair,
    found: Score,
    table: Table,
    reference: Table,
    *,
    num_particles: int,
    chunk_size: int | None,
    device: torch.device | str,
    on_progress: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the scores of rows with those of training rows in the same columns.

    Returns:
        `below`, `references` and `cells_below` of `RowScores`.
    """
    masks = table.mask
    below, references = torch.full((len(table),), torch.nan, dtype=torch.float64), torch.zeros(len(table)).long()
    cells_below = torch.full(masks.shape, torch.nan, dtype=torch.float64)
    patterns, of_row = torch.unique(masks, dim=0, return_inverse=True)
    frequent = torch.bincount(of_row).argsort(descending=True)[:MOST_PATTERNS]
    for batch in _batches(reference, [(patterns[one], (of_row == one).nonzero().squeeze(1)) for one in frequent]):
        sizes = [len(part.others) for part in batch]
        if sum(sizes):
            arguments = [_arguments(part.others, part.mask.expand(len(part.others), -1), device) for part in batch]
            joined = {name: torch.cat([one[name] for one in arguments]) for name in arguments[0]}
            known = _on_cpu(_score(vae, joined, num_particles=num_particles, chunk_size=chunk_size))
            log_p_of, conditional_of = known.log_marginal.value.split(sizes), known.conditional.split(sizes)
        for place, (mask, rows, others) in enumerate(batch):
            if on_progress is not None:
                on_progress(len(rows))
            if not len(others):
                continue
            log_p, conditional = log_p_of[place], conditional_of[place][~log_p_of[place].isnan()]
            below[rows] = rank_among(found.log_marginal.value[rows], log_p).rank - 1
            references[rows] = len(conditional)
            for part in rows.split(_AT_ONCE):
                lower = conditional.unsqueeze(0) < found.conditional[part].unsqueeze(1)  # (n, R, D)
                seen = mask & ~found.conditional[part].isnan()
                cells_below[part] = torch.where(seen, lower.double().mean(1), torch.nan)
    return below, references, cells_below


class _Pattern(NamedTuple):
    """Rows with the same missing cells: which cells they have, the rows, and the training rows to compare with."""

    mask: Tensor
    rows: Tensor
    others: Table


def _batches(reference: Table, patterns: Sequence[tuple[Tensor, Tensor]]) -> Iterator[list[_Pattern]]:
    """Find the training rows of each pattern, and join patterns, since many training rows at once share their work.

    Args:
        reference: Training rows.
        patterns: Which cells are observed, with shape (D,), and the rows where they are.

    Yields:
        Patterns with a number of training rows in all. A pattern has none if it has no cell, or fewer than 20.
    """
    batch: list[_Pattern] = []
    for mask, rows in patterns:
        enough = (reference.mask | ~mask).all(1) & mask.any()
        if int(enough.sum()) < FEWEST_REFERENCES:
            enough = torch.zeros_like(enough)
        batch.append(_Pattern(mask, rows, reference.rows(enough)))
        if sum(len(part.others) for part in batch) >= _REFERENCES_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _score(vae: ProgramPair, arguments: Mapping[str, Any], **options: Any) -> Score:
    """Score rows. Those without a value are told by their reasons, not by a warning.

    Raises:
        ValueError: If no row has a value, or as `score`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\d[\d,]* of \d[\d,]* data get NaN")
        return score(vae.model, vae.guide, **arguments, **options)


def _on_cpu(found: Score) -> Score:
    return Score(
        type(found.log_marginal)(*(one.cpu() for one in found.log_marginal)), *(one.cpu() for one in found[1:])
    )


def _reason(vae: ProgramPair, arguments: Mapping[str, Tensor], row: int) -> str:
    """Say why a row has no log p(x)."""
    _, one = take((), arguments, slice(row, row + 1))
    sites = nonfinite_sites(vae.model, vae.guide, (), one)
    named = " and ".join(sites)
    return f"the density of {named} is not finite there" if sites else "a log weight is NaN or unbounded there"


def _known(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def mean_lines(scores: RowScores, weights: Tensor | None) -> list[list[str]]:
    """Return the lines of a table of mean log p(x), over rows that were trained on, held-out rows, and all.

    Rows without log p(x) do not count. If all weights of some rows are 0, they have no mean.

    Args:
        scores: Scores of N rows.
        weights: Case weights, with shape (N,); None for 1.
    """
    value = scores.score.log_marginal.value
    known = ~value.isnan()
    if weights is not None:
        known &= weights > 0
    lines = [["rows", "number", "mean log p(x)", "s.e. data"]]
    parts = {"trained on": scores.trained, "not trained on": ~scores.trained, "all": torch.ones_like(scores.trained)}
    for name, of_part in parts.items():
        rows = known & of_part
        if name == "all" and bool(scores.trained.all() | (~scores.trained).all()):
            continue
        if bool(rows.any()):
            mean, error = mean_and_std_error(value[rows], None if weights is None else weights[rows])
            shown = "-" if math.isnan(error) else f"{error:.2f}"
            lines.append([name, f"{int(rows.sum()):,}", f"{mean:.2f}", shown])
    return lines


def reason_lines(scores: RowScores) -> list[str]:
    """Say which rows, counted from 1, have no log p(x), and why, one line per row, ten at most."""
    lines = [f"row {row + 1:,} has no log p(x): {reason}" for row, reason in scores.reasons.items()]
    more = len(lines) - _MOST_REASONS
    return lines if more <= 0 else [*lines[:_MOST_REASONS], f"{more:,} further rows have none; see scores.csv"]


def choose_rows(table: Table, count: int, seed: int) -> Table:
    """Choose rows at random, or all if there are no more.

    Args:
        table: Table.
        count: Number of rows.
        seed: Random seed.
    """
    if len(table) <= count:
        return table
    chosen = np.random.default_rng(seed).choice(len(table), count, replace=False)
    keep = torch.zeros(len(table), dtype=torch.bool)
    keep[torch.from_numpy(np.sort(chosen))] = True
    return table.rows(keep)


def _arguments(table: Table, mask: Tensor, device: torch.device | str) -> dict[str, Any]:
    return {**table.arguments(device=device), "mask": mask.to(device)}
