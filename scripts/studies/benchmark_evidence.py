"""The parts of `benchmark.py` that measure log p(x): the default estimate, and annealed importance sampling."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark_floors import gradient_products
from benchmark_peers import D, H, Z
from torch import Tensor

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GuideProposal,
    LogMarginal,
    NormalEncoder,
    StandardNormalPrior,
    log_marginal,
)
from pyrovae.densities import isolated_rng
from pyrovae.evidence import (
    LatentSpace,
    Proposal,
    ais,
    laplace_fit,
    log_weight_blocks,
    sigmoidal_schedule,
)
from pyrovae.execution import Execution
from pyrovae.programs import ProgramPair
from pyrovae.runs.sweep import model_and_data
from pyrovae.stats import mean_and_std_error, monte_carlo_std_error

PARTICLES, BOUND_PARTICLES = 1_000, 5_000
BLOCK = 64  # data of a turn
ANNEALED = 16  # data of a turn
COMPARED = 50  # data with both estimates
TEMPERATURES, CHAINS, LEAPFROG = 400, 16, 10
FEW_LATENTS, MANY_LATENTS = 10, 256
DEFAULT: tuple[Proposal | None, int] = (None, PARTICLES)
BOUND: tuple[Proposal | None, int] = (GuideProposal(), BOUND_PARTICLES)
STEEPNESS = 1.2  # standard deviation of a random decoder's numbers, with which its posteriors are not normal


def ways_of_evaluating(
    device: torch.device, execution: Execution, run: str | None, calls: int
) -> dict[str, Callable[[], Any]]:
    """List the default estimate of log p(x), which climbs to each datum's posterior, and the guide's bound.

    Args:
        device: Device of the decoders.
        execution: How the programs run.
        run: Folder of a run whose model and test data are measured; None for decoders with random weights.
        calls: Number of calls of each way.
    """
    if run is not None:
        given = model_and_data(Path(run), calls * BLOCK, device=device)
        ours, guide = (ours_evaluation(*given, execution, calls, *estimate) for estimate in (DEFAULT, BOUND))
        return {"ours, default": ours, f"guide, K = {BOUND_PARTICLES:,}": guide}
    decoders = {size: (*random_decoder(device, size, 4 * BLOCK), {}) for size in (Z, FEW_LATENTS, MANY_LATENTS)}
    ways = {
        f"ours, default, Z = {size}": ours_evaluation(*given, execution, calls, *DEFAULT)
        for size, given in decoders.items()
    }
    return ways | {f"guide, K = {BOUND_PARTICLES:,}, Z = {Z}": ours_evaluation(*decoders[Z], execution, calls, *BOUND)}


def ours_evaluation(
    pair: ProgramPair,
    x: Tensor,
    conditions: Mapping[str, Tensor],
    execution: Execution,
    calls: int,
    proposal: Proposal | None,
    num_particles: int,
) -> Callable[[], Any]:
    """Make a function that weighs the next block of data, as `log_marginal` does with many data."""
    rows = torch.arange(calls * BLOCK) % len(x)
    blocks = log_weight_blocks(
        pair.model,
        pair.guide,
        x[rows],
        num_particles=num_particles,
        proposal=proposal,
        skip_support_check=True,
        execution=execution,
        **{name: value[rows] for name, value in conditions.items()},
    )
    return lambda: next(blocks)


def ways_of_annealing(
    device: torch.device, executions: Sequence[Execution], run: str | None
) -> dict[str, Callable[[], Any]]:
    """List annealed importance sampling from the Laplace approximation, and the products of transitions of 10 steps.

    The products are those of the decoder with random weights, so a run has none.

    Args:
        device: Device of the decoders.
        executions: How the programs run.
        run: Folder of a run whose model and test data are measured; None for a decoder with random weights.
    """
    given = some_model(device, run, ANNEALED)
    ways: dict[str, Callable[[], Any]] = {f"ours, {how}": partial(anneal, *given, how) for how in executions}
    if run is not None:
        return ways
    gradients = gradient_products(device, ANNEALED * CHAINS, (TEMPERATURES - 1) * LEAPFROG)
    return ways | {f"products of {LEAPFROG} steps": gradients}


def make_vae(device: torch.device, latent_dim: int = Z) -> VAE:
    """Make the VAE of the comparison."""
    sizes = (latent_dim, D), (D, 2 * latent_dim)
    decoder, encoder = (MLP(*size, hidden=[H], activation="softplus") for size in sizes)
    return VAE(StandardNormalPrior(latent_dim), BernoulliLikelihood(decoder), NormalEncoder(encoder)).to(device)


def random_decoder(device: torch.device, latent_dim: int, num_data: int) -> tuple[VAE, Tensor]:
    """Make a VAE whose decoder has random weights, and data that it draws, always the same."""
    with torch.no_grad(), isolated_rng(0):
        vae = make_vae(device, latent_dim)
        for layer in vae.model.likelihood.network.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.normal_(0.0, STEEPNESS / layer.in_features**0.5)
        return vae, vae.model(size=num_data)


def some_model(
    device: torch.device, run: str | None, num_data: int
) -> tuple[ProgramPair, Tensor, Mapping[str, Tensor]]:
    """Load a run's model, test data and conditions, or make a decoder with random weights and data that it draws."""
    if run is not None:
        return model_and_data(Path(run), num_data, device=device)
    return *random_decoder(device, Z, num_data), {}


def anneal(pair: ProgramPair, x: Tensor, conditions: Mapping[str, Tensor], execution: Execution) -> LogMarginal:
    """Estimate log p(x) of data with shape (N, D) by annealing from their Laplace approximations."""

    def start(space: LatentSpace) -> tuple[Tensor, Tensor]:
        fit = laplace_fit(space)
        return fit.mode, fit.scale_tril

    return ais(
        pair.model,
        x,
        guide=pair.guide,
        num_particles=CHAINS,
        betas=sigmoidal_schedule(TEMPERATURES),
        start=start,
        num_leapfrog=LEAPFROG,
        execution=execution,
        **conditions,
    )


def difference_from_annealing(device: torch.device, execution: Execution, run: str | None) -> dict[str, Any]:
    """Estimate the default minus annealing from the Laplace approximation, paired by datum, and print the mean.

    Both are lower bounds on average, so a negative difference is what the default falls short.

    Args:
        device: Device of the decoder.
        execution: How the programs run.
        run: Folder of a run whose model and test data are measured; None for a decoder with random weights.

    Returns:
        Row with the mean difference in nats, its standard error over data and its Monte Carlo error.
    """
    pair, x, conditions = some_model(device, run, COMPARED)
    with isolated_rng(0):
        default = log_marginal(pair.model, pair.guide, x, num_particles=PARTICLES, execution=execution, **conditions)
        annealed = anneal(pair, x, conditions, execution)
    mean, over_data = mean_and_std_error(default.value - annealed.value)
    monte_carlo = monte_carlo_std_error(torch.hypot(default.std_error, annealed.std_error))
    print(
        f"\ndefault, K = {PARTICLES:,}, minus annealing, {COMPARED} data: {mean:+.3f} nats,"
        f" s.e. data {over_data:.3f}, s.e. MC {monte_carlo:.3f}",
        flush=True,
    )
    row = {"difference": mean, "std_error": over_data, "mc_std_error": monte_carlo}
    return {"title": "default minus annealing: nats", "rows": row}
