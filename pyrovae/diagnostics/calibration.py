"""Calibration of a guide: simulation-based calibration (SBC) with several quantities, and faults named in words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.densities import (
    Program,
    VectorizedProgram,
    auto_guide_rows,
    draw_from_guide,
    entry,
    evaluating,
    isolated_rng,
    matched_latents,
    plain,
    vectorize_pair,
)
from pyrovae.diagnostics.labels import dimension_labels
from pyrovae.diagnostics.simulation import Simulation, simulations
from pyrovae.diagnostics.uniformity import Uniformity, check_uniform, holm
from pyrovae.evidence import DEFAULT_CHUNK_SIZE

# Function of the latents by site, each with shape (K, N, ...), and of the programs' arguments, with shape (K, N).
Quantity = Callable[..., Tensor]

LOG_LIKELIHOOD, LOG_PRIOR = "log p(x|z)", "log p(z)"

_IGNORES_BELOW = 0.01  # share of the variance of draws that lies between data
_ROUNDING = 256  # units of the last place within which two log densities are equal
_VERBS = {
    "too wide": "is too wide",
    "too narrow": "is too narrow",
    "shifted up": "lies too high",
    "shifted down": "lies too low",
    "other": "has another shape than the posterior",
}


class Calibration(NamedTuple):
    """Ranks of true latents among the draws of a guide, for simulated data, and what they say.

    Attributes:
        ranks: For each quantity the number of draws below the true value, 0, ..., L, with shape (N,), int64; fewer than
            N if masks leave latents out.
        num_draws: Number of draws L per simulation.
        uniformity: Test of the ranks of each quantity, with its own p-value.
        adjusted: p-value of each quantity, adjusted for their number (`holm`).
        p_value: Smallest adjusted p-value, which is one of all quantities together.
        activity: Share of the variance of the guide's draws that lies between data, Var_x(E_q[z_j|x]) / Var(z_j), for
            each latent dimension; about 0 if the guide ignores x, and then possibly negative.
        words: What is wrong with the guide, a sentence each, or one that nothing was found.
    """

    ranks: dict[str, Tensor]
    num_draws: int
    uniformity: dict[str, Uniformity]
    adjusted: dict[str, float]
    p_value: float
    activity: dict[str, float]
    words: tuple[str, ...]


@entry()
def sbc(
    model: Program,
    guide: Program,
    *args: Any,
    num_simulations: int = 1000,
    num_draws: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    level: float = 0.95,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> Calibration:
    """Check whether a guide is the posterior of its model, on data simulated from the model.

        (z*, x*) ~ p(z) p(x|z),  z_1, ..., z_L ~ q(z|x*),  r = #{l: f(z_l, x*) < f(z*, x*)}

    If q(z|x) = p(z|x), the rank r is uniform on 0, ..., L for every quantity f; ties are broken at random (Talts et al.
    2018, "Validating Bayesian inference algorithms with simulation-based calibration",
    https://arxiv.org/abs/1804.06788). The ranks of each z_j are uniform for a guide that is the prior, too, but those
    of log p(x|z) are not (Modrak et al. 2025, "Simulation-based calibration checking for Bayesian computation: the
    choice of test quantities shapes sensitivity", https://doi.org/10.1214/23-BA1404). Hence the quantities are each
    dimension of each latent site, "z[0]", ..., then "log p(x|z)", "log p(z)" and your own.

    Of x only the number of data, their shape, dtype and NaN are used, and not their values. Covariates, masks and other
    arguments are: simulation n is conditional on those of a datum, each datum in turn. Missing entries stay missing.

    The check is of the guide for data of the model. It says nothing about whether the model fits real data, nor how
    good the guide is for real data unlike the model's. With a learned model it tests the pair that was learned. It
    finds averages over data: errors of opposite sign for different x may cancel. A uniform rank proves nothing beyond
    the power of the test: 1,000 simulations find standard deviations that are 10 % off.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_simulations: Number of simulations.
        num_draws: Number of draws L of the guide per simulation.
        quantities: Further quantities f by name: functions of the latents by site, each with shape (K, N, ...), and of
            the programs' arguments, that return a tensor of shape (K, N).
        level: Probability of the bands.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents decoded at once, which bounds memory; None for 8,192.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `log_weights`; or if a count is below 1, the guide has parameters for each datum, the observed
            value is none of the arguments, or a quantity is NaN or has another shape.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5))  # the posterior's is 0.71
        >>> sbc(model, guide, torch.zeros(10), num_simulations=300, num_draws=19).words
        ('the guide is too narrow in z',)
    """
    check_counts(num_simulations=num_simulations, num_draws=num_draws)
    pair = checked_pair(model, guide, args, kwargs, plate)
    own = checked_quantities(quantities)
    ranks: dict[str, list[Tensor]] = {}
    spread = _Spread()
    at_once = (chunk_size or DEFAULT_CHUNK_SIZE) // (num_draws + 1)
    with isolated_rng(seed), evaluating(*pair), pyro.validation_enabled(False):
        for block in simulations(pair[0], args, kwargs, num_simulations, at_once):
            drawn = pair[1].trace(num_draws, block.args, block.kwargs).latents
            latents = {n: with_true(z, drawn[n].value) for n, z in block.latents.items() if n in drawn}
            for name, values, seen in quantities_at(pair[0], block, latents, own):
                ranks.setdefault(name, []).append(_rank(values)[seen])
                if name not in (LOG_LIKELIHOOD, LOG_PRIOR, *own):
                    spread.add(name, values[1:, seen])
    joined = {name: torch.cat(parts) for name, parts in ranks.items()}
    tests = {name: check_uniform(r, num_draws + 1, level=level) for name, r in joined.items() if len(r)}
    joined = {name: joined[name] for name in tests}
    adjusted = adjusted_p_values(tests)
    activity = spread.activity()
    words = _faults(tests, adjusted, activity, 1 - level)
    nothing = f"nothing wrong found in {num_simulations:,} simulations of the model's own data"
    return Calibration(joined, num_draws, tests, adjusted, min(adjusted.values()), activity, words or (nothing,))


def quantities_at(
    model: VectorizedProgram, block: Simulation, latents: Mapping[str, Tensor], own: Mapping[str, Quantity]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Evaluate the quantities of a calibration at given latents, for simulated data.

    Args:
        model: Pyro program p(z) p(x|z), vectorized.
        block: n simulations.
        latents: Values by site, each with shape (K, n, ...).
        own: The user's own quantities by name.

    Yields:
        Name, values with shape (K, n), and whether each datum counts, with shape (n,), for each quantity.

    Raises:
        ValueError: If a quantity is NaN, or the user's own has another shape.
    """
    num_particles, size = next(iter(latents.values())).shape[:2]
    trace = model.trace(num_particles, block.args, block.kwargs, latents)
    every = torch.ones(size, dtype=torch.bool)
    for name in latents:
        site = trace.sites[name]
        seen = site.mask_per_datum()[0].flatten(1) if site.value.dim() > 2 else site.mask_per_datum()[0].unsqueeze(-1)
        for label, column, counts in zip(*_columns(name, site.value), seen.unbind(-1), strict=True):
            yield label, _defined(label, column.detach().cpu()), counts.cpu()
    log_p, log_lik = (log.detach().cpu() for log in trace.log_densities())
    yield LOG_LIKELIHOOD, _rounded(_defined(LOG_LIKELIHOOD, log_lik), log_p), every
    yield LOG_PRIOR, _rounded(_defined(LOG_PRIOR, log_p - log_lik), log_p), every
    args, kwargs = plain(block.args, block.kwargs)
    for name, function in own.items():
        values = torch.as_tensor(function(dict(latents), *args, **kwargs)).detach().cpu()
        if values.shape != (num_particles, size):
            raise ValueError(
                f"quantity {name!r} must return shape (K, N) = {(num_particles, size)}, got {tuple(values.shape)}; "
                "reduce over the dimensions of one datum"
            )
        yield name, _rounded(_defined(name, values), values), every


