"""Measure the coverage of the errors of `ais` with few chains on linear-Gaussian models and on two modes.

python scripts/studies/chains.py                        # 16 chains, T = 100; ten minutes on one core
python scripts/studies/chains.py --num_data 4000 --num_temperatures 400
python scripts/studies/chains.py --gap 0.1              # T by agreement of forward and reverse chains
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import math
import runpy
import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor

from pyrovae.evidence import agreeing_schedule, ais, linear_schedule
from pyrovae.runs import Seed, make_parser, parse_flags, run_script
from pyrovae.runs.tables import aligned
from pyrovae.stats import LogMarginal

linear = runpy.run_path(str(Path(__file__).with_name("coverage.py")))["linear"]
STARTS = ("prior", "mean-field", "sd x 0.8", "sd x 1.3", "shifted")
LEAPFROG = 5


def two_modes(x: Tensor) -> None:
    """Run p(z) p(x|z) with x near |z|: the posterior of z has two modes of equal mass."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.abs().squeeze(-1), 0.1), obs=x)


def one_of_two(x: Tensor) -> None:
    """Run a guide that covers the positive mode."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1), 0.1).to_event(1))


def log_p_of_two_modes(x: Tensor) -> Tensor:
    """Compute log p(x) of two_modes in closed form: 2 int over z > 0 of N(z; 0, 1) N(x; z, 0.1^2)."""
    variance = 1 + 0.1**2
    above = torch.special.log_ndtr(x / math.sqrt(variance) / 0.1)
    return math.log(2) + dist.Normal(0.0, math.sqrt(variance)).log_prob(x) + above


def row(found: LogMarginal, log_p: Tensor) -> list[str]:
    """Compute bias, error and coverage of the data whose error is finite, and their share."""
    known = found.std_error.isfinite()
    off, error = (found.value - log_p)[known], found.std_error[known]
    if not bool(known.any()):
        return ["", "", "unknown", "0.00"]
    covered = (off.abs() <= 1.96 * error).double().mean()
    return [f"{off.mean():+.3f}", f"{error.median():.3f}", f"{covered:.3f}", f"{known.double().mean():.2f}"]


def main() -> int:
    """Print the table."""
    parser = make_parser(prog="chains.py", description=__doc__)
    add = parser.add_argument
    add("--num_data", type=PositiveInt, default=1000, help="number of data of each line")
    add("--num_particles", type=PositiveInt, default=16, help="number of chains per datum")
    add("--num_temperatures", type=PositiveInt, default=100, help="number of temperatures T")
    add("--gap", type=PositiveFloat | None, default=None, help="gap at which to stop doubling T (default: null)")
    add("--only", type=str, default="", help="select the problems whose name contains this", may_be_empty=True)
    add("--seed", type=Seed, default=0, help="random seed of data and draws")
    args = parse_flags(parser, sys.argv[1:])
    settings = {"num_particles": args.num_particles, "num_leapfrog": LEAPFROG, "chunk_size": 2**17}
    lines = [["problem", "start", "T", "bias", "s.e.", "coverage", "answered"]]
    for num_dims, size in ((5, 2), (32, 6), (32, 20)):
        for start in STARTS:
            pyro.set_rng_seed(args.seed)
            problem = linear(num_dims, size, 0.7, args.num_data)
            if args.only not in problem.name:
                continue
            guide = None if start == "prior" else problem.guide
            moments = problem.posterior("mean-field" if start == "prior" else start)
            betas = linear_schedule(args.num_temperatures)
            if args.gap is not None:
                loc, root = problem.posterior("exact")
                z = loc + (root @ torch.randn(*loc.shape, 1, dtype=torch.float64)).squeeze(-1)
                some = slice(0, 100)
                given = (problem.x[some], *(value[some] for value in moments))
                try:
                    betas = agreeing_schedule(problem.model, guide, {"z": z[some]}, *given, gap=args.gap, **settings)
                except ValueError as error:
                    lines.append([problem.name, start, str(error)[:40]])
                    continue
            found = ais(problem.model, problem.x, *moments, guide=guide, betas=betas, **settings)
            lines.append([problem.name, start, f"{len(betas) - 1:,}", *row(found, problem.log_p)])
            print(*lines[-1], flush=True)
    if args.only in "two modes":
        pyro.set_rng_seed(args.seed)
        x = (torch.randn(args.num_data).double().abs() + 0.1 * torch.randn(args.num_data).double()).clamp(min=0.5)
        annealed = partial(ais, two_modes, x, betas=linear_schedule(args.num_temperatures), **settings)
        for start, guide in (("prior", None), ("one mode", one_of_two)):
            lines.append(
                ["two modes", start, str(args.num_temperatures), *row(annealed(guide=guide), log_p_of_two_modes(x))]
            )
    print(f"\n{args.num_data:,} data a line, {args.num_particles} chains; coverage of value +- 1.96 std_error\n")
    print(aligned([line + [""] * (7 - len(line)) for line in lines]))
    return 0


if __name__ == "__main__":
    run_script(main)
