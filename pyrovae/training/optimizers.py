"""Optimizers of `fit`: torch's, or Pyro's, from which torch's are made."""

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro.optim import HorovodOptimizer, PyroLRScheduler, PyroOptim
from pyro.optim.multi import MultiOptimizer
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam

from pyrovae.execution import on_gpu

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]

_HOW = ("fused", "foreach", "capturable")  # options of torch's optimizers
_ADAM_OPTIONS = ("lr", "weight_decay", "eps", "maximize", "decoupled_weight_decay")
# torch gives no public names to them. A release without them takes the ordinary step.
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
_EXAMPLE = "optimizer=partial(torch.optim.Adam, lr=1e-3)"


def make_optimizer(
    optimizer: OptimizerFactory | PyroOptim | None, parameters: Sequence[Tensor], names: Mapping[int, str]
) -> Optimizer:
    """Make the optimizer of the parameters.

    Args:
        optimizer: Function from the parameters to a torch optimizer, or one of `pyro.optim`; None for fused Adam with
            learning rate 1e-3.
        parameters: Parameters to train.
        names: Full names of the parameters in Pyro's parameter store, by id.

    Raises:
        ValueError: If this is no such function, or the optimizer needs more than one loss per step.
    """
    if isinstance(optimizer, PyroOptim):
        made: Any = _from_pyro(optimizer, parameters, names)
    elif optimizer is None:
        made = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    elif isinstance(optimizer, Optimizer | MultiOptimizer) or not callable(optimizer):
        raise ValueError(
            f"optimizer must be a function from the parameters to a torch optimizer, or one of pyro.optim, got "
            f"{type(optimizer).__name__}; write {_EXAMPLE}"
        )
    else:
        made = _made(optimizer, parameters)
    if isinstance(made, torch.optim.LBFGS):
        raise ValueError("fit evaluates the loss once per step, but LBFGS needs several; use Adam or another optimizer")
    assert isinstance(made, Optimizer)
    return made


def prepare_optimizer(optimizer: Optimizer, *, recorded: bool) -> None:
    """Set up the optimizer for recorded steps: Adam fused unless the user chose otherwise, all capturable on a GPU."""
    for group in optimizer.param_groups:
        if recorded and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
            unset = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
            group["fused"] = True if unset else group["fused"]
        if "capturable" in group:
            group["capturable"] = (recorded or group["capturable"]) and on_gpu(group["params"])
            for parameter in group["params"] if group["capturable"] else ():
                state = optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)