def adjusted_p_values(tests: Mapping[str, Uniformity]) -> dict[str, float]:
    """Adjust the p-values of the tests of several quantities for their number (`holm`)."""
    adjusted = holm(torch.tensor([test.p_value for test in tests.values()], dtype=torch.float64))
    return dict(zip(tests, adjusted.tolist(), strict=True))


def checked_pair(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any], plate: str | None
) -> tuple[VectorizedProgram, VectorizedProgram]:
    """Find how the programs run on draws, and check that they agree and that the guide is a function of x."""
    pair = vectorize_pair(model, guide, args, kwargs, plate=plate)
    for name in auto_guide_rows(guide):
        raise ValueError(
            f"{name} holds one row of parameters for each datum, so it is no function of x that could be given "
            "simulated data; check a guide with an encoder, or use nuts_check for single data"
        )
    with isolated_rng(0), evaluating(*pair), pyro.validation_enabled(False):
        traces = draw_from_guide(*pair, args, kwargs, 1)
        if not matched_latents(*traces):
            raise ValueError("the guide draws no latent, so there is nothing to calibrate; give one that draws latents")
    return pair


def check_counts(**counts: int) -> None:
    """Raise a ValueError if a count of simulations or draws is below 2."""
    for name, count in counts.items():
        if count < 2:
            raise ValueError(f"{name} must be at least 2, got {count}; 1,000 simulations of 99 draws are usual")


def checked_quantities(quantities: Mapping[str, Quantity] | None) -> dict[str, Quantity]:
    """Check the names of the user's own quantities."""
    own = dict(quantities or {})
    for name in own:
        if name in (LOG_LIKELIHOOD, LOG_PRIOR):
            raise ValueError(f"quantity {name!r} is among those that are always tested; give yours another name")
    return own


