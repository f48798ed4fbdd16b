"""Refits on bootstrap rows, which show the uncertainty of the networks themselves."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any, Protocol, TypeVar

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyrovae.densities import Program, device_of, evaluating, isolated_rng, modules_of, num_data, run_once, take
from pyrovae.training.batches import Arguments, as_arguments
from pyrovae.training.svi import fit

_OF_ONE_RUN = ("commit", "resume", "should_stop")


class Pair(Protocol):
    """A whole model: the two Pyro programs model and guide, such as a `VAE`."""

    @property
    def model(self) -> Program:
        """Pyro program p(z) p(x|z)."""

    @property
    def guide(self) -> Program:
        """Pyro program q(z|x)."""


AnyPair = TypeVar("AnyPair", bound=Pair)


def refit(
    make: Callable[[], AnyPair],
    data: Arguments,
    *,
    refits: int,
    group: Tensor | None = None,
    weights: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Iterator[AnyPair]:
    """Fit new models, each on its own bootstrap sample of the rows (Efron 1979, https://doi.org/10.1214/aos/1176344552).

    The spread of a result over the refits is the part of its variance that one fit does not show: the data, the initial
    parameters, the order of the batches and the noise of training all differ. What `make` takes from the data, such as
    the moments and levels of a table's columns, stays that of the original rows.

    A sample is drawn as row numbers, not as counts that weigh the rows. So each refit is an ordinary `fit`: it works
    for every objective, spends no steps on rows that were not drawn, and its batches have as many data as those of the
    original fit. A `Streamed` argument is read into memory. Case weights are drawn with their rows.

    Several results of one refit, such as imputations, share its parameters, hence they are not independent. Pool them
    by the nested rules of `pool`.

    Args:
        make: Function without arguments that builds a new model, an object with the programs `model` and `guide`, with
            random initial parameters.
        data: Training data, as in `fit`, but no DataLoader.
        refits: Number of fits m.
        group: Group of each datum, with shape (N,), such as a school; whole groups are drawn (a cluster bootstrap), so
            that the numbers of data differ. None if the data are independent.
        weights: Case weights of the data, as in `fit`; None for 1.
        seed: Random seed. Refit r does not depend on their number, and the global random state is restored.
        **options: Further arguments of `fit`: elbo, epochs, validation and the like.

    Yields:
        The fitted models, each once its training has ended.

    Raises:
        ValueError: If `make` gives the parts of an earlier model, `group` has not one entry per datum or fewer than two
            groups, an option belongs to one run alone, or as `fit`.

    Example:
        Five imputations by each of three refits, and the pooled mean of the first column:

        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyrovae import Blueprint, NormalLikelihood
        >>> from pyrovae.evidence import impute
        >>> from pyrovae.stats import pool
        >>> x = torch.randn(60, 3)
        >>> mask = torch.rand(60, 3) > 0.2
        >>> blueprint = Blueprint(3, 1, likelihood=NormalLikelihood, x=x)
        >>> models = refit(blueprint.vae, {"x": x, "mask": mask}, refits=3, elbo=TraceMeanField_ELBO(), epochs=2)
        >>> draws = torch.stack(
        ...     [impute(vae.model, vae.guide, x, mask=mask, num_draws=5, num_particles=50).draws for vae in models]
        ... )
        >>> column = draws[..., 0]  # refits, imputations, data
        >>> pool(column.mean(-1), column.var(-1) / 60, nested=True).estimate.shape
        torch.Size([])
    """
    if refits < 1:
        raise ValueError(f"refits must be at least 1, got {refits}")
    for name in _OF_ONE_RUN:
        if options.get(name) is not None:
            raise ValueError(
                f"{name} belongs to one run, so refit cannot take it; call fit on pyrovae.training.bootstrap_rows"
            )
    elbo = options.get("elbo")
    if isinstance(elbo, nn.Module) and any(True for _ in elbo.parameters()):
        raise ValueError(
            f"{type(elbo).__name__} has parameters of its own, which would pass from refit to refit; use an objective "
            "without, such as TraceMeanField_ELBO()"
        )
    if isinstance(data, DataLoader):
        raise ValueError("refit draws rows of tensors, got a DataLoader; give the data as tensors")
    args, kwargs = as_arguments(data)
    size = num_data(args, kwargs)
    bootstrap_rows(size, group=group)  # the errors come before the first fit
    weights = None if weights is None else torch.as_tensor(weights)
    if weights is not None and tuple(weights.shape) != (size,):
        raise ValueError(f"weights must have shape ({size},), one for each datum, got {tuple(weights.shape)}")
    return _refits(make, (args, kwargs), size, refits, group, weights, seed, options)


def _refits(
    make: Callable[[], AnyPair],
    data: tuple[tuple[Any, ...], dict[str, Any]],
    size: int,
    refits: int,
    group: Tensor | None,
    weights: Tensor | None,
    seed: int,
    options: dict[str, Any],
) -> Iterator[AnyPair]:
    seen: list[weakref.ref[Any]] = []  # the parameters of all models
    for number in range(refits):
        order, noise = np.random.SeedSequence([seed, number]).generate_state(2).tolist()
        rows = bootstrap_rows(size, group=group, seed=order)
        args, kwargs = take(*data, rows.to(device_of(*data)))
        sampled = None if weights is None else weights[rows.to(weights.device)]
        with isolated_rng(noise):
            pair = make()
            _check_new(pair, seen, args, kwargs)
            given = {key: deepcopy(value) if key == "kl_weight" else value for key, value in options.items()}
            fit(pair.model, pair.guide, kwargs or args, weights=sampled, seed=order, **given)
        yield pair


def bootstrap_rows(size: int, *, group: Tensor | None = None, seed: int = 0) -> Tensor:
    """Draw the rows of a bootstrap sample with replacement: N rows, or as many whole groups as there are.

    Args:
        size: Number of data N.
        group: Group of each datum, with shape (N,); None for single data.
        seed: Random seed.

    Returns:
        Sorted numbers of rows, with shape (N,), or of the rows of all drawn groups.

    Raises:
        ValueError: If `group` has not one entry per datum, or there are fewer than two groups.

    Example:
        >>> bootstrap_rows(5, group=torch.tensor([0, 0, 1, 2, 2]), seed=1).shape
        torch.Size([5])
    """
    generator = torch.Generator().manual_seed(seed)
    if group is None:
        return torch.randint(size, (size,), generator=generator).sort().values
    if tuple(group.shape) != (size,):
        raise ValueError(f"group must have shape ({size},), one for each datum, got {tuple(group.shape)}")
    names, of_rows = group.cpu().unique(return_inverse=True)
    if len(names) < 2:
        raise ValueError("group holds one group alone, so there is nothing to draw; leave it out")
    counts = torch.randint(len(names), (len(names),), generator=generator).bincount(minlength=len(names))
    return torch.arange(size).repeat_interleave(counts[of_rows])


def _check_new(pair: Any, seen: list[weakref.ref[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that a model is new, and remember its parameters.

    Raises:
        ValueError: If it is no pair of programs, has parameters of an earlier one, or parameters outside its modules,
            which Pyro's store keeps from refit to refit.
    """
    if not (callable(getattr(pair, "model", None)) and callable(getattr(pair, "guide", None))):
        raise ValueError(
            f"make must return an object with the programs model and guide, such as a VAE, got {type(pair).__name__}"
        )
    used = _parameters(pair, args, kwargs)
    inside = {id(p): p for program in (pair.model, pair.guide) for m in modules_of(program) for p in m.parameters()}
    free = [name for name, p in used.items() if id(p) not in inside and not isinstance(p, nn.Parameter)]
    known = {id(value) for value in (reference() for reference in seen) if value is not None}
    if free:
        raise ValueError(
            f"the programs make parameter {free[0]!r} by pyro.param, which stays in Pyro's store from refit to refit; "
            "make it a parameter of a module that make builds"
        )
    if known & {*inside, *map(id, used.values())}:
        raise ValueError(
            "make gives parts of an earlier model again, so that a refit would start where another ended; build all "
            "networks inside make, such as by make=blueprint.vae"
        )
    seen.extend(weakref.ref(value) for value in [*inside.values(), *used.values()])


def _parameters(pair: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Run the programs on two data with an empty parameter store, and return the parameters that they use, by name."""
    found: dict[str, Tensor] = {}
    with (
        suppress(Exception),  # programs that fail here fail in fit, which says why
        isolated_rng(),
        evaluating(pair.model, pair.guide),
        pyro.validation_enabled(False),
        pyro.get_param_store().scope(),
        poutine.block(),
        poutine.trace(param_only=True) as tracer,
    ):
        run_once({"model": pair.model, "guide": pair.guide}, *take(args, kwargs, slice(0, 2)))
        sites = dict[str, Any](tracer.trace.nodes)
        found = {name: site["value"].unconstrained() for name, site in sites.items() if site["type"] == "param"}
    return found
