"""State that programs change when they run, such as caches and parameters that the first data set up."""

from collections.abc import Callable, Iterable
from types import CellType, FunctionType
from typing import Any

import pyro
from torch import Tensor, nn

from pyrovae.densities.modules import holds_state, reach
from pyrovae.densities.traces import Program

_IMMUTABLE = (bool, int, float, str, bytes, type(None))
_EMPTY = object()


class ProgramState:
    """State of programs, to find out whether runs changed it, and to restore it.

    It consists of the parameters in Pyro's store, of the parameters, buffers and attributes of the modules that the
    programs reach, of the attributes of other objects, of lists and dicts, and of the variables of enclosing functions.
    Objects of libraries and global variables are not part of it.

    Args:
        programs: The programs.
    """

    def __init__(self, programs: Iterable[Program]) -> None:
        self.names = set(pyro.get_param_store().keys())
        self.holders: dict[int, tuple[Any, Any]] = {}
        self.cells: list[tuple[Any, Any]] = []
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}
        for thing in (thing for program in programs for thing in reach(program)):
            if isinstance(thing, nn.Module):
                for part in thing.modules():
                    for holder in (vars(part), part._parameters, part._buffers, part._modules):
                        self._hold(holder)
                    for tensor in (*part._parameters.values(), *part._buffers.values()):
                        if tensor is not None:
                            self.tensors[id(tensor)] = tensor, tensor.detach().clone()
            elif isinstance(thing, FunctionType):
                self.cells += [(cell, _content(cell)) for cell in thing.__closure__ or ()]
            elif isinstance(thing, dict | list):
                self._hold(thing)
            elif holds_state(thing):
                self._hold(vars(thing))

    @property
    def new_parameters(self) -> dict[str, Tensor]:
        """Parameters that joined Pyro's store, without those of modules."""
        store = pyro.get_param_store()
        names = [name for name, value in store._params.items() if id(value) not in self.tensors]
        return {name: store[name].detach().clone() for name in names if name not in self.names}

    def has_changed(self) -> bool:
        """Return whether runs changed the state, apart from parameters that joined Pyro's store."""
        return (
            any(not _same(before, now) for now, before in self.holders.values())
            or any(not _same_value(before, _content(cell)) for cell, before in self.cells)
            or any(not _equal(before, now) for now, before in self.tensors.values())
        )

    def restore(self) -> None:
        """Restore the state, and remove parameters that joined Pyro's store."""
        for name in self.new_parameters:
            del pyro.get_param_store()[name]
        for now, before in self.holders.values():
            if not _same(before, now):
                mode = now.get("training") if isinstance(now, dict) else None
                now.clear()
                now.update(before) if isinstance(now, dict) else now.extend(before)
                if mode is not None:
                    now["training"] = mode
        for cell, before in self.cells:
            if before is not _EMPTY and not _same_value(before, _content(cell)):
                cell.cell_contents = before
        for now, before in self.tensors.values():
            if not _equal(before, now):
                now.data = before.clone()

    def set_up_on_all_data(self, run: Callable[[], Any]) -> bool:
        """Set up again what the first run on some of the data set up, by a run on all.

        Args:
            run: Function that runs the programs on all data.

        Returns:
            Whether the state differs from that after the run on some of the data.
        """
        new = self.new_parameters
        if not new and not self.has_changed():
            return False
        changed = self.has_changed()
        self.restore()
        run()
        again = self.new_parameters
        return changed or again.keys() != new.keys() or any(not _equal(new[name], again[name]) for name in new)

    def _hold(self, holder: Any) -> None:
        self.holders[id(holder)] = holder, holder.copy()


def _content(cell: CellType) -> Any:
    """Return the value of a variable of an enclosing function, or `_EMPTY`."""
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return _EMPTY


def _same(before: Any, now: Any) -> bool:
    """Return whether two dicts or two lists hold the same objects; the mode of a module does not count."""
    if isinstance(before, list):
        return len(before) == len(now) and all(map(_same_value, before, now))
    names = [name for name in before if name != "training"]
    return before.keys() == now.keys() and all(_same_value(before[name], now[name]) for name in names)


def _same_value(before: Any, now: Any) -> bool:
    return before is now or (isinstance(before, _IMMUTABLE) and type(before) is type(now) and before == now)


def _equal(before: Tensor, now: Tensor) -> bool:
    if before.shape != now.shape or before.dtype != now.dtype:
        return False
    return bool(((before == now) | (before.isnan() & now.isnan())).all())
