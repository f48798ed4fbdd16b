"""Data simulated together with their latents from any model, as arguments of its programs."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.densities import Program, Site, VectorizedProgram, entry_of, num_data, take

Key = int | str  # of an argument: its place or its name
Place = tuple[str, Key, Tensor | None]  # a site, an argument, the numbers of its entries that it observes; None for all
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


class NotAnArgumentError(ValueError):
    """An observed value is none of the programs' arguments."""


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
        NotAnArgumentError: If the observed value is not one of the arguments, or entries of one, so that simulated data
            cannot be given to the programs.
        ValueError: If a site is a `pyro.factor`, from which nothing can be drawn; or if the distributions of the model
            depend on the data that it is given, as in a decoder that is fed earlier entries.
    """
    given = model.trace(1, args, kwargs)
    observed = {name: site for name, site in given.sites.items() if site.is_observed}
    places = _places_of(model, observed, args, kwargs)
    drawn = replace(drawing(model, observed), summed=frozenset()).trace(1, args, kwargs)
    new_args, new_kwargs = list(args), dict(kwargs)
    for name, key, entries in places:
        holder: Any = new_args if isinstance(key, int) else new_kwargs
        holder[key] = _with_value(holder[key], drawn.sites[name].value[0], entries)
    latents = {name: site.value for name, site in drawn.latents.items() if name not in observed}
    values = {name: drawn.sites[name] for name in observed}
    _check(model, (args, kwargs), (tuple(new_args), new_kwargs), latents, values)
    return Simulation(
        {name: value[0] for name, value in latents.items()},
        {name: site.value[0] for name, site in values.items()},
        tuple(new_args),
        new_kwargs,
    )


def drawing(model: VectorizedProgram, observed: Iterable[str]) -> VectorizedProgram:
    """Return the model that draws some of its observed sites.

    Args:
        model: Pyro program p(z) p(x|z), vectorized.
        observed: Names of the sites.
    """
    return replace(model, program=_Changed(model.program, dict.fromkeys(observed)))


def conditioned(model: VectorizedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether data have arguments of their own besides the data: covariates, or holes.

    Args:
        model: Pyro program p(z) p(x|z), vectorized.
        args: Positional arguments of the model, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the model.

    Raises:
        ValueError: As `simulate`.
    """
    sites = model.trace(1, args, kwargs).sites
    observed = {name: site for name, site in sites.items() if site.is_observed}
    held = {key for _, key, _ in _places_of(model, observed, args, kwargs)}
    if any(bool((site.value.isnan() | ~site.mask_per_datum()).any()) for site in observed.values()):
        return True
    size = num_data(args, kwargs)
    return any(
        key not in held
        and isinstance(one, Tensor)
        and one.dim() > 0
        and len(one) == size
        and not (one.dtype == torch.bool and bool(one.all()))
        for key, one in (*enumerate(args), *kwargs.items())
    )


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


class _Changed:
    """Program that draws some of its observed sites, or observes other values.

    Unlike `poutine.uncondition`, it leaves the values that `poutine.condition` gives to other sites.

    Args:
        program: Pyro program.
        values: Values by site, with the shape in the program; None to draw one.
    """

    def __init__(self, program: Program, values: Mapping[str, Tensor | None]) -> None:
        self.program, self.values = program, values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        with _Change(self.values):
            return self.program(*args, **kwargs)


