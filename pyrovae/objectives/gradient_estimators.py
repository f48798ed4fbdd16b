"""Gradient estimators of importance-weighted bounds.

A bound L(log w_1, ..., log w_K) of one datum enters the estimators by its value L, its gradient a_k = dL/dlog w_k with
sum one, and its curvature d^2L/d(log w_k)^2. All estimators give the model the same gradient,

    sum_k a_k grad_theta log p(x, z_k),

and differ in the gradient of the guide, which each class states. There d/dz holds the parameters fixed, and b is the
weight of the KL divergence (see `temper`; 1 for the bound itself).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from pyrovae.densities import Site
from pyrovae.objectives.case_weights import sum_over_data
from pyrovae.objectives.power_means import Mean

if TYPE_CHECKING:
    from pyrovae.objectives.bounds import ParticleBound

Gradient = Literal["pathwise", "stl", "dreg", "vimco"]

# Floor of the model's weights, so that the guide's weights can be divided by them.
_MIN_WEIGHT = 1e-20


class Draws:
    """Latent sites of the guide, and their values for the model.

    Args:
        sites: Latent sites of the guide's trace, by name.
        rescaled: Whether to multiply the gradient that returns from the model to the draws by `factor`.

    Attributes:
        factor: Factor with shape (K, N), to be set before the backward pass.
    """

    factor: Tensor

    def __init__(self, sites: Mapping[str, Site], rescaled: bool) -> None:
        self.sites, self.rescaled = sites, rescaled

    def values_for_model(self) -> dict[str, Tensor]:
        """Return the drawn values by name."""
        return {name: self._value(site.value) for name, site in self.sites.items()}

    def _value(self, value: Tensor) -> Tensor:
        if not self.rescaled or not value.requires_grad:
            return value
        copy = value.clone()
        copy.register_hook(lambda g: g * self.factor.reshape(self.factor.shape + (1,) * (g.dim() - 2)))
        return copy


@dataclass(frozen=True)
class Terms:
    """Log densities of a batch under model and guide, in nats, each with shape (K, N).

    Attributes:
        log_p: Log p(x|z) + b log p(z).
        log_q: b log q(z|x).
        log_w: Log weights, log_p - log_q.
        bound: Objective that gives the bound of `log_w`.
        draws: Draws of the guide.
        kl_weight: Weight b of the KL divergence; None for 1.
        case_weights: Case weights, with shape (N,); None for 1.
    """

    log_p: Tensor
    log_q: Tensor
    log_w: Tensor
    bound: "ParticleBound"
    draws: Draws
    kl_weight: float | Tensor | None
    case_weights: Tensor | None = None

    def total(self, values: Tensor) -> Tensor:
        """Sum values with shape (..., N), each datum times its case weight."""
        return sum_over_data(values, self.case_weights)

    @cached_property
    def mean(self) -> Mean:
        """Bound of the model."""
        return self.bound.mean(self.log_w)

    @cached_property
    def guide_mean(self) -> Mean:
        """Bound of the guide, without its graph."""
        log_w = self.log_w.detach()
        return self.bound.guide_mean(log_w) or self.bound.mean(log_w)

    def model_surrogate(self, guide_weights: Tensor) -> Tensor:
        """Sum log p, with the model's weights for its parameters and the guide's weights for the draws.

        The gradient that returns through the draws is multiplied by the ratio of the two weights. Hence one backward
        pass through the likelihood's network serves both.
        """
        weights = self.mean.gradient.detach().clamp_min(_MIN_WEIGHT)
        self.draws.factor = guide_weights / weights
        # A draw of density zero has weight zero, and no gradient.
        return self.total(weights * self.log_p.masked_fill(self.log_w.detach() == -torch.inf, 0.0))

    def surrogate_without_score(self, guide_weights: Tensor) -> Tensor:
        """Sum weighted log p - log q, where log q depends on the guide's parameters through the draws alone."""
        surrogate = self.model_surrogate(guide_weights)
        values = [site.raw_value for site in self.draws.sites.values() if site.raw_value.requires_grad]
        partials = partial_derivatives(self.total(guide_weights * self.log_q), values)
        return surrogate - sum((z * g).sum() for z, g in zip(values, partials, strict=True))


class GradientEstimator(ABC):
    """Base of the estimators.

    Attributes:
        min_particles: Least number of draws per datum.
        needs_rsample: Whether all draws must be reparameterised.
        needs_curvature: Whether the bound must have a second derivative.
        omits_score: Whether the guide's gradient leaves out grad_phi log q(z_k|x).
    """

    min_particles: ClassVar[int] = 1
    needs_rsample: ClassVar[bool] = True
    needs_curvature: ClassVar[bool] = False
    omits_score: ClassVar[bool] = False

    @abstractmethod
    def surrogate(self, terms: Terms) -> Tensor:
        """Return a scalar whose gradient estimates that of the bound, summed over the batch. Its value is arbitrary."""


