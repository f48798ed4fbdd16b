"""The ELBO split into reconstruction and KL divergence, and the KL weight of a run of `fit`."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae.densities import (
    Mask,
    Program,
    Site,
    draw_from_guide,
    entry,
    matched_latents,
    take_kl_weight,
    vectorize_pair,
)
from pyrovae.objectives.base import TensorELBO
from pyrovae.objectives.case_weights import sum_over_data
from pyrovae.objectives.kl_weights import LearnedKLWeight, Per, ShapedKL


class Parts(NamedTuple):
    """Reconstruction log p(x|z) and KL(q(z|x), p(z)) of K draws, in nats.

    Attributes:
        reconstruction: Log p(x|z), with shape (K, N).
        divergences: KL divergence by latent site, each with shape (K, N), or (K, N, Z) by dimension.
        weight: KL weight set by `temper`; None for 1.
    """

    reconstruction: Tensor
    divergences: dict[str, Tensor]
    weight: float | Tensor | None


@entry()
def elbo_parts(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    analytic: bool = True,
    per: Per = "site",
    **kwargs: Any,
) -> Parts:
    """Draw from the guide, and split the ELBO into its reconstruction and the KL divergence of each latent.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        analytic: Whether to use a latent's divergence in closed form. This needs a closed form in torch, and a guide
            that draws in the model's order. Otherwise the divergence is log q(z|x) - log p(z) at the draw.
        per: Groups of the divergence: each latent "site", or each "dimension" of each latent, which must be independent
            in guide and prior.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If a program breaks the contract of `log_weights`, a latent has no reparameterised draws, or the
            dimensions of a latent are not independent.
    """
    model_trace, guide_trace = draw_from_guide(model, guide, args, kwargs, num_particles)
    drawn = matched_latents(model_trace, guide_trace)
    weight = take_kl_weight(model_trace, guide_trace)
    _, log_lik = model_trace.log_densities()
    guide_trace.log_densities()
    scored = model_trace.latents
    # Divergences of single sites are valid only if q and p condition in the same order.
    analytic = analytic and list(scored) == list(drawn)
    divergences = {}
    dependents = [name for name, site in scored.items() if site.depends_on_sums]
    if dependents and (per == "dimension" or len(dependents) > 1):
        raise ValueError(
            f"the divergences of latents {dependents} are not separate, since p(z) sums over sites "
            f"{list(model_trace.summed)} of the model; put the latents into one site, or use another objective"
        )
    for name, site in drawn.items():
        if not site.fn.has_rsample:
            raise ValueError(
                f"this objective needs reparameterised draws, but latent {name!r} ({type(site.fn).__name__}) has "
                "none; use TraceEnum_ELBO, which enumerates discrete latents, and a schedule such as LinearWarmup"
            )
        if name in dependents:
            divergences[name] = site.log_density() - model_trace.log_prior_of_dependents()
        else:
            divergences[name] = _kl_of_site(site, scored[name], analytic, per)
    return Parts(log_lik, divergences, weight)


class WeightedELBO(TensorELBO):
    """ELBO with a weight for each part, in nats.

        L = sum_n a E_q[log p(x_n|z)] - b KL(q(z|x_n), p(z))

    With both weights 1 it is Pyro's TraceMeanField_ELBO. With b = 0 it trains an autoencoder with the guide's noise,
    with a = 0 the divergence alone.

    Args:
        reconstruction: Weight a of the reconstruction.
        kl: Weight b of the KL divergence, multiplied by that of `temper`.
        num_particles: Number of draws K per datum.
        analytic: Whether to use divergences in closed form, as TraceMeanField_ELBO does. Divergences without a closed
            form, and those of a guide that does not draw in the model's order, come from draws, as in Trace_ELBO.

    Raises:
        ValueError: If `num_particles` is below 1. In use: the errors of `elbo_parts`.
    """

    _per: Per = "site"

    def __init__(
        self, reconstruction: float = 1.0, kl: float = 1.0, num_particles: int = 1, analytic: bool = True
    ) -> None:
        super().__init__(num_particles)
        self.reconstruction, self.kl, self.analytic = reconstruction, kl, analytic
        self.is_elbo = reconstruction == kl == 1

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch, in nats, a scalar."""
        return self._loss(None, model, guide, args, kwargs)

    def weighted_loss(self, weights: Tensor, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch with both parts of each datum times its case weight, with shape (N,)."""
        return self._loss(weights, model, guide, args, kwargs)

    def _loss(
        self, cases: Tensor | None, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        model, guide = vectorize_pair(model, guide, args, kwargs, in_training=True)
        parts = elbo_parts(
            model, guide, *args, num_particles=self.num_particles, analytic=self.analytic, per=self._per, **kwargs
        )
        reconstruction = parts.reconstruction.mean(0)
        divergence = self._kl_of_batch(reconstruction, parts.divergences, cases)
        weight = self.kl if parts.weight is None else self.kl * parts.weight
        return weight * divergence - self.reconstruction * sum_over_data(reconstruction, cases)

    def _kl_of_batch(self, reconstruction: Tensor, divergences: Mapping[str, Tensor], cases: Tensor | None) -> Tensor:
        """Compute the divergence of the batch, or the penalty in its place, a scalar."""
        none = reconstruction.new_zeros(())  # if all latents are summed out
        return torch.stack([none, *(sum_over_data(kl.mean(0), cases) for kl in divergences.values())]).sum()


class ControlledELBO(WeightedELBO):
    """ELBO under a KL weight that depends on its parts.

    Args:
        control: Penalty of the divergence, or weight learned from the parts.
        num_particles: Number of draws K per datum.
        analytic: Whether to use divergences in closed form (see `WeightedELBO`).
        device: Device of the computation.

    Attributes:
        parts: Mean reconstruction and divergence of the last batch, in nats per datum, with shape (2,).
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

    def _kl_of_batch(self, reconstruction: Tensor, divergences: Mapping[str, Tensor], cases: Tensor | None) -> Tensor:
        size: int | Tensor = reconstruction.shape[0]
        if cases is None:
            means = [kl.mean((0, 1)) for kl in divergences.values()]  # over draws and data
            mean_reconstruction = reconstruction.mean()
        else:  # the size of a batch is the sum of its weights; a batch may have weights of 0 alone
            size = cases.sum()
            share = cases / size.clamp_min(torch.finfo(cases.dtype).tiny)
            means = [torch.einsum("n,n...->...", share.to(kl.dtype), kl.mean(0)) for kl in divergences.values()]
            mean_reconstruction = sum_over_data(reconstruction, share)
        means = means or [reconstruction.new_zeros(1)]  # if all latents are summed out
        total = torch.stack([kl.sum() for kl in means]).sum()
        parts = torch.stack([mean_reconstruction, total]).detach().to(self.parts.dtype)
        # A batch without weight says nothing about the parts.
        self.parts.copy_(parts if cases is None else torch.where(cases.sum() > 0, parts, self.parts))
        if isinstance(self.control, LearnedKLWeight):
            return size * total
        return size * self.control.shape(torch.cat([kl.reshape(-1) for kl in means]))


class KLControl:
    """KL weight during a run of `fit`, and the objective that it needs.

    Args:
        kl_weight: KL weight or schedule of the user; None for 1.
        elbo: Objective of the user.
        device: Device of the computation.

    Attributes:
        elbo: Objective of the training steps.
        is_elbo: Whether the objective is the ELBO while the weight is 1.
        validation_weight: KL weight of the validation objective; None if the last epoch is kept, not the best.
        follows_epoch: Whether the weight depends on the epoch alone, so that later weights are known in advance.

    Raises:
        ValueError: If the weight needs the parts of an objective that has none.
    """

    def __init__(self, kl_weight: Callable[[float], float] | None, elbo: ELBO, device: torch.device) -> None:
        self.kl_weight, self.elbo = kl_weight, elbo
        self.follows_epoch = True
        if isinstance(kl_weight, ShapedKL | LearnedKLWeight):
            self.follows_epoch = False
            name = type(kl_weight).__name__
            if type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
                raise ValueError(
                    f"{name} needs an objective split into reconstruction and divergence, but {type(elbo).__name__} "
                    "has no such parts; use TraceMeanField_ELBO or Trace_ELBO, or a schedule such as LinearWarmup"
                )
            analytic = isinstance(elbo, TraceMeanField_ELBO)
            self.elbo = ControlledELBO(kl_weight, elbo.num_particles, analytic, device)
            for key, value in vars(kl_weight).items():
                if isinstance(value, Tensor):
                    setattr(kl_weight, key, value.to(device))
        if isinstance(kl_weight, LearnedKLWeight):
            kl_weight.reset()  # it may have learned in an earlier run; a resumed run restores its own
        self.is_elbo: bool = getattr(self.elbo, "is_elbo", True)
        self.validation_weight: float | None = getattr(kl_weight, "validation_weight", 1.0)

    def at(self, epoch: float) -> float | Tensor:
        """Return the weight of a step, and set the target of a `ShapedKL`.

        Args:
            epoch: Number of passes over the data, with fractions.
        """
        if self.kl_weight is None:
            return 1.0
        if isinstance(self.kl_weight, ShapedKL):
            self.kl_weight.target.fill_(self.kl_weight.target_at(epoch))
        return self.kl_weight.weight if isinstance(self.kl_weight, LearnedKLWeight) else self.kl_weight(epoch)

    def learn(self) -> None:
        """Update a learned weight with the parts of the last step."""
        if isinstance(self.kl_weight, LearnedKLWeight):
            assert isinstance(self.elbo, ControlledELBO)
            self.kl_weight.learn(*self.elbo.parts)

    def row(self, epoch: float) -> dict[str, float | None]:
        """Return the entries of a row of `History`."""
        target = self.kl_weight.target_at(epoch) if isinstance(self.kl_weight, ShapedKL) else math.nan
        return {
            "kl_weight": 1.0 if self.kl_weight is None else float(self.kl_weight(epoch)),
            "kl_target": None if math.isnan(target) else target,
        }

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return self.kl_weight.state() if isinstance(self.kl_weight, LearnedKLWeight) else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of an earlier run."""
        if isinstance(self.kl_weight, LearnedKLWeight):
            self.kl_weight.restore(state)


def _kl_of_site(drawn: Site, scored: Site, analytic: bool, per: Per) -> Tensor:
    """Compute the KL divergence of one latent site, with shape (K, N), or (K, N, Z) by dimension."""
    q, p = drawn.fn, scored.fn
    # Either mask may be inside its distribution, so each density has its own.
    masks = drawn.site_mask, scored.site_mask
    by_dimension = per == "dimension" and len(drawn.event_shape) > 0
    if by_dimension:
        independent = isinstance(q, Independent) and isinstance(p, Independent)
        if not independent or len(q.event_shape) != 1 or len(drawn.event_shape) != 1:
            raise ValueError(
                f'per="dimension" needs guide and prior independent over the dimensions of latent {drawn.name!r}, but '
                f'they are {type(q).__name__} and {type(p).__name__}; use per="site"'
            )
        q, p = q.base_dist, p.base_dist
        masks = _of_entries(masks[0]), _of_entries(masks[1])
    if drawn.auxiliary is not None:
        return drawn.log_density() - scored.log_density()
    kl = _kl(q, p, masks, drawn.raw_value, analytic)
    return drawn.layout.per_datum(kl, drawn.plate_sizes, 1) if by_dimension else drawn.sum_per_datum(kl)


def _of_entries(mask: Mask | None) -> Mask | None:
    """Append the event dimension of a vector to a mask over its batch."""
    return mask[..., None] if isinstance(mask, Tensor) else mask


def _kl(q: Any, p: Any, masks: tuple[Mask | None, Mask | None], draw: Tensor, analytic: bool) -> Tensor:
    """Compute the divergence in closed form if there is one, else at a draw.

    Args:
        q: Distribution of the guide.
        p: Distribution of the model.
        masks: Masks by `poutine.mask` around the guide's site and the model's; None if there is none.
        draw: Draw of the guide.
        analytic: Whether to use a closed form.
    """
    of_q, of_p = masks
    if analytic:
        with suppress(NotImplementedError):
            kl = torch.as_tensor(kl_divergence(q, p), device=draw.device)  # the number 0 if a mask inside is False
            return scale_and_mask(scale_and_mask(kl, mask=of_q), mask=of_p)
    return scale_and_mask(q.log_prob(draw), mask=of_q) - scale_and_mask(p.log_prob(draw), mask=of_p)
