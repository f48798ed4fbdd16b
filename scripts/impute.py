"""Fill the missing cells of a table by a trained run: means, medians or modes, and draws for multiple imputation.

python scripts/impute.py runs/survey-001 survey.csv --draws 20
python scripts/impute.py runs/survey-001 survey.csv --draws 20 --refits 5     # with the uncertainty of the network
python scripts/impute.py runs/survey-001 new.csv --centre median --out filled/

Writes imputed.csv, the table filled; draws.csv, all draws below each other, with .imp and .id as in R's mice;
imputation.csv, effective sample size and k-hat of each row with missing cells; and imputed_cells.csv, a line per filled
cell. With labels, classes.csv has their probabilities. A missing label is a missing cell: imputed.csv has the most
probable one, draws.csv a drawn one, given which the other missing cells of the row are drawn. Means and draws are of
p(x_missing | x_observed), by importance sampling. --refits trains again on bootstrap rows, as often as it says; pool
the estimates by pyrovae.pool(..., nested=True).
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from pyrovae.runs import check_folder, find_device, make_run_parser, open_run, parse_flags, run_script, with_name_lists
from pyrovae.runs.fitting import refits
from pyrovae.runs.report import CLASS_DRAWS, unseen_lines
from pyrovae.runs.table_files import add_table_flags, check_not_input, read_new_rows, trained_line, trained_rows
from pyrovae.runs.table_imputations import (
    IMPUTATION_FILES,
    Draws,
    classify_rows,
    impute_rows,
    median_lines,
    missing_labels,
    rows_with_holes,
    with_labels,
    write_imputations,
)
from pyrovae.runs.tables import aligned, khat_line


def main() -> int:
    """Impute, write the files, and print how the columns were filled."""
    parser = make_run_parser(prog="impute.py", description=__doc__)
    parser.add_argument("table", type=str, help="CSV, TSV or Parquet file with the columns of the run")
    parser.add_argument("--draws", type=PositiveInt, default=20, help="draws of the missing cells")
    parser.add_argument("--refits", type=NonNegativeInt, default=0, help="fits on bootstrap rows that share the draws")
    centre = "what imputed.csv has; auto: modes of levels, medians of ordered ones, means of numbers"
    parser.add_argument("--centre", type=Literal["auto", "mean", "median", "mode"], default="auto", help=centre)
    parser.add_argument("--num_particles", type=PositiveInt, default=1000, help="draws K of the latents per row")
    add_table_flags(parser)
    parser.add_argument(
        "--chunk_size", type=PositiveInt | None, default=None, help="latents decoded at once (default: 8192)"
    )
    args = parse_flags(parser, with_name_lists(sys.argv[1:]))

    if args.refits == 1:
        raise ValueError("--refits 1: the spread between refits needs at least two; such as --refits 5")
    if args.refits and args.draws % args.refits:
        raise ValueError(f"--draws {args.draws}: give a multiple of --refits {args.refits}, such as {4 * args.refits}")
    out = Path(args.out or args.run)
    check_folder("--out", out)
    check_not_input(args.table, out, IMPUTATION_FILES)
    run, vae, data = open_run(args)
    new, device = read_new_rows(run, args.table, unseen=args.unseen, na_values=args.na_values), find_device(args.device)
    given = {"num_particles": args.num_particles, "chunk_size": args.chunk_size}
    options = {**given, "centre": args.centre, "labelled": data.labelled}
    config = run.config(args.trust_imports)
    config.device = str(device)
    imputed = impute_rows(vae, new.table, device, seed=args.seed, num_draws=0 if args.refits else args.draws, **options)
    of_classes = {"seed": args.seed, "num_particles": min(args.num_particles, CLASS_DRAWS)}
    classes = classify_rows(vae, new, device, **of_classes) if data.labelled else None
    draws = []
    if not args.refits:
        draws.append(with_labels(vae, new, device, Draws(imputed.draws, None), classes, seed=args.seed, **given))
    if args.refits:
        training = {"seed": args.seed, "progress": sys.stderr.isatty()}  # a log has a line per refit
        for number, refit in enumerate(refits(config, data, args.refits, **training), start=1):
            own_seed = int(np.random.SeedSequence([args.seed, number]).generate_state(1)[0])
            own = {"seed": own_seed, "num_draws": args.draws // args.refits, "title": f"refit {number}"}
            x = impute_rows(refit, new.table, device, **own, **options).draws
            likely = classify_rows(refit, new, device, **of_classes) if data.labelled else None
            draws.append(with_labels(refit, new, device, Draws(x, number), likely, seed=own_seed, **given))
            print(f"refit {number} of {args.refits}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    assert data.table is not None
    trained = trained_rows(new.table, data.table.part("train"))
    paths, num_guarded = write_imputations(out, new, imputed, draws, trained, classes)

    missing, no_label = ~new.table.mask, missing_labels(new.table)
    with_holes, num_labels = rows_with_holes(new.table), 0 if new.table.labels is None else len(missing)
    cells, rows = (
        f"{int(missing.sum() + no_label.sum()):,} of {missing.numel() + num_labels:,} cells",
        f"{int(with_holes.sum()):,} of {len(missing):,}",
    )
    print(f"\n{cells} of {args.table} are missing, in {rows} rows\n")
    lines = [["column", "missing", "filled by"]]
    for place, column in enumerate(new.table.columns.data):
        count = int(missing[:, place].sum())
        lines.append([column.name, f"{count:,}", imputed.centre[place] if count else "-"])
    if bool(no_label.any()):
        lines.append([new.table.columns.of_role("label")[0].name, f"{int(no_label.sum()):,}", "mode"])
    print(aligned(lines))
    for line in (*median_lines(new.table, imputed), *unseen_lines(new.table)):
        print(line)
    for note in new.table.notes.get("", ()):
        print(note)
    khat = imputed.log_marginal.khat[missing.any(1)]
    print(f"\n{khat_line(khat, args.num_particles, 'rows with missing cells')}")
    if bool(with_holes.any()):
        print("the values hold if cells are missing at random")
        print(trained_line(trained[with_holes], "the imputation"))
    if not args.refits:
        print(
            "the draws hold the network fixed, so intervals from them alone are too narrow; --refits 5 adds its "
            "uncertainty"
        )
    if num_guarded:
        print(f"{num_guarded:,} text{'s' * (num_guarded > 1)} that a spreadsheet may run got a ' in front")
    print(f"wrote {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    run_script(main)
