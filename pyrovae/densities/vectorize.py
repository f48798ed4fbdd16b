"""Find how programs run on K draws for N data, by comparing small runs with runs of single draws.

`vectorize` puts a plate of particles left of the programs' plates if the log densities of each datum are then those of
a run without particles. A program that uses dimensions by their position, such as `softmax(dim=1)`, fails this check;
its rows are repeated instead. A program whose densities of one datum depend on the other data is refused.
"""

import warnings
from collections.abc import Collection, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.arguments import Whole, is_per_datum, num_data, plain, take
from pyrovae.densities.auxiliary import (
    AuxiliarySite,
    auxiliary_sites,
    check_rows,
    check_separate,
    set_up_auto_guides,
)
from pyrovae.densities.data_plate import find_data_plate, plates_of, run_once
from pyrovae.densities.modules import evaluating, modules_of
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.sum_checks import difference_of_sums
from pyrovae.densities.traces import ParticleTrace, Program, sample_sites
from pyrovae.densities.vectorized import How, VectorizedProgram, stack_latents

_ROWS = (5, 7, 11, 13)  # numbers of data of the check; the first that is no width of an argument
_DRAWS = 2
_WAYS: tuple[How, ...] = ("broadcast", "tiled")

# Largest relative differences of log densities for each of these ways.
_ROUNDING = {torch.float32: (5e-5, 1e-3), torch.float64: (1e-9, 1e-6)}

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
Pair = tuple[VectorizedProgram, VectorizedProgram | None]


class TiledWarning(UserWarning):
    """A program uses dimensions by their position, so that the rows of the data are repeated for each draw."""


def vectorize(
    model: Program,
    guide: Program | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    plate: str | None = None,
    in_training: bool = False,
    given: Collection[str] | None = None,
) -> Pair:
    """Find how a model and a guide run on K draws for N data.

    The check runs both programs a few times on at most 13 data, in evaluation mode, and restores the random state. Its
    result is remembered for the programs, the shapes of the arguments and the values of the parameters. Discrete sites
    of the model that the guide does not draw are summed out, if their distribution enumerates its support.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments; None for the model alone.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        in_training: Whether the parameters change from call to call. The check is then repeated after 1, 2, 4, 8, ...
            changes, instead of after each.
        given: Names of the latents that are not summed out, for the model alone; None for all.

    Returns:
        Both programs; they are returned unchanged if they have been vectorized before.

    Raises:
        ValueError: If a site lies outside the plate over the data or carries a scale, or if the log density of a datum
            depends on other data, or on random numbers outside the sample sites; or if the guide is an auto guide that
            joins the latents of all data, or has rows for another number of data.
    """
    vectorized = isinstance(model, VectorizedProgram) and (guide is None or isinstance(guide, VectorizedProgram))
    if vectorized and given is None:
        return model, guide  # type: ignore[return-value]
    programs = {"model": model} | ({} if guide is None else {"guide": guide})
    programs = {name: p.program if isinstance(p, VectorizedProgram) else p for name, p in programs.items()}
    auxiliaries = _auxiliaries(programs, args, kwargs)
    memory, key, state = _memory_of(programs["model"]), _key(programs, args, kwargs, plate), _state(programs)
    given = None if given is None else frozenset(given)
    key = key, given
    known = None if memory is None else memory.get(key)
    size = num_data(args, kwargs)
    if known is None or known.is_due(state, size, in_training):
        # Blocked, so that handlers around the call do not see the runs of the check.
        with evaluating(*programs.values()), isolated_rng(), pyro.validation_enabled(False), poutine.block():
            found = _Check(programs, args, kwargs, plate, given, auxiliaries).result()
        known = _Known(found, state, 0 if known is None else known.num_changes, size)
        if memory is not None:
            memory[key] = known
    pair = {name: known.found.program(name, program, auxiliaries[name]) for name, program in programs.items()}
    return pair["model"], pair.get("guide")


def sum_discrete(model: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> VectorizedProgram:
    """Find how a model runs on draws, as `vectorize`, with discrete latents summed out if it has others too.

    Args:
        model: Pyro program p(z) p(x|z).
        args: Positional arguments of the model, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the model.
    """
    vectorized, _ = vectorize(model, None, args, kwargs)
    if vectorized.summed or not vectorized.discrete:
        return vectorized
    some_args, some_kwargs = take(args, kwargs, slice(0, 1)) if vectorized.divisible else (args, dict(kwargs))
    with isolated_rng(), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        latents = vectorized.trace(1, some_args, some_kwargs).latents
    others = latents.keys() - vectorized.discrete
    return vectorize(model, None, args, kwargs, given=others)[0] if others else vectorized


def vectorize_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    plate: str | None = None,
    in_training: bool = False,
) -> tuple[VectorizedProgram, VectorizedProgram]:
    """Find how a model and a guide run on draws, as `vectorize` does."""
    vectorized, vectorized_guide = vectorize(model, guide, args, kwargs, plate=plate, in_training=in_training)
    assert vectorized_guide is not None
    return vectorized, vectorized_guide


