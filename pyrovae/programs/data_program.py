"""Base class of the programs in this room, which check and convert the arguments x, covariates and mask."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pyro.nn.module import PyroModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrovae.nn import Standardize

# Results of trial runs, by program and by the shapes of one datum and its covariates.
_trials: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


@cache
def _signature_of(kind: type[Any]) -> inspect.Signature:
    """Return the signature of a program's class, with self; reading it takes as long as a small network."""
    return inspect.signature(kind.forward)


class DataProgram(PyroModule):
    """Base class of programs with the arguments x, covariates and mask.

    Estimators and `fit` call `program_arguments` before they run the program.
    """

    def program_arguments(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Convert x, covariates and mask to tensors of the program's type and device, and check their shapes.

        Numbers of every type become those of the parameters, numpy arrays become tensors, and masks of 0 and 1 become
        boolean. Data on disk stay there. The program runs on one datum to find the widths that its networks need.

        Args:
            args: Positional arguments of the program.
            kwargs: Keyword arguments of the program.
            context: Context of the run, such as evaluation mode.

        Raises:
            ValueError: If an argument is missing, unknown, or has another shape or type.
        """
        try:
            bound = _signature_of(type(self)).bind(self, *args, **kwargs)
        except TypeError as error:
            names = ", ".join(kwargs) or "none"
            others = [name for name in ("covariates", "mask", "labels") if name in _signature_of(type(self)).parameters]
            raise ValueError(
                f"{type(self).__name__} takes x by position or name, and {' and '.join(others)} by name, got "
                f"{len(args)} arguments by position and by name {names} ({error}); write x, "
                f"{', '.join(f'{name}={name[0]}' for name in others)}"
            ) from None
        given = bound.arguments
        tensors = [p for p in (*self.parameters(), *self.buffers()) if p.is_floating_point()]
        for name in ("x", "covariates", "mask"):
            if given.get(name) is not None:
                given[name] = _as_argument(name, given[name], tensors)
        self._check(given.get("x"), given.get("covariates"), given.get("mask"), context)
        return bound.args[1:], bound.kwargs  # without self

    def _check(self, x: Any, covariates: Any, mask: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Check the shapes of converted arguments."""
        name = type(self).__name__
        if x is None:
            raise ValueError(f"{name} needs data x of shape (N, D), got none; give x first")
        width = None if covariates is None else tuple(covariates.shape[1:])
        _check_covariates(name, x, covariates)
        if "size" in _signature_of(type(self)).parameters:
            event = self._trial(("model", width), lambda: _generate(self, covariates), context)
            _check_width_of_covariates(name, x, covariates, event)
            _check_x(x, event.shape)
        elif x.dim() > 1 and len(x):
            found = self._trial(("guide", tuple(x.shape[1:]), width), lambda: _condition(self, x, covariates), context)
            if found.surplus:
                raise ValueError(
                    f"the networks of {name} take {found.surplus + found.width} numbers per datum, from x and "
                    f"covariates, got {found.width}, from x of shape {tuple(x.shape)} and "
                    f"{_shape_or_none('covariates', covariates)}; give both with the widths of the training data"
                )
        _check_mask(x, mask)

    def _trial(
        self, key: Any, run: Callable[[], "_Trial"], context: Callable[[], AbstractContextManager[Any]]
    ) -> "_Trial":
        """Run the program on one datum, once for each key."""
        known = _trials.setdefault(self, {})
        if key not in known:
            with context():
                known[key] = run()
        found: _Trial = known[key]
        return found


class _Trial(NamedTuple):
    """Result of a run on one datum.

    Attributes:
        shape: Shape of one datum, if the run generated one.
        surplus: Number of inputs that the first layer that failed needs beyond those it got; 0 if none failed.
        width: Number of inputs that it got.
    """

    shape: tuple[int, ...] | None = None
    surplus: int = 0
    width: int = 0


def _generate(model: DataProgram, covariates: Any) -> _Trial:
    given = {"size": 1} if covariates is None else {"covariates": covariates[:1]}
    return _try(lambda: tuple(model(**given).shape[1:]))


def _condition(guide: DataProgram, x: Any, covariates: Any) -> _Trial:
    given = {} if covariates is None else {"covariates": covariates[:1]}
    return _try(lambda: guide(x[:1], **given) and None)


def _try(run: Callable[[], tuple[int, ...] | None]) -> _Trial:
    """Run a program, and note the layer that fails by the number of its inputs."""
    with _inputs() as noted, suppress(Exception):
        return _Trial(run())
    wanted, got = noted[-1] if noted else (0, 0)
    return _Trial(None, wanted - got, got)


@contextmanager
def _inputs() -> Iterator[list[tuple[int, int]]]:
    """Note for each layer that runs the number of inputs that it needs, and the number that it gets."""
    noted: list[tuple[int, int]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        wanted = getattr(module, "in_features", None)
        if isinstance(module, Standardize) and module.loc.dim():
            wanted = module.loc.shape[-1]
        if isinstance(wanted, int) and inputs and isinstance(inputs[0], Tensor) and inputs[0].dim():
            noted.append((wanted, inputs[0].shape[-1]))

    hook = register_module_forward_pre_hook(note)
    try:
        yield noted
    finally:
        hook.remove()


def _as_tensor(name: str, value: Any) -> Any:
    """Convert a numpy array to a tensor; refuse other types but tensors and data on disk."""
    if isinstance(value, np.memmap):
        raise ValueError(f"{name} must be a tensor, got a memory-mapped array; give Streamed({name}), or a copy")
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value if value.flags.writeable and value.flags.forc else value.copy())
        except TypeError:
            raise ValueError(
                f"{name} must be an array of numbers, got one of {value.dtype}; convert it with {name}.astype(float)"
            ) from None
    if isinstance(value, Tensor) or _is_streamed(value):
        return value
    raise ValueError(
        f"{name} must be a tensor or a numpy array, got {type(value).__name__}; give torch.as_tensor({name}), or "
        "Streamed(array) for data on disk"
    )


def _as_argument(name: str, value: Any, tensors: Sequence[Tensor]) -> Any:
    """Convert an argument to the type and device of the parameters and buffers of a program.

    Parameters of the argument's own type, or none at all, keep its precision.
    """
    dtype = getattr(value, "dtype", None)
    own = [tensor for tensor in tensors if tensor.dtype == dtype]
    floating = isinstance(value, Tensor) and value.is_floating_point()
    like = own[0] if own else tensors[0] if tensors else value if floating else torch.zeros(())
    return _as_mask(value, like.device) if name == "mask" else _as_numbers(name, value, like)


def _as_numbers(name: str, value: Any, like: Tensor) -> Any:
    value = _as_tensor(name, value)
    if _is_streamed(value):
        return value if value.device == like.device else value.to(like.device)
    if value.is_complex():
        raise ValueError(f"{name} must be real numbers, got {value.dtype}; give real and imaginary parts as columns")
    return value.to(like)


def _as_mask(mask: Any, device: torch.device) -> Any:
    mask = _as_tensor("mask", mask)
    if _is_streamed(mask):
        return mask
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"mask must be boolean, true where x is observed, got {mask.dtype} with values other than 0 and 1; give a "
            "comparison, such as mask > 0.5"
        )
    return mask.to(device, torch.bool)


