"""Data whose rows lie along another dimension than the first, such as words by documents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
from pyro import poutine
from torch import Tensor

from pyrovae.densities.arguments import Whole, has_data, num_data, take
from pyrovae.densities.data_plate import plates_of, run_once
from pyrovae.densities.modules import evaluating
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.traces import MovedProgram, Program

Key = int | str  # place or name of an argument


@dataclass(frozen=True)
class Rows:
    """Dims of the arguments along which the data of a named plate lie.

    Attributes:
        plate: Name of the plate.
        size: Number of data N.
        dims: Dim of each tensor argument that has one row per datum, by place or name.
        divisible: Whether the plate takes its size from the arguments, so that the programs run on some of the data.
    """

    plate: str
    size: int
    dims: Mapping[Key, int]
    divisible: bool

    def first(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move the dim of the data to the front of each argument; other tensors become `Whole`."""

        def moved(key: Key, value: Any) -> Any:
            if key in self.dims:
                return value.movedim(self.dims[key], 0)
            return Whole(value) if isinstance(value, Tensor) and value.dim() else value

        return tuple(moved(i, value) for i, value in enumerate(args)), {k: moved(k, v) for k, v in kwargs.items()}

    def program(self, program: Program) -> Program:
        """Return a program of arguments whose data come first."""
        return MovedProgram(program, self.dims)

    def transform(self, transform: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
        """Return a transform of x, the first argument, whose data come first."""
        dim = next(iter(self.dims.values()))
        if transform is None:
            return None
        return lambda x: transform(x.movedim(0, dim)).movedim(dim, 0)


class _Run(NamedTuple):
    """Size of the named plate in a run, and the number of data that it subsamples from."""

    size: int
    full_size: int


def find_rows(programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any], plate: str) -> Rows | None:
    """Find the dims of the data of a named plate among those of the arguments.

    The programs run on all data, and on half of them along each dim of the plate's length.

    Args:
        programs: The model and, if any, the guide.
        args: Positional arguments of both programs.
        kwargs: Keyword arguments of both programs.
        plate: Name of the plate.

    Returns:
        The dims; None if the data come first in each argument, as all functions expect.

    Raises:
        ValueError: If no plate has this name, or no argument has its length.
    """
    if not has_data(args, kwargs):
        return None
    found = _run(programs, args, kwargs, plate)
    if found.size == -1:
        return None
    size = found.full_size
    named = dict[Key, Any](enumerate(args)) | dict[Key, Any](kwargs)
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor) and value.dim()}
    lengths = {key: [dim for dim, length in enumerate(t.shape) if length == size] for key, t in tensors.items()}
    if num_data(args, kwargs) == size and all(dims in ([], [0]) for dims in lengths.values()):
        return None
    first = next(iter(lengths), None)
    if first is None or not lengths[first]:
        shapes = " and ".join(str(tuple(t.shape)) for t in tensors.values())
        raise ValueError(
            f"plate {plate!r} is over {size} data, but the first argument has no dim of this length, only shapes "
            f"{shapes}; give data with a dim of {size}, or name the plate over the rows of the data"
        )
    candidates = []
    for dim in lengths[first]:
        dims = {key: dim if dim in found_dims else found_dims[0] for key, found_dims in lengths.items() if found_dims}
        candidates.append(Rows(plate, size, dims, True))
    for rows in candidates:
        if size > 1 and _follows(programs, args, kwargs, rows):
            return None if set(rows.dims.values()) == {0} else rows
    if len(candidates) > 1:
        raise ValueError(
            f"dims {lengths[first]} of the first argument all have the length of plate {plate!r}, {size}, and its size "
            "does not follow them; give the plate its size from the data, as in data.shape[1]"
        )
    rows = candidates[0]
    return Rows(plate, size, rows.dims, False)


def _follows(programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Rows) -> bool:
    """Return whether the size of the plate is that of the data if they are cut along these dims."""
    half = max(1, rows.size // 2)
    some = take(*rows.first(args, kwargs), slice(0, half))
    try:
        return _run([rows.program(program) for program in programs], *some, rows.plate).size == half
    except Exception:
        return False


def _run(programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any], plate: str) -> _Run:
    """Run the programs once, and find the named plate."""
    named = dict(zip(("model", "guide"), programs, strict=False))
    with evaluating(*programs), isolated_rng(), pyro.validation_enabled(False), poutine.block():
        around = plates_of(run_once(named, args, kwargs)).values()
    plates = {found.name: found for each in around for found in each.values()}
    if plate not in plates:
        raise ValueError(
            f"no plate around the sample sites is named {plate!r}, only {sorted(plates)}; name one of them"
        )
    return _Run(plates[plate].size, plates[plate].full_size or plates[plate].size)
