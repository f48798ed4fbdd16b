"""The ELBO in its two parts, reconstruction and divergence, and what `fit` does with a weight of the latter."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae.densities import (
    Program,
    matched_latents,
    sample_sites,
    site_log_density,
    take_kl_weight,
    trace_log_density,
    trace_with_particles,
)
from pyrovae.objectives.base import TensorELBO
from pyrovae.objectives.kl_weights import LearnedKLWeight, Per, ShapedKL


class Parts(NamedTuple):
    """The ELBO's parts, E_q[log p(x|z)] and KL(q(z|x), p(z)), from K draws, in nats.

    Attributes:
        reconstruction: Log p(x|z), with shape (K, N).
        divergences: By group (site, dimension, or both as one), each with shape (K, N) or (K, N, D).
        weight: What `temper` says of the divergence; None for 1.
    """

    reconstruction: Tensor
    divergences: dict[str, Tensor]
    weight: float | Tensor | None


def elbo_parts(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    analytic: bool = True,
    per: Per = "site",
    **kwargs: Any,
) -> Parts:
    """Draw from the guide, and take the ELBO apart into its reconstruction and the divergence of each latent.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        num_particles: K, the draws per datum.
        analytic: Take a latent's divergence in closed form where torch has it, and the guide draws in the model's
            order; otherwise it is log q(z|x) - log p(z) at the draw.
        per: "dimension" for the divergence of each dimension of a latent, which guide and prior must have independent.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If a program breaks the contract of `log_weights`, a draw has no gradient, or a latent's dimensions
            have no divergence of their own.
    """
    guide_trace = trace_with_particles(guide, num_particles, *args, **kwargs)
    model_trace = trace_with_particles(poutine.replay(model, trace=guide_trace), num_particles, *args, **kwargs)
    drawn = matched_latents(model_trace, guide_trace)
    weight = take_kl_weight(model_trace, guide_trace)
    _, log_lik = trace_log_density(model_trace, num_particles, "model")
    trace_log_density(guide_trace, num_particles, "guide")
    scored = {name: site for name, site in sample_sites(model_trace).items() if name in drawn}
    # Site by site the divergence is right only where q and p condition alike.
    analytic = analytic and list(scored) == list(drawn)
    divergences = {}
    for name, site in drawn.items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"the draws of latent {name!r}, of {type(site['fn']).__name__}, have no gradient; take TraceEnum_ELBO, "
                "which sums over discrete latents, and a schedule such as LinearWarmup for the weight"
            )
        found = _divergence(name, site, scored[name], analytic, per)
        divergences[name] = found.expand(*log_lik.shape, *found.shape[2:])
    return Parts(log_lik, divergences, weight)


class WeightedELBO(TensorELBO):
    """ELBO with a weight for each part: L = sum_n a E_q[log p(x_n|z)] - b KL(q(z|x_n), p(z)), in nats.

    With both weights 1 it is Pyro's TraceMeanField_ELBO; b = 0 leaves a plain autoencoder (with the guide's noise), a =
    0 the divergence alone, so that the latent spaces of the three can be put side by side.

    Args:
        reconstruction: The weight a.
        kl: The weight b; times that of `temper`.
        num_particles: Draws per datum.
        analytic: Take divergences in closed form where torch has them, as TraceMeanField_ELBO does; otherwise, and
            where the guide does not draw in the model's order, from draws, as Trace_ELBO.

    Raises:
        ValueError: If num_particles is below 1; when it is used, as `elbo_parts`.
    """

    def __init__(
        self, reconstruction: float = 1.0, kl: float = 1.0, num_particles: int = 1, analytic: bool = True
    ) -> None:
        super().__init__(num_particles)
        self.reconstruction, self.kl, self.analytic = reconstruction, kl, analytic
        self.is_elbo = reconstruction == kl == 1

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch, in nats, a scalar."""
        parts = elbo_parts(
            model, guide, *args, num_particles=self.num_particles, analytic=self.analytic, per=self._per, **kwargs
        )
        reconstruction = parts.reconstruction.mean(0)
        divergence = self._shaped(reconstruction, parts.divergences)
        weight = self.kl if parts.weight is None else self.kl * parts.weight
        return weight * divergence - self.reconstruction * reconstruction.sum()

    _per: Per = "site"

    def _shaped(self, reconstruction: Tensor, divergences: Mapping[str, Tensor]) -> Tensor:
        """What stands for the batch's divergence."""
        return torch.stack([kl.mean(0).sum() for kl in divergences.values()]).sum()


