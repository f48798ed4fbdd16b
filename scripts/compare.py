"""Compare finished runs by the log p(x) of the same test data: a sorted table, paired differences, and a figure.

python scripts/compare.py runs/digits-001 runs/digits-002
python scripts/compare.py runs/mnist-* --figure comparison.png
python scripts/compare.py runs/digits-001 runs/digits-002 runs/digits-003 --reference runs/digits-001
python scripts/compare.py --folds 10 table/standard-10-fold table/flow-prior-10-fold    # folders of ten runs each

The script uses the last evaluation of each run, by train.py or evaluate.py. It refuses runs that differ in data,
binarisation, split or base measure. The 95 % intervals of the differences hold jointly: for all pairs of runs, since
the data choose the best as reference, or with --reference for the differences from that run. A folder that holds the
runs of all folds, of train.py --folds 10 --fold 1 to 10, is one model: log p(x) of each datum is that of the run that
held it out, and the intervals are the wider of those over data and over folds. The script compares the
marginal log p(x), whereas ArviZ's `compare` and `loo` on a posterior.nc use the conditional log p(x|z), which rises
with the freedom of z.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from pathlib import Path

from jsonargparse.typing import PositiveInt

from pyrovae.plots import to_png
from pyrovae.runs import check_writable, make_parser, parse_flags, run_script, write_whole
from pyrovae.runs.comparison import (
    Evaluated,
    compare,
    comparison_lines,
    data_of,
    meaning_of_intervals,
    plot_comparison,
    proposals_in_words,
    protocols_of,
)
from pyrovae.runs.tables import aligned


def main() -> int:
    """Print the table, and write the figure."""
    parser = make_parser(prog="compare.py", description=__doc__)
    parser.add_argument(
        "runs", type=str, nargs="+", help="run folders of train.py, or folders of all folds, two or more"
    )
    parser.add_argument(
        "--reference",
        type=str | None,
        default=None,
        help="run to compare with, one of the runs, chosen before the evaluation (default: the best)",
    )
    parser.add_argument(
        "--folds",
        type=PositiveInt | None,
        default=None,
        help="number of folds that each folder must hold (default: any)",
    )
    parser.add_argument("--figure", type=str | None, default=None, help="PNG file of the figure (default: null)")
    args = parse_flags(parser, sys.argv[1:])
    check_writable("--figure", args.figure)
    if len({Path(run).resolve() for run in args.runs}) < max(2, len(args.runs)):
        raise ValueError(f"two different run folders or more are needed, got {' '.join(args.runs)}; give each once")

    runs = [Evaluated.of(path) for path in args.runs]
    for run in runs:
        count = None if run.folds is None else len(run.folds.unique())
        if args.folds is not None and count != args.folds:
            held = "a single split" if count is None else f"{count} folds"
            raise ValueError(f"{run.name} has {held}, not the {args.folds} of --folds; give the folder of those folds")
    reference = args.reference
    if reference is not None:  # the same folder may be spelled in two ways
        same = [run for run in args.runs if Path(run).resolve() == Path(reference).resolve()]
        reference = same[0] if same else reference
    found = compare(runs, reference=reference)
    lines = comparison_lines(found, protocols_of(runs))
    base = "the best run" if reference is None else reference
    print(f"{data_of(runs[0])}; nats per datum; differences from {base}\n")
    print(aligned(lines))
    print(meaning_of_intervals(len(runs), reference, folds=runs[0].folds is not None))
    print(proposals_in_words(runs))
    if args.figure:
        write_whole(Path(args.figure), to_png(plot_comparison(found)))
        print(f"wrote {args.figure}")
    return 0


if __name__ == "__main__":
    run_script(main)
