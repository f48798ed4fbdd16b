"""Measure bias, error and coverage of `log_marginal` against exact values of log p(x), as a test of its error bars.

python scripts/studies/coverage.py                              # the full table, several hours on one core
python scripts/studies/coverage.py --proposal guide             # the published protocol instead of the default
python scripts/studies/coverage.py --only "Z = 1" --pairs 1000  # the problems whose name contains this, fewer pairs
python scripts/studies/coverage.py --edges --pairs 1000         # problems at the edges, each with its own N and K
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import math
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn

from pyrovae import (
    BernoulliLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    exact_log_marginal,
    log_marginal,
)
from pyrovae.evidence import KHAT_LIMIT, PROPOSALS, ProposalName
from pyrovae.runs import Seed, make_parser, parse_flags, run_script

CHUNK = 2**17  # the decoders are small: larger chunks take less time, and the estimate does not depend on them
EDGE_PROBLEMS = runpy.run_path(str(Path(__file__).with_name("edge_problems.py")))["EDGE_PROBLEMS"]
GUIDES = ("exact", "mean-field", "sd x 0.8", "sd x 1.3", "shifted")
LIKELIHOODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bernoulli": BernoulliLikelihood,
    "poisson": PoissonLikelihood,
    "student-t": lambda network: StudentTLikelihood(network, df=3.0, scale=0.5),
}


def prior_of(name: str, size: int) -> dist.TorchDistribution:
    """Make a prior by name: a standard normal, three clusters, or a Student-t with three degrees of freedom."""
    zeros = torch.zeros(size, dtype=torch.float64)
    if name == "normal":
        return dist.Normal(zeros, 1.0).to_event(1)
    if name == "heavy":
        return dist.StudentT(3.0, zeros, 1.0).to_event(1)
    centres = torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64) * torch.ones(size, dtype=torch.float64)
    clusters = dist.Normal(centres, torch.tensor([[0.5], [0.3], [0.7]], dtype=torch.float64)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(3, dtype=torch.float64)), clusters)


def generative(x: Tensor, prior: dist.TorchDistribution, likelihood: nn.Module) -> None:
    """Run the program p(z) p(x|z) at data x, with shape (N, D)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", prior)
        pyro.sample("x", likelihood(z), obs=x)


@dataclass(frozen=True)
class Problem:
    """Model with known log p(x), data from it, and the posterior's moments, for N data and Z latents.

    Attributes:
        name: Name for the table.
        prior: Prior p(z).
        likelihood: Module whose forward returns p(x|z).
        x: Data, with shape (N, D).
        log_p: Log p(x) in nats, with shape (N,).
        loc: Posterior means, with shape (N, Z).
        covariance: Posterior covariances, with shape (N, Z, Z).
    """

    name: str
    prior: dist.TorchDistribution
    likelihood: nn.Module
    x: Tensor
    log_p: Tensor
    loc: Tensor
    covariance: Tensor

    def model(self, x: Tensor, loc: Tensor, scale: Tensor) -> None:
        """Run the program p(z) p(x|z)."""
        generative(x, self.prior, self.likelihood)

    def guide(self, x: Tensor, loc: Tensor, scale: Tensor) -> None:
        """Run the program q(z|x): a normal per datum, given by its mean and the Cholesky factor of its covariance."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale))

    def posterior(self, guide: str) -> tuple[Tensor, Tensor]:
        """Find mean and Cholesky factor of a guide by name: "exact" is the posterior's moments, others are diagonal."""
        if guide == "exact":
            return self.loc, torch.linalg.cholesky(self.covariance)
        sd = self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        if guide == "mean-field":  # the best diagonal normal for a normal posterior (Bishop 2006, section 10.1.2)
            return self.loc, torch.linalg.inv(self.covariance).diagonal(dim1=-2, dim2=-1).rsqrt().diag_embed()
        factor = {"sd x 0.8": 0.8, "sd x 1.3": 1.3, "shifted": 1.0}[guide]
        return self.loc + (sd if guide == "shifted" else 0.0), (factor * sd).diag_embed()