def _check_x(x: Any, shape: tuple[int, ...] | None) -> None:
    """Check the shape of x, given that of one datum if it is known."""
    got = tuple(x.shape)
    expected = "(N, D)" if shape is None else _shape_in_words("N", shape)
    if len(got) == 0 or (len(got) == 1 and shape != ()):
        advice = "x.unsqueeze(-1)" if shape == (1,) else "x.unsqueeze(0) for one datum"
        raise ValueError(f"x must have shape {expected}, got {got}; give {advice}")
    if not got[0]:
        raise ValueError(f"the data are empty: x must have shape {expected}, got {got}; give at least one datum")
    if shape is None or got[1:] == shape:
        return
    flat = int(np.prod(got[1:]))
    if len(shape) == 1 and len(got) > 2:
        advice = "x.flatten(1)" if flat == shape[0] else f"x.flatten(1), and build the model for {flat} dimensions"
    else:
        advice = f"data of this shape, or the likelihood's network num_outputs({flat}) outputs"
    raise ValueError(f"x must have shape {expected}, which the likelihood gives, got {got}; give {advice}")


def _check_covariates(name: str, x: Any, covariates: Any) -> None:
    if covariates is None:
        return
    size, got = len(x) if x.dim() else 1, tuple(covariates.shape)
    if len(got) == 2 and got[0] == size:
        return
    advice = f"one row for each of the {size} data"
    if len(got) == 1:
        advice = "covariates.unsqueeze(-1), or one column per class for labels"
    elif len(got) > 2:
        advice = "covariates.flatten(1)"
    raise ValueError(f"covariates of {name} must have shape ({size}, C), one row per datum, got {got}; give {advice}")


def _check_width_of_covariates(name: str, x: Any, covariates: Any, found: _Trial) -> None:
    if not found.surplus:
        return
    size, width = len(x) if x.dim() else 1, 0 if covariates is None else covariates.shape[1]
    needed = width + found.surplus
    if needed < 0:
        return
    expected = f"covariates of shape ({size}, {needed})" if needed else "no covariates"
    advice = "leave covariates out"
    if needed:
        advice = f"give covariates of {needed} columns, or build the networks for {needed} inputs fewer"
    raise ValueError(f"{name} takes {expected}, got {_shape_or_none('covariates', covariates)}; {advice}")


def _check_mask(x: Any, mask: Any) -> None:
    if mask is None:
        return
    size, got = len(x), tuple(mask.shape)
    if got in ((size,), tuple(x.shape)):
        return
    whole = f"({size},)"
    advice = "mask.squeeze(1)" if got == (size, 1) else "a mask of x, such as ~x.isnan()"
    raise ValueError(
        f"mask must have shape {whole} for whole data or {tuple(x.shape)} for entries, got {got}; give {advice}"
    )


def _shape_or_none(name: str, value: Any) -> str:
    return f"no {name}" if value is None else f"{name} of shape {tuple(value.shape)}"


def _shape_in_words(first: str, shape: tuple[int, ...]) -> str:
    return f"({', '.join([first, *map(str, shape)])}{'' if shape else ','})"


def _is_streamed(value: Any) -> bool:
    """Return whether a value stays on disk: it has the shape and the indexing of a tensor, and a device."""
    return not isinstance(value, Tensor | np.ndarray) and all(
        hasattr(value, name) for name in ("shape", "device", "dim", "split", "__getitem__")
    )
