"""Measure how often the error of `exact_log_marginal` covers the truth, on posteriors that are hard to integrate.

python scripts/studies/exact.py                            # 2,006 cases, a quarter of an hour on one core
python scripts/studies/exact.py --only ring --cases 20     # the families whose name contains this, 20 cases of each
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jsonargparse.typing import PositiveInt
from scipy import special, stats
from torch import Tensor

from pyrovae import exact_log_marginal
from pyrovae.runs import Seed, make_parser, parse_flags, run_script

Numbers = np.ndarray[Any, Any]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


@dataclass(frozen=True)
class Family:
    """Model of rows of data and parameters, and log p(x) of each row by a closed form or a one-dimensional integral.

    Attributes:
        draw: Function from rows, with shape (N, D), that samples the latents z from p(z) and returns them.
        likelihood: Function from z and rows to p(x|z) of the first columns.
        rows: Function from a random generator to a row: the observed numbers, then the parameters.
        log_p: Function from a row to log p(x) in nats.
        observed: Number of observed columns.
        dtype: Precision of the model.
    """

    draw: Callable[[Tensor], Any]
    likelihood: Callable[[Any, Tensor], Any]
    rows: Callable[[np.random.Generator], list[float]]
    log_p: Callable[[Numbers], float]
    observed: int = 1
    dtype: torch.dtype = torch.float64

    def model(self, x: Tensor) -> None:
        """Run the program p(z) p(x|z)."""
        with pyro.plate("data", len(x), dim=-1):
            given = self.likelihood(self.draw(x), x)
            if self.observed == 1 and not given.event_shape:
                pyro.sample("x", given, obs=x[:, 0])
            else:
                pyro.sample("x", given, obs=x[:, : self.observed])


def log_integral(log_f: Callable[[Numbers], Numbers], places: list[float], widths: list[float], low=-60.0, high=60.0):
    """Integrate over (low, high) by Gauss-Legendre rules between points around places, at multiples of the widths."""
    steps = np.concatenate([np.arange(0, 12, 0.5), 12 * 1.5 ** np.arange(40)])
    around = [place + sign * width * steps for place, width in zip(places, widths, strict=True) for sign in (-1, 1)]
    ends = np.unique(np.clip(np.concatenate([*around, [low, high]]), low, high))
    half = np.diff(ends) / 2
    z = (ends[:-1] + half)[:, None] + half[:, None] * NODES
    return float(special.logsumexp(log_f(z) + np.log(half)[:, None] + np.log(WEIGHTS)))


def one(prior: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Make a program with one latent site."""
    return lambda x: pyro.sample("z", prior(x))


def normal(size: int) -> Callable[[Tensor], Any]:
    """Make the program z ~ N(0, I)."""
    return one(lambda x: dist.Normal(x.new_zeros(size), 1.0).to_event(1))


def observe(mean: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor, Tensor], Any]:
    """Make x_d ~ N(mean(z)_d, noise), where the noise is the column after the observed ones."""
    return lambda z, x: dist.Normal(mean(z), x[:, size, None]).to_event(1)


def loguniform(random: np.random.Generator, low: float, high: float) -> float:
    """Draw a positive number."""
    return float(np.exp(random.uniform(math.log(low), math.log(high))))


def square(size: int, low: float, dtype: torch.dtype = torch.float64) -> Family:
    """Make x = z^2 + noise, with 2^Z modes."""

    def rows(random: np.random.Generator) -> list[float]:
        noise = loguniform(random, low, 0.3)
        return [*(random.normal(size=size) ** 2 + noise * random.normal(size=size)), noise]

    def log_p(row: Numbers) -> float:
        noise, total = row[-1], 0.0
        for x in row[:-1]:
            root = math.sqrt(max(x, noise))
            total += log_integral(
                lambda z, x=x: stats.norm.logpdf(z) + stats.norm.logpdf(x, z**2, noise),
                [-root, root, 0.0],
                [noise / root, noise / root, math.sqrt(noise)],
            )
        return total

    return Family(normal(size), observe(lambda z: z**2, size), rows, log_p, size, dtype)


