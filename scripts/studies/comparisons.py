"""Measure the intervals of compare.py on tables of equal runs: false alarms, and coverage of a single difference.

python scripts/studies/comparisons.py                   # 2,000 tables a line, two minutes on one core
python scripts/studies/comparisons.py --tables 20000

A false alarm is a table of equal runs with an interval without 0. "2 s.e." is the rule that such tables invite: the
best is the reference, and a run is worse if its difference exceeds two standard errors.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from pyrovae.runs import Seed, make_parser, parse_flags, run_script
from pyrovae.runs.comparison import Evaluated, compare
from pyrovae.runs.tables import aligned

NOISES = ("normal", "Student-t, df 3", "exponential")
SIZES = ((2, 5), (12, 5), (12, 100), (12, 1000))  # numbers of runs and of data


def table_of(noise: str, num_runs: int, num_data: int, generator: torch.Generator) -> list[Evaluated]:
    """Make equal runs: a term of each datum, which all runs share, and independent noise of mean zero."""
    shape = (num_runs, num_data)
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    if noise == "Student-t, df 3":
        others = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
        drawn = drawn / others.square().mean(0).sqrt()
    elif noise == "exponential":
        drawn = -torch.rand(shape, dtype=torch.float64, generator=generator).log() - 1
    value = 10 * torch.randn(num_data, dtype=torch.float64, generator=generator) + drawn
    rows, zero = torch.arange(num_data), torch.zeros(num_data, dtype=torch.float64)
    return [Evaluated(str(run), value[run], zero, rows, {}, "") for run in range(num_runs)]


def false_alarms(
    noise: str, num_runs: int, num_data: int, tables: int, generator: torch.Generator, reference: str | None = None
) -> tuple[float, float]:
    """Measure the shares of tables with a false alarm, by the intervals of `compare` and by two standard errors."""
    found = torch.zeros(tables, 2, dtype=torch.bool)
    for index in range(tables):
        rows = compare(table_of(noise, num_runs, num_data, generator), reference=reference).values()
        for row in rows:
            if row.interval is None or row.difference is None or row.difference_std_error is None:
                continue
            found[index] |= torch.tensor(
                [not row.interval[0] <= 0 <= row.interval[1], abs(row.difference) > 2 * row.difference_std_error]
            )
    share: Tensor = found.double().mean(0)
    return share[0].item(), share[1].item()


def main() -> int:
    """Print the table."""
    parser = make_parser(prog="comparisons.py", description=__doc__)
    parser.add_argument("--tables", type=PositiveInt, default=2000, help="number of tables of each line")
    parser.add_argument("--seed", type=Seed, default=0, help="random seed")
    args = parse_flags(parser, sys.argv[1:])
    generator = torch.Generator().manual_seed(args.seed)
    lines = [["noise", "runs", "data", "best as reference", "2 s.e.", "--reference"]]
    for noise in NOISES:
        for num_runs, num_data in SIZES:
            joint, naive = false_alarms(noise, num_runs, num_data, args.tables, generator)
            named, _ = false_alarms(noise, num_runs, num_data, args.tables, generator, reference="0")
            shares = [f"{100 * share:.1f} %" for share in (joint, naive, named)]
            lines.append([noise, str(num_runs), f"{num_data:,}", *shares])
    print(f"{args.tables:,} tables of equal runs a line; share of tables with a false alarm\n")
    print(aligned(lines))
    return 0


if __name__ == "__main__":
    run_script(main)
