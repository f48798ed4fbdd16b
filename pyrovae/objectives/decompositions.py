"""Objectives of the aggregate posterior q(z) = 1/N sum_n q(z|x_n): its total correlation, and its distance to p(z).

They need one latent site, and use one draw per datum. They estimate q(z) from the batch. Each docstring states
the bias.
"""

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from itertools import count, pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal
from torch.func import functional_call
from torch.nn.functional import softplus

from pyrovae.densities import Program, draw_from_guide, matched_latents, take_kl_weight, vectorize_pair
from pyrovae.objectives.base import TensorELBO


class OneLatent(NamedTuple):
    """One draw of the latent for each datum, and its densities.

    Attributes:
        z: Draws, with shape (N, Z).
        log_lik: Log p(x|z) in nats, with shape (N,).
        log_p: Log p(z) in nats, with shape (N,).
        log_q: Log q(z|x) in nats, with shape (N,).
        q: Distribution q(z|x), with batch shape (1, N).
        p: Distribution p(z), with batch shape (1, N).
        weight: KL weight set by `temper`; None for 1.
    """

    z: Tensor
    log_lik: Tensor
    log_p: Tensor
    log_q: Tensor
    q: Any
    p: Any
    weight: float | Tensor | None


class AggregateELBO(TensorELBO):
    """Base of objectives that replace the KL divergence by a function of one batch.

        loss = b divergence - sum_n log p(x_n|z_n)

    The KL weight b of `temper`, 1 by default, multiplies the whole divergence, with all its terms and their own
    weights. With b = 0 the reconstruction is the objective.

    To add an objective, write a constructor and `divergence`. Override `loss_of_networks` if the objective trains
    networks of its own.

    Raises:
        ValueError: In use, if the guide does not have one latent, an unmasked vector with reparameterised draws, or a
            program breaks the contract of `log_weights`.
    """

    sums_over_data = False
    least_data = 2

    def __init__(self) -> None:
        super().__init__(1)

    @abstractmethod
    def divergence(self, one: OneLatent) -> Tensor:
        """Compute the divergence that the loss adds to -E_q[log p(x|z)], summed over the batch, a scalar in nats."""

    def loss_of_networks(self, one: OneLatent) -> Tensor | None:
        """Compute the loss of the objective's own networks, a scalar; None if it has none.

        Its gradient alone counts, without the KL weight.
        """
        return None

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch, in nats, a scalar."""
        model, guide = vectorize_pair(model, guide, args, kwargs, in_training=True)
        one = _one_latent(model, guide, args, kwargs)
        learned = self.loss_of_networks(one)
        divergence = self.divergence(one) if one.weight is None else one.weight * self.divergence(one)
        loss = divergence - one.log_lik.sum()
        return loss if learned is None else loss + (learned - learned.detach())


class BetaTCELBO(AggregateELBO):
    """ELBO with weights for three parts of the KL divergence (beta-TCVAE), in nats per datum.

        E_q[log p(x|z)] - alpha I(x; z) - beta KL(q(z), prod_j q(z_j)) - gamma sum_j KL(q(z_j), p(z_j))

    The index-code mutual information, the total correlation and the dimension-wise divergence add up to the mean of
    KL(q(z|x), p(z)) (Chen, Li, Grosse, Duvenaud, "Isolating sources of disentanglement in variational autoencoders",
    NeurIPS 2018, https://arxiv.org/abs/1802.04942, eq. 2-3). With all three weights 1 it is the ELBO. If the prior is
    not independent over dimensions, the last term is E[log prod_j q(z_j) - log p(z)], and the sum is unchanged.

    The batch of M data gives the estimates of q(z) and q(z_j): 1/N q(z|x_own) + (N-1)/N times the mean over the M - 1
    other data. They are unbiased, but their logs are too low on average (Jensen). Hence the mutual information is
    overestimated. The total correlation is underestimated, since the joint density has the larger bias. If the batch
    holds all data, both have only the error of the draws.

    Args:
        num_data: Size N of the training set.
        alpha: Weight of the mutual information.
        beta: Weight of the total correlation.
        gamma: Weight of the dimension-wise divergence.

    Raises:
        ValueError: If `num_data` is below 2. In use: if the guide is not independent over dimensions, or the batch has
            one datum or more than `num_data`.
    """

    def __init__(self, num_data: int, alpha: float = 1.0, beta: float = 6.0, gamma: float = 1.0) -> None:
        super().__init__()
        if num_data < 2:
            raise ValueError(f"num_data must be at least 2, got {num_data}; pass the size of the training set")
        self.num_data, self.alpha, self.beta, self.gamma = num_data, alpha, beta, gamma
        self.is_elbo = alpha == beta == gamma == 1

    def divergence(self, one: OneLatent) -> Tensor:
        """Compute the weighted sum of the three terms."""
        information, correlation, dimensions = self.terms(one)
        return (self.alpha * information + self.beta * correlation + self.gamma * dimensions).sum()

    def terms(self, one: OneLatent) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mutual information, total correlation and dimension-wise divergence by draw, each with shape (N,)."""
        size = len(one.z)
        if not 2 <= size <= self.num_data:
            raise ValueError(
                f"BetaTCELBO({self.num_data}) needs a batch of 2 to {self.num_data} data, got {size}; change the batch "
                "size, or give num_data the number of training data"
            )
        if not isinstance(one.q, Independent):
            raise ValueError(
                f"BetaTCELBO needs a guide independent over dimensions, but it is {type(one.q).__name__}; use an "
                "encoder such as NormalEncoder"
            )
        pairs = one.q.base_dist.log_prob(one.z[:, None])  # (N, M, Z): draw of datum n under the guide of datum m
        share = torch.full((size, size), (self.num_data - 1) / (self.num_data * (size - 1)), dtype=pairs.dtype)
        log_share = share.fill_diagonal_(1 / self.num_data).log().to(pairs.device)
        log_q_z = (pairs.sum(-1) + log_share).logsumexp(1)
        log_q_dimensions = (pairs + log_share[..., None]).logsumexp(1).sum(-1)
        return one.log_q - log_q_z, log_q_z - log_q_dimensions, log_q_dimensions - one.log_p


class InfoVAEELBO(AggregateELBO):
    """ELBO with a maximum mean discrepancy between q(z) and p(z) (InfoVAE), per datum.

        E_q[log p(x|z)] - (1 - alpha) KL(q(z|x), p(z)) - (alpha + scale - 1) MMD^2(q(z), p(z))

    Zhao, Song, Ermon, "InfoVAE: balancing learning and inference in variational autoencoders" (AAAI 2019,
    https://arxiv.org/abs/1706.02262). With alpha 1 it is the MMD-VAE. The kernel is exp(-|z - z'|^2 / (2 bandwidth)).
    The estimate of MMD^2 is the U-statistic of one draw per datum of the batch and as many draws from the prior, which
    may be any prior. It is unbiased, hence sometimes negative. The first two terms are in nats; MMD^2 is a pure number
    between -1 and 2.

    Args:
        alpha: Share of the KL divergence left out.
        scale: Weight lambda of the discrepancy.
        bandwidth: Bandwidth of the kernel; None for the latent's dimension Z.

    Raises:
        ValueError: If `bandwidth` is not positive. In use: if the batch has one datum.
    """

    def __init__(self, alpha: float = 1.0, scale: float = 100.0, bandwidth: float | None = None) -> None:
        super().__init__()
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, got {bandwidth}")
        self.alpha, self.scale, self.bandwidth = alpha, scale, bandwidth

    def divergence(self, one: OneLatent) -> Tensor:
        """Compute the weighted sum of KL divergence and discrepancy."""
        size, dim = one.z.shape
        _check_batch("InfoVAEELBO", size)
        from_prior = one.p.sample()[0]
        discrepancy = squared_mmd(one.z, from_prior, dim if self.bandwidth is None else self.bandwidth)
        kl = (one.log_q - one.log_p).sum()
        return (1 - self.alpha) * kl + (self.alpha + self.scale - 1) * size * discrepancy


class FactorVAEELBO(AggregateELBO, nn.Module):
    """ELBO with a total correlation estimated by a discriminator (FactorVAE), in nats per datum.

        E_q[log p(x|z)] - KL(q(z|x), p(z)) - gamma KL(q(z), prod_j q(z_j))

    Kim and Mnih, "Disentangling by factorising" (ICML 2018, https://arxiv.org/abs/1802.05983, eq. 2). The total
    correlation is E_q(z)[log D(z) / (1 - D(z))]. The network D is trained with the programs to tell draws of q(z) from
    draws with each dimension permuted over the batch. The term is exact for the optimal D. For any other D it is
    neither a lower nor an upper bound; at the start of training it is near 0. It does not depend on the prior.

    The value excludes the loss of D. The gradient includes it, for the parameters of D alone, so that one optimizer
    trains everything with one step per batch. A KL weight does not change it. Kim and Mnih use a lower learning rate
    and a separate batch for D.

    The objective is a module: `fit`, `elbo(model, guide).parameters()` and Pyro's `SVI` train D with the programs.

    Args:
        latent_dim: Dimension Z of the latent.
        gamma: Weight of the total correlation; 6.4 to 35 in Kim and Mnih.
        hidden: Sizes of the hidden layers of D; six of 1,000 in Kim and Mnih.

    Raises:
        ValueError: If `latent_dim` is below 2 or a size below 1. In use: if the latent has another dimension, or the
            batch has one datum.
    """

    _numbers: ClassVar = count()

    def __init__(self, latent_dim: int, gamma: float = 10.0, hidden: Sequence[int] = (200, 200, 200)) -> None:
        nn.Module.__init__(self)
        AggregateELBO.__init__(self)
        if latent_dim < 2:
            raise ValueError(
                f"latent_dim must be at least 2, got {latent_dim}; use another objective for one latent dimension"
            )
        if any(size < 1 for size in hidden):
            raise ValueError(f"hidden needs sizes of at least 1, got {list(hidden)}")
        self.latent_dim, self.gamma = latent_dim, gamma
        sizes = [latent_dim, *hidden]
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.LeakyReLU(0.2))]
        self.discriminator = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self._name = f"discriminator.{next(self._numbers)}"  # Pyro's store holds one module per name
        weakref.finalize(self, _remove_parameters, self._name).atexit = False

    def divergence(self, one: OneLatent) -> Tensor:
        """Compute KL divergence plus weighted total correlation."""
        return (one.log_q - one.log_p).sum() + self.gamma * self.log_ratio(one.z).sum()

    def loss_of_networks(self, one: OneLatent) -> Tensor:
        """Compute the loss of D at the draws of the batch, a scalar in nats."""
        size, dim = one.z.shape
        if dim != self.latent_dim:
            raise ValueError(
                f"FactorVAEELBO needs a latent of dimension {self.latent_dim}, got {dim}; use FactorVAEELBO({dim})"
            )
        _check_batch("FactorVAEELBO", size)
        pyro.module(self._name, self.discriminator)
        return self.discriminator_loss(one.z.detach())

    def log_ratio(self, z: Tensor) -> Tensor:
        """Compute log D / (1 - D) with the gradient of the draws alone, with shape (N,).

        Args:
            z: Draws with shape (N, Z).
        """
        weights = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, weights, (z,)).squeeze(-1)

    def discriminator_loss(self, z: Tensor) -> Tensor:
        """Compute the cross-entropy of D over draws and their permutations, a scalar in nats.

        Args:
            z: Draws with shape (N, Z).
        """
        permuted = z.gather(0, torch.rand_like(z).argsort(0))
        logits, permuted_logits = self.discriminator(z), self.discriminator(permuted)
        return (softplus(-logits) + softplus(permuted_logits)).mean() / 2


