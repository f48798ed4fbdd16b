"""Error messages about parameters with one row per datum, in runs on other numbers of data."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.arguments import num_data, plain, take
from pyrovae.densities.data_plate import run_once
from pyrovae.densities.modules import evaluating, modules_of
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.streamed import Streamed
from pyrovae.densities.traces import Program

# In messages of Pyro and torch, the two sizes that do not match.
_MISMATCHES = (
    r"Shape mismatch inside plate\(.*?\) at site \S+ dim -?\d+, (\d+) vs (\d+)",
    r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
)


def mismatch_of_rows(
    programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any], validation: Any, message: str
) -> str | None:
    """Say which parameter has one row per datum, in a run on another number of data.

    Args:
        programs: The programs.
        args: Positional arguments of the programs.
        kwargs: Keyword arguments of the programs.
        validation: Held-out data, if any.
        message: Message of an error about shapes.

    Returns:
        The sentence; None if the message has another cause.
    """
    found = next((match for pattern in _MISMATCHES if (match := re.search(pattern, message))), None)
    sizes = set() if found is None else {int(size) for size in found.groups()}
    if len(sizes) != 2:
        return None
    encoder = "use an encoder, which takes any data"
    for name, parameter in _parameters_of(programs, args, kwargs):
        rows = parameter.shape[0] if parameter.dim() else 1
        if rows <= 1 or rows not in sizes or not _runs_on(rows, programs, args, kwargs):
            continue
        (others,) = sizes - {rows}
        start = f"parameter {name!r} has {rows} rows, one for each datum, but the programs ran on {others}"
        size = _num_rows((*args, *kwargs.values()))
        if size == rows and _num_rows([validation]) == others:
            return f"{start} validation data; leave out validation, or {encoder}"
        if size == rows:
            return (
                f"{start} of the data; give batch_size={rows}, or index the parameter by row numbers that are data "
                f"too, as in (x, torch.arange({rows})), or {encoder}"
            )
        if size == others:
            return f"{start} other data; give the {rows} data of the parameter, or {encoder}"
    return None


def _runs_on(rows: int, programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the programs run on this number of data, with some of them repeated if needed."""
    named = dict(zip(("model", "guide"), programs, strict=False))
    with suppress(Exception), evaluating(*programs), isolated_rng(), pyro.validation_enabled(False), poutine.block():
        some = take(args, kwargs, torch.arange(rows) % num_data(args, kwargs))
        for trace in run_once(named, *some).values():
            trace.compute_log_prob()
        return True
    return False


def _parameters_of(
    programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the parameters that the programs declare in a run, which may fail, and those of their modules."""
    args, kwargs = plain(args, kwargs)
    for program in reversed(programs):  # the guide first
        with (
            evaluating(program),
            isolated_rng(),
            pyro.validation_enabled(False),
            poutine.block(),
            poutine.trace(param_only=True) as capture,
            suppress(Exception),
        ):
            program(*args, **kwargs)
        for name, site in dict[str, Any](capture.trace.nodes).items():
            if site["type"] == "param":
                yield name.rpartition("$$$")[2], site["value"]
        for module in modules_of(program):
            yield from module.named_parameters()


def _num_rows(arguments: Sequence[Any]) -> int | None:
    """Return the leading length of the first tensor among arguments, or inside those that are collections."""
    for argument in arguments:
        values = argument.values() if isinstance(argument, Mapping) else argument
        for value in values if isinstance(argument, Mapping | tuple | list) else [argument]:
            if isinstance(value, Tensor | Streamed) and value.dim():
                return value.shape[0]
    return None
