"""Data simulated together with their latents from any model, as arguments of its programs."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.densities import ParticleTrace, Program, Site, VectorizedProgram, entry_of, num_data, take

Key = int | str  # of an argument: its place or its name


class Simulation(NamedTuple):
    """N pairs of latents and data (z_n*, x_n*) drawn from p(z) p(x|z).

    Attributes:
        latents: Latents by site, each with shape (N, ...).
        observed: Values of the observed sites, each with shape (N, ...).
        args: Positional arguments of the programs, with x* in the place of the data.
        kwargs: Keyword arguments of the programs, with x* in the place of the data.
    """

    latents: dict[str, Tensor]
    observed: dict[str, Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def simulate(model: VectorizedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Simulation:
    """Draw latents and data from the model, one pair for each datum that is given.

    Of the given data only the number, the shape, the dtype and the places of NaN count. Other arguments, such as
    covariates and masks, stay as they are: pair n is drawn given those of datum n. Sites that `poutine.condition`
    fixes outside the plate keep their values. Programs must be in evaluation mode.

    Args:
        model: Pyro program p(z) p(x|z), vectorized.
        args: Positional arguments of the model, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If a site is a `pyro.factor`, from which nothing can be drawn, or the observed value is not one of
            the arguments, so that simulated data cannot be given to the programs.
    """
    given = model.trace(1, args, kwargs)
    observed = {name: site for name, site in given.sites.items() if site.is_observed}
    places = _places_of(observed, args, kwargs)
    freed = _Freed(model.program, frozenset(observed))
    drawn = replace(model, program=freed, summed=frozenset()).trace(1, args, kwargs)
    new_args, new_kwargs = list(args), dict(kwargs)
    for name, key in places.items():
        holder: Any = new_args if isinstance(key, int) else new_kwargs
        holder[key] = _as_argument(drawn.sites[name].value[0], holder[key])
    found = Simulation(
        {name: site.value[0] for name, site in drawn.latents.items() if name not in observed},
        {name: drawn.sites[name].value[0] for name in observed},
        tuple(new_args),
        new_kwargs,
    )
    _check(model.trace(1, found.args, found.kwargs), drawn, observed)
    return found


def rows_of_simulations(num_simulations: int, size: int) -> Tensor:
    """Choose the given data that simulations are conditional on: each as often as any other, or once more.

    Args:
        num_simulations: Number of simulations S.
        size: Number of given data N.

    Returns:
        Indices, with shape (S,): random data if S is no multiple of N.
    """
    rounds, rest = divmod(num_simulations, size)
    return torch.cat([torch.arange(size).repeat(rounds), torch.randperm(size)[:rest]])


def simulations(
    model: VectorizedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any], num_simulations: int, at_once: int
) -> Iterator[Simulation]:
    """Iterate over blocks of simulations.

    Args:
        model: Pyro program p(z) p(x|z), vectorized.
        args: Positional arguments of the model, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the model.
        num_simulations: Number of simulations S in all.
        at_once: Number of simulations in one block.

    Raises:
        ValueError: As `simulate`; or if S is no multiple of N for programs that run on all N data alone.
    """
    size = num_data(args, kwargs)
    if not model.divisible:
        if num_simulations % size:
            raise ValueError(
                f"the programs run on all {size} data alone, so num_simulations must be a multiple of {size}, got "
                f"{num_simulations}"
            )
        for _ in range(num_simulations // size):
            yield simulate(model, args, kwargs)
        return
    for rows in rows_of_simulations(num_simulations, size).split(max(1, at_once)):
        yield simulate(model, *take(args, kwargs, rows))


class _Freed:
    """Program that draws some of its observed sites.

    Unlike `poutine.uncondition`, it leaves the values that `poutine.condition` gives to other sites.

    Args:
        program: Pyro program.
        names: Names of the sites.
    """

    def __init__(self, program: Program, names: frozenset[str]) -> None:
        self.program, self.names = program, names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        with _Free(self.names):
            return self.program(*args, **kwargs)


class _Free(Messenger):
    """Handler that draws observed sites."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.names:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def _places_of(observed: Mapping[str, Site], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Key]:
    """Find the argument that holds the value of each observed site, the first one for several equal ones."""
    if not observed:
        raise ValueError("the model observes no site, so there are no data to simulate; give it obs=x")
    every: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
    free = {key: value for key, value in every if isinstance(value, Tensor) and value.dim()}
    places: dict[str, Key] = {}
    for name, site in observed.items():
        if isinstance(entry_of(site.fn), Unit):
            raise ValueError(
                f"site {name!r} of the model is a factor, from which no data can be drawn; give the site a distribution"
            )
        value, seen = site.value[0], site.mask_per_datum()[0]
        fitting = (key for key, argument in free.items() if _holds(argument, value, seen))
        key = next(fitting, None)
        if key is None:
            raise ValueError(
                f"the value of site {name!r} is none of the arguments, so simulated data cannot be given to the "
                "programs; pass the observed value itself as an argument, with its transformation done before"
            )
        del free[key]
        places[name] = key
    return places


def _holds(argument: Tensor, value: Tensor, seen: Tensor) -> bool:
    """Return whether an argument holds the observed value of a site, with shape (N, ...), where it counts."""
    if len(argument) != len(value) or argument.numel() != value.numel():
        return False
    same = argument.reshape(value.shape).to(value.dtype) == value
    return bool((same | ~seen).all())


def _as_argument(value: Tensor, given: Tensor) -> Tensor:
    """Bring a simulated value to the shape and dtype of the given argument, NaN where that is NaN."""
    value = value.reshape(given.shape).to(given.dtype)
    return torch.where(given.isnan(), given, value) if given.is_floating_point() else value


def _check(trace: ParticleTrace, drawn: ParticleTrace, observed: Mapping[str, Site]) -> None:
    """Check that the model observes the simulated data if they are given as arguments."""
    for name in observed:
        site, value = trace.sites[name], drawn.sites[name].value
        if bool(((site.value != value) & site.mask_per_datum()).any()):
            raise ValueError(
                f"the model does not observe data that are given as the argument of site {name!r} as they are; pass "
                "the observed value itself as an argument, with its transformation done before"
            )