def take_step(optimizer: Optimizer) -> None:
    """Take the optimizer's step. A plain fused Adam skips `Optimizer.step`, which costs a third of its kernel."""
    if not _plain_fused_adam(optimizer):
        optimizer.step()
        return
    with torch.no_grad():
        for group in optimizer.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [optimizer.state[parameter] for parameter in moved]
            adam(
                moved,
                [parameter.grad for parameter in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                **{option: group[option] for option in _ADAM_OPTIONS},
            )


def _plain_fused_adam(optimizer: Optimizer) -> bool:
    """Return whether a step is one fused kernel for each group: no first step, no hook, no unusual option."""
    return (
        type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        and "step" not in vars(optimizer)  # a scheduler replaces the method
        and all(getattr(optimizer, name, None) is None for name in ("grad_scale", "found_inf"))
        and not any(getattr(optimizer, hooks, True) for hooks in _HOOKS)
        and not any(getattr(sys.modules[Optimizer.__module__], hooks, True) for hooks in _GLOBAL_HOOKS)
        and all(
            group["fused"] and not (group["amsgrad"] or group["capturable"] or group["differentiable"])
            for group in optimizer.param_groups
        )
        and all(
            parameter.grad is None
            or (optimizer.state.get(parameter) and not parameter.is_complex() and not parameter.grad.is_sparse)
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
    )


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state of the optimizer, and check that its next step can use it.

    Args:
        optimizer: Optimizer that has taken no step.
        state: Its `state_dict` in another run.

    Raises:
        ValueError: If an option has another type, or asks for other entries, or, for an optimizer of torch, an entry
            for a parameter is missing or has another shape or dtype than a step gives it.
    """
    for here, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name, value in here.items():
            if name != "params" and _type_of_option(value) != _type_of_option(saved[name]):
                raise ValueError(f"option {name} is of type {type(saved[name]).__name__}, not {type(value).__name__}")
            # The others say how to compute, these what: a step needs more entries with amsgrad.
            if isinstance(value, bool) and name not in _HOW and value != bool(saved[name]):
                raise ValueError(f"option {name} is {saved[name]}, not {value}")
            if isinstance(saved[name], Tensor) and saved[name].numel() != 1:
                raise ValueError(f"option {name} has shape {tuple(saved[name].shape)}, but is one number")
    kept = [state["state"].get(index, {}) for group in state["param_groups"] for index in group["params"]]
    expected = _shapes_after_step(optimizer) if f"{type(optimizer).__module__}.".startswith("torch.optim.") else {}
    optimizer.load_state_dict(dict(state))
    for (parameter, needed), saved in zip(expected.items(), kept, strict=False):
        if parameter not in optimizer.state:
            continue
        found = {name: _layout(name, value, getattr(value, "shape", None)) for name, value in saved.items()}
        if found != needed:
            raise ValueError(f"a parameter needs the entries {needed}, but has {found}")


def _shapes_after_step(optimizer: Optimizer) -> dict[Tensor, dict[str, tuple[torch.Size, torch.dtype | bool] | None]]:
    """Find shape and dtype of the entries that a step gives each parameter, by a step on small ones; None if plain."""
    probe = copy.copy(optimizer)
    small = {
        parameter: torch.zeros((2,) * parameter.ndim, dtype=parameter.dtype, device=parameter.device).requires_grad_()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for each in small.values():
        each.grad = torch.zeros_like(each)
    probe.state = defaultdict(dict)
    probe.param_groups = [
        {**group, "params": [small[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    type(probe).step(probe)  # a scheduler replaces the method of an object by one that steps the original

    def full(parameter: Tensor, value: Any) -> torch.Size:
        sizes = zip(getattr(value, "shape", ()), parameter.shape, strict=False)  # an entry may be a scalar
        return torch.Size(size if of_small == 2 else of_small for of_small, size in sizes)

    return {
        parameter: {name: _layout(name, value, full(parameter, value)) for name, value in probe.state[each].items()}
        for parameter, each in small.items()
    }


def _layout(name: str, value: Any, shape: Any) -> tuple[torch.Size, torch.dtype | bool] | None:
    """Return shape and dtype of an entry; None if it is plain. A counter of steps may have any real dtype."""
    if not isinstance(value, Tensor):
        return None
    return shape, value.dtype.is_floating_point if name == "step" else value.dtype


def _type_of_option(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return bool
    if isinstance(value, int | float | Tensor):
        return float
    return (type(value), [_type_of_option(item) for item in value]) if isinstance(value, tuple | list) else type(value)


def _made(function: OptimizerFactory, parameters: Sequence[Tensor]) -> Optimizer:
    """Call a function from parameters to an optimizer; those of `pyro.optim` take options instead."""
    of_pyro = getattr(function, "__module__", "").startswith("pyro.optim")
    made: Any = None if of_pyro and not isinstance(function, type) else function(parameters)
    if not isinstance(made, Optimizer):
        got = getattr(function, "__name__", type(function).__name__)
        given = f"{got} without its options" if of_pyro else f"{got}, which returns {type(made).__name__}"
        written = f'optimizer=pyro.optim.{got}({{"lr": 1e-3}})' if of_pyro else _EXAMPLE
        raise ValueError(
            f"optimizer must be a function from the parameters to a torch optimizer, or one of pyro.optim with its "
            f"options, got {given}; write {written}"
        )
    return made


def _from_pyro(optimizer: PyroOptim, parameters: Sequence[Tensor], names: Mapping[int, str]) -> Optimizer:
    """Make one torch optimizer with the settings that Pyro would give to one optimizer for each parameter."""
    if isinstance(optimizer, PyroLRScheduler | HorovodOptimizer):
        raise ValueError(
            f"fit takes the optimizers of pyro.optim, but got {type(optimizer).__name__}, whose steps the loop around "
            'SVI would call; write pyro.optim.ClippedAdam({"lr": 1e-3, "lrd": 0.999}), whose learning rate decays by '
            "itself, or a function that returns a torch optimizer"
        )
    options: Any = optimizer.pt_optim_args
    constructor: Any = optimizer.pt_optim_constructor
    if callable(options):
        one_name = optimizer.pt_optim_args_argc == 1
        each = [_options_of(options, names.get(id(parameter), ""), one_name=one_name) for parameter in parameters]
        # A group of its own fills in the defaults, which would otherwise be those of the first parameter.
        groups = [constructor([p], **chosen).param_groups[0] for p, chosen in zip(parameters, each, strict=True)]
        made = constructor(groups, **each[0])
    else:
        made = constructor(list(parameters), **options)
    clips = [(parameter, _clip_of(optimizer.pt_clip_args, names.get(id(parameter), ""))) for parameter in parameters]
    if any(clip for _, clip in clips):
        made.register_step_pre_hook(partial(_clip, clips))
    return made


def _options_of(function: Callable[..., dict[str, Any]], name: str, *, one_name: bool) -> dict[str, Any]:
    """Call a function from a parameter's name to its options, in one of the two ways that Pyro does."""
    if one_name:
        return function(normalize_param_name(name))
    return function(module_from_param_with_module_name(name), user_param_name(name))


def _clip_of(options: Any, name: str) -> dict[str, float]:
    return _options_of(options, name, one_name=False) if callable(options) else options


def _clip(clips: Sequence[tuple[Tensor, Mapping[str, float]]], *_: Any) -> None:
    """Clip each parameter's gradient, as `PyroOptim` does."""
    for parameter, clip in clips:
        if parameter.grad is not None and "clip_norm" in clip:
            nn.utils.clip_grad_norm_(parameter, clip["clip_norm"])
        if parameter.grad is not None and "clip_value" in clip:
            nn.utils.clip_grad_value_(parameter, clip["clip_value"])


def parameter_names(modules: Iterable[nn.Module]) -> dict[int, str]:
    """Return the full names of parameters by id: those of Pyro's parameter store, else those inside their modules."""
    names = {id(value): name for module in modules for name, value in module.named_parameters()}
    return names | {id(value): name for name, value in pyro.get_param_store().named_parameters()}
