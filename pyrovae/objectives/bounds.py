"""Importance-weighted bounds of log p(x) as objectives, with a choice of gradient estimators, for any model and guide.

Every bound here is a mean of K log weights log w_k = log p(x, z_k) - log q(z_k|x), z_k ~ q(z|x), taken for each datum
by itself; the sum over the batch comes last, as in Pyro. Of a mean L(log w_1, ..., log w_K) only three things matter
for its gradient: the value L, the weights a_k = dL/dlog w_k, which sum to one, and the curvature d^2L/d(log w_k)^2.
With b the weight of the KL divergence (`temper`, 1 for the bound itself) the gradients of model and guide are

    model:             sum_k a_k grad_theta log p(x, z_k)
    guide, pathwise:   sum_k a_k (d log w_k/dz dz_k/dphi - b grad_phi log q(z_k|x))
    guide, "stl":      sum_k a_k d log w_k/dz dz_k/dphi
    guide, "dreg":     sum_k (a_k - b d^2L/d(log w_k)^2) d log w_k/dz dz_k/dphi
    guide, "vimco":    pathwise + sum_k (L - L_without_k) grad_phi log q(z_k|x)

where d/dz holds the parameters fixed. For the importance-weighted bound a_k is the normalised weight, the curvature
a_k (1 - a_k), and "dreg" has a_k^2, as Tucker et al. have it; the general form follows from the same argument,
E[a_k grad_phi log q(z_k)] = E[da_k/dz dz_k/dphi].
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.densities import (
    Program,
    matched_latents,
    sample_sites,
    site_log_density,
    substitute,
    take_kl_weight,
    trace_log_density,
    trace_with_particles,
)
from pyrovae.objectives.base import TensorELBO
from pyrovae.objectives.power_means import Mean, mean_of_groups, power_mean, without_each, without_each_in_groups

Gradient = Literal["pathwise", "stl", "dreg", "vimco"]

_GRADIENTS = ("pathwise", "stl", "dreg", "vimco")

# Below this share of the total a weight of the model counts as this much, so that the guide's can be divided by it.
_LEAST_WEIGHT = 1e-20


class ParticleBound(TensorELBO):
    """Base of the bounds: an objective for `elbo(model, guide)(x)`, for Pyro's `SVI` and for `fit`.

    The loss of a batch is minus the bound, in nats, summed over the data. The guide's sites must be the model's
    latents, all inside one plate over the data at dim -1; particles are vectorised at dim -2. Under `temper(latent=b)`
    the log weights are log p(x|z) + b (log p(z) - log q(z|x)), which for K = 1 is the ELBO with its KL divergence
    weighted.

    A new bound is a constructor and `mean`; those whose guide follows another bound than the model override
    `guide_mean` too, and `without_each` serves "vimco".

    Args:
        num_particles: Draws per datum, in all.
        gradient: The estimator of the guide's gradient (see the module).

    Raises:
        ValueError: If num_particles is too small or gradient is another word; when it is used, if a site breaks the
            contract of `log_weights`, or a latent has no reparameterised draw where the gradient needs one.
    """

    def __init__(self, num_particles: int, gradient: Gradient) -> None:
        least = 2 if gradient == "vimco" else 1
        if gradient not in _GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(_GRADIENTS)}, got {gradient!r}")
        if num_particles < least:
            why = '; "vimco" compares each draw with the others' if least > 1 else ""
            raise ValueError(f"num_particles must be at least {least}, got {num_particles}{why}")
        super().__init__(num_particles)
        self.gradient: Gradient = gradient
        self.is_elbo = num_particles == 1

    @abstractmethod
    def mean(self, log_w: Tensor) -> Mean:
        """The bound of log weights with shape (K, N), and its derivatives."""

    def guide_mean(self, log_w: Tensor) -> Mean | None:
        """The bound that the guide follows; None for the same."""
        return None

    @abstractmethod
    def without_each(self, log_w: Tensor) -> Tensor:
        """The guide's bound without what draw k says, with shape (K, N), and as a whole where it is a sum of groups'.

        Only the difference from `mean(log_w).value` counts, hence whatever does not depend on draw k may be left as it
        is in the value.
        """

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch, in nats, a scalar with the estimator's gradient."""
        path = self.gradient in ("stl", "dreg") and torch.is_grad_enabled()
        apart = _Apart(path)
        with apart:
            guide_trace = trace_with_particles(guide, self.num_particles, *args, **kwargs)
        drawn = {name: site for name, site in sample_sites(guide_trace).items() if not site["is_observed"]}
        self._check_reparameterised(drawn)
        separate = path or type(self).guide_mean is not ParticleBound.guide_mean
        gate = _Gate()
        values = {name: gate(site["value"]) if separate else site["value"] for name, site in drawn.items()}
        model_trace = trace_with_particles(substitute(values)(model), self.num_particles, *args, **kwargs)
        matched_latents(model_trace, guide_trace)
        weight = take_kl_weight(model_trace, guide_trace)
        log_p, log_lik = trace_log_density(model_trace, self.num_particles, "model")
        log_q, _ = trace_log_density(guide_trace, self.num_particles, "guide")
        if log_p.shape != log_q.shape:
            raise ValueError(
                f"the model has {log_p.shape[1]} data, the guide {log_q.shape[1]}; give both the same data"
            )
        if weight is not None:
            log_p, log_q = log_lik + weight * (log_p - log_lik), weight * log_q
        log_w = log_p - log_q
        mean = self.mean(log_w)
        if not torch.is_grad_enabled():
            return -mean.value.sum()
        if not separate:
            surrogate = mean.value.sum()
        else:
            surrogate = self._separately(log_w, log_p, log_q, mean, weight, gate, drawn)
        if self.gradient == "vimco":
            score = [site_log_density(site) for site in drawn.values() if not site["fn"].has_rsample]
            if score:
                known = log_w.detach()
                signal = self._guide_mean(known).value - self.without_each(known)
                surrogate = surrogate + (signal * torch.stack(score).sum(0)).sum()
        return -_with_value(mean.value.detach().sum(), surrogate)

    def _guide_mean(self, log_w: Tensor) -> Mean:
        return self.guide_mean(log_w) or self.mean(log_w)

    def _separately(
        self,
        log_w: Tensor,
        log_p: Tensor,
        log_q: Tensor,
        mean: Mean,
        weight: float | Tensor | None,
        gate: "_Gate",
        drawn: dict[str, Any],
    ) -> Tensor:
        """A surrogate whose gradient has the model's weights, and for the guide other ones, or without its score.

        The model sees the draws through a gate, which turns the weight in the gradient that comes back through it from
        the model's to the guide's: the likelihood's network is gone through once.
        """
        known = log_w.detach()
        aim = self._guide_mean(known)
        inner = aim.gradient
        if self.gradient == "dreg":
            assert aim.curvature is not None
            inner = inner - (1.0 if weight is None else weight) * aim.curvature
        outer = mean.gradient.detach().clamp_min(_LEAST_WEIGHT)
        gate.factor = inner / outer
        # A draw of density zero has weight zero, and no gradient.
        surrogate = (outer * log_p.masked_fill(known == -torch.inf, 0.0)).sum()
        if self.gradient in ("stl", "dreg"):
            values = [site["value"] for site in drawn.values() if site["value"].requires_grad]
            partials = partial_derivatives((inner * log_q).sum(), values)
            return surrogate - sum((z * g).sum() for z, g in zip(values, partials, strict=True))
        return surrogate - (inner * log_q).sum()

    def _check_reparameterised(self, drawn: dict[str, Any]) -> None:
        for name, site in drawn.items():
            if not site["fn"].has_rsample and self.gradient != "vimco":
                raise ValueError(
                    f'gradient="{self.gradient}" goes through the draws, but those of latent {name!r}, of '
                    f'{type(site["fn"]).__name__}, have no gradient; take gradient="vimco", or TraceEnum_ELBO, which '
                    "sums over discrete latents"
                )


