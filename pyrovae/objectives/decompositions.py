"""Objectives that look at the aggregate posterior q(z) = 1/N sum_n q(z|x_n): its dependence, and its distance to p(z).

They take one latent site with one draw per datum, and see q(z) through the batch, so that their values are biased as
each docstring says.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import count, pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal
from torch.func import functional_call
from torch.nn.functional import softplus

from pyrovae.densities import Program, matched_latents, sample_sites, trace_log_density, trace_with_particles
from pyrovae.objectives.base import TensorELBO


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


class FactorVAEELBO(AggregateELBO, nn.Module):
    """FactorVAE: E_q[log p(x|z)] - KL(q(z|x), p(z)) - gamma KL(q(z), prod_j q(z_j)), in nats per datum.

    Kim and Mnih, "Disentangling by factorising" (ICML 2018, https://arxiv.org/abs/1802.05983, eq. 2). The last term,
    the total correlation, is E_q(z)[log D(z) / (1 - D(z))], where a network D learns beside the programs to tell draws
    of q(z) from the same with each dimension permuted over the batch. That is exact for the best D, and neither a lower
    nor an upper bound for another: at the start of training, when D sees no difference, it is near 0. The prior has no
    part in it, and any will do. The value leaves the loss of D out; the gradient holds it, for D's own parameters
    alone, so that one optimizer trains all, a step each (Kim and Mnih give D a lower learning rate and a batch of its
    own).

    The objective is a module: `fit`, `elbo(model, guide).parameters()` and Pyro's `SVI` train D with the programs.

    Args:
        latent_dim: D, the length of the latent.
        gamma: Weight of the total correlation; Kim and Mnih take 6.4 to 35.
        hidden: Sizes of the hidden layers of D; Kim and Mnih have six of 1,000.

    Raises:
        ValueError: If latent_dim is below 2 or a size below 1; when it is used, if the latent has another length, or
            the batch has one datum.
    """

    _numbers: ClassVar = count()

    def __init__(self, latent_dim: int, gamma: float = 10.0, hidden: Sequence[int] = (200, 200, 200)) -> None:
        nn.Module.__init__(self)
        AggregateELBO.__init__(self)
        if latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2 for a total correlation, got {latent_dim}")
        if any(size < 1 for size in hidden):
            raise ValueError(f"hidden must be at least 1, got {list(hidden)}")
        self.latent_dim, self.gamma = latent_dim, gamma
        sizes = [latent_dim, *hidden]
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.LeakyReLU(0.2))]
        self.discriminator = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self._name = f"discriminator.{next(self._numbers)}"  # Pyro's store holds one module of a name

    def divergence(self, one: OneLatent) -> Tensor:
        """KL divergence and weighted total correlation; beside them, in the gradient alone, what D learns from."""
        size, dim = one.z.shape
        if dim != self.latent_dim:
            raise ValueError(f"latent_dim is {self.latent_dim} and the latent has {dim}; give FactorVAEELBO({dim})")
        if size < 2:
            raise ValueError("the batch has one datum, and permuting dimensions over it needs two")
        pyro.module(self._name, self.discriminator)
        learns = self.discriminator_loss(one.z.detach())
        correlation = self.log_ratio(one.z).sum()
        return (one.log_q - one.log_p).sum() + self.gamma * correlation + (learns - learns.detach())

    def log_ratio(self, z: Tensor) -> Tensor:
        """Log D / (1 - D) at draws with shape (N, D), as D is now: the gradient is that of the draws; shape (N,)."""
        weights = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, weights, (z,)).squeeze(-1)

    def discriminator_loss(self, z: Tensor) -> Tensor:
        """The cross-entropy of D over draws with shape (N, D) and their permutations, in nats; a scalar."""
        permuted = z.gather(0, torch.rand_like(z).argsort(0))
        together, apart = self.discriminator(z), self.discriminator(permuted)
        return (softplus(-together) + softplus(apart)).mean() / 2


class DIPVAEELBO(AggregateELBO):
    """DIP-VAE: the ELBO less off_diagonal sum_{i != j} R_ij^2 + diagonal sum_i R_ii^2, per datum, R = C - Cov p(z).

    Kumar, Sattigeri, Balakrishnan, "Variational inference of disentangled latent concepts from unlabeled observations"
    (ICLR 2018, https://arxiv.org/abs/1711.00848, eq. 6-7). C is of the batch: for "i" the covariance of the posterior
    means E[z|x], for "ii" that of q(z), to which the mean of Cov(z|x) is added. Both are unbiased, their squares too
    large by their sampling variance, of order 1 / batch. The penalty has the unit of z^4, and is added to nats.

    Args:
        kind: "i" or "ii".
        off_diagonal: Weight of the covariances.
        diagonal: Weight of the variances; None for ten times off_diagonal for "i", and off_diagonal for "ii".

    Raises:
        ValueError: If a weight is negative; when it is used, if guide or prior have no covariance in closed form
            (normals and what is independent over dimensions have one), or the batch has one datum.
    """

    def __init__(
        self, kind: Literal["i", "ii"] = "ii", off_diagonal: float = 10.0, diagonal: float | None = None
    ) -> None:
        super().__init__()
        if kind not in ("i", "ii"):
            raise ValueError(f"kind must be 'i' or 'ii', got {kind!r}")
        if diagonal is None:
            diagonal = 10 * off_diagonal if kind == "i" else off_diagonal
        if off_diagonal < 0 or diagonal < 0:
            raise ValueError(f"weights must not be negative, got off_diagonal {off_diagonal} and diagonal {diagonal}")
        self.kind, self.off_diagonal, self.diagonal = kind, off_diagonal, diagonal

    def divergence(self, one: OneLatent) -> Tensor:
        """KL divergence and the weighted squares."""
        size = len(one.z)
        if size < 2:
            raise ValueError("the batch has one datum, and a covariance over data needs two")
        of_means, of_draws = _covariances(one.q, "guide")
        covariance = of_means if self.kind == "i" else of_draws
        squares = (covariance - _covariances(one.p, "prior")[1]).square()
        diagonal = squares.diagonal().sum()
        penalty = self.off_diagonal * (squares.sum() - diagonal) + self.diagonal * diagonal
        return (one.log_q - one.log_p).sum() + size * penalty


def _covariances(distribution: Any, of: str) -> tuple[Tensor, Tensor]:
    """Covariance over the batch of the means, and of draws: that, with the mean covariance within; each (D, D)."""
    try:
        if isinstance(distribution, MultivariateNormal | LowRankMultivariateNormal):
            within = distribution.covariance_matrix
        elif isinstance(distribution, Independent) and distribution.reinterpreted_batch_ndims == 1:
            within = distribution.variance.diag_embed()
        else:
            raise NotImplementedError
        mean = distribution.mean[0]
    except NotImplementedError:
        pass
    else:
        of_means = (mean - mean.mean(0)).T @ (mean - mean.mean(0)) / (len(mean) - 1)
        return of_means, of_means + within.mean((0, 1))
    raise ValueError(
        f"the {of} is {type(distribution).__name__}, whose covariance is not known in closed form; take one that is "
        "normal or independent over dimensions"
    )


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
    shape = log_q.shape
    q, p = (each.expand(shape) for each in (site["fn"], sample_sites(model_trace)[name]["fn"]))
    return OneLatent(site["value"].expand(q.shape())[0], log_lik[0], (log_joint - log_lik)[0], log_q[0], q, p)