class DIPVAEELBO(AggregateELBO):
    """ELBO with a penalty on the covariance of q(z) (DIP-VAE), per datum.

        ELBO - off_diagonal sum_{i != j} R_ij^2 - diagonal sum_i R_ii^2,  R = C - Cov p(z)

    Kumar, Sattigeri, Balakrishnan, "Variational inference of disentangled latent concepts from unlabeled observations"
    (ICLR 2018, https://arxiv.org/abs/1711.00848, eq. 6-7). The batch gives C: for "i" the covariance of the posterior
    means E[z|x], for "ii" the covariance of q(z), which adds the mean of Cov(z|x). Both are unbiased. Their squares are
    too large by the sampling variance, of order 1 / batch. The penalty has the unit of z^4, and is added to nats.

    Args:
        kind: Covariance C, "i" or "ii".
        off_diagonal: Weight of the covariances.
        diagonal: Weight of the variances; None for ten times `off_diagonal` with "i", and for `off_diagonal` with "ii".

    Raises:
        ValueError: If a weight is negative. In use: if guide or prior have no covariance in closed form (normals and
            distributions independent over dimensions have one), or the batch has one datum.
    """

    def __init__(
        self, kind: Literal["i", "ii"] = "ii", off_diagonal: float = 10.0, diagonal: float | None = None
    ) -> None:
        super().__init__()
        if kind not in ("i", "ii"):
            raise ValueError(f'kind must be "i" or "ii", got {kind!r}')
        if diagonal is None:
            diagonal = 10 * off_diagonal if kind == "i" else off_diagonal
        if off_diagonal < 0 or diagonal < 0:
            raise ValueError(f"off_diagonal and diagonal must be at least 0, got {off_diagonal} and {diagonal}")
        self.kind, self.off_diagonal, self.diagonal = kind, off_diagonal, diagonal

    def divergence(self, one: OneLatent) -> Tensor:
        """Compute KL divergence plus penalty."""
        size = len(one.z)
        _check_batch("DIPVAEELBO", size)
        of_means, of_draws = _covariances(one.q, "guide")
        covariance = of_means if self.kind == "i" else of_draws
        squares = (covariance - _covariances(one.p, "prior")[1]).square()
        diagonal = squares.diagonal().sum()
        penalty = self.off_diagonal * (squares.sum() - diagonal) + self.diagonal * diagonal
        return (one.log_q - one.log_p).sum() + size * penalty


