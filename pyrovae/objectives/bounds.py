"""Importance-weighted bounds of log p(x) as objectives, for any model and guide.

Each bound is a mean of K log weights log w_k = log p(x, z_k) - log q(z_k|x), z_k ~ q(z|x), for each datum. The loss
sums it over the batch, as Pyro's objectives do. `gradient_estimators` holds the choices for the guide's gradient.
"""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.densities import Program, Site, matched_latents, take_kl_weight, vectorize_pair
from pyrovae.objectives.base import TensorELBO
from pyrovae.objectives.gradient_estimators import GRADIENT_ESTIMATORS, Draws, Gradient, GradientEstimator, Terms
from pyrovae.objectives.power_means import Mean, mean_of_groups, power_mean, without_each, without_each_in_groups


class ParticleBound(TensorELBO):
    """Base of the bounds.

    The loss of a batch is minus the bound, in nats, summed over the data. The guide's sites must be the model's
    latents, all inside one plate over the data at dim -1. Particles are vectorised at dim -2. Under `temper(latent=b)`
    the log weights are log p(x|z) + b (log p(z) - log q(z|x)). For K = 1 this is the ELBO with weight b of its KL
    divergence.

    To add a bound:

    1. Write a constructor, and `mean` for the bound and its derivatives.
    2. Write `without_each`, the baseline of gradient="vimco".
    3. Override `guide_mean` if the guide follows another bound than the model.

    Args:
        num_particles: Number of draws K per datum, over all groups.
        gradient: Estimator of the guide's gradient: "pathwise", "stl", "dreg" or "vimco".

    Raises:
        ValueError: If `num_particles` is too small or `gradient` is unknown. In use: if a site breaks the contract of
            `log_weights`, or a latent lacks the reparameterised draws that the estimator needs.
    """

    def __init__(self, num_particles: int, gradient: Gradient) -> None:
        _check_draws(num_particles, gradient)
        super().__init__(num_particles)
        self.gradient: Gradient = gradient
        self.is_elbo = num_particles == 1

    @property
    def estimator(self) -> GradientEstimator:
        """The estimator that `gradient` names."""
        return GRADIENT_ESTIMATORS[self.gradient]()

    @abstractmethod
    def mean(self, log_w: Tensor) -> Mean:
        """Compute the bound of log weights with shape (K, N), and its derivatives."""

    def guide_mean(self, log_w: Tensor) -> Mean | None:
        """Compute the bound that the guide follows; None for `mean`."""
        return None

    @abstractmethod
    def without_each(self, log_w: Tensor) -> Tensor:
        """Compute VIMCO's leave-one-out baseline, with shape (K, N).

        Entry (k, n) is the whole bound of datum n without draw k, also for grouped bounds. Only its difference from the
        guide's bound counts, so parts that do not depend on draw k may equal those of the bound.
        """

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch, in nats, a scalar with the estimator's gradient."""
        return self._loss_of(self._terms(model, guide, args, kwargs))

    def weighted_loss(self, weights: Tensor, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch with the bound of each datum times its case weight, with shape (N,)."""
        return self._loss_of(replace(self._terms(model, guide, args, kwargs), case_weights=weights))

    def _loss_of(self, terms: Terms) -> Tensor:
        value = terms.total(terms.mean.value.detach())
        if not torch.is_grad_enabled():
            return -value
        surrogate = self.estimator.surrogate(terms)
        return -(value + (surrogate - surrogate.detach()))

    def _terms(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Terms:
        """Draw from the guide, and score the draws under model and guide."""
        model, guide = vectorize_pair(model, guide, args, kwargs, in_training=True)
        omits_score = self.estimator.omits_score and torch.is_grad_enabled()
        with _CopyDraws(omits_score):
            guide_trace = guide.trace(self.num_particles, args, kwargs)
        two_bounds = type(self).guide_mean is not ParticleBound.guide_mean
        self._check_reparameterised(guide_trace.draws)
        draws = Draws(guide_trace.draws, rescaled=omits_score or two_bounds)
        model_trace = model.trace(self.num_particles, args, kwargs, draws.values_for_model())
        matched_latents(model_trace, guide_trace)
        kl_weight = take_kl_weight(model_trace, guide_trace)
        log_p, log_lik = model_trace.log_densities()
        log_q, _ = guide_trace.log_densities()
        if kl_weight is not None:
            log_p, log_q = log_lik + kl_weight * (log_p - log_lik), kl_weight * log_q
        return Terms(log_p, log_q, log_p - log_q, self, draws, kl_weight)

    def _check_reparameterised(self, latents: dict[str, Site]) -> None:
        for name, site in latents.items():
            if not site.fn.has_rsample and self.estimator.needs_rsample:
                raise ValueError(
                    f'gradient="{self.gradient}" needs reparameterised draws, but latent {name!r} '
                    f'({type(site.fn).__name__}) has none; use gradient="vimco", or TraceEnum_ELBO, which '
                    "enumerates discrete latents"
                )


class ImportanceWeightedELBO(ParticleBound):
    """Importance-weighted bound (IWAE), in nats.

        L = sum_n E log 1/K sum_k p(x_n, z_kn) / q(z_kn|x_n)

    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (ICLR 2016, https://arxiv.org/abs/1509.00519). The
    bound is the ELBO for K = 1, rises with K, and approaches log p(x).

    Gradients of the guide; the model's gradient is the same for all:

    - "pathwise": derivative of the bound. Its signal-to-noise ratio falls as K^-1/2.
    - "stl", sticking the landing: pathwise without the score of q. Unbiased for K = 1, *biased for K > 1*.
    - "dreg", doubly reparameterised: squared normalised weights. Unbiased; its signal-to-noise ratio rises with K.
    - "vimco": score function with a leave-one-out baseline, for draws without a gradient. Unbiased; needs K >= 2.

    `pyrovae.objectives.gradient_estimators` has their formulas and sources.

    Args:
        num_particles: Number of draws K per datum.
        gradient: Estimator of the guide's gradient: "pathwise", "stl", "dreg" or "vimco".

    Example:
        >>> from pyrovae import MLP, VAE, BernoulliLikelihood, NormalEncoder, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 5)), NormalEncoder(MLP(5, 4)))
        >>> loss = ImportanceWeightedELBO(num_particles=8, gradient="dreg")(vae.model, vae.guide)
        >>> loss(torch.ones(3, 5)).backward()
    """

    def __init__(self, num_particles: int = 5, gradient: Gradient = "pathwise") -> None:
        super().__init__(num_particles, gradient)

    def mean(self, log_w: Tensor) -> Mean:
        """Compute the log of the mean weight."""
        return power_mean(log_w)

    def without_each(self, log_w: Tensor) -> Tensor:
        """Compute the bound with log w_k replaced by the mean of the other log weights."""
        return without_each(log_w)


class RenyiELBO(ParticleBound):
    """Variational Renyi bound, in nats.

        L = sum_n E 1/(1-alpha) log 1/K sum_k (p(x_n, z_kn) / q(z_kn|x_n))^(1-alpha)

    Li, Turner, "Renyi divergence variational inference" (NeurIPS 2016, https://arxiv.org/abs/1602.02311). Alpha 0 gives
    the importance-weighted bound, alpha 1 the ELBO of K draws, and alpha -inf VR-max, the largest log weight. For
    alpha >= 0 it is a lower bound of log p(x). Pyro's RenyiELBO has the same value, but no differentiable loss, and
    takes sites outside a plate as one joint datum; this class refuses them.

    Args:
        alpha: Order of the divergence; may be -inf or inf.
        num_particles: Number of draws K per datum.
        gradient: Estimator of the guide's gradient: "pathwise", "stl", "dreg" (for finite alpha) or "vimco".

    Raises:
        ValueError: If `alpha` is NaN, or infinite with "dreg".
    """

    def __init__(self, alpha: float = 0.5, num_particles: int = 5, gradient: Gradient = "pathwise") -> None:
        super().__init__(num_particles, gradient)
        if math.isnan(alpha):
            raise ValueError(f"alpha must not be NaN, got {alpha}; use a number, or -inf for VR-max")
        if math.isinf(alpha) and self.estimator.needs_curvature:
            raise ValueError(
                f'gradient="{gradient}" needs a bound with second derivatives, but alpha={alpha} gives none; use '
                '"pathwise" or "stl"'
            )
        self.alpha = alpha
        self.is_elbo = num_particles == 1 or alpha == 1

    def mean(self, log_w: Tensor) -> Mean:
        """Compute the log of the power mean of order 1 - alpha."""
        return power_mean(log_w, 1 - self.alpha)

    def without_each(self, log_w: Tensor) -> Tensor:
        """Compute the bound with log w_k replaced by the mean of the other log weights."""
        return without_each(log_w, 1 - self.alpha)


class MultiplyImportanceWeightedELBO(ParticleBound):
    """Importance-weighted bound averaged over M groups of K draws (MIWAE), in nats.

        L = sum_n E 1/M sum_m log 1/K sum_k w_mkn

    More draws raise the signal of the guide's gradient, and the bound stays that of K draws. Rainforth et al., "Tighter
    variational bounds are not necessarily better" (ICML 2018, https://arxiv.org/abs/1802.04537).

    Args:
        num_particles: Number of draws K per datum and group.
        num_groups: Number of groups M.
        gradient: Estimator of the guide's gradient: "pathwise", "stl", "dreg" or "vimco", which needs K >= 2.

    Raises:
        ValueError: If `num_groups` is below 1.
    """

    def __init__(self, num_particles: int = 8, num_groups: int = 8, gradient: Gradient = "pathwise") -> None:
        _check_draws(num_particles, gradient, num_groups)
        super().__init__(num_particles * num_groups, gradient)
        self.num_groups = num_groups
        self.is_elbo = num_particles == 1

    def mean(self, log_w: Tensor) -> Mean:
        """Average over groups the log of the mean weight."""
        return mean_of_groups(log_w, self.num_groups)

    def without_each(self, log_w: Tensor) -> Tensor:
        """Compute the bound with log w_k replaced by the mean of the other log weights of its group."""
        return without_each_in_groups(log_w, self.num_groups)


class PartiallyImportanceWeightedELBO(ParticleBound):
    """Bound of all M K draws for the model, and averaged over M groups of K for the guide (PIWAE), in nats.

    The loss is that of `ImportanceWeightedELBO` with M K draws. The guide's gradient is that of
    `MultiplyImportanceWeightedELBO`. Rainforth et al. 2018 (https://arxiv.org/abs/1802.04537), section 6.

    Args:
        num_particles: Number of draws K per datum and group.
        num_groups: Number of groups M.
        gradient: Estimator of the guide's gradient: "pathwise", "stl", "dreg" or "vimco", which needs K >= 2.

    Raises:
        ValueError: If `num_groups` is below 1.
    """

    def __init__(self, num_particles: int = 8, num_groups: int = 8, gradient: Gradient = "pathwise") -> None:
        _check_draws(num_particles, gradient, num_groups)
        super().__init__(num_particles * num_groups, gradient)
        self.num_groups = num_groups

    def mean(self, log_w: Tensor) -> Mean:
        """Compute the log of the mean weight of all draws."""
        return power_mean(log_w)

    def guide_mean(self, log_w: Tensor) -> Mean:
        """Average over groups the log of the mean weight."""
        return mean_of_groups(log_w, self.num_groups)

    def without_each(self, log_w: Tensor) -> Tensor:
        """Compute the guide's bound with log w_k replaced by the mean of the other log weights of its group."""
        return without_each_in_groups(log_w, self.num_groups)


class CombinedImportanceWeightedELBO(ParticleBound):
    """Convex combination of the ELBO and the importance-weighted bound of the same K draws (CIWAE), in nats.

        L = share ELBO + (1 - share) L_K

    Rainforth et al. 2018 (https://arxiv.org/abs/1802.04537), section 6.

    Args:
        share: Share of the ELBO, from 0 to 1.
        num_particles: Number of draws K per datum.
        gradient: Estimator of the guide's gradient: "pathwise", "stl", "dreg" or "vimco".

    Raises:
        ValueError: If `share` lies outside 0 to 1.
    """

    def __init__(self, share: float = 0.5, num_particles: int = 5, gradient: Gradient = "pathwise") -> None:
        super().__init__(num_particles, gradient)
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share
        self.is_elbo = num_particles == 1 or share == 1

    def mean(self, log_w: Tensor) -> Mean:
        """Combine the mean of the log weights and the log of the mean weight."""
        pairs = zip(power_mean(log_w, 0.0), power_mean(log_w), strict=True)
        return Mean(*(self._combined(of_elbo, of_bound) for of_elbo, of_bound in pairs))

    def without_each(self, log_w: Tensor) -> Tensor:
        """Combine both bounds, each with log w_k replaced by the mean of the other log weights."""
        return self._combined(without_each(log_w, 0.0), without_each(log_w))

    def _combined(self, of_elbo: Any, of_bound: Any) -> Tensor:
        return self.share * of_elbo + (1 - self.share) * of_bound


class _CopyDraws(Messenger):
    """Handler that replaces each draw by a copy, so that its density is a function of the value alone.

    A flow caches each draw with its inverse. The log density of a cached draw has no derivative with respect to the
    value; that of a copy has one.
    """

    def __init__(self, active: bool) -> None:
        super().__init__()
        self.active = active

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.active and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = msg["value"].clone()


def _check_draws(num_particles: int, gradient: str, num_groups: int = 1) -> None:
    if gradient not in GRADIENT_ESTIMATORS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENT_ESTIMATORS)}, got {gradient!r}")
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    if num_particles < (least := GRADIENT_ESTIMATORS[gradient].min_particles):
        if least == 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        raise ValueError(
            f'num_particles must be at least {least} with gradient="{gradient}", got {num_particles}; draw more or use '
            "another gradient"
        )