class _Found(NamedTuple):
    """How programs run on draws; the fields are those of `VectorizedProgram`."""

    how: How
    depth: int
    data_dim: int | None
    divisible: bool
    summed: frozenset[str] = frozenset()
    discrete: frozenset[str] = frozenset()

    def program(
        self, name: str, program: Program, auxiliaries: Mapping[str, AuxiliarySite] | None = None
    ) -> VectorizedProgram:
        """Return a program that runs so; only the model has sites to sum out."""
        sums = (self.summed, self.discrete) if name == "model" else (frozenset(), frozenset())
        return VectorizedProgram(
            program, name, self.how, self.depth, self.data_dim, self.divisible, *sums, auxiliaries=auxiliaries or {}
        )


@dataclass
class _Known:
    """Result of a check, and the state of the programs then.

    Attributes:
        found: How the programs run on draws.
        state: Result of `_state`.
        num_changes: Number of changes of the state that calls have seen.
        size: Number of data N of the call.
    """

    found: _Found
    state: Any
    num_changes: int
    size: int

    def is_due(self, state: Any, size: int, in_training: bool) -> bool:
        """Return whether to repeat the check for a state and a number of data."""
        if not self.found.divisible and size != self.size:
            return True
        if state == self.state:
            return False
        self.num_changes += 1
        return not in_training or self.num_changes & (self.num_changes - 1) == 0


def _auxiliaries(
    programs: Mapping[str, Program], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, dict[str, AuxiliarySite]]:
    """Find the auxiliary sites of the guide, which is set up if needed, by program and name."""
    found: dict[str, dict[str, AuxiliarySite]] = {name: {} for name in programs}
    if "guide" in programs:
        with evaluating(*programs.values()), pyro.validation_enabled(False):
            set_up_auto_guides(programs["guide"], *plain(args, kwargs))
        found["guide"] = auxiliary_sites(programs["guide"])
    return found


_memories: WeakKeyDictionary[Any, dict[Hashable, _Known]] = WeakKeyDictionary()


def _memory_of(program: Program) -> dict[Hashable, _Known] | None:
    """Return the results for a program, which live as long as it does; None if it cannot be referenced weakly."""
    with suppress(TypeError):
        return _memories.setdefault(_owner(program), {})
    return None


def _owner(program: Program) -> Any:
    return getattr(program, "__self__", program)


def _key(
    programs: Mapping[str, Program], args: tuple[Any, ...], kwargs: Mapping[str, Any], plate: str | None
) -> Hashable:
    size = num_data(args, kwargs)

    def of(value: Any) -> Hashable:
        if isinstance(value, Whole):
            return Whole, tuple(value.tensor.shape), value.tensor.dtype, value.tensor.device
        if isinstance(value, Tensor):
            rows = is_per_datum(value, size)
            return rows, tuple(value.shape[rows:]), value.dtype, value.device
        return value if isinstance(value, Hashable) else id(value)

    methods = tuple(getattr(program, "__func__", None) for program in programs.values())
    shapes = (*map(of, args), *((name, of(value)) for name, value in kwargs.items()))
    return methods, shapes, min(size, max(_ROWS)), plate


def _state(programs: Mapping[str, Program]) -> Any:
    """Return what a result depends on besides the arguments: the guide itself, and the versions of the parameters."""
    guide = None if "guide" not in programs else ref(_owner(programs["guide"]))
    modules = {id(module): module for program in programs.values() for module in modules_of(program)}
    tensors = [t for module in modules.values() for t in (*module.parameters(), *module.buffers())]
    return guide, [(id(t), t._version) for t in (*tensors, *pyro.get_param_store()._params.values())]


class _NotPerDatumError(ValueError):
    """The programs have no density per datum."""


class _Draws(NamedTuple):
    """Latents and log densities of some data.

    Attributes:
        latents: Values by site, each with shape (K, N, ...).
        model: Log densities of the model's sites, with shape (K, N).
        guide: Log densities of the guide's sites, with shape (K, N); None without any.
    """

    latents: dict[str, Tensor]
    model: Tensor
    guide: Tensor | None

    @property
    def densities(self) -> Tensor:
        """Both log densities, with shape (1 or 2, K, N)."""
        return torch.stack([self.model] if self.guide is None else [self.model, self.guide]).double()