class ImportanceWeightedELBO(ParticleBound):
    """Importance-weighted bound: L = sum_n E log 1/K sum_k p(x_n, z_kn) / q(z_kn|x_n), in nats.

    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (ICLR 2016, https://arxiv.org/abs/1509.00519). It
    is the ELBO for K = 1, rises with K, and approaches log p(x).

    Gradients of the guide, all with the model's as it is:

    - "pathwise": the bound's derivative. Its signal-to-noise ratio falls as K^-1/2 (Rainforth et al. 2018).
    - "stl", sticking the landing: without the score of q (Roeder, Wu, Duvenaud 2017, https://arxiv.org/abs/1703.09194).
      Unbiased for K = 1, where its variance vanishes as q approaches the posterior; *biased for K > 1* (Tucker et al.
      show it; for a normal of one dimension at K = 8, where the gradient is 0.10, it gave 0.72 on average).
    - "dreg", doubly reparameterised: normalised weights squared (Tucker, Lawson, Gu, Maddison, "Doubly reparameterized
      gradient estimators", ICLR 2019, https://arxiv.org/abs/1810.04152). Unbiased, and its signal-to-noise ratio rises
      with K.
    - "vimco": for latents whose draws have no gradient, the score function with a baseline from the other draws (Mnih,
      Rezende 2016, https://arxiv.org/abs/1602.06725); pathwise for the others. Unbiased; K >= 2.

    Args:
        num_particles: K.
        gradient: "pathwise", "stl", "dreg" or "vimco".

    Example:
        >>> from pyrovae import MLP, VAE, BernoulliLikelihood, NormalEncoder, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 5)), NormalEncoder(MLP(5, 4)))
        >>> loss = ImportanceWeightedELBO(num_particles=8, gradient="dreg")(vae.model, vae.guide)
        >>> loss(torch.ones(3, 5)).backward()
    """

    def __init__(self, num_particles: int = 5, gradient: Gradient = "pathwise") -> None:
        super().__init__(num_particles, gradient)

    def mean(self, log_w: Tensor) -> Mean:
        """The log of the mean weight."""
        return power_mean(log_w)

    def without_each(self, log_w: Tensor) -> Tensor:
        """The bound with log w_k replaced by the mean of the others."""
        return without_each(log_w)