def sine(size: int, most: float) -> Family:
    """Make x = sin(k z) + noise, with about 2 k modes per latent."""

    def rows(random: np.random.Generator) -> list[float]:
        k, noise = random.uniform(3, most), loguniform(random, 0.05, 0.3)
        return [*(np.sin(k * random.normal(size=size)) + noise * random.normal(size=size)), noise, k]

    def log_p(row: Numbers) -> float:
        noise, k = row[-2:]
        grid = np.linspace(-8, 8, 200_001)  # a uniform grid is exact to 1e-12 for entire functions that vanish
        terms = stats.norm.logpdf(grid) + stats.norm.logpdf(row[:-2, None], np.sin(k * grid), noise)
        return float((special.logsumexp(terms, axis=-1) + math.log(16 / 200_000)).sum())

    def likelihood(z: Tensor, x: Tensor) -> Any:
        return dist.Normal((x[:, -1:] * z).sin(), x[:, -2:-1]).to_event(1)

    return Family(normal(size), likelihood, rows, log_p, size)


def components(
    size: int,
    make: Callable[[np.random.Generator], tuple[Numbers, Numbers, Numbers]],
    low: float,
    dtype: torch.dtype = torch.float64,
) -> Family:
    """Make a mixture of K normals as the prior, made of shares, means and sds, and x = z + noise."""
    k = len(make(np.random.default_rng(0))[0])

    def rows(random: np.random.Generator) -> list[float]:
        share, mean, sd = make(random)
        noise, which = loguniform(random, low, 3.0), random.choice(k, p=share)
        x = mean[which] + math.hypot(sd[which], noise) * random.normal(size=size)
        return [*x, noise, *share, *mean, *sd]

    def prior(x: Tensor) -> Any:
        share, mean, sd = x[:, size + 1 :].split(k, -1)
        parts = dist.Normal(mean.unsqueeze(-1), sd.unsqueeze(-1).expand(*sd.shape, size)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(share), parts)

    def log_p(row: Numbers) -> float:
        share, mean, sd = row[size + 1 :].reshape(3, k)
        each = stats.norm.logpdf(row[:size, None], mean, np.hypot(sd, row[size])).sum(0)
        return float(special.logsumexp(np.log(share) + each))

    return Family(one(prior), observe(lambda z: z, size), rows, log_p, size, dtype)