class _Check:
    """Search for the way to run programs on draws.

    Args:
        programs: The model and, if any, the guide, by name.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        plate: Name of the plate over the data; None to find it.
        given: Names of the latents that are not summed out, for the model alone; None for all.
        auxiliaries: Auxiliary sites by program and name.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        plate: str | None,
        given: frozenset[str] | None,
        auxiliaries: Mapping[str, Mapping[str, AuxiliarySite]],
    ) -> None:
        self.programs, self.args, self.kwargs, self.plate, self.given = programs, args, kwargs, plate, given
        self.auxiliaries = auxiliaries
        self.size = num_data(args, kwargs)
        self.rows = min(self.size, _rows_of_check(args, kwargs))
        self.divisible = True

    def result(self) -> _Found:
        """Find the way on some of the data, or on all if the programs do not run on some.

        Raises:
            ValueError: As `vectorize`.
        """
        try:
            return self._result()
        except _NotPerDatumError:
            raise
        except Exception:
            self.divisible, self.rows = False, self.size
        try:
            return self._result()
        except Exception:
            if "guide" in self.programs:
                check_separate(self.auxiliaries["guide"])
                check_rows(self.programs["guide"], self.size)
            raise

    def _result(self) -> _Found:
        """Find the way: with particles, else with repeated rows."""
        traces = run_once(self.programs, *self._rows())
        plates = plates_of(traces)
        self.depth = max([1, *(-dim for found in plates.values() for dim in found)])
        self.data_dim = find_data_plate(plates, self.rows, self.plate)
        single = self._single_draws()
        rounding = _ROUNDING.get(single.model.dtype, _ROUNDING[torch.float32])
        for how, tolerance in zip(_WAYS, rounding, strict=True):
            if self._difference(how, single) <= tolerance:
                found = self._with_sums(self._found(how), traces, single)
                if found.how == "tiled":
                    _warn_of_tiles()
                return found
        raise _NotPerDatumError(self._reason(single, rounding[-1]))

    def _with_sums(self, found: _Found, traces: Mapping[str, poutine.Trace], single: _Draws) -> _Found:
        """Add the sites to sum out, and check the sums; tile if particles change them."""
        sites = {name: site for name, site in sample_sites(traces["model"]).items() if not site["is_observed"]}
        drawn = set(sample_sites(traces["guide"])) if "guide" in traces else set[str]()
        discrete = frozenset(
            name for name in sites if name not in drawn and getattr(sites[name]["fn"], "has_enumerate_support", False)
        )
        found = found._replace(discrete=discrete)
        summed = discrete if "guide" in traces else discrete - (discrete if self.given is None else self.given)
        if not summed:
            return found
        reason: Exception | None = None
        for how in dict.fromkeys((found.how, "tiled")):
            plain = found._replace(how=how).program("model", self.programs["model"])
            try:
                difference = difference_of_sums(plain, summed, single.latents, *self._rows())
            except Exception as error:
                reason = reason or error
                continue
            if difference <= _ROUNDING.get(single.model.dtype, _ROUNDING[torch.float32])[1]:
                return found._replace(how=how, summed=summed)
        raise _NotPerDatumError(_reason_against_sums(summed, reason))

    def _found(self, how: How) -> _Found:
        return _Found(how, self.depth, self.data_dim, self.divisible)

    def _rows(self) -> Arguments:
        return take(self.args, self.kwargs, slice(0, self.rows))

    def _traces(
        self, how: How, arguments: Arguments, num_particles: int, latents: Mapping[str, Tensor]
    ) -> dict[str, ParticleTrace]:
        """Run guide and model, the model on the guide's latents, and both on the given ones."""
        traces, latents = {}, dict(latents)
        for name in ("guide", "model"):
            if name in self.programs:
                program = self._found(how).program(name, self.programs[name], self.auxiliaries[name])
                traces[name] = program.trace(num_particles, *arguments, latents=latents)
                latents = {name: site.value for name, site in traces[name].draws.items()} | latents
        return traces

    def _draws(
        self, how: How, arguments: Arguments, num_particles: int = 1, latents: Mapping[str, Tensor] | None = None
    ) -> _Draws:
        traces = self._traces(how, arguments, num_particles, latents or {})
        densities = {name: trace.unscaled_log_density() for name, trace in traces.items() if trace.sites}
        values = {name: site.value for trace in traces.values() for name, site in trace.draws.items()}
        return _Draws(values, densities["model"], densities.get("guide"))

    def _single_draws(self) -> _Draws:
        """Draw two latents per datum without particles: one for all data at once, one for two parts of the data."""
        together = self._draws("tiled", self._rows())
        if self.divisible and self.rows > 1:
            apart = _side_by_side(
                *(self._draws("tiled", take(self.args, self.kwargs, rows)) for rows in _halves(self.rows))
            )
        else:
            apart = self._draws("tiled", self._rows())
        guide = None if together.guide is None else torch.cat([together.guide, apart.guide])  # type: ignore[list-item]
        return _Draws(stack_latents(together.latents, apart.latents), torch.cat([together.model, apart.model]), guide)

    def _difference(self, how: How, single: _Draws) -> float:
        """Compare log densities of runs on two draws with those of single draws; infinite if the program fails."""
        try:
            drawn = self._draws(how, self._rows(), _DRAWS, single.latents)
        except Exception:
            return torch.inf
        return relative_difference(drawn.densities, single.densities)

    def _reason(self, single: _Draws, tolerance: float) -> str:
        """Say why the programs have no density per datum."""
        first, second = ({name: value[k : k + 1] for name, value in single.latents.items()} for k in range(_DRAWS))
        again = self._draws("tiled", self._rows(), 1, first).densities
        if relative_difference(again, single.densities[:, :1]) > tolerance:
            return (
                "the log densities of two runs at the same latents differ, so a program draws random numbers outside "
                "its sample sites; draw them by pyro.sample, or compute them once outside the program"
            )
        together = self._draws("tiled", self._rows(), 1, second).densities
        if relative_difference(together, single.densities[:, 1:]) > tolerance:
            return (
                "the log density of a datum depends on which other data the program runs on (such as x - x.mean(0), or "
                "a tensor argument of leading length N that is not one row per datum), so log p(x_n) is not defined; "
                "use statistics of the training data, computed once, or pass such a tensor as Whole(tensor)"
            )
        return (
            "the log densities of repeated data differ from those of single data, so a program depends on the number "
            "of rows; make the density of each row a function of this row alone"
        )


