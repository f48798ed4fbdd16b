"""Objectives that look at the aggregate posterior q(z) = 1/N sum_n q(z|x_n): its dependence, and its distance to p(z).

They take one latent site with one draw per datum, and see q(z) through the batch, so that their values are biased as
each docstring says.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent

from pyrovae.densities import Program, matched_latents, sample_sites, trace_log_density, trace_with_particles
from pyrovae.losses import TensorELBO


class OneLatent(NamedTuple):
    """One draw for each of N data.

    Attributes:
        z: The draws, with shape (N, D).
        log_lik: Log p(x|z), with shape (N,), in nats.
        log_p: Log p(z), with shape (N,).
        log_q: Log q(z|x), with shape (N,).
        q: The distribution q(z|x), of batch shape (1, N).
        p: The distribution p(z), of batch shape (1, N).
    """

    z: Tensor
    log_lik: Tensor
    log_p: Tensor
    log_q: Tensor
    q: Any
    p: Any


class AggregateELBO(TensorELBO):
    """Base of objectives of the reconstruction, the draws, and what the batch says of q(z).

    A new one has `divergence`, which stands in the place of the batch's KL divergence.

    Raises:
        ValueError: When it is used, if there is not one latent of one dimension of events whose draws have a gradient,
            it is masked, or a program breaks the contract of `log_weights`.
    """

    sums_over_data = False

    def __init__(self) -> None:
        super().__init__(1)

    @abstractmethod
    def divergence(self, one: OneLatent) -> Tensor:
        """What is subtracted from E_q[log p(x|z)], summed over the batch, in nats; a scalar."""

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch, in nats, a scalar."""
        one = _one_latent(model, guide, args, kwargs)
        return self.divergence(one) - one.log_lik.sum()


class BetaTCELBO(AggregateELBO):
    """Beta-TCVAE: E_q[log p(x|z)] - alpha I(x; z) - beta KL(q(z), prod_j q(z_j)) - gamma sum_j KL(q(z_j), p(z_j)).

    In nats per datum. The index-code mutual information, the total correlation and the dimension-wise divergence add up
    to the mean of KL(q(z|x), p(z)) (Chen, Li, Grosse, Duvenaud, "Isolating sources of disentanglement in variational
    autoencoders", NeurIPS 2018, https://arxiv.org/abs/1802.04942, eq. 2-3). With all three weights 1 it is the ELBO.
    Where the prior is not independent over dimensions the last term is E[log prod_j q(z_j) - log p(z)], and the sum
    stays what it is.

    q(z) and q(z_j) are estimated from the batch of M data, by 1/N q(z|x_own) + (N-1)/N times the mean of the M - 1
    others: without bias, in itself; its log is too low on average (Jensen), so that the mutual information is
    overestimated and, since the joint density is the harder to see, the total correlation underestimated. With the
    whole data in the batch both are exact but for the draws.

    Args:
        num_data: N, the size of the training set.
        alpha: Weight of the mutual information.
        beta: Weight of the total correlation.
        gamma: Weight of the dimension-wise divergence.

    Raises:
        ValueError: If num_data is below 2; when it is used, if the guide is not independent over dimensions, or the
            batch has one datum or more than num_data.
    """

    def __init__(self, num_data: int, alpha: float = 1.0, beta: float = 6.0, gamma: float = 1.0) -> None:
        super().__init__()
        if num_data < 2:
            raise ValueError(f"num_data is the size of the training set, at least 2, got {num_data}")
        self.num_data, self.alpha, self.beta, self.gamma = num_data, alpha, beta, gamma
        self.is_elbo = alpha == beta == gamma == 1

    def divergence(self, one: OneLatent) -> Tensor:
        """The three terms, weighted."""
        information, correlation, dimensions = self.terms(one)
        return (self.alpha * information + self.beta * correlation + self.gamma * dimensions).sum()

    def terms(self, one: OneLatent) -> tuple[Tensor, Tensor, Tensor]:
        """Mutual information, total correlation and dimension-wise divergence of each draw, each with shape (N,)."""
        size = len(one.z)
        if not 2 <= size <= self.num_data:
            raise ValueError(f"the batch has {size} data; q(z) of {self.num_data} needs from 2 to {self.num_data}")
        if not isinstance(one.q, Independent):
            raise ValueError(
                f"the guide is {type(one.q).__name__}, not independent over dimensions, so q(z_j|x) is not known; take "
                "an encoder such as NormalEncoder"
            )
        pairs = one.q.base_dist.log_prob(one.z[:, None])  # (N, M, D): draw of a datum, under the guide of another
        share = torch.full((size, size), (self.num_data - 1) / (self.num_data * (size - 1)), dtype=pairs.dtype)
        log_share = share.fill_diagonal_(1 / self.num_data).log().to(pairs.device)
        log_q_z = (pairs.sum(-1) + log_share).logsumexp(1)
        log_q_dimensions = (pairs + log_share[..., None]).logsumexp(1).sum(-1)
        return one.log_q - log_q_z, log_q_z - log_q_dimensions, log_q_dimensions - one.log_p