def _remove_parameters(name: str) -> None:
    """Remove the parameters of a module from Pyro's store; a loop over the store must not see its dicts change."""
    store = pyro.get_param_store()
    gone = {key: value for key, value in store._params.items() if key.startswith(f"{name}$$$")}
    store._params = {key: value for key, value in store._params.items() if key not in gone}
    store._constraints = {key: value for key, value in store._constraints.items() if key not in gone}
    for value in gone.values():
        store._param_to_name.pop(value, None)


def _covariances(distribution: Any, program: str) -> tuple[Tensor, Tensor]:
    """Compute the covariance over the batch of the means, and of draws, each with shape (Z, Z)."""
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
        f"DIPVAEELBO needs a {program} with a covariance in closed form, but it is {type(distribution).__name__}; use "
        f"a {program} that is normal or independent over dimensions"
    )


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Estimate a squared maximum mean discrepancy without bias.

        MMD^2 = E k(x, x') - 2 E k(x, y) + E k(y, y'),  k(x, y) = exp(-|x - y|^2 / (2 bandwidth))

    Gretton et al., "A kernel two-sample test" (JMLR 13, 2012), lemma 6.

    Args:
        x: Draws with shape (N, D).
        y: Draws with shape (M, D).
        bandwidth: Squared length scale of the kernel.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a[:, None] - b).square().sum(-1) / (2 * bandwidth)).exp()

    def within(a: Tensor) -> Tensor:
        return (kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def _check_batch(elbo: str, size: int) -> None:
    if size < 2:
        raise ValueError(
            f"{elbo} needs a batch of at least 2 data, got {size}; change the batch size, so that the last batch has 2"
        )


def _one_latent(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OneLatent:
    model_trace, guide_trace = draw_from_guide(model, guide, args, kwargs, 1)
    drawn = matched_latents(model_trace, guide_trace)
    weight = take_kl_weight(model_trace, guide_trace)
    if len(drawn) != 1:
        raise ValueError(
            f"objectives of the aggregate posterior need one latent, got {len(drawn)}: {', '.join(drawn)}; put all "
            "into one site, or use another objective"
        )
    ((name, site),) = drawn.items()
    plain = site.fn.has_rsample and site.mask is True and len(site.event_shape) == len(site.fn.event_shape) == 1
    if not plain or site.auxiliary is not None:
        raise ValueError(
            f"latent {name!r} ({type(site.fn).__name__}) must be an unmasked vector with reparameterised draws; use "
            "an encoder such as NormalEncoder, or another objective"
        )
    if model_trace.sites[name].depends_on_sums:
        raise ValueError(
            f"objectives of the aggregate posterior need p({name}) as one distribution, but it sums over sites "
            f"{list(model_trace.summed)} of the model; use a mixture prior, or another objective"
        )
    if tuple(site.layout.leading) != (-2, -1):
        raise ValueError("objectives of the aggregate posterior need particles at dim -2 and the data plate at dim -1")
    log_joint, log_lik = model_trace.log_densities()
    log_q, _ = guide_trace.log_densities()
    shape = log_q.shape
    q, p = (each.expand(shape) for each in (site.fn, model_trace.sites[name].fn))
    return OneLatent(site.value[0], log_lik[0], (log_joint - log_lik)[0], log_q[0], q, p, weight)
