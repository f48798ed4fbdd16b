"""Compare finished runs by the log p(x) of the same test data: a sorted table, paired differences, and a figure.

python scripts/compare.py runs/digits-001 runs/digits-002
python scripts/compare.py runs/mnist-* --figure comparison.png
python scripts/compare.py runs/digits-001 runs/digits-002 runs/digits-003 --reference runs/digits-001

The script uses the last evaluation of each run, by train.py or evaluate.py. It refuses runs that differ in data,
binarisation, split or base measure. The 95 % intervals of the differences hold jointly: for all pairs of runs, since
the data choose the best as reference, or with --reference for the differences from that run. The script compares the
marginal log p(x), whereas ArviZ's `compare` and `loo` on a posterior.nc use the conditional log p(x|z), which rises
with the freedom of z.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from pathlib import Path

from pyrovae.plots import to_png
from pyrovae.runs import check_writable, make_parser, parse_flags, run_script, write_whole
from pyrovae.runs.comparison import Evaluated, compare, meaning_of_intervals, plot_comparison
from pyrovae.runs.tables import aligned


def main() -> int:
    """Print the table, and write the figure."""
    parser = make_parser(prog="compare.py", description=__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders of train.py, two or more")
    parser.add_argument(
        "--reference",
        type=str | None,
        default=None,
        help="run to compare with, one of the runs, chosen before the evaluation (default: the best)",
    )
    parser.add_argument("--figure", type=str | None, default=None, help="PNG file of the figure (default: null)")
    args = parse_flags(parser, sys.argv[1:])
    check_writable("--figure", args.figure)
    if len({Path(run).resolve() for run in args.runs}) < max(2, len(args.runs)):
        raise ValueError(f"two different run folders or more are needed, got {' '.join(args.runs)}; give each once")

    runs = [Evaluated.of(path) for path in args.runs]
    reference = args.reference
    if reference is not None:  # the same folder may be spelled in two ways
        same = [run for run in args.runs if Path(run).resolve() == Path(reference).resolve()]
        reference = same[0] if same else reference
    found = compare(runs, reference=reference)
    protocols = {run.name: run.protocol for run in runs}
    alike = len(set(protocols.values())) == 1
    header = ["", "log p(x)", "s.e. data", "s.e. MC", "difference", "95 % interval", "s.e. data", "s.e. MC"]
    lines = [[*header, *["proposal"] * (not alike)]]
    for name, row in found.items():
        numbers = [f"{row.mean:.2f}", f"{row.std_error:.2f}", f"{row.mc_std_error:.3f}"]
        differences = [""] * 4
        if row.interval is not None:
            errors = (f"{row.difference_std_error:.2f}", f"{row.difference_mc_std_error:.3f}")
            differences = [f"{row.difference:+.2f}", "{:+.2f} to {:+.2f}".format(*row.interval), *errors]
        lines.append([name, *numbers, *differences, *[protocols[name]] * (not alike)])
    base = "the best run" if reference is None else reference
    print(f"{len(runs[0].value):,} {runs[0].about['split']} data; nats per datum; differences from {base}\n")
    print(aligned(lines))
    print(meaning_of_intervals(len(runs), reference))
    if alike:
        print(f"proposal of all: {runs[0].protocol}")
    else:
        print("the proposals differ, so small differences may come from them; evaluate all runs with the same proposal")
    if args.figure:
        write_whole(Path(args.figure), to_png(plot_comparison(found)))
        print(f"wrote {args.figure}")
    return 0


if __name__ == "__main__":
    run_script(main)
