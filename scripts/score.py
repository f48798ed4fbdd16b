"""Score the rows of a table by a trained run: log p(x), rank among training rows, and the column that makes a row odd.

python scripts/score.py runs/survey-001 new.csv
python scripts/score.py runs/survey-001 new.csv --num_particles 5000 --unseen missing --out scores/

Writes scores.csv, one line per row, and cells.csv, log p of every observed cell given the others of its row, in nats.
A row is compared with the training rows in the columns that it has: rank 1 is less probable than all of them. Rows that
equal a training row are marked, since the model knows them: means are printed with and without them.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import math
import sys
from collections.abc import Iterator
from pathlib import Path

from jsonargparse.typing import PositiveInt

from pyrovae.columns import shown
from pyrovae.data import write_csv_rows
from pyrovae.densities import evaluating, isolated_rng
from pyrovae.execution import Progress
from pyrovae.runs import check_folder, find_device, make_run_parser, open_run, parse_flags, run_script, with_name_lists
from pyrovae.runs.report import unseen_lines
from pyrovae.runs.table_files import add_table_flags, check_not_input, read_new_rows, trained_line
from pyrovae.runs.table_scores import (
    CELL_NAMES,
    FEWEST_REFERENCES,
    MOST_PATTERNS,
    SCORE_NAMES,
    RowScores,
    choose_rows,
    mean_lines,
    reason_lines,
    score_rows,
)
from pyrovae.runs.tables import aligned, khat_line

_SHOWN = 10  # rows that are printed


def main() -> int:
    """Write scores.csv and cells.csv, and print the least probable rows."""
    parser = make_run_parser(prog="score.py", description=__doc__)
    parser.add_argument("table", type=str, help="CSV, TSV or Parquet file with the columns of the run")
    parser.add_argument("--num_particles", type=PositiveInt, default=1000, help="draws K per row for log p(x)")
    parser.add_argument("--references", type=PositiveInt, default=200, help="training rows to compare with, at most")
    add_table_flags(parser)
    parser.add_argument(
        "--chunk_size", type=PositiveInt | None, default=None, help="latents decoded at once (default: 8192)"
    )
    args = parse_flags(parser, with_name_lists(sys.argv[1:]))

    out = Path(args.out or args.run)
    check_folder("--out", out)
    check_not_input(args.table, out, ("scores.csv", "cells.csv"))
    run, vae, data = open_run(args)
    new = read_new_rows(run, args.table, unseen=args.unseen, na_values=args.na_values)
    assert data.table is not None
    training = data.table.part("train")
    reference = choose_rows(training, args.references, args.seed)
    with Progress(len(new.table), "row", "log p(x)") as progress, isolated_rng(args.seed), evaluating(vae):
        scores = score_rows(
            vae,
            new.table,
            reference,
            training,
            num_particles=args.num_particles,
            chunk_size=args.chunk_size,
            device=find_device(args.device),
            on_progress=progress.update,
        )
    out.mkdir(parents=True, exist_ok=True)
    write_csv_rows(out / "scores.csv", SCORE_NAMES, scores.rows())
    write_csv_rows(out / "cells.csv", CELL_NAMES, scores.cells())
    marginal = scores.score.log_marginal
    print(f"\n{len(new.table):,} rows of {args.table}, K = {args.num_particles:,} draws each; nats")
    means = mean_lines(scores, new.table.weights)
    print(aligned(means) if len(means) > 1 else "no row has a case weight above 0 and a log p(x), so there is no mean")
    print(khat_line(marginal.khat, args.num_particles))
    if new.table.columns.of_role("weight"):
        given = new.table.weights is not None
        print(
            "means and their s.e. are "
            + ("weighted by" if given else "unweighted, since the file lacks")
            + " case weights"
        )
    for note in new.table.notes.get("", ()):
        print(note)
    print(f"{trained_line(scores.trained, 'log p(x)')}\n")
    print(aligned([*_oddest(scores)]))
    for line in reason_lines(scores):
        print(line)
    for line in unseen_lines(new.table):
        print(line)
    unranked = int(((scores.references == 0) & ~marginal.value.isnan()).sum())
    if unranked:
        print(
            f"{unranked:,} rows have no rank: fewer than {FEWEST_REFERENCES} training rows have all of their cells, or "
            f"{MOST_PATTERNS} patterns of missing cells are more frequent"
        )
    print(f"\nwrote {out / 'scores.csv'} and, per cell, {out / 'cells.csv'}")
    return 0


def _oddest(scores: RowScores) -> Iterator[list[str]]:
    """Yield the lines of a table of the rows that are least probable among training rows."""
    yield ["row", "log p(x)", "s.e.", "k-hat", "rank", "of", "worst column", "log p given the rest", "share below"]
    known = (row for row in scores.rows() if row[1] is not None)
    rows = sorted(known, key=lambda row: math.inf if row[7] is None else row[7])
    for row in rows[:_SHOWN]:
        values = dict(zip(SCORE_NAMES, row, strict=True))
        yield [
            str(values["row"]),
            f"{values['log_marginal']:.2f}",
            f"{values['std_error']:.3f}",
            f"{values['khat']:.2f}",
            "-" if values["rank"] is None else str(values["rank"]),
            str(values["references"]),
            "-" if values["worst_column"] is None else shown(values["worst_column"], 30),
            "-" if values["worst_log_p"] is None else f"{values['worst_log_p']:.2f}",
            "-" if values["worst_share_below"] is None else f"{values['worst_share_below']:.3f}",
        ]


if __name__ == "__main__":
    run_script(main)