class RenyiELBO(ParticleBound):
    """Variational Renyi bound: L = sum_n E 1/(1-alpha) log 1/K sum_k (p(x_n, z_kn) / q(z_kn|x_n))^(1-alpha), in nats.

    Li, Turner, "Renyi divergence variational inference" (NeurIPS 2016, https://arxiv.org/abs/1602.02311). Alpha 0 is
    the importance-weighted bound, 1 the ELBO from K draws, minus infinity VR-max, where the largest weight alone
    counts. A lower bound of log p(x) for alpha >= 0. Unlike Pyro's, of the same value, it has a differentiable loss and
    the gradients of `ImportanceWeightedELBO`, and refuses sites outside a plate, for which Pyro's is silently joint.

    Args:
        alpha: The order, -inf and inf among them.
        num_particles: K.
        gradient: "pathwise", "stl", "dreg" (not for infinite alpha) or "vimco".

    Raises:
        ValueError: If alpha is NaN, or infinite with "dreg": weights that jump have no second derivative.
    """

    def __init__(self, alpha: float = 0.5, num_particles: int = 5, gradient: Gradient = "pathwise") -> None:
        super().__init__(num_particles, gradient)
        if math.isnan(alpha):
            raise ValueError("alpha is NaN; give a number, or -inf for VR-max")
        if math.isinf(alpha) and gradient == "dreg":
            raise ValueError('gradient="dreg" needs weights without jumps; take "pathwise" or "stl" for infinite alpha')
        self.alpha = alpha
        self.is_elbo = num_particles == 1 or alpha == 1

    def mean(self, log_w: Tensor) -> Mean:
        """The log of the power mean of order 1 - alpha."""
        return power_mean(log_w, 1 - self.alpha)

    def without_each(self, log_w: Tensor) -> Tensor:
        """The bound with log w_k replaced by the mean of the others."""
        return without_each(log_w, 1 - self.alpha)


class MultiplyImportanceWeightedELBO(ParticleBound):
    """MIWAE: L = sum_n E 1/M sum_m log 1/K sum_k w_mkn, the importance-weighted bound averaged over M groups, in nats.

    Rainforth et al., "Tighter variational bounds are not necessarily better" (ICML 2018,
    https://arxiv.org/abs/1802.04537): more draws for the guide's signal without a tighter bound.

    Args:
        num_particles: K, draws in a group.
        num_groups: M.
        gradient: As `ImportanceWeightedELBO`; "vimco" needs K >= 2.

    Raises:
        ValueError: If num_groups is below 1.
    """

    def __init__(self, num_particles: int = 8, num_groups: int = 8, gradient: Gradient = "pathwise") -> None:
        _check_groups(num_particles, num_groups, gradient)
        super().__init__(num_particles * num_groups, gradient)
        self.num_groups = num_groups
        self.is_elbo = num_particles == 1

    def mean(self, log_w: Tensor) -> Mean:
        """The mean over groups of the log of the mean weight."""
        return mean_of_groups(log_w, self.num_groups)

    def without_each(self, log_w: Tensor) -> Tensor:
        """The bound with log w_k replaced by the mean of the others in its group."""
        return without_each_in_groups(log_w, self.num_groups)