def linear(num_dims: int, size: int, noise: float, num_data: int) -> Problem:
    """Make a linear-Gaussian VAE, with exact values in closed form."""
    generator = torch.Generator().manual_seed(num_dims + size)
    decoder = nn.Linear(size, num_dims).double()
    with torch.no_grad():
        decoder.weight.normal_(generator=generator)
        decoder.bias.normal_(generator=generator)
    weight, bias = decoder.weight.detach(), decoder.bias.detach()
    eye = torch.eye(num_dims, dtype=torch.float64)
    p_x = dist.MultivariateNormal(bias, weight @ weight.T + noise**2 * eye)
    x = p_x.sample((num_data,))
    covariance = torch.linalg.inv(torch.eye(size, dtype=torch.float64) + weight.T @ weight / noise**2)
    return Problem(
        f"linear, D = {num_dims}, Z = {size}, noise {noise:g}",
        prior_of("normal", size),
        NormalLikelihood(decoder, scale=noise).double(),
        x,
        p_x.log_prob(x),
        (x - bias) @ weight @ covariance / noise**2,
        covariance.expand(num_data, size, size),
    )


def curved(likelihood: str, prior: str, size: int, num_data: int, rough_above: float = 0.005) -> Problem:
    """Make a decoder with one layer of tanh, with exact values by quadrature, finer where its error is larger."""
    generator = torch.Generator().manual_seed(size)
    network = nn.Sequential(nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
        network[2].weight.mul_(0.5)
    p_z, p_x = prior_of(prior, size), LIKELIHOODS[likelihood](network).double().requires_grad_(False)
    x = p_x(p_z.sample((num_data,))).sample()
    exact = exact_log_marginal(generative, x, p_z, p_x, chunk_size=2**16)
    # The true error is far below that of half as many points: see the test. It is NaN where the answer is refused.
    rough = ~(exact.error <= rough_above)
    if bool(rough.any()):
        fine = exact_log_marginal(
            generative, x[rough], p_z, p_x, num_points={1: 4000, 2: 200, 3: 100}[size], chunk_size=2**16
        )
        for whole, part in zip(exact[:4], fine[:4], strict=True):
            whole[rough] = part
    assert exact.loc is not None
    assert exact.covariance is not None
    known = exact.value.isfinite()
    if not bool(known.all()):
        print(f"{int((~known).sum())} of {num_data} data are left out, since their quadrature is refused", flush=True)
    name = f"{likelihood}, {prior} prior, Z = {size}"
    return Problem(name, p_z, p_x, x[known], exact.value[known], exact.loc[known], exact.covariance[known])


def problems(num_data: int) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Iterate over the names of all problems and functions that make them."""
    for num_dims, size, noise in ((5, 2, 0.7), (32, 6, 0.7), (32, 20, 0.7), (32, 20, 2.0)):
        name = f"linear, D = {num_dims}, Z = {size}, noise {noise:g}"
        yield name, lambda a=num_dims, b=size, c=noise: linear(a, b, c, num_data)  # type: ignore[misc]
    for likelihood in LIKELIHOODS:
        for prior in ("normal", "mixture", "heavy"):
            for size in (1, 2, 3):
                name = f"{likelihood}, {prior} prior, Z = {size}"
                yield name, lambda a=likelihood, b=prior, c=size: curved(a, b, c, num_data)  # type: ignore[misc]


class Cell(NamedTuple):
    """Numbers in one cell of the table."""

    bias: float
    rmse: float
    std_error: float
    coverage: float
    khat_above: float


def measure(problem: Problem, guide: str, *, pairs: int, num_particles: int, proposal: str = "default") -> Cell:
    """Estimate log p(x) for pairs of datum and draws, and compare with the exact values.

    Data repeat until there are enough pairs. Coverage is that of value +- 1.96 std_error, or within float precision of
    the exact value.
    """
    repeats = math.ceil(pairs / len(problem.x))
    args = [value.repeat(repeats, *[1] * (value.dim() - 1)) for value in (problem.x, *problem.posterior(guide))]
    name: ProposalName = proposal  # type: ignore[assignment]
    estimate = log_marginal(
        problem.model,
        problem.guide,
        *args,
        num_particles=num_particles,
        proposal=PROPOSALS[name],
        chunk_size=CHUNK,
    )
    error = estimate.value - problem.log_p.repeat(repeats)
    covered = error.abs() <= 1.96 * estimate.std_error + 1e-9
    return Cell(
        error.mean().item(),
        error.square().mean().sqrt().item(),
        estimate.std_error.mean().item(),
        covered.double().mean().item(),
        (estimate.khat > 0.7).double().mean().item(),
    )


def measure_at_edges(only: str, num_data: int, seed: int) -> int:
    """Print a line for each problem at the edges, and return the number of them outside their bounds."""
    print(
        f"{'problem':37} {'N':>5} {'K':>5} {'T':>5} {'coverage':>8} {'unflagged':>9} {'flagged':>7} {'bias':>8} "
        f"{'seconds':>7}"
    )
    outside = 0
    for name, (num_particles, make, estimate) in EDGE_PROBLEMS.items():
        if only not in name:
            continue
        pyro.set_rng_seed(seed)
        problem, started = make(num_data), time.perf_counter()
        found, num_temperatures = estimate(problem)
        error = found.value - problem.log_p
        covered = (error.abs() <= 1.96 * found.std_error + 1e-9).double()
        # k-hat has no say on few chains; their unknown error is infinite.
        flagged = ~found.std_error.isfinite() | ((found.khat > KHAT_LIMIT) & ("ais" not in name))
        unflagged = covered[~flagged].mean().item()
        wrong = unflagged < 0.92 or flagged.double().mean().item() > 0.5
        outside += wrong
        print(
            f"{name:37} {num_data:5} {num_particles:5} {num_temperatures or '':5} {covered.mean().item():8.3f} "
            f"{unflagged:9.3f} {flagged.double().mean().item():7.3f} {error[error.isfinite()].mean().item():8.4f} "
            f"{time.perf_counter() - started:7.1f}{' *' if wrong else ''}",
            flush=True,
        )
    print(f"{outside} problems with a coverage below 0.92 among unflagged data, or more than half of them flagged")
    return outside


def main() -> int:
    """Print the table; exit with 1 if a cell's coverage lies outside [0.93, 0.97]."""
    parser = make_parser(prog="coverage.py", description=__doc__)
    parser.add_argument(
        "--pairs", type=PositiveInt, default=4000, help="number of pairs of datum and draws in each cell"
    )
    parser.add_argument(
        "--num_data",
        type=PositiveInt | None,
        default=None,
        help="number of data of each problem (default: the number of pairs)",
    )
    parser.add_argument("--num_particles", type=PositiveInt, default=1000, help="number of draws K per datum")
    parser.add_argument("--proposal", type=ProposalName, default="default", help="proposal to draw from")
    parser.add_argument(
        "--only",
        type=str,
        default="",
        help="select the problems whose name contains this (default: all)",
        may_be_empty=True,
    )
    parser.add_argument("--seed", type=Seed, default=0, help="random seed of data and draws")
    parser.add_argument(
        "--edges", type=bool, default=False, help="measure problems at the edges: modes, bounds, heavy tails, few draws"
    )
    args = parse_flags(parser, sys.argv[1:])
    if args.edges:
        torch.set_num_threads(1)
        return int(measure_at_edges(args.only, args.num_data or args.pairs, args.seed) > 0)
    num_data = args.num_data or args.pairs
    if num_data > args.pairs:
        raise ValueError(f"--num_data must be at most --pairs {args.pairs}, got {num_data}; decrease it")
    chosen = [(name, make) for name, make in problems(num_data) if args.only in name]
    if not chosen:
        raise ValueError(
            f"--only must be part of a problem's name, got {args.only!r}; use 'linear' or 'poisson, heavy prior', say"
        )

    torch.set_num_threads(1)
    print(
        f"{'problem':36} {'guide':10} {'bias':>8} {'rmse':>7} {'s.e.':>7} {'coverage':>8} {'k>0.7':>6} {'seconds':>7}"
    )
    outside = 0
    for name, make in chosen:
        pyro.set_rng_seed(args.seed)
        problem = make()
        for guide in GUIDES:
            started = time.perf_counter()
            cell = measure(problem, guide, pairs=args.pairs, num_particles=args.num_particles, proposal=args.proposal)
            wrong = not 0.93 <= cell.coverage <= 0.97
            outside += wrong
            print(
                f"{name:36} {guide:10} {cell.bias:8.4f} {cell.rmse:7.4f} {cell.std_error:7.4f} {cell.coverage:8.4f} "
                f"{cell.khat_above:6.3f} {time.perf_counter() - started:7.1f}{' *' if wrong else ''}",
                flush=True,
            )
    print(f"{outside} cells outside [0.93, 0.97]")
    return int(outside > 0)


if __name__ == "__main__":
    run_script(main)
