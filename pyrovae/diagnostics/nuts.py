"""A guide against NUTS: posteriors of chosen data by Hamiltonian Monte Carlo, with its own checks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyrovae.densities import (
    Program,
    VectorizedProgram,
    entry,
    evaluating,
    isolated_rng,
    num_data,
    take,
    vectorize_pair,
    weighted_draws,
)
from pyrovae.diagnostics.calibration import columns_of, listed
from pyrovae.evidence import LatentSpace
from pyrovae.execution import NotRecordedError, Recorded
from pyrovae.stats import pareto_khat

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
RHAT_LIMIT, ESS_LIMIT = 1.05, 100.0
_OFF = 0.1  # difference of a probability from which the words name a dimension
_STARTS = 20  # draws of guide and prior among which chains find a start


class NutsCheck(NamedTuple):
    """Posteriors of M data by NUTS, and the draws of a guide beside them; J latent dimensions, Q probabilities.

    Attributes:
        data: Indices of the data, with shape (M,).
        labels: Labels of the latent dimensions, "z[0]", ..., J of them.
        probabilities: Probabilities of the quantiles, with shape (Q,).
        nuts: Quantiles by NUTS, in the unit of the latent, with shape (M, Q, J).
        guide: Quantiles of the guide's draws, with shape (M, Q, J).
        weighted: Quantiles of the guide's draws with their importance weights, with shape (M, Q, J).
        guide_below: Probability of the guide below the quantiles by NUTS, with shape (M, Q, J); equal to probabilities
            if the guide is right.
        weighted_below: The same of the weighted draws, with shape (M, Q, J).
        below_error: Standard error of guide_below, by the draws of both, with shape (M, Q, J).
        mean: Posterior means by NUTS, with shape (M, J).
        sd: Posterior standard deviations by NUTS, with shape (M, J).
        rhat: Split R-hat of the chains, with shape (M, J). Above 1.05 the chains disagree.
        ess: Effective number of draws of NUTS, with shape (M, J). Below 100 the quantiles are rough.
        num_divergent: Number of divergent transitions, with shape (M,).
        khat: Pareto k-hat of the guide's weights, with shape (M,). Above 0.7 the weighted draws are unreliable.
        words: What was found, a sentence for each datum, by its index.
    """

    data: Tensor
    labels: tuple[str, ...]
    probabilities: Tensor
    nuts: Tensor
    guide: Tensor
    weighted: Tensor
    guide_below: Tensor
    weighted_below: Tensor
    below_error: Tensor
    mean: Tensor
    sd: Tensor
    rhat: Tensor
    ess: Tensor
    num_divergent: Tensor
    khat: Tensor
    words: tuple[str, ...]


@entry()
def nuts_check(
    model: Program,
    guide: Program,
    *args: Any,
    data: Sequence[int] | Tensor,
    num_samples: int = 250,
    num_warmup: int = 200,
    num_chains: int = 4,
    num_draws: int = 1000,
    probabilities: Sequence[float] = PROBABILITIES,
    seed: int = 0,
    plate: str | None = None,
    **kwargs: Any,
) -> NutsCheck:
    """Compare a guide with NUTS, datum by datum, for chosen data.

    Pyro's No-U-Turn sampler (Hoffman and Gelman 2014, https://arxiv.org/abs/1111.4246) draws from p(z|x_n) in the
    unconstrained coordinates of the latents, in chains that start at draws from the prior and the guide in turn. It
    needs no guide, but it may miss a mode that no chain enters, and its quantiles have errors. Check `rhat`, `ess` and
    `num_divergent` before you believe a difference. Discrete latents that the guide does not draw are summed out. Each
    datum takes thousands of gradients: choose a few data, such as those of the largest, median and smallest k-hat.

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        data: Indices of the data to check, with shape (M,).
        num_samples: Number of draws of each chain after warm-up.
        num_warmup: Number of transitions that adapt step size and mass matrix.
        num_chains: Number of chains per datum, run one after the other.
        num_draws: Number of draws of the guide per datum.
        probabilities: Probabilities of the quantiles, between 0 and 1, with shape (Q,).
        seed: Random seed; the global random state is restored at the end.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As `log_weights`; or if a latent is discrete or under a mask, there is no datum of an index, the
            programs run on all data alone, there are fewer than two chains or four draws of each, or no start has a
            finite density.
    """
    if num_chains < 2 or num_samples < 4 or num_warmup < 1 or num_draws < 2:
        raise ValueError(
            "nuts_check needs at least 2 chains, 4 samples, 1 transition of warm-up and 2 draws of the guide, got "
            f"{num_chains}, {num_samples}, {num_warmup} and {num_draws}"
        )
    probs = torch.tensor(probabilities, dtype=torch.float64)
    if probs.dim() != 1 or not bool(((probs > 0) & (probs < 1)).all()) or not len(probs):
        raise ValueError(f"probabilities must lie between 0 and 1, got {tuple(probabilities)}; give (0.05, 0.5, 0.95)")
    pair = vectorize_pair(model, guide, args, kwargs, plate=plate)
    size = num_data(args, kwargs)
    chosen = torch.as_tensor(data, dtype=torch.long).flatten().cpu()
    if not len(chosen) or not bool(((chosen >= 0) & (chosen < size)).all()):
        raise ValueError(f"data must be indices from 0 to {size - 1}, got {chosen.tolist()}")
    if not pair[0].divisible:
        raise ValueError("nuts_check runs single data, but the programs run on all data alone; use sbc")
    found = []
    for place, index in enumerate(chosen.tolist()):
        some = take(args, kwargs, torch.tensor([index]))
        with isolated_rng(seed + place), evaluating(*pair), pyro.validation_enabled(False):
            found.append(_check_datum(pair, some, probs, (num_samples, num_warmup, num_chains, num_draws)))
    labels = found[0][0]
    tensors = map(torch.stack, zip(*(tensors for _, tensors in found), strict=True))
    words = tuple(f"datum {index}: {_words(*one, probs)}" for index, one in zip(chosen.tolist(), found, strict=True))
    fields: tuple[Any, ...] = (chosen, labels, probs, *tensors, words)
    return NutsCheck(*fields)


def _check_datum(
    pair: tuple[VectorizedProgram, VectorizedProgram],
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    probs: Tensor,
    counts: tuple[int, int, int, int],
) -> tuple[tuple[str, ...], list[Tensor]]:
    """Run NUTS and the guide on one datum: the labels, and the tensors of `NutsCheck` from nuts to khat."""
    num_samples, num_warmup, num_chains, num_draws = counts
    args, kwargs = arguments
    space = LatentSpace(*pair, *args, **kwargs)
    if not space.continuous or space.masked:
        reason = space.obstacle or "a mask leaves latents of this datum out, or all latents are summed out"
        raise ValueError(f"nuts_check needs continuous latents without masks, but {reason}; use sbc")
    chains, divergent = _chains(space, num_samples, num_warmup, num_chains)
    latents, _ = space.unpack(chains.flatten(0, 1).unsqueeze(1))
    labels, nuts = columns_of(latents)
    draws = weighted_draws(*pair, *args, num_particles=num_draws, **kwargs)
    _, by_guide = columns_of({name: draws.latents[name] for name in space.names})
    log_w = draws.log_weights[:, :1].cpu().double()
    weight = log_w.softmax(0)
    by_chain = nuts.unflatten(0, (num_chains, num_samples))
    quantiles = nuts.quantile(probs, 0)
    below = (by_guide.unsqueeze(0) <= quantiles.unsqueeze(1)).double()
    ess = effective_sample_size(by_chain, chain_dim=0, sample_dim=1).clamp(max=float(len(nuts)))
    variance = (probs * (1 - probs)).unsqueeze(-1)
    error = (variance / ess + variance / num_draws).sqrt()
    tensors = [
        quantiles,
        by_guide.quantile(probs, 0),
        _weighted_quantiles(by_guide, weight, probs),
        below.mean(1),
        (below * weight).sum(1),
        error,
        nuts.mean(0),
        nuts.std(0),
        split_gelman_rubin(by_chain, chain_dim=0, sample_dim=1),
        ess,
        torch.tensor(divergent),
        pareto_khat(log_w)[0],
    ]
    return labels, tensors


def _chains(space: LatentSpace, num_samples: int, num_warmup: int, num_chains: int) -> tuple[Tensor, int]:
    """Run NUTS in the coordinates u of one datum: draws with shape (C, S, U), and the number of divergences."""
    energy = _Energy(space)
    chains, divergent = [], 0
    for start in _starts(space, num_chains):
        kernel = NUTS(potential_fn=energy, full_mass=True)
        mcmc = MCMC(kernel, num_samples, num_warmup, initial_params={"u": start}, disable_progbar=True)
        with torch.enable_grad():
            mcmc.run()
        chains.append(mcmc.get_samples()["u"].detach())
        divergent += len(mcmc.diagnostics()["divergences"]["chain 0"])
    return torch.stack(chains), divergent


class _Energy:
    """Potential energy of one datum, -log p(x, z(u)) |dz/du| in nats, at coordinates u with shape (U,).

    It is recorded once with its gradient and then replayed, since each of the thousands of calls is small.

    Args:
        space: Latents of the datum.
    """

    def __init__(self, space: LatentSpace) -> None:
        self.space = space
        self.recorded: Recorded | None = Recorded(self._evaluate, num_varying=1)

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Evaluate the energy, whose gradient Pyro asks for."""
        energy: Tensor = _WithGradient.apply(parameters["u"], self._replay)
        return energy

    def _replay(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.recorded is not None:
            try:
                outputs: Any = self.recorded(u)
            except NotRecordedError:
                self.recorded = None
            else:
                value, gradient = outputs
                return value, gradient
        value, gradient = self._evaluate(u)
        return value, gradient

    def _evaluate(self, u: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = -self.space.log_joint(u.reshape(1, 1, -1))[0, 0]
            (gradient,) = torch.autograd.grad(value, u)
        return [value.detach(), gradient]


class _WithGradient(torch.autograd.Function):
    """Function that gives its own gradient."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Evaluate the function and keep its gradient."""
        value, gradient = function(u.detach().contiguous())
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        """Return the gradient."""
        (gradient,) = ctx.saved_tensors
        return outputs[0] * gradient, None


def _starts(space: LatentSpace, num_chains: int) -> list[Tensor]:
    """Choose draws of the prior and of the guide in turn, with a finite density, each with shape (U,)."""
    drawn = [space.pack(draw(_STARTS)) for draw in (space.from_prior, space.from_guide)]
    u = torch.stack(drawn, 1).flatten(0, 1)  # prior, guide, prior, ...
    u = u[space.log_joint(u)[:, 0].isfinite()]
    if not len(u):
        raise ValueError("log p(x, z) is not finite at any draw of the prior or the guide; look at the datum's values")
    return [u[k % len(u), 0] for k in range(num_chains)]


def _weighted_quantiles(draws: Tensor, weight: Tensor, probs: Tensor) -> Tensor:
    """Compute quantiles of weighted draws, with shape (Q, J): the smallest draw up to which the weights reach each."""
    ordered, order = draws.sort(0)
    reached = weight.expand_as(draws).gather(0, order).cumsum(0)
    place = torch.searchsorted(reached.T.contiguous(), probs.expand(draws.shape[1], -1).contiguous())
    return ordered.gather(0, place.T.clamp(max=len(draws) - 1))


def _words(labels: Sequence[str], tensors: Sequence[Tensor], probs: Tensor) -> str:
    """Say what NUTS found at one datum; labels and tensors are those of `_check_datum`."""
    _, _, _, below, _, error, _, _, rhat, ess, divergent, _ = tensors
    if bool((rhat > RHAT_LIMIT).any()) or bool((ess < ESS_LIMIT).any()) or not bool(rhat.isfinite().all()):
        return (
            f"NUTS has not converged (R-hat {rhat.max().item():.2f}, {ess.min().item():.0f} effective draws), so it is "
            "no reference; use more samples"
        )
    off = (below - probs.unsqueeze(-1)).abs()
    worst = torch.where(off > 4 * error, off, 0.0).amax(0)
    named = [f"{labels[j]} ({worst[j].item():.2f})" for j in worst.argsort(descending=True) if worst[j] > _OFF]
    said = f"the guide's quantiles agree with those of NUTS within {_OFF:g} in probability"
    if named:
        said = f"the guide's quantiles differ from those of NUTS, in probability, in {listed(named)}"
    return said + (f"; {int(divergent)} divergent transitions" if int(divergent) else "")