class PartiallyImportanceWeightedELBO(ParticleBound):
    """PIWAE: the model follows the bound of all M K draws, the guide the mean over M groups of K, in nats.

    The loss is that of `ImportanceWeightedELBO(M K)`; the guide's gradient is that of `MultiplyImportanceWeightedELBO`.
    Rainforth et al. 2018 (https://arxiv.org/abs/1802.04537), section 6.

    Args:
        num_particles: K, draws in a group.
        num_groups: M.
        gradient: As `ImportanceWeightedELBO`; "vimco" needs K >= 2.

    Raises:
        ValueError: If num_groups is below 1.
    """

    def __init__(self, num_particles: int = 8, num_groups: int = 8, gradient: Gradient = "pathwise") -> None:
        _check_groups(num_particles, num_groups, gradient)
        super().__init__(num_particles * num_groups, gradient)
        self.num_groups = num_groups

    def mean(self, log_w: Tensor) -> Mean:
        """The log of the mean weight of all draws."""
        return power_mean(log_w)

    def guide_mean(self, log_w: Tensor) -> Mean:
        """The mean over groups of the log of the mean weight."""
        return mean_of_groups(log_w, self.num_groups)

    def without_each(self, log_w: Tensor) -> Tensor:
        """The guide's bound with log w_k replaced by the mean of the others in its group."""
        return without_each_in_groups(log_w, self.num_groups)


class CombinedImportanceWeightedELBO(ParticleBound):
    """CIWAE: L = share ELBO + (1 - share) importance-weighted bound, both of the same K draws, in nats.

    Rainforth et al. 2018 (https://arxiv.org/abs/1802.04537), section 6.

    Args:
        share: Of the ELBO, from 0 to 1.
        num_particles: K.
        gradient: As `ImportanceWeightedELBO`.

    Raises:
        ValueError: If share lies outside 0 to 1.
    """

    def __init__(self, share: float = 0.5, num_particles: int = 5, gradient: Gradient = "pathwise") -> None:
        super().__init__(num_particles, gradient)
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share
        self.is_elbo = num_particles == 1 or share == 1

    def mean(self, log_w: Tensor) -> Mean:
        """Share times the mean of log weights, and the rest times the log of the mean weight."""
        pairs = zip(power_mean(log_w, 0.0), power_mean(log_w), strict=True)
        return Mean(*(self._mixed(one, other) for one, other in pairs))

    def without_each(self, log_w: Tensor) -> Tensor:
        """Both bounds with log w_k replaced by the mean of the others."""
        return self._mixed(without_each(log_w, 0.0), without_each(log_w))

    def _mixed(self, one: Any, other: Any) -> Tensor:
        return self.share * one + (1 - self.share) * other


def partial_derivatives(value: Tensor, draws: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives of a scalar with respect to draws, each with the other draws held fixed, and all parameters.

    A draw that was made from earlier ones carries their derivative with it. The sum over s of <z_s, g_s>, with g_s what
    is returned, has the derivative of value by way of the draws alone, whatever they were made from.

    Args:
        value: A scalar that depends on the draws.
        draws: In the order in which they were made; none depends on a later one.
    """
    if not draws:
        return []
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    if not value.requires_grad:
        return [torch.zeros_like(z) for z in draws]
    found = list(torch.autograd.grad(value, draws, **options))
    for s in range(len(draws) - 2, -1, -1):
        terms = [(z * g).sum() for z, g in zip(draws[s + 1 :], found[s + 1 :], strict=True)]
        by_way_of_later = torch.stack(terms).sum()
        found[s] = found[s] - torch.autograd.grad(by_way_of_later, draws[s], **options)[0]
    return found


class _Apart(Messenger):
    """Hand on copies of the draws, so that a density is a function of the value alone.

    A flow remembers the draw that it made, and takes what led to it instead of inverting it: its log density then has
    no derivative with respect to the value. A copy it does not know.
    """

    def __init__(self, active: bool) -> None:
        super().__init__()
        self.active = active

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.active and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = msg["value"].clone()


class _Gate:
    """Hands on values as they are, and multiplies what comes back to them by a factor that becomes known later.

    Attributes:
        factor: With shape (K, N).
    """

    factor: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        if not value.requires_grad:
            return value
        passed = value.clone()
        passed.register_hook(lambda g: g * self.factor.reshape(self.factor.shape + (1,) * (g.dim() - 2)))
        return passed


def _with_value(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, with the gradient of the surrogate."""
    return value + (surrogate - surrogate.detach())


def _check_groups(num_particles: int, num_groups: int, gradient: str) -> None:
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    if num_particles < (least := 2 if gradient == "vimco" else 1):
        raise ValueError(f'num_particles must be at least {least} with gradient="{gradient}", got {num_particles}')