class InfoVAEELBO(AggregateELBO):
    """InfoVAE: E_q[log p(x|z)] - (1 - alpha) KL(q(z|x), p(z)) - (alpha + scale - 1) MMD^2(q(z), p(z)), per datum.

    Zhao, Song, Ermon, "InfoVAE: balancing learning and inference in variational autoencoders" (AAAI 2019,
    https://arxiv.org/abs/1706.02262), with the maximum mean discrepancy; alpha 1 is the MMD-VAE. The kernel is
    exp(-|z - z'|^2 / (2 bandwidth)). MMD^2 is estimated by the U-statistic of one draw for each datum of the batch and
    as many from the prior, whatever it is: without bias, hence negative at times. The first two terms are in nats,
    MMD^2 is a pure number between -1 and 2.

    Args:
        alpha: Share of the divergence that is left out.
        scale: Lambda, the weight of the discrepancy.
        bandwidth: Of the kernel; None for the latent's dimension D.

    Raises:
        ValueError: If bandwidth is not positive; when it is used, if the batch has one datum.
    """

    def __init__(self, alpha: float = 1.0, scale: float = 100.0, bandwidth: float | None = None) -> None:
        super().__init__()
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, got {bandwidth}")
        self.alpha, self.scale, self.bandwidth = alpha, scale, bandwidth

    def divergence(self, one: OneLatent) -> Tensor:
        """Both divergences, weighted."""
        size, dim = one.z.shape
        if size < 2:
            raise ValueError("the batch has one datum, and a discrepancy of distributions needs two")
        from_prior = one.p.sample()[0]
        discrepancy = squared_mmd(one.z, from_prior, dim if self.bandwidth is None else self.bandwidth)
        kl = (one.log_q - one.log_p).sum()
        return (1 - self.alpha) * kl + (self.alpha + self.scale - 1) * size * discrepancy


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Estimate MMD^2 = E k(x, x') - 2 E k(x, y) + E k(y, y') with k = exp(-|x - y|^2 / (2 bandwidth)), without bias.

    Gretton et al., "A kernel two-sample test" (JMLR 13, 2012), lemma 6.

    Args:
        x: Draws with shape (N, D).
        y: Draws with shape (M, D).
        bandwidth: The square of the kernel's length.
    """

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (-(one[:, None] - other).square().sum(-1) / (2 * bandwidth)).exp()

    def within(one: Tensor) -> Tensor:
        return (kernel(one, one).sum() - len(one)) / (len(one) * (len(one) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def _one_latent(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OneLatent:
    guide_trace = trace_with_particles(guide, 1, *args, **kwargs)
    model_trace = trace_with_particles(poutine.replay(model, trace=guide_trace), 1, *args, **kwargs)
    drawn = matched_latents(model_trace, guide_trace)
    if len(drawn) != 1:
        raise ValueError(f"the aggregate posterior is of one latent, and there are {len(drawn)}: {', '.join(drawn)}")
    ((name, site),) = drawn.items()
    if not site["fn"].has_rsample or len(site["fn"].event_shape) != 1 or site["mask"] is not None:
        raise ValueError(
            f"latent {name!r}, of {type(site['fn']).__name__}, must be a vector, unmasked, whose draws have a gradient"
        )
    log_joint, log_lik = trace_log_density(model_trace, 1, "model")
    log_q, _ = trace_log_density(guide_trace, 1, "guide")
    p = sample_sites(model_trace)[name]["fn"]
    return OneLatent(site["value"][0], log_lik[0], (log_joint - log_lik)[0], log_q[0], site["fn"], p)
