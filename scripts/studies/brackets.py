"""Measure the coverage of the errors of `bracket` on linear-Gaussian models, with draws from an imperfect guide.

python scripts/studies/brackets.py                      # half a minute on one core
python scripts/studies/brackets.py --proposal default
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import runpy
import sys
import warnings
from pathlib import Path

import pyro
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from pyrovae import bracket
from pyrovae.evidence import PROPOSALS, ProposalName
from pyrovae.runs import Seed, make_parser, parse_flags, run_script
from pyrovae.runs.tables import aligned

linear = runpy.run_path(str(Path(__file__).with_name("coverage.py")))["linear"]
GUIDES = ("sd x 1.3", "mean-field", "sd x 0.8", "sd x 0.7", "shifted")


def simulated(num_dims: int, size: int, num_data: int, guide: str) -> tuple[object, Tensor, Tensor, Tensor, Tensor]:
    """Make a linear-Gaussian problem, exact draws of its posteriors, and a guide: problem, z, loc, scale, log p(x)."""
    problem = linear(num_dims, size, 0.7, num_data)
    exact, root = problem.posterior("exact")
    z = exact + (root @ torch.randn(num_data, size, 1, dtype=torch.float64)).squeeze(-1)
    loc, scale = problem.posterior("sd x 0.8" if guide == "sd x 0.7" else guide)
    return problem, z, loc, scale * (7 / 8 if guide == "sd x 0.7" else 1.0), problem.log_p


def main() -> int:
    """Print the table."""
    parser = make_parser(prog="brackets.py", description=__doc__)
    parser.add_argument("--num_data", type=PositiveInt, default=1000, help="number of data of each line")
    parser.add_argument("--proposal", type=ProposalName, default="guide", help="proposal to draw from")
    parser.add_argument("--seed", type=Seed, default=0, help="random seed of data and draws")
    args = parse_flags(parser, sys.argv[1:])
    warnings.filterwarnings("ignore", message="the errors of the bracket are unknown")
    lines = [["D", "Z", "guide", "K", "mean gap", "lower", "upper", "gap error / sd"]]
    for num_dims, size in ((5, 2), (32, 6), (32, 20)):
        for guide in GUIDES:
            for num_particles in (100, 1000):
                pyro.set_rng_seed(args.seed)
                problem, z, loc, scale, log_p = simulated(num_dims, size, args.num_data, guide)
                found = bracket(
                    problem.model,  # type: ignore[attr-defined]
                    problem.guide,  # type: ignore[attr-defined]
                    {"z": z},
                    problem.x,  # type: ignore[attr-defined]
                    loc,
                    scale,
                    num_particles=num_particles,
                    proposal=PROPOSALS[args.proposal],
                    chunk_size=2**17,
                )
                known = bool(found.lower_error.isfinite().all())
                covered = [
                    f"{((value - log_p).abs() <= 1.96 * error).double().mean():.3f}" if known else "unknown"
                    for value, error in ((found.lower, found.lower_error), (found.upper, found.upper_error))
                ]
                ratio = found.gap_error.square().mean().sqrt() / found.gap.std()
                lines.append(
                    [
                        *(str(number) for number in (num_dims, size)),
                        guide,
                        f"{num_particles:,}",
                        f"{found.gap.mean():.4f}",
                        *covered,
                        f"{ratio:.2f}" if known else "unknown",
                    ]
                )
    print(f"{args.num_data:,} data a line; share of data with log p(x) within 1.96 errors of the bound\n")
    print(aligned(lines))
    return 0


if __name__ == "__main__":
    run_script(main)