class Pathwise(GradientEstimator):
    """Derivative of the bound by way of the draws.

        sum_k a_k (dlog w_k/dz dz_k/dphi - b grad_phi log q(z_k|x))

    Unbiased. Its signal-to-noise ratio falls as K^-1/2 (Rainforth et al., "Tighter variational bounds are not
    necessarily better", ICML 2018, https://arxiv.org/abs/1802.04537).
    """

    def surrogate(self, terms: Terms) -> Tensor:
        """Return the bound, or its two parts if the guide follows another bound than the model."""
        if not terms.draws.rescaled:
            return terms.total(terms.mean.value)
        weights = terms.guide_mean.gradient
        return terms.model_surrogate(weights) - terms.total(weights * terms.log_q)


class StickingTheLanding(GradientEstimator):
    """Pathwise gradient without the score of q.

        sum_k a_k dlog w_k/dz dz_k/dphi

    Roeder, Wu, Duvenaud, "Sticking the landing" (NeurIPS 2017, https://arxiv.org/abs/1703.09194). Unbiased for K = 1,
    where its variance vanishes as q approaches the posterior. Biased for K > 1 (Tucker et al. 2019,
    https://arxiv.org/abs/1810.04152). For a one-dimensional normal at K = 8 its mean was 0.72, the gradient 0.10.
    """

    omits_score = True

    def surrogate(self, terms: Terms) -> Tensor:
        """Return log p - log q weighted by the gradient of the bound, without the score."""
        return terms.surrogate_without_score(terms.guide_mean.gradient)


class DReG(GradientEstimator):
    """Doubly reparameterised gradient.

        sum_k (a_k - b d^2L/d(log w_k)^2) dlog w_k/dz dz_k/dphi

    Tucker, Lawson, Gu, Maddison, "Doubly reparameterized gradient estimators" (ICLR 2019,
    https://arxiv.org/abs/1810.04152). Unbiased, and its signal-to-noise ratio rises with K. For the importance-weighted
    bound, a_k is the normalised weight, the curvature a_k (1 - a_k), and the factor a_k^2 for b = 1. Other bounds
    follow by the same argument, E[a_k grad_phi log q(z_k|x)] = E[da_k/dz dz_k/dphi].
    """

    needs_curvature = True
    omits_score = True

    def surrogate(self, terms: Terms) -> Tensor:
        """Return log p - log q weighted by the gradient less the curvature of the bound, without the score."""
        bound = terms.guide_mean
        if bound.curvature is None:
            raise ValueError(
                f'gradient="dreg" needs a bound with second derivatives, but {type(terms.bound).__name__} gives none; '
                'use "pathwise" or "stl"'
            )
        kl_weight = 1.0 if terms.kl_weight is None else terms.kl_weight
        return terms.surrogate_without_score(bound.gradient - kl_weight * bound.curvature)


class VIMCO(Pathwise):
    """Score function with a leave-one-out baseline for draws without a gradient; pathwise for other draws.

        pathwise + sum_k (L - L_without_k) grad_phi log q(z_k|x)

    Mnih, Rezende, "Variational inference for Monte Carlo objectives" (ICML 2016, https://arxiv.org/abs/1602.06725).
    Unbiased.
    """

    min_particles = 2
    needs_rsample = False

    def surrogate(self, terms: Terms) -> Tensor:
        """Return the pathwise surrogate plus the score terms."""
        surrogate = super().surrogate(terms)
        score = [site.log_density() for site in terms.draws.sites.values() if not site.fn.has_rsample]
        if not score:
            return surrogate
        signal = terms.guide_mean.value - terms.bound.without_each(terms.log_w.detach())
        return surrogate + terms.total(signal * torch.stack(score).sum(0))


GRADIENT_ESTIMATORS: dict[str, type[GradientEstimator]] = {
    "pathwise": Pathwise,
    "stl": StickingTheLanding,
    "dreg": DReG,
    "vimco": VIMCO,
}


def partial_derivatives(value: Tensor, draws: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate a scalar with respect to each draw, with the other draws and all parameters held fixed.

    A draw made from earlier ones carries their derivative with it. With g_s the returned derivatives, the sum over s of
    <z_s, g_s> has the derivative of `value` by way of the draws alone, whatever made the draws.

    Args:
        value: Scalar that depends on the draws.
        draws: Draws in the order in which they were made; none depends on a later one.
    """
    if not draws:
        return []
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    if not value.requires_grad:
        return [torch.zeros_like(z) for z in draws]
    found = list(torch.autograd.grad(value, draws, **options))
    for s in range(len(draws) - 2, -1, -1):
        terms = [(z * g).sum() for z, g in zip(draws[s + 1 :], found[s + 1 :], strict=True)]
        through_later = torch.stack(terms).sum()
        found[s] = found[s] - torch.autograd.grad(through_later, draws[s], **options)[0]
    return found
