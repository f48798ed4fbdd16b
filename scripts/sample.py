"""Draw from a trained run: a grid of prior samples, and a grid of data and reconstructions; a CSV file for a table.

python scripts/sample.py runs/digits-001
python scripts/sample.py runs/digits-001 --num_samples 100 --seed 7

A run on a table gets samples.csv, rows in original units. A figure shows at most 1,000 draws; more go to
samples-2.png and so on.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys

from jsonargparse.typing import PositiveInt

from pyrovae.runs import make_run_parser, open_run, parse_flags, run_script
from pyrovae.runs.report import write_sample_figures
from pyrovae.runs.table_files import write_samples

MOST_SAMPLES = 1_000_000


def main() -> int:
    """Write samples.png and reconstructions.png into the run folder."""
    parser = make_run_parser(prog="sample.py", description=__doc__)
    parser.add_argument(
        "--num_samples", type=PositiveInt, default=64, help="number of draws, and of images to reconstruct"
    )
    args = parse_flags(parser, sys.argv[1:])

    if args.num_samples > MOST_SAMPLES:
        raise ValueError(f"--num_samples {args.num_samples}: at most {MOST_SAMPLES:,} can be drawn; lower it")
    run, vae, data = open_run(args)
    if data.table is not None:
        print(f"wrote {write_samples(run, vae, data, size=args.num_samples, seed=args.seed)}, in original units")
        return 0
    names = write_sample_figures(run, vae, data, size=args.num_samples, seed=args.seed)
    print(f"wrote {run.path / 'samples.png'} and {run.path / 'reconstructions.png'}")
    if names[2:]:
        print(f"more figures for the rest, {len(names) - 2}: {run.path / 'samples-2.png'} and so on")
    return 0


if __name__ == "__main__":
    run_script(main)
