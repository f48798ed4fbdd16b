"""Compare finished runs by the log p(x) of the same test data: a sorted table, paired differences, and a figure.

python scripts/compare.py runs/digits-001 runs/digits-002
python scripts/compare.py runs/mnist-* --figure comparison.png

The script uses the last evaluation of each run, by train.py or evaluate.py. It refuses runs that differ in data,
binarisation, split or base measure. It compares the marginal log p(x), whereas ArviZ's `compare` and `loo` on a
posterior.nc use the conditional log p(x|z), which rises with the freedom of z.
"""

import sys
from pathlib import Path

from pyrovae.plots import to_png
from pyrovae.runs import check_writable, make_parser, parse_flags, run_script, write_whole
from pyrovae.runs.comparison import Evaluated, compare, plot_comparison
from pyrovae.runs.tables import aligned


def main() -> int:
    """Print the table, and write the figure."""
    parser = make_parser(prog="compare.py", description=__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders of train.py, two or more")
    parser.add_argument("--figure", type=str | None, default=None, help="PNG file of the figure (default: null)")
    args = parse_flags(parser, sys.argv[1:])
    check_writable("--figure", args.figure)
    if len({Path(run).resolve() for run in args.runs}) < max(2, len(args.runs)):
        raise ValueError(f"two different run folders or more are needed, got {' '.join(args.runs)}; give each once")

    runs = [Evaluated.of(path) for path in args.runs]
    found = compare(runs)
    protocols = {run.name: run.protocol for run in runs}
    alike = len(set(protocols.values())) == 1
    lines = [
        ["", "log p(x)", "s.e. data", "s.e. MC", "difference", "s.e. data", "s.e. MC", *["proposal"] * (not alike)]
    ]
    for name, row in found.items():
        gap = (row.difference, row.difference_std_error, row.difference_mc_std_error)
        numbers = [f"{row.mean:.2f}", f"{row.std_error:.2f}", f"{row.mc_std_error:.3f}"]
        differences = [""] * 3 if gap[0] is None else [f"{gap[0]:+.2f}", f"{gap[1]:.2f}", f"{gap[2]:.3f}"]
        lines.append([name, *numbers, *differences, *[protocols[name]] * (not alike)])
    print(f"{len(runs[0].value):,} {runs[0].about['split']} data; nats per datum; differences from the best run\n")
    print(aligned(lines))
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