def _reason_against_sums(names: Collection[str], error: Exception | None) -> str:
    """Say why sites cannot be summed out."""
    start = f"the sites {sorted(names)} of the model, which the guide does not draw, cannot be summed out: "
    if error is not None:
        return f"{start}{' '.join(str(error).split())[:300]}"
    return (
        f"{start}with all their values at once, the densities are not those of single values; index tensors by "
        "Vindex(tensor)[..., site, :], and count dims from the right, or let the guide draw the sites"
    )


def _warn_of_tiles() -> None:
    warnings.warn(
        "the programs use dimensions by their position (such as softmax(dim=1), z.sum(1) or view(-1, D)), so a plate "
        "of particles would change their densities; the rows of the data are repeated for each draw instead, which "
        "gives the right densities",
        TiledWarning,
        stacklevel=2,
    )


def _rows_of_check(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Choose a number of rows that differs from the widths of all arguments, so that a mistaken dim shows."""
    values, size = (*args, *kwargs.values()), num_data(args, kwargs)
    tensors = [value.tensor if isinstance(value, Whole) else value for value in values]
    shapes = (tuple(value.shape[is_per_datum(value, size) :]) for value in tensors if hasattr(value, "shape"))
    widths = {width for shape in shapes for width in shape}
    return next((rows for rows in _ROWS if rows not in widths), _ROWS[0])


def _halves(size: int) -> tuple[slice, slice]:
    return slice(0, size // 2), slice(size // 2, size)


def _side_by_side(*parts: _Draws) -> _Draws:
    """Concatenate draws of several parts of the data."""
    latents = {name: torch.cat([part.latents[name] for part in parts], 1) for name in parts[0].latents}
    guides = [part.guide for part in parts if part.guide is not None]
    return _Draws(latents, torch.cat([part.model for part in parts], 1), torch.cat(guides, 1) if guides else None)


def rounding_of(log_density: Tensor) -> float:
    """Return the largest relative difference by rounding between log densities of one draw and of several."""
    return _ROUNDING.get(log_density.dtype, _ROUNDING[torch.float32])[0]


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to 1 + |value|; 0 where both are equal, infinite or NaN."""
    equal = (one == other) | (one.isnan() & other.isnan())
    relative = (one - other).abs() / (1 + other.abs())
    return torch.where(equal, 0.0, relative).nan_to_num(torch.inf).max().item()
