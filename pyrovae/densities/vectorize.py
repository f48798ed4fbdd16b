"""Find how programs run on K draws for N data, by comparing small runs with runs of single draws.

`vectorize` puts a plate of particles left of the programs' plates if the log densities of each datum are then those of
a run without particles. A program that uses dimensions by their position, such as `softmax(dim=1)`, fails this check;
its rows are repeated instead. A program whose densities of one datum depend on the other data is refused.
"""

from collections.abc import Collection, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyrovae.densities.arguments import Whole, has_data, is_per_datum, num_data, plain, take
from pyrovae.densities.auxiliary import AuxiliarySite, auto_guides_of, auxiliary_sites, set_up_auto_guides
from pyrovae.densities.data_plate import run_once
from pyrovae.densities.modules import evaluating, modules_and_settings_of
from pyrovae.densities.program_state import ProgramState
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.streamed import Streamed
from pyrovae.densities.traces import Program
from pyrovae.densities.vectorized import VectorizedProgram
from pyrovae.densities.ways import ROWS, Way, WaySearch

Pair = tuple[VectorizedProgram, VectorizedProgram | None]


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
    if isinstance(model, VectorizedProgram) and isinstance(guide, VectorizedProgram | None) and given is None:
        return model, guide
    programs = {"model": model} | ({} if guide is None else {"guide": guide})
    programs = {name: p.program if isinstance(p, VectorizedProgram) else p for name, p in programs.items()}
    auxiliaries = _auxiliaries(programs, args, kwargs)
    memory, key, state = _memory_of(programs["model"]), _key(programs, args, kwargs, plate), _state(programs)
    given = None if given is None else frozenset(given)
    key = key, given
    known = None if memory is None else memory.get(key)
    size = num_data(args, kwargs) if has_data(args, kwargs) else 0
    if known is None or known.is_due(state, size, in_training):
        # Blocked, so that handlers around the call do not see the runs of the check.
        with evaluating(*programs.values()), isolated_rng(), pyro.validation_enabled(False), poutine.block():
            before = ProgramState(programs.values())
            search = partial(WaySearch, programs, args, kwargs, plate, given, auxiliaries, before.restore)
            found = search().result()
            if in_training:  # the first step sets up what the runs of the check set up
                before.restore()
            elif not _on_disk(args, kwargs) and before.set_up_on_all_data(partial(run_once, programs, args, kwargs)):
                found = search().result()
                state = _state(programs)
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


@dataclass
class _Known:
    """Result of a check, and the state of the programs then.

    Attributes:
        found: How the programs run on draws.
        state: Result of `_state`.
        num_changes: Number of changes of the state that calls have seen.
        size: Number of data N of the call.
    """

    found: Way
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
    if "guide" in programs and auto_guides_of(programs["guide"]):
        with evaluating(*programs.values()), pyro.validation_enabled(False):
            set_up_auto_guides(programs["guide"], *plain(args, kwargs))
        found["guide"] = auxiliary_sites(programs["guide"])
    return found


def _on_disk(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether some data stay on disk, so that no run takes all of them."""
    return any(isinstance(value, Streamed) for value in (*args, *kwargs.values()))


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
    size = num_data(args, kwargs) if has_data(args, kwargs) else 0

    def of(value: Any) -> Hashable:
        if isinstance(value, Whole):
            return Whole, tuple(value.tensor.shape), value.tensor.dtype, value.tensor.device
        if isinstance(value, PackedSequence):
            return PackedSequence, is_per_datum(value, size), tuple(value.data.shape[1:]), value.data.dtype
        if isinstance(value, Tensor):
            rows = is_per_datum(value, size)
            return rows, tuple(value.shape[rows:]), value.dtype, value.device
        return value if isinstance(value, Hashable) else id(value)

    methods = tuple(getattr(program, "__func__", None) for program in programs.values())
    shapes = (*map(of, args), *((name, of(value)) for name, value in kwargs.items()))
    return methods, shapes, min(size, max(ROWS)), plate


def _state(programs: Mapping[str, Program]) -> Any:
    """Return the guide, the settings and the versions of the parameters, which a result holds for."""
    guide = None if "guide" not in programs else ref(_owner(programs["guide"]))
    found = [modules_and_settings_of(program) for program in programs.values()]
    modules, settings = {id(module): module for each, _ in found for module in each}, [each for _, each in found]
    every = [t for part in modules.values() for t in (*part._parameters.values(), *part._buffers.values())]
    tensors = [tensor for tensor in every if tensor is not None]
    return guide, settings, [(id(t), t._version) for t in (*tensors, *pyro.get_param_store()._params.values())]
