"""The check at the entry of public functions: programs in their places, and arguments that the programs can take."""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import pyro
from pyro import poutine
from pyro.distributions import ImproperUniform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pyrovae.densities.arguments import has_data, mark_whole
from pyrovae.densities.modules import evaluating, module_of
from pyrovae.densities.moved import find_rows
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.rows import mismatch_of_rows
from pyrovae.densities.traces import Program
from pyrovae.densities.vectorized import VectorizedProgram

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_TABLE = "Trace Shapes:"  # where Pyro's table of shapes begins in a message
_TO_NUMPY = "Can't call numpy()"  # in torch's message about a tensor that has a gradient
# In torch's messages about arguments.
_OF_SHAPES = ("enforce_sorted", "size of tensor", "shape", "dtype", "scalar type", _TO_NUMPY)
_ADVICE = "\n  Try "  # where Pyro's advice begins in a message of several lines


def entry(
    *options: str, needs_data: bool = True
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Make a decorator of public functions that take programs, and data as `*args` or `x`.

    It checks that programs are in their places, and prepares the arguments (`prepare_arguments`). Errors of the
    programs are told in one line. Programs that have been vectorized pass unchecked.

    Args:
        *options: Names of keyword arguments that the function passes on, not to the programs but to another function.
        needs_data: Whether the programs must take data as arguments; otherwise they may hold their data themselves.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature, call = inspect.signature(function), _call

        def entered(*args: Any, **kwargs: Any) -> Any:
            return call(function, signature, (options, needs_data), args, kwargs)

        # It has the globals of the function, so that doctest finds the examples, and hence uses no name of this module.
        inner: Any = entered
        twin = FunctionType(inner.__code__, cast(Any, function).__globals__, None, None, inner.__closure__)
        return cast(Callable[Parameters, Result], wraps(function)(twin))

    return decorate


def prepare_arguments(
    function: str,
    programs: Sequence[Program],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    warn: bool = True,
    needs_data: bool = True,
) -> Arguments:
    """Prepare the arguments of programs.

    A program that has a method `program_arguments(args, kwargs)`, as those of `pyrovae.programs` do, checks and
    converts them. Arguments of other programs stay as they are; tensors that are not per datum are marked `Whole`.

    Args:
        function: Name of the public function, for error messages.
        programs: The programs.
        args: Positional arguments of the programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the programs.
        warn: Whether to warn of arguments that may be cut by mistake.
        needs_data: Whether the programs must take data as arguments.

    Raises:
        ValueError: If the programs cannot take the arguments.
    """
    for value in (*args, *kwargs.values()):
        _check_type(function, value)
    owners = [owner for program in programs for owner in module_of(program) if hasattr(owner, "program_arguments")]
    if owners:
        for owner in owners:
            args, kwargs = cast(Any, owner).program_arguments(args, kwargs, partial(_trial_run, owner))
        return args, dict(kwargs)
    for value in (*args, *kwargs.values()):
        if isinstance(value, np.ndarray):
            raise ValueError(
                "data must be a tensor, got a numpy array; give torch.as_tensor(x) of floating point numbers, or "
                "Streamed(x) for a memory-mapped array"
            )
    holds_data = not has_data(args, kwargs)
    if holds_data and needs_data and not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        other = "" if function == "fit" else ", or use log_evidence(model, guide, ...) for the evidence of all data"
        raise ValueError(
            f"{function} needs data as arguments of the programs, got no tensor, so the number of data is not known; "
            f"write model(x) and guide(x) with data x of shape (N, ...), and give x here{other}"
        )
    for program in programs:
        _check_signature(program, args, kwargs)
    if holds_data and not needs_data:
        return args, dict(kwargs)
    return mark_whole(args, kwargs, programs[0] if warn else None)


@contextmanager
def _trial_run(owner: Program) -> Iterator[None]:
    """Run a program without trace: in evaluation mode, with other random numbers, and unseen by handlers."""
    with evaluating(owner), isolated_rng(), pyro.validation_enabled(False), poutine.block():
        yield


def check_places(function: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that the arguments of a public function have programs where it takes programs, and only there.

    Args:
        function: Name of the function.
        signature: Signature of the function.
        args: Positional arguments of the function.
        kwargs: Keyword arguments of the function.

    Raises:
        ValueError: If a whole model, data or a class is in the place of a program, or a program in that of data.
    """
    places = [name for name, p in signature.parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    given = dict(zip(places, args, strict=False)) | dict(kwargs)
    optional = {name for name, p in signature.parameters.items() if p.default is None or name == "guide"}
    for name in ("model", "guide"):
        value = given.get(name)
        if name not in given or (value is None and name in optional):
            continue
        if _is_pair(value):
            kind = type(value).__name__
            raise ValueError(
                f"{function} needs a Pyro program as {name}, got {_described(value)}, which holds the two programs "
                f"model and guide; with vae for the {kind}, write {_call_of(function, signature)}"
            )
        if isinstance(value, type) or not callable(value):
            raise ValueError(
                f"{function} needs a Pyro program as {name}, got {_described(value)}; write "
                f"{_call_of(function, signature)}"
            )
    for name in ("args", "data", "x"):
        value = given.get(name)
        if _is_program(value):
            raise ValueError(
                f"{function} needs data after {_places_before(places, name)}, got {_described(value)}; write "
                f"{_call_of(function, signature)}"
            )


@contextmanager
def one_line_errors(
    function: str, programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any], validation: Any
) -> Iterator[None]:
    """Tell the errors of programs on data that they cannot take in one line, without Pyro's table of shapes.

    Args:
        function: Name of the public function.
        programs: The programs.
        args: Positional arguments of the programs.
        kwargs: Keyword arguments of the programs.
        validation: Held-out data, if any.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        said = _undrawable(function, error)
        if said is not None:
            raise ValueError(said) from error
        said = mismatch_of_rows(programs, args, kwargs, validation, str(error))
        if said is not None:
            raise ValueError(said) from error
        if type(error) is ValueError and _ADVICE in str(error):
            lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
            raise ValueError(f"{function}: {'; '.join(lines)}".replace(":; ", ": ")) from error
        of_shapes = type(error) is RuntimeError and any(word in str(error) for word in _OF_SHAPES)
        if _TABLE not in str(error) and not of_shapes:
            raise
        root: BaseException = error
        while root.__cause__ is not None and _TABLE in str(root):
            root = root.__cause__
        said = " ".join(str(root).partition(_TABLE)[0].split())
        if "enforce_sorted" in said:
            said = (
                f"{function} cannot run the programs on these rows, or on some of them, since pack_padded_sequence "
                "needs them sorted by length; write pack_padded_sequence(..., enforce_sorted=False), which takes any "
                "order, or sort the rows, longest first"
            )
        elif _TO_NUMPY in said:
            raise ValueError(
                f"{function} needs gradients of the programs, but one of them turns a tensor that has a gradient into "
                "numpy; write that part in torch. An estimate with proposal=GuideProposal() needs no gradients"
            ) from root
        elif not isinstance(root, ValueError):
            said = (
                f"{function} cannot run the programs on {_in_words((*args, *kwargs.values()))} ({said}); give data of "
                "the type and shape that the programs take"
            )
        raise type(error)(said) from root


def _undrawable(function: str, error: BaseException) -> str | None:
    """Return what to do if an error is that of a site whose distribution has no draws; None for other errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, NotImplementedError):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_code.co_name not in ("sample", "rsample"):
        return None
    site = next((f.f_locals["msg"] for f in reversed(frames) if f.f_code.co_name == "default_process_message"), None)
    if site is None:
        return None
    kind = type(frames[-1].f_locals.get("self")).__name__
    improper = ", and log p(x) is known up to a constant only" if isinstance(site["fn"], ImproperUniform) else ""
    return (
        f"{function} draws site {site['name']!r}, whose distribution {kind} cannot be drawn from{improper}; give it a "
        "distribution that can, such as Normal(0, 100). For log p(x_n), log_marginal(..., proposal=GuideProposal()) "
        "draws from the guide alone"
    )


def _call(
    function: Callable[..., Any],
    signature: inspect.Signature,
    settings: tuple[Sequence[str], bool],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Check and prepare the arguments of a public function, and call it."""
    name = function.__name__
    if args and isinstance(args[0], VectorizedProgram):
        return function(*args, **kwargs)
    check_places(name, signature, args, kwargs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:  # Python's own message without the function
        raise TypeError(f"{name}() {error}") from None
    given = bound.arguments
    programs = [given[place] for place in ("model", "guide") if given.get(place) is not None]
    with one_line_errors(name, programs, *_data_of(given, settings[0])):
        if "args" in signature.parameters or "x" in signature.parameters:
            _prepare(name, *settings, programs, given)
        return function(*bound.args, **bound.kwargs)


def _data_of(given: Mapping[str, Any], options: Sequence[str]) -> tuple[tuple[Any, ...], Mapping[str, Any], Any]:
    """Return the arguments of programs among those of a public function, and its held-out data."""
    kwargs = {key: value for key, value in given.get("kwargs", {}).items() if key not in options}
    data, validation = given.get("data"), given.get("validation")
    if isinstance(data, Mapping):
        return (), data, validation
    if isinstance(data, list | tuple):
        return tuple(data), {}, validation
    first = [given[name] for name in ("x", "data") if given.get(name) is not None]
    return (*first, *given.get("args", ())), kwargs, validation


def _prepare(
    function: str, options: Sequence[str], needs_data: bool, programs: Sequence[Program], given: dict[str, Any]
) -> None:
    """Prepare the programs' arguments among the bound arguments of a public function, in place."""
    others = given.get("kwargs", {})
    passed_on = {key: value for key, value in others.items() if key in options}
    rest = {key: value for key, value in others.items() if key not in options}
    if "x" in given:
        (given["x"],), rest = prepare_arguments(function, programs, (given["x"],), rest)
    else:
        args = given.get("args", ())
        if not needs_data and args and all(value is None for value in args) and not _takes(programs, args, rest):
            args = ()
        args, rest, programs = _along_plate(programs, args, rest, given, passed_on)
        given["args"], rest = prepare_arguments(function, programs, args, rest, needs_data=needs_data)
    given["kwargs"] = rest | passed_on


def _along_plate(
    programs: Sequence[Program],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    passed_on: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any], Sequence[Program]]:
    """Move the data of a named plate to the front of the arguments, and wrap the programs, in place, accordingly."""
    plate, rows = given.get("plate", passed_on.get("plate")), None
    if plate is not None:
        with suppress(Exception):  # `find_data_plate` says what is wrong with the name
            rows = find_rows(programs, args, kwargs, plate)
    if rows is None:
        return args, kwargs, programs
    for place in ("model", "guide", "proposal"):
        holder = passed_on if place in passed_on else given
        if inspect.isroutine(holder.get(place)) or (place != "proposal" and holder.get(place) is not None):
            holder[place] = rows.program(holder[place])
    return *rows.first(args, kwargs), [given[place] for place in ("model", "guide") if given.get(place) is not None]


def _check_type(function: str, value: Any) -> None:
    """Refuse data of types that only `fit` takes."""
    if isinstance(value, DataLoader | Dataset):
        raise ValueError(
            f"{function} needs data as tensors, got {_described(value)}; concatenate its batches, as in "
            "x = torch.cat(list(loader)), or give Streamed(array) for data on disk"
        )


def _takes(programs: Sequence[Program], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether all programs take these arguments."""
    try:
        for program in programs:
            _check_signature(program, args, kwargs)
    except ValueError:
        return False
    return True


def _check_signature(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that a program takes this number of arguments, by these names."""
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):  # no signature is known
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        keywords = f" and {', '.join(kwargs)} by keyword" if kwargs else ""
        raise ValueError(
            f"a program takes the arguments {signature}, got {len(args)} by position{keywords} ({error}); give model "
            "and guide the same arguments, and these to every function"
        ) from None


def _is_pair(value: Any) -> bool:
    """Return whether an object holds the programs model and guide, and is no program itself."""
    held = (getattr(value, name, None) for name in ("model", "guide"))
    if isinstance(value, type | Tensor) or not all(map(callable, held)):
        return False
    is_program = type(value).forward is not nn.Module.forward if isinstance(value, nn.Module) else callable(value)
    return not is_program


def _is_program(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _described(value: Any) -> str:
    """Describe an object in words, with its shape if it has one."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = "tensor" if isinstance(value, Tensor) else type(value).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name}" + (f" of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else "")


def _call_of(function: str, signature: inspect.Signature) -> str:
    """Write a call of the function as it is meant."""
    places = {"model": "vae.model", "guide": "vae.guide", "args": "x"}
    words = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            words += ["guide=vae.guide"] if name == "guide" else []
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            words.append(places.get(name, name))
    return f"{function}({', '.join(words)}, ...)"


def _in_words(arguments: Sequence[Any]) -> str:
    """List the types and shapes of the tensors among arguments, or inside those that are collections."""
    words = []
    for argument in arguments:
        values = argument.values() if isinstance(argument, Mapping) else argument
        for value in values if isinstance(argument, Mapping | tuple | list) else [argument]:
            if isinstance(value, Tensor):
                words.append(f"{str(value.dtype).removeprefix('torch.')} tensors of shape {tuple(value.shape)}")
    return " and ".join(words) or "these data"


def _places_before(places: Sequence[str], name: str) -> str:
    before = places[: places.index(name)]
    return " and ".join(before)