def far_component(random: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Make a broad component and a narrow one far away."""
    share = random.uniform(0.05, 0.5)
    far = random.uniform(10, 100), loguniform(random, 1e-3, 0.1)
    return np.array([1 - share, share]), np.array([0.0, far[0]]), np.array([1.0, far[1]])


def spikes(random: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Make four narrow components."""
    return random.dirichlet(np.full(4, 5.0)), random.normal(size=4) * 3, np.exp(random.uniform(-7, -4, 4))


def scales(random: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Make components at nearly the same place with sds from 0.001 to 10."""
    return random.dirichlet(np.full(4, 5.0)), random.normal(size=4) * 0.1, 10.0 ** np.array([-3.0, -2.0, 0.0, 1.0])


def far_apart(random: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Make six components far from each other."""
    return random.dirichlet(np.full(6, 5.0)), random.normal(size=6) * 30, np.exp(random.uniform(-2, 0, 6))


def one_dimensional(
    prior: Callable[[Tensor], Any],
    log_prior: Callable[[Numbers], Numbers],
    likelihood: Callable[[Tensor, Tensor], Any],
    log_lik: Callable[[float, Numbers, float], Numbers],
    draw: Callable[[np.random.Generator], tuple[float, float]],
    reach: float = 60.0,
) -> Family:
    """Make a family with one latent, whose rows are x and a width; log p(x) is an integral split around 0 and x."""

    def log_p(row: Numbers) -> float:
        x, width = row
        return log_integral(
            lambda z: log_prior(z) + log_lik(x, z, width),
            [0.0, x],
            [0.5, width],
            min(-reach, x - reach),
            reach + abs(x),
        )

    return Family(one(prior), likelihood, lambda random: list(draw(random)), log_p)


def product_of_latents(row: Numbers) -> float:
    """Integrate z_2 out of x = z_1 z_2 + noise: x|z_1 ~ N(0, z_1^2 + noise^2)."""
    x, noise = row
    return log_integral(
        lambda z: stats.norm.logpdf(z) + stats.norm.logpdf(x, 0, np.hypot(z, noise)),
        [0.0, -abs(x), abs(x)],
        [noise, 0.1, 0.1],
    )


def funnel(row: Numbers) -> float:
    """Integrate z out of v ~ N(0, 2), z|v ~ N(0, exp(v / 2)), x|z ~ N(z, noise)."""
    x, noise = row
    return log_integral(
        lambda v: stats.norm.logpdf(v, 0, 2) + stats.norm.logpdf(x, 0, np.hypot(np.exp(v / 2), noise)),
        [0.0, 2 * math.log(max(abs(x), noise)), 2 * math.log(noise)],
        [0.5, 0.2, 0.2],
    )


def ring(size: int, low: float) -> Family:
    """Make x = |z| + noise."""

    def rows(random: np.random.Generator) -> list[float]:
        noise = loguniform(random, low, 0.5)
        return [float(np.linalg.norm(random.normal(size=size)) + noise * random.normal()), noise]

    def log_p(row: Numbers) -> float:
        x, noise = row
        return log_integral(
            lambda r: stats.chi.logpdf(r, size) + stats.norm.logpdf(x, r, noise), [x, 1.0], [noise, 0.5], 0.0, 30.0
        )

    return Family(normal(size), lambda z, x: dist.Normal(z.norm(dim=-1), x[:, 1]), rows, log_p)


def ridge(row: Numbers) -> float:
    """Compute log p(x) of two latents with correlation 0.9999, x = z + noise."""
    covariance = np.array([[1.0, 0.9999], [0.9999, 1.0]]) + row[2] ** 2 * np.eye(2)
    return float(stats.multivariate_normal.logpdf(row[:2], np.zeros(2), covariance))


def of_ridge(x: Tensor) -> Any:
    """Make the prior of `ridge`."""
    return dist.MultivariateNormal(x.new_zeros(2), x.new_tensor([[1.0, 0.9999], [0.9999, 1.0]]))


def of_funnel(x: Tensor) -> Any:
    """Sample the latents of `funnel`."""
    v = pyro.sample("v", dist.Normal(torch.zeros_like(x[:, 0]), 2.0))
    return pyro.sample("z", dist.Normal(torch.zeros_like(v), (v / 2).exp()))


def switched(x: Tensor) -> Any:
    """Sample a discrete latent and a normal whose mean it moves, as the parameters of `x` say."""
    s = pyro.sample("s", dist.Bernoulli(x[:, 2]))
    return pyro.sample("z", dist.Normal(s * x[:, 3], 1.0))


def edges(size: int) -> Family:
    """Make z ~ U(0, 1), x = z + noise, with x beyond the edges too."""

    def rows(random: np.random.Generator) -> list[float]:
        return [*random.uniform(-0.5, 1.5, size), loguniform(random, 0.02, 0.5)]

    def log_p(row: Numbers) -> float:
        return float(log_between(-row[:-1] / row[-1], (1 - row[:-1]) / row[-1]).sum())

    prior = one(lambda x: dist.Uniform(x.new_zeros(size), x.new_ones(size)).to_event(1))
    return Family(prior, observe(lambda z: z, size), rows, log_p, size)


def log_between(a: Numbers, b: Numbers) -> Numbers:
    """Compute log(Phi(b) - Phi(a)) in the tail where it is accurate."""
    low, high = np.where(a > 0, -b, a), np.where(a > 0, -a, b)
    return special.log_ndtr(high) + np.log1p(-np.exp(special.log_ndtr(low) - special.log_ndtr(high)))


def families() -> dict[str, Family]:
    """List all families by name."""
    return normal_families() | other_families() | dependent_families()


def normal_families() -> dict[str, Family]:
    """List families with normals and their mixtures."""
    f32 = torch.float32
    return {
        **{f"x = z^2, Z = {size}": square(size, low) for size, low in ((1, 1e-3), (2, 0.01), (3, 0.03))},
        "x = z^2, Z = 1, float32": square(1, 0.01, f32),
        "sum, Z = 2": Family(
            normal(2),
            lambda z, x: dist.Normal(z.sum(-1), x[:, 1]),
            lambda random: [2 * random.normal(), loguniform(random, 0.005, 1)],
            lambda row: float(stats.norm.logpdf(row[0], 0, math.sqrt(2 + row[1] ** 2))),
        ),
        "sum, Z = 3": Family(
            normal(3),
            lambda z, x: dist.Normal(z.sum(-1), x[:, 1]),
            lambda random: [2 * random.normal(), loguniform(random, 0.02, 1)],
            lambda row: float(stats.norm.logpdf(row[0], 0, math.sqrt(3 + row[1] ** 2))),
        ),
        "product, Z = 2": Family(
            normal(2),
            lambda z, x: dist.Normal(z.prod(-1), x[:, 1]),
            lambda random: [random.normal() * random.normal(), loguniform(random, 0.02, 1)],
            product_of_latents,
        ),
        "sin(kz), Z = 1": sine(1, 20.0),
        "sin(kz), Z = 2": sine(2, 6.0),
        **{f"far narrow component, Z = {size}": components(size, far_component, 0.1) for size in (1, 2)},
        **{f"four spikes, Z = {size}": components(size, spikes, 0.1) for size in (1, 2)},
        **{f"mixture of scales, Z = {size}": components(size, scales, 0.03) for size in (1, 2)},
        **{f"six far components, Z = {size}": components(size, far_apart, 0.1) for size in (1, 2)},
        "far components, Z = 1, float32": components(1, far_apart, 0.1, f32),
        "normal, Z = 2, float32": components(2, lambda random: (np.ones(1), np.zeros(1), np.ones(1)), 0.01, f32),
    }


def other_families() -> dict[str, Family]:
    """List families with other densities, domains, and shapes."""

    def unit(x: Tensor) -> Any:
        return dist.Normal(torch.zeros_like(x[:, 0]), 1.0)

    return {
        "Cauchy prior, far x": one_dimensional(
            lambda x: dist.Cauchy(torch.zeros_like(x[:, 0]), 1.0),
            stats.cauchy.logpdf,
            lambda z, x: dist.Normal(z, x[:, 1]),
            lambda x, z, noise: stats.norm.logpdf(x, z, noise),
            lambda random: (random.standard_cauchy() * 10, loguniform(random, 0.01, 3)),
            1e6,
        ),
        "Student prior and likelihood": one_dimensional(
            lambda x: dist.StudentT(torch.full_like(x[:, 0], 3.0), 0.0, 1.0),
            lambda z: stats.t.logpdf(z, 3),
            lambda z, x: dist.StudentT(torch.full_like(x[:, 0], 2.0), z, x[:, 1]),
            lambda x, z, noise: stats.t.logpdf(x, 2, z, noise),
            lambda random: (random.standard_t(2) * 10, loguniform(random, 0.01, 3)),
            1e6,
        ),
        "Laplace likelihood": one_dimensional(
            unit,
            stats.norm.logpdf,
            lambda z, x: dist.Laplace(z, x[:, 1]),
            lambda x, z, noise: stats.laplace.logpdf(x, z, noise),
            lambda random: (2 * random.normal(), loguniform(random, 0.01, 3)),
        ),
        "step": Family(
            one(unit),
            lambda z, x: dist.Normal(torch.where(z > x[:, 2], 1.0, -1.0), x[:, 1]),
            lambda random: [random.normal(), loguniform(random, 0.1, 1), random.normal()],
            lambda row: float(
                np.logaddexp(
                    special.log_ndtr(row[2]) + stats.norm.logpdf(row[0], -1, row[1]),
                    special.log_ndtr(-row[2]) + stats.norm.logpdf(row[0], 1, row[1]),
                )
            ),
        ),
        **{f"uniform prior with edges, Z = {size}": edges(size) for size in (1, 2, 3)},
        "gamma prior, shape below 1": Family(
            one(lambda x: dist.Gamma(x[:, 1], torch.ones_like(x[:, 1]))),
            lambda z, x: dist.Poisson(z * x[:, 2]),
            lambda random: [float(random.poisson(random.choice([0.0, 0.5, 5.0]))), random.uniform(0.1, 1), 3.0],
            lambda row: float(stats.nbinom.logpmf(row[0], row[1], 1 / (1 + row[2]))),
        ),
        "beta prior, shapes below 1": Family(
            one(lambda x: dist.Beta(x[:, 1], x[:, 2])),
            lambda z, x: dist.Binomial(10, z),
            lambda random: [float(random.integers(0, 11)), *random.uniform(0.1, 1, 2)],
            lambda row: float(stats.betabinom.logpmf(row[0], 10, row[1], row[2])),
        ),
    }


def dependent_families() -> dict[str, Family]:
    """List families whose latents depend on each other, and an angle."""
    return {
        "funnel, Z = 2": Family(
            of_funnel,
            lambda z, x: dist.Normal(z, x[:, 1]),
            lambda random: [random.normal() * math.exp(random.normal()), loguniform(random, 0.05, 1)],
            funnel,
        ),
        "discrete and continuous": Family(
            switched,
            lambda z, x: dist.Normal(z, x[:, 1]),
            lambda random: [4 * random.normal(), loguniform(random, 0.01, 1), random.uniform(), random.uniform(3, 30)],
            lambda row: float(
                np.logaddexp(
                    math.log1p(-row[2]) + stats.norm.logpdf(row[0], 0, math.hypot(1, row[1])),
                    math.log(row[2]) + stats.norm.logpdf(row[0], row[3], math.hypot(1, row[1])),
                )
            ),
        ),
        "ridge, correlation 0.9999": Family(
            one(of_ridge),
            observe(lambda z: z, 2),
            lambda random: [*(random.normal() + 0.02 * random.normal(size=2)), loguniform(random, 0.01, 1)],
            ridge,
            2,
        ),
        "ring, Z = 2": ring(2, 0.02),
        "shell, Z = 3": ring(3, 0.1),
        "von Mises": Family(
            one(lambda x: dist.VonMises(x[:, 1], x[:, 2])),
            lambda z, x: dist.VonMises(z, x[:, 3]),
            lambda random: [*random.uniform(-3.1, 3.1, 2), loguniform(random, 0.3, 50), loguniform(random, 0.3, 50)],
            von_mises,
        ),
    }


def von_mises(row: Numbers) -> float:
    """Compute log p(x) of z ~ VM(loc, k), x|z ~ VM(z, l), with torch's normalisers, which are right to 1e-7."""
    x, loc, k, concentration = row
    joint = math.sqrt(k**2 + concentration**2 + 2 * k * concentration * math.cos(x - loc))
    normalisers = dist.VonMises(0.0, torch.tensor([k, concentration])).log_prob(torch.tensor(0.0).double()).sum().item()
    return math.log(2 * math.pi * special.i0e(joint)) + joint + normalisers - k - concentration


def measure(family: Family, cases: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the distance from log p(x), the error that is claimed, and whether there is an answer, each (cases,)."""
    random = np.random.default_rng(seed)
    x = torch.tensor([family.rows(random) for _ in range(cases)], dtype=torch.float64).to(family.dtype)
    exact = torch.tensor([family.log_p(row) for row in x.double().numpy()], dtype=torch.float64)
    found = exact_log_marginal(family.model, x, chunk_size=2**16)
    return (found.value - exact).abs(), found.error, found.value.isfinite()


def main() -> int:
    """Print the table; exit with 1 if errors cover fewer than 99 % of the answers, or more than 10 % are refused."""
    parser = make_parser(prog="exact.py", description=__doc__)
    parser.add_argument("--cases", type=PositiveInt, default=59, help="number of cases of each family")
    parser.add_argument(
        "--only",
        type=str,
        default="",
        help="select the families whose name contains this (default: all)",
        may_be_empty=True,
    )
    parser.add_argument("--seed", type=Seed, default=0, help="random seed of the cases")
    args = parse_flags(parser, sys.argv[1:])
    chosen = {name: family for name, family in families().items() if args.only in name}
    if not chosen:
        raise ValueError(f"--only must be part of a family's name, got {args.only!r}; use 'ring', say")

    torch.set_num_threads(1)
    print(f"{'family':36} {'cases':>6} {'refused':>8} {'covered':>8} {'largest':>9} {'beyond':>9} {'seconds':>7}")
    totals = np.zeros(3)
    for name, family in chosen.items():
        started = time.perf_counter()
        wrong, error, answered = measure(family, args.cases, args.seed)
        covered = (wrong <= error + 1e-9)[answered].double()
        totals += len(wrong), len(covered), covered.sum().item()
        beyond = (wrong - error)[answered].clamp(min=0).amax().item() if len(covered) else 0.0
        print(
            f"{name:36} {len(wrong):6} {1 - len(covered) / len(wrong):8.3f} {covered.mean().item():8.3f} "
            f"{wrong[answered].amax().item() if len(covered) else math.nan:9.1e} {beyond:9.1e} "
            f"{time.perf_counter() - started:7.1f}",
            flush=True,
        )
    cases, answers, within = totals
    refused, share = 1 - answers / cases, within / max(answers, 1)
    print(f"{int(cases)} cases: {refused:.3f} refused, {share:.4f} of the answers covered")
    return int(within < 0.99 * answers or answers < 0.9 * cases)


if __name__ == "__main__":
    run_script(main)