class _Change(Messenger):
    """Handler that draws observed sites, or gives them other values."""

    def __init__(self, values: Mapping[str, Tensor | None]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        if value is None:
            msg["fn"] = _as_wide(msg["fn"], msg["value"].shape)
        msg["is_observed"], msg["value"], msg["done"] = value is not None, value, False


def _as_wide(fn: Any, shape: torch.Size) -> Any:
    """Expand a distribution whose density is broadcast over a wider value, so that it draws one."""
    event = len(fn.event_shape)
    if event == 0 or shape[len(shape) - event :] == fn.event_shape or entry_of(fn).event_shape:
        return fn
    batch = torch.broadcast_shapes(entry_of(fn).batch_shape, fn.batch_shape + (1,) * event, shape)
    return entry_of(fn).expand(batch).to_event(event)


def _places_of(
    model: VectorizedProgram, observed: Mapping[str, Site], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Place]:
    """Find the arguments that hold the value of each observed site, copies included."""
    if not observed:
        raise ValueError("the model observes no site, so there are no data to simulate; give it obs=x")
    every: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
    free = {key: value for key, value in every if isinstance(value, Tensor) and value.dim()}
    places: dict[str, tuple[Key, Tensor | None]] = {}
    for name, site in observed.items():
        if isinstance(entry_of(site.fn), Unit):
            raise ValueError(
                f"site {name!r} of the model is a factor, from which no data can be drawn; give the site a distribution"
            )
        value, seen = site.value[0], site.mask_per_datum()[0]
        key = next((key for key, argument in free.items() if _holds(argument, value, seen)), None)
        if key is not None:
            del free[key]
            places[name] = key, None
    missing = observed.keys() - places.keys()
    for key in list(free) if missing else []:
        for name, entries in _entries_of(model, missing - places.keys(), free[key], key, args, kwargs).items():
            places[name] = key, entries
    for name in observed:
        if name not in places:
            raise NotAnArgumentError(
                f"the value of site {name!r} is none of the arguments, nor entries of one, so simulated data cannot be "
                "given to the programs; pass the observed value itself as an argument, transformed before the call"
            )
    copies = [
        (name, key, None)
        for key, argument in free.items()
        if key not in {key for key, _ in places.values()} and argument.dtype != torch.bool
        for name, site in observed.items()
        if places[name][1] is None and _holds(argument, site.value[0], site.mask_per_datum()[0])
    ]
    return [*((name, *place) for name, place in places.items()), *copies]


def _holds(argument: Tensor, value: Tensor, seen: Tensor) -> bool:
    """Return whether an argument holds the observed value of a site, with shape (N, ...), where it counts."""
    if len(argument) != len(value) or argument.numel() != value.numel():
        return False
    same = argument.reshape(value.shape).to(value.dtype) == value
    return bool((same | ~seen).all())


def _entries_of(
    model: VectorizedProgram,
    names: Set[str],
    argument: Tensor,
    key: Key,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Find the entries of an argument that sites observe, such as one column each, by an argument of their numbers.

    Returns:
        The numbers of the entries, with the shape (N, ...) of each site that observes entries of this argument; -1
        where it does not count.
    """
    numbers = torch.arange(argument.numel(), device=argument.device).reshape(argument.shape).to(argument.dtype)
    if not argument.is_floating_point() or bool((numbers.flatten()[1:] == numbers.flatten()[:-1]).any()):
        return {}  # labels may index tensors
    numbers = torch.where(argument.isnan(), argument, numbers)
    some_args, some_kwargs = list(args), dict(kwargs)
    holder: Any = some_args if isinstance(key, int) else some_kwargs
    holder[key] = numbers
    sites = model.trace(1, tuple(some_args), some_kwargs).sites
    found = {}
    for name in names & sites.keys():
        value, seen = sites[name].value[0], sites[name].mask_per_datum()[0]
        entries = torch.where(seen & ~value.isnan(), value, -1).long()
        whole = (entries == value) & (entries < argument.numel()) & (entries >= 0)
        given = argument.flatten()[entries.clamp(0, argument.numel() - 1)]
        before = model.trace(1, args, kwargs).sites[name].value[0]
        if bool((~seen | (whole & (given == before))).all()) and bool(seen.any()):
            found[name] = torch.where(seen, entries, -1)
    return found


def _with_value(given: Tensor, value: Tensor, entries: Tensor | None) -> Tensor:
    """Put a simulated value into an argument, which keeps its shape, its dtype and the places of NaN."""
    if entries is None:
        value = value.reshape(given.shape).to(given.dtype)
        return torch.where(given.isnan(), given, value) if given.is_floating_point() else value
    flat = given.flatten().clone()
    flat[entries[entries >= 0]] = value[entries >= 0].to(given.dtype)
    return flat.reshape(given.shape)


def _check(
    model: VectorizedProgram, old: Arguments, new: Arguments, latents: dict[str, Tensor], values: Mapping[str, Site]
) -> None:
    """Check that the model observes the simulated data, and that its distributions did not depend on the given data.

    Args:
        model: Pyro program p(z) p(x|z), vectorized.
        old: The given arguments, at which the data were drawn.
        new: The arguments with the simulated data.
        latents: Latents by site, each with shape (1, N, ...).
        values: Simulated values of the observed sites.
    """
    latents = {name: value for name, value in latents.items() if name not in model.summed}
    found = model.trace(1, *new, latents)
    for name, drawn in values.items():
        site = found.sites[name]
        if site.value.shape != drawn.value.shape or bool(((site.value != drawn.value) & site.mask_per_datum()).any()):
            raise ValueError(
                f"the model does not observe data that are given as the argument of site {name!r} as they are; pass "
                "the observed value itself as an argument, transformed before the call"
            )
    changed = _Changed(model.program, {name: site.raw_value for name, site in values.items()})
    expected = replace(model, program=changed).trace(1, *old, latents)
    for one, other in zip(found.log_densities(), expected.log_densities(), strict=True):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ValueError(
                "a distribution of the model depends on the data that it is given, beside obs=, so that data cannot be "
                "simulated in one run; let it use the latents and the values that pyro.sample returns"
            )