class ControlledELBO(WeightedELBO):
    """The ELBO under a weight that looks at its parts: a `ShapedKL`, or a `LearnedKLWeight`.

    Args:
        control: The weight.
        num_particles: Draws per datum.
        analytic: As `WeightedELBO`.
        device: Where the numbers are kept that steps leave behind.

    Attributes:
        parts: Reconstruction and divergence per datum in the last batch, with shape (2,), in nats.
    """

    sums_over_data = False

    def __init__(
        self, control: ShapedKL | LearnedKLWeight, num_particles: int, analytic: bool, device: torch.device
    ) -> None:
        super().__init__(num_particles=num_particles, analytic=analytic)
        self.control, self.is_elbo = control, False
        self.parts = torch.zeros(2, dtype=torch.float64, device=device)
        if isinstance(control, ShapedKL):
            self._per = control.per

    def _shaped(self, reconstruction: Tensor, divergences: Mapping[str, Tensor]) -> Tensor:
        size = reconstruction.shape[0]
        means = [kl.mean((0, 1)) for kl in divergences.values()]  # over draws and data
        total = torch.stack([kl.sum() for kl in means]).sum()
        self.parts.copy_(torch.stack([reconstruction.mean(), total]).detach())
        if isinstance(self.control, LearnedKLWeight):
            return size * total
        return size * self.control.shape(torch.cat([kl.reshape(-1) for kl in means]))


class KLControl:
    """The weight of the divergence in the course of a run of `fit`.

    Args:
        kl_weight: What the reader gave; None for 1 throughout.
        elbo: The objective that the reader gave.
        device: Where the parameters are.

    Attributes:
        elbo: The objective to step on.
        is_elbo: Whether its value is the ELBO while the weight is 1.
        lasting: The weight that the validation data are looked at with; None for none (see `KLWeight`).
        follows_epoch: The weight follows from the passes over the data alone, and can be known ahead.

    Raises:
        ValueError: If the weight looks at the parts of an objective that cannot be taken apart.
    """

    def __init__(self, kl_weight: Callable[[float], float] | None, elbo: ELBO, device: torch.device) -> None:
        self.kl_weight, self.elbo = kl_weight, elbo
        self.follows_epoch = True
        if isinstance(kl_weight, ShapedKL | LearnedKLWeight):
            self.follows_epoch = False
            name = type(kl_weight).__name__
            if type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
                raise ValueError(
                    f"{name} looks at reconstruction and divergence by themselves, which {type(elbo).__name__} does "
                    "not give; take TraceMeanField_ELBO or Trace_ELBO, or a schedule such as LinearWarmup"
                )
            analytic = isinstance(elbo, TraceMeanField_ELBO)
            self.elbo = ControlledELBO(kl_weight, elbo.num_particles, analytic, device)
            for key, value in vars(kl_weight).items():
                if isinstance(value, Tensor):
                    setattr(kl_weight, key, value.to(device))
        self.is_elbo: bool = getattr(self.elbo, "is_elbo", True)
        self.lasting: float | None = getattr(kl_weight, "lasting", 1.0)

    def at(self, epoch: float) -> float | Tensor:
        """The weight for the next step, after so many passes over the data; the target is set."""
        if self.kl_weight is None:
            return 1.0
        if isinstance(self.kl_weight, ShapedKL):
            self.kl_weight.target.fill_(self.kl_weight.target_at(epoch))
        return self.kl_weight.weight if isinstance(self.kl_weight, LearnedKLWeight) else self.kl_weight(epoch)

    def learn(self) -> None:
        """Let a learned weight see what the last step gave."""
        if isinstance(self.kl_weight, LearnedKLWeight):
            assert isinstance(self.elbo, ControlledELBO)
            self.kl_weight.learn(*self.elbo.parts)

    def row(self, epoch: float) -> dict[str, float | None]:
        """What a row of `History` says of it."""
        target = self.kl_weight.target_at(epoch) if isinstance(self.kl_weight, ShapedKL) else math.nan
        return {
            "kl_weight": 1.0 if self.kl_weight is None else float(self.kl_weight(epoch)),
            "kl_target": None if math.isnan(target) else target,
        }

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return self.kl_weight.state() if isinstance(self.kl_weight, LearnedKLWeight) else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the run of this state did."""
        if isinstance(self.kl_weight, LearnedKLWeight):
            self.kl_weight.restore(state)


def _divergence(name: str, drawn: Mapping[str, Any], scored: Mapping[str, Any], analytic: bool, per: Per) -> Tensor:
    """The divergence of one site, with shape (K, N), or (K, N, D) per dimension."""
    q, p = drawn["fn"], scored["fn"]
    mask = drawn["mask"]
    if per == "dimension" and q.event_dim:
        if not (isinstance(q, Independent) and isinstance(p, Independent) and len(q.event_shape) == 1):
            raise ValueError(
                f"the dimensions of latent {name!r} have no divergence of their own: guide and prior are "
                f"{type(q).__name__} and {type(p).__name__}, not both independent over them; take it per site"
            )
        q, p = q.base_dist, p.base_dist
        mask = mask[..., None] if isinstance(mask, Tensor) else mask
    if analytic:
        try:
            return scale_and_mask(kl_divergence(q, p), mask=mask)
        except NotImplementedError:
            pass
    if q is drawn["fn"]:
        return site_log_density(drawn) - site_log_density(scored)
    return scale_and_mask(q.log_prob(drawn["value"]) - p.log_prob(drawn["value"]), mask=mask)
