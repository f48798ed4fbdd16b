"""The pair of Pyro programs that a VAE is: `Model`, p(z) p(x|z), and `Guide`, q(z|x), and `VAE`, which holds both."""

import itertools
import weakref
from copy import copy, deepcopy
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn.module import PyroModule
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn

from pyrovae.encoders import carried


class Model(PyroModule):
    """The generative program p(z|c) p(x|z,c), with sites "z" and "x" inside the plate "data" at dim -1.

    Args:
        prior: Module whose forward returns p(z), or p(z|c) when called with covariates.
        likelihood: Module whose forward returns p(x|z), or p(x|z,c).
        name: Name under which Pyro's parameter store knows the program; unique in the process (see `VAE`).
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, *, name: str = "model") -> None:
        super().__init__(name)
        self.prior = prior
        self.likelihood = likelihood

    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        size: int = 1,
    ) -> Tensor:
        """Generate data, or score those given.

        Args:
            x: Data with shape (N, D), or None to generate.
            covariates: Covariates c with shape (N, C).
            mask: True where x is observed, with shape (N, D), or (N,) for whole data. Missing entries are left out of
                p(x|z), whatever stands there (NaN too); the likelihood must be independent over D.
            size: N, where neither x nor covariates tell it.

        Returns:
            The data, with shape (N, D), or (K, N, D) inside a plate of K particles.

        Raises:
            ValueError: If x is not floating point or not of the likelihood's size, the guide's latents are not of the
                prior's, or a mask over entries meets a likelihood that is not independent over D.
        """
        conditions = () if covariates is None else (covariates,)
        with data_plate(x, covariates, size):
            p_z = self.prior(*conditions)
            z = pyro.sample("z", p_z)
            if z.shape[z.dim() - p_z.event_dim :] != p_z.event_shape:  # they might broadcast
                raise ValueError(
                    f"one latent of the prior has shape {tuple(p_z.event_shape)}, but the guide's latents have shape "
                    f"{tuple(z.shape)}; give the encoder's network num_outputs(prior.encoder_dim) outputs"
                )
            return sample_datum(self.likelihood(z, *conditions), x, mask)


class Guide(PyroModule):
    """The approximate posterior program q(z|x,c), with site "z" inside the plate "data" at dim -1.

    Args:
        encoder: Module whose forward returns q(z|x), or q(z|x,c) when called with covariates.
        name: Name under which Pyro's parameter store knows the program; unique in the process (see `VAE`).
    """

    def __init__(self, encoder: nn.Module, *, name: str = "guide") -> None:
        super().__init__(name)
        self.encoder = encoder

    def forward(self, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Draw latents given data.

        Args:
            x: Data with shape (N, D).
            covariates: Covariates c with shape (N, C).
            mask: True where x is observed, with shape (N, D) or (N,). The encoder sees 0 where it is not.

        Returns:
            Latents with shape (N, Z), or (K, N, Z) inside a plate of K particles.
        """
        x = seen(x, mask)
        conditions = () if covariates is None else (covariates,)
        with data_plate(x):
            return sample_latent("z", self.encoder(x, *conditions))