def columns_of(latents: Mapping[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
    """Label the dimensions of the latents of one datum, each with shape (K, 1, ...), and put them side by side.

    Returns:
        The J labels, and the values, with shape (K, J), float64, on the CPU.
    """
    labels: list[str] = []
    columns: list[Tensor] = []
    for name, value in latents.items():
        some, parts = _columns(name, value.detach().cpu().double())
        labels += some
        columns += [part[:, 0] for part in parts]
    return tuple(labels), torch.stack(columns, -1)


def with_true(true: Tensor, drawn: Tensor) -> Tensor:
    """Put the true latents, with shape (N, ...), before the draws, with shape (L, N, ...)."""
    return torch.cat([true.unsqueeze(0).to(drawn.dtype), drawn])


def _columns(name: str, value: Tensor) -> tuple[list[str], list[Tensor]]:
    """List the dimensions of a latent site, with shape (K, N, ...), by label: "z", "z[0]" or "z[0,1]"."""
    return dimension_labels(name, value.shape[2:]), list(value.reshape(*value.shape[:2], -1).unbind(-1))


def _defined(name: str, values: Tensor) -> Tensor:
    if bool(values.isnan().any()):
        datum = int(values.isnan().any(0).nonzero()[0])
        raise ValueError(
            f"{name} is NaN for {int(values.isnan().any(0).sum()):,} simulations of this block, first number {datum}; "
            "look for parameters that are NaN, or a scale that went to zero"
        )
    return values


def _rounded(values: Tensor, scale: Tensor) -> Tensor:
    """Round values, with shape (K, N), so that those of equal latents are equal.

    The unit is the same for the true value and the draws, so that they stay exchangeable.
    """
    largest = scale.where(scale.isfinite(), 0.0).abs().amax(0).double()
    unit = (_ROUNDING * torch.finfo(scale.dtype).eps * largest).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(values.isfinite(), (values.double() / unit).round() * unit, values.double())


def _rank(values: Tensor) -> Tensor:
    """Count the draws below the true value, the first of L + 1, with shape (N,), with ties broken at random."""
    true, drawn = values[0], values[1:]
    ties = (drawn == true).sum(0)
    return (drawn < true).sum(0) + (torch.rand(ties.shape, dtype=torch.float64) * (ties + 1)).long().clamp(max=ties)


class _Spread:
    """Means and variances of the draws of each latent dimension, for its activity."""

    def __init__(self) -> None:
        self.means: dict[str, list[Tensor]] = {}
        self.within: dict[str, list[Tensor]] = {}
        self.num_draws = 0

    def add(self, name: str, draws: Tensor) -> None:
        """Add the draws of some data, with shape (L, n)."""
        self.num_draws = len(draws)
        self.means.setdefault(name, []).append(draws.double().mean(0))
        self.within.setdefault(name, []).append(draws.double().var(0))

    def activity(self) -> dict[str, float]:
        """Estimate the share of the variance that lies between data, by dimension; NaN if the draws do not vary."""
        found = {}
        for name, parts in self.means.items():
            means, within = torch.cat(parts), torch.cat(self.within[name]).mean().item()
            between = means.var().item() - within / self.num_draws if len(means) > 1 else math.nan
            found[name] = between / (between + within) if between + within > 0 else math.nan
        return found


def _faults(
    tests: Mapping[str, Uniformity], adjusted: Mapping[str, float], activity: Mapping[str, float], alpha: float
) -> tuple[str, ...]:
    """Say what is wrong with a guide, a sentence for each fault."""
    rejected = {name: test.shape for name, test in tests.items() if adjusted[name] <= alpha}
    latents = {name: shape for name, shape in rejected.items() if name in activity}
    words = []
    fits_worse = rejected.get(LOG_LIKELIHOOD) == "shifted down"
    ignoring = [name for name, share in activity.items() if share < _IGNORES_BELOW]
    if fits_worse and ignoring and len(ignoring) == len(activity):
        words.append("the guide ignores x: its draws are the same for all data, and explain x worse than true latents")
    elif fits_worse and ignoring:
        words.append(f"the guide ignores x in {listed(ignoring)}, and its draws explain x worse than true latents")
    for shape, verb in _VERBS.items():
        names = [name for name, found in latents.items() if found == shape]
        if names:
            words.append(f"the guide {verb} in {listed(names)}")
    if not words and rejected.keys() & {LOG_LIKELIHOOD, LOG_PRIOR}:
        words.append(
            "the guide misses the dependence between latents, or the shape of the posterior: each latent alone is "
            f"calibrated, but {' and '.join(name for name in (LOG_LIKELIHOOD, LOG_PRIOR) if name in rejected)} "
            f"{'are' if {LOG_LIKELIHOOD, LOG_PRIOR} <= rejected.keys() else 'is'} not"
        )
    for name, shape in rejected.items():
        if name not in (*activity, LOG_LIKELIHOOD, LOG_PRIOR):
            words.append(f"the guide's distribution of {name} {_VERBS[shape]}")
    return tuple(words)


def listed(names: Sequence[str], most: int = 6) -> str:
    """List names, the first six of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