class ProgramPair(nn.Module):
    """Base of what holds two programs, `model` and `guide`, under a name of its own in Pyro's parameter store.

    Pyro's parameter store tells modules apart by name alone, and of two with one name it trains the first; so each pair
    in a process takes a name of its own.

    Args:
        name: Name in Pyro's parameter store; None for one not yet taken.

    Raises:
        ValueError: If the name is taken by another pair or by parameters in the store.
    """

    model: PyroModule
    guide: PyroModule

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = _claim_name(name, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy under a name of its own, so that the copy trains too."""
        twin = copy(self)
        memo[id(self)] = twin
        twin.__dict__ = deepcopy(self.__dict__, memo)
        twin.name = _claim_name(None, twin)
        for part in ("model", "guide"):
            program = getattr(twin, part)
            program._pyro_set_supermodule(f"{twin.name}.{part}", program._pyro_context)
        return twin


class VAE(ProgramPair):
    """A variational autoencoder: the programs `model` and `guide`, made from a prior, a likelihood and an encoder.

    Args:
        prior: Module whose forward returns p(z).
        likelihood: Module whose forward returns p(x|z).
        encoder: Module whose forward returns q(z|x). One of real vectors is carried to where the prior lives, the
            simplex say, by `ConstrainedEncoder`; it gives `prior.encoder_dim` real numbers.
        name: Name in Pyro's parameter store; None for one not yet taken.

    Raises:
        ValueError: If prior and encoder cannot live on one space, or the name is taken by another VAE or by parameters
            in the store.

    Example:
        >>> from pyrovae import BernoulliLikelihood, MLP, NormalEncoder, StandardNormalPrior
        >>> vae = VAE(
        ...     prior=StandardNormalPrior(2),
        ...     likelihood=BernoulliLikelihood(MLP(2, 784)),
        ...     encoder=NormalEncoder(MLP(784, 4)),
        ... )
        >>> vae.model(size=3).shape
        torch.Size([3, 784])
    """

    model: Model
    guide: Guide

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        *,
        name: str | None = None,
    ) -> None:
        encoder = carried(encoder, getattr(prior, "support", constraints.real_vector))
        super().__init__(name)
        self.model = Model(prior, likelihood, name=f"{self.name}.model")
        self.guide = Guide(encoder, name=f"{self.name}.guide")


def data_plate(x: Tensor | None, covariates: Tensor | None = None, size: int = 1) -> Any:
    """The plate "data" at dim -1, over as many data as x or the covariates have, or else size."""
    given = x if x is not None else covariates
    return pyro.plate("data", size if given is None else given.shape[0], dim=-1)


def seen(x: Tensor, mask: Tensor | None) -> Tensor:
    """What an encoder is given of x, with shape (N, D): 0 where a mask, with shape (N, D) or (N,), is false."""
    if mask is not None:
        x = torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), x, torch.zeros_like(x))
    if not x.is_floating_point():
        raise ValueError(f"x is of {x.dtype}; give x.float(), or .double() as the model's parameters are")
    return x


def sample_latent(name: str, distribution: TorchDistributionMixin) -> Tensor:
    """Sample a latent site of a guide; a discrete one with the hint that lets TraceEnum_ELBO sum it out."""
    infer: InferDict = {"enumerate": "parallel"} if distribution.has_enumerate_support else {}  # others warn
    return pyro.sample(name, distribution, infer=infer)


def sample_datum(p_x: TorchDistributionMixin, x: Tensor | None, mask: Tensor | None) -> Tensor:
    """Sample the site "x" of a model inside its plate, or score x, with shape (N, D), there.

    Args:
        p_x: p(x|z).
        x: Data, or None to generate.
        mask: True where x is observed, with shape (N, D) or (N,).

    Raises:
        ValueError: If x is not floating point or not of the likelihood's size, or a mask over entries meets a
            likelihood that is not independent over D.
    """
    if x is not None:
        _check_datum(x, p_x)
    if mask is not None:
        p_x = _mask_entries(p_x, mask)
        if x is not None:
            # Any value in the support will do where nothing was observed: it gets no weight.
            x = torch.where(_over_event(mask, p_x), x, p_x.sample().detach())
    return pyro.sample("x", p_x, obs=x)


_named: "weakref.WeakValueDictionary[str, ProgramPair]" = weakref.WeakValueDictionary()


def _claim_name(name: str | None, owner: ProgramPair) -> str:
    if name is None:
        name = next(
            candidate
            for candidate in itertools.chain(["vae"], map("vae_{}".format, itertools.count(2)))
            if not _is_taken(candidate)
        )
    elif _is_taken(name):
        raise ValueError(
            f"the name {name!r} is taken by another VAE or by parameters in Pyro's store, and Pyro trains only the "
            "first; choose another name, or leave it out"
        )
    _named[name] = owner
    return name


def _is_taken(name: str) -> bool:
    return name in _named or any(key.startswith(f"{name}.") for key in pyro.get_param_store())


def _check_datum(x: Tensor, p_x: TorchDistributionMixin) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x is of {x.dtype}; give x.float(), or .double() as the model's parameters are")
    if x.shape[1:] != p_x.event_shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but the likelihood makes data of shape {tuple(p_x.event_shape)}; let its "
            "network give as many numbers as a datum needs"
        )


def _over_event(mask: Tensor, distribution: TorchDistributionMixin) -> Tensor:
    """Give a mask over data, with shape (N,), one dimension for each of the event's; leave one over entries."""
    return mask if mask.dim() > 1 else mask.reshape(mask.shape + (1,) * distribution.event_dim)


def _mask_entries(distribution: TorchDistributionMixin, mask: Tensor) -> TorchDistributionMixin:
    if mask.dim() == 1:
        return distribution.mask(mask)
    if not isinstance(distribution, dist.Independent):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} asks for single entries of x, but the likelihood returns "
            f"{type(distribution).__name__}, which is not independent over them; mask whole data with shape (N,)"
        )
    entries = distribution.base_dist.mask(mask)
    return entries.to_event(distribution.reinterpreted_batch_ndims)
