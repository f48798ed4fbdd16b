"""The visible SVI loop: shuffle, step, validate, commit, repeat."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from pyrovae.densities import (
    Program,
    Streamed,
    check_support,
    device_of,
    evaluating,
    isolated_rng,
    log_weights,
    module_of,
    modules_of,
    nonfinite_sites,
    num_data,
    prepared,
    take,
)
from pyrovae.execution import Execution, Precision, Workers
from pyrovae.objectives import KLControl
from pyrovae.training.steps import Stepper, StepsAtOnce
from pyrovae.training.training_state import History, TrainingState, Validated
from pyrovae.training.validation import validate, validate_objective

Argument = Tensor | Streamed
Arguments = Argument | Sequence[Argument] | Mapping[str, Argument]
OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]

_CHECK_CHUNK = 4096
_ASKED_EVERY = 20  # steps of several processes, which wait for each other to know whether one is to stop


class NonFiniteLossError(ArithmeticError):
    """The loss or a parameter turned NaN or infinite; what was committed last is the last good state."""


class StoppedError(Exception):
    """The reader asked `fit` to stop; the state up to the last step has been committed."""


def epoch_order(size: int, *, epoch: int, seed: int) -> Tensor:
    """The order in which `fit` takes the data: a permutation of range(size) that depends on epoch and seed alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)


def fit(
    model: Program,
    guide: Program,
    data: Arguments,
    *,
    elbo: ELBO,
    epochs: int,
    batch_size: int = 128,
    optimizer: OptimizerFactory | None = None,
    validation: Arguments | None = None,
    patience: int | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    kl_weight: Callable[[float], float] | None = None,
    execution: Execution = "auto",
    precision: Precision = "full",
    skip_support_check: bool = False,
    seed: int = 0,
    progress: bool = False,
    resume: Mapping[str, Any] | None = None,
    commit: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> History:
    """Train a model and a guide by stochastic variational inference.

    Each step takes the next `batch_size` data of the epoch's order (`epoch_order`) and lowers the loss of `elbo`, which
    Pyro sums over the batch, by one step of `optimizer`. All parameters train: those of the modules, and those that the
    programs declare by `pyro.param` or `pyro.module`; modules are put into training mode. With validation data the
    programs end at the best epoch by the objective, and without them, or where its weight of the KL divergence follows
    the divergence itself (a capacity, a constraint), at the last. Noise comes from the global generator; seed it with
    `pyro.set_rng_seed`.

    Where torch.distributed is initialised, each process takes its share of every batch, and gradients are summed: all
    are to call this with the same arguments and random state, and all get what one process alone would get, up to the
    order of summation. `commit` is called on rank 0 alone.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        data: The programs' arguments: x alone with shape (N, ...), a sequence of positional ones, or a mapping of
            keyword ones, each of leading length N. Of one that is `Streamed`, batches are read from disk ahead.
        elbo: An objective of Pyro's, such as `Trace_ELBO()` or `TraceMeanField_ELBO()`, or any with
            `differentiable_loss`. Where it is a module, its parameters train too.
        epochs: The number of passes over the data, at most.
        batch_size: Data per step; the last batch of an epoch may be smaller.
        optimizer: Makes a torch optimizer from the parameters; None for fused Adam with lr 1e-3.
        validation: Held-out arguments, like `data`.
        patience: Stop when no better epoch has come for so many; None never to stop early.
        transform: Applied to x, the first argument, of every training batch anew (dynamic binarisation, say).
        kl_weight: The weight of the KL divergence in the objective (see `temper`) as a function of the passes over the
            data so far, such as `LinearWarmup(10)`, or what looks at the divergence itself, such as `Capacity()` or
            `KLConstraint()`; None for 1 throughout. What is validated and reported is the ELBO with weight 1.
        execution: "eager" runs the programs at every step; "recorded" runs them once for each shape of a batch and
            replays their tensor operations; "compiled" has Inductor compile these first. Equal up to rounding; "auto"
            follows from the number of steps, and a resumed run goes on as it began. What cannot be recorded runs
            eagerly, with a `NotRecordedWarning` that says why.
        precision: "bfloat16" has the products of layers (linear and convolutional) take their operands so rounded;
            parameters, latents and log densities stay in single precision, and validation is in full.
        skip_support_check: Whether to trust that the data lie in the support.
        seed: Seed of the order of the data.
        progress: Show a progress bar with the ELBO per datum, in nats.
        resume: A state that `commit` was given; training goes on from it, to the same bits on CPU.
        commit: Called with the whole state, tensors and plain values, after every epoch and before a stop.
        should_stop: Asked after every step (by several processes after every 20, on a card after 25 that are one
            graph); True commits and raises StoppedError.

    Returns:
        History, with the ELBO per datum of every epoch.

    Raises:
        ValueError: If data lie outside the support, nothing is there to train, an argument is out of range, or, with
            validation data, the programs break the contract of `log_weights`.
        NonFiniteLossError: If the loss or a parameter turns NaN or infinite.
        StoppedError: If should_stop said so.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data to watch; give validation, or leave patience out")
    if isinstance(elbo, type):
        raise ValueError(f"elbo is the class {elbo.__name__}; give an object, {elbo.__name__}()")
    if not hasattr(elbo, "differentiable_loss"):
        raise ValueError(f"{type(elbo).__name__} has no differentiable_loss, which fit steps on; use another objective")
    args, kwargs = _arguments(data)
    size = num_data(args, kwargs)
    steps = math.ceil(size / batch_size)
    device = device_of(args, kwargs)
    streamed = any(isinstance(value, Streamed) for value in (*args, *kwargs.values()))
    workers = Workers.current()

    skip_support_check = skip_support_check or resume is not None
    if not skip_support_check:
        check_data(model, guide, args, kwargs, transform)
    if validation is not None:
        if not skip_support_check:
            check_data(model, guide, *_arguments(validation), None)
        # A pair that cannot be validated fails before it trains.
        with isolated_rng(), evaluating(model, guide), pyro.validation_enabled(False):
            first = take(*_arguments(validation), slice(0, 1))
            log_weights(model, guide, *first[0], **first[1])
    with isolated_rng():
        first = _transformed(*take(args, kwargs, slice(0, min(size, batch_size))), transform)
        parameters = trainable_parameters(model, guide, *first[0], **first[1])
        if isinstance(elbo, torch.nn.Module):
            parameters += elbo.to(device).parameters()
        # Some objectives run the programs once to count the plates: here, so that no step draws for it.
        guesses = elbo.vectorize_particles or isinstance(elbo, TraceEnum_ELBO)
        if guesses and elbo.max_plate_nesting == math.inf:
            with evaluating(model, guide):
                elbo.loss(model, guide, *first[0], **first[1])  # type: ignore[attr-defined]
    make_optimizer = optimizer or partial(torch.optim.Adam, lr=1e-3, fused=True)
    for program in (model, guide):
        for module in modules_of(program):
            module.train()
    home = parameters[0].device
    control = KLControl(kl_weight, elbo, home)
    if workers.size > 1:
        _check_shared(model, guide, control.elbo)
    chosen = make_optimizer(parameters)
    if isinstance(chosen, torch.optim.LBFGS):
        raise ValueError("LBFGS evaluates the loss several times a step, which fit does not; use Adam or another")
    stepper = Stepper(
        model,
        guide,
        control.elbo,
        parameters,
        chosen,
        execution=execution,
        calls={min(size, batch_size): epochs * max(1, size // batch_size), size % batch_size: epochs},
        weighted=kl_weight is not None,
        device=home,
        workers=workers,
        precision=precision,
    )
    state = TrainingState({"model": model, "guide": guide, "elbo": elbo}, chosen, stepper, control, steps, home)
    if resume is not None:
        state.restore(resume)

    def at(rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _transformed(*take(args, kwargs, rows), transform)

    at_once: StepsAtOnce | None = None
    if stepper.on_gpu and control.follows_epoch and workers.size == 1 and not streamed and device == home:
        at_once = StepsAtOnce(stepper, at, size, batch_size, state.losses)

    bar = tqdm(
        total=epochs * steps,
        initial=min(state.epoch, epochs) * steps + state.step,
        unit="step",
        disable=not progress or workers.rank > 0,
        dynamic_ncols=True,
        smoothing=0.05,
    )
    if commit is None or workers.rank > 0:
        commit = _no_commit
    first_step = True
    with bar, closing(stepper), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")  # an error here, and a better one
        # An optimizer made for a CUDA graph steps without one while the record is compared.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
        while state.history.stop_reason is None:
            order = epoch_order(size, epoch=state.epoch, seed=seed).to(device)
            if at_once:
                at_once.order.copy_(order)

            def batch(step: int, order: Tensor = order) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return take(args, kwargs, order[step * batch_size : (step + 1) * batch_size])

            def where(step: int, order: Tensor = order) -> list[str]:
                return nonfinite_sites(model, guide, *at(order[step * batch_size : (step + 1) * batch_size]))

            def weight(step: int) -> float | Tensor:
                return control.at(state.epoch + step / steps)

            started = time.perf_counter()
            ahead = prepared(batch, state.step, steps) if streamed else None
            while state.step < steps:
                now = state.step
                weights = at_once(now, weight) if at_once else []
                if not weights:
                    weights = [weight(now)]
                    some_args, some_kwargs = _transformed(*(next(ahead) if ahead else batch(now)), transform)
                    # Pyro's checks of shapes and supports are for the first batch; afterwards they only cost time.
                    state.losses[now] = stepper(
                        num_data(some_args, some_kwargs), some_args, some_kwargs, weight=weights[0], validate=first_step
                    )
                    control.learn()
                    first_step = False
                state.step += len(weights)
                state.weighted |= any(isinstance(value, Tensor) or value != 1 for value in weights)
                bar.update(len(weights))
                asked = workers.size == 1 or state.step % _ASKED_EVERY == 0 or state.step == steps
                if asked and should_stop is not None and workers.any(should_stop()):
                    _check_finite(state, where)
                    state.seconds += time.perf_counter() - started
                    commit(state.snapshot())
                    raise StoppedError(f"stopped in epoch {state.epoch + 1}, after step {state.step} of {steps}")
            _check_finite(state, where)
            objective = -state.losses.sum().item() / size
            state.end_epoch(
                train_objective=objective,
                train_elbo=objective if control.is_elbo and not state.weighted else None,
                validation=None if validation is None else _validate(model, guide, validation, control, workers),
                seconds=state.seconds + time.perf_counter() - started,
            )
            bar.set_postfix_str(_describe(state.history))
            if state.epoch >= epochs:
                state.history.stop_reason = "epochs"
            if patience is not None and state.epoch - state.history.best_epoch >= patience:
                state.history.stop_reason = "plateau"
            commit(state.snapshot())
    state.take_best()
    return state.history


def trainable_parameters(model: Program, guide: Program, *args: Any, **kwargs: Any) -> list[Tensor]:
    """List the leaf tensors that the programs train: parameters of modules, and those of Pyro's parameter store.

    Args:
        model: Pyro program.
        guide: Pyro program.
        *args: Arguments of both; each program is run once.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If there are none.
    """
    found = {
        id(p): p for program in (model, guide) for m in module_of(program) for p in m.parameters() if p.requires_grad
    }
    for site in _param_sites(model, guide, *args, **kwargs).values():
        value = site["value"].unconstrained()
        found.setdefault(id(value), value)
    if not found:
        raise ValueError(
            "the model and the guide have no parameters to train; pass modules, or declare them with pyro.module or "
            "pyro.param"
        )
    return list(found.values())


def _arguments(data: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(data, Tensor | Streamed | np.ndarray):  # of which the last is refused
        return (data,), {}
    if isinstance(data, Mapping):
        return (), dict(data)
    return tuple(data), {}


def _no_commit(state: dict[str, Any]) -> None:
    """What is given for a commit where there is none."""


def _transformed(
    args: tuple[Any, ...], kwargs: dict[str, Any], transform: Callable[[Tensor], Tensor] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if transform is None:
        return args, kwargs
    if args:
        return (transform(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: transform(kwargs[first])}


def check_data(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    transform: Callable[[Tensor], Tensor] | None,
) -> None:
    """See, chunk by chunk, that all data lie in the support after the transform.

    Args:
        model: Pyro program.
        guide: Pyro program to draw the latents from.
        args: Arguments of both, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both.
        transform: As `fit` has it.

    Raises:
        SupportError: If a datum lies outside.
    """
    with isolated_rng():
        for start in range(0, num_data(args, kwargs), _CHECK_CHUNK):
            chunk = _transformed(*take(args, kwargs, slice(start, start + _CHECK_CHUNK)), transform)
            check_support(model, *chunk[0], guide=guide, first=start, **chunk[1])


def _validate(model: Program, guide: Program, validation: Arguments, control: KLControl, workers: Workers) -> Validated:
    args, kwargs = _arguments(validation)
    try:
        found, weight = validate(model, guide, *args, workers=workers, **kwargs), control.validation_weight
        if weight is None:
            return found, None
        if control.is_elbo:
            return found, found.elbo if weight == 1 else found.reconstruction - weight * found.kl
        return found, validate_objective(control.elbo, model, guide, *args, weight=weight, workers=workers, **kwargs)
    except ValueError as error:
        raise NonFiniteLossError(f"on the validation data, {error}") from error


def _check_shared(model: Program, guide: Program, elbo: ELBO) -> None:
    """Refuse what several processes would train to something else: means over the data of the process they run in."""
    if not getattr(elbo, "sums_over_data", True):
        raise ValueError(f"{type(elbo).__name__} looks at the data of a batch together; train by one process")
    for program in (model, guide):
        for module in modules_of(program):
            for part in module.modules():
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    raise ValueError(
                        f"{type(part).__name__} takes means over the data of one process, so several would train "
                        "another model; use LayerNorm, or one process"
                    )


def _check_finite(state: TrainingState, where: Callable[[int], list[str]]) -> None:
    """Refuse a state with a loss or a parameter that is NaN or infinite, so that none is committed.

    Args:
        state: The state after some steps of an epoch.
        where: The sites whose density is not finite, for the batch of a step.
    """
    advice = "lower the learning rate, or look for a scale that collapses to 0 or grows without bound"
    bad = (~torch.isfinite(state.losses[: state.step])).nonzero()
    if len(bad):
        step = int(bad[0])
        found = f"the loss became {state.losses[step].item()} in epoch {state.epoch + 1}, step {step + 1}"
        sites = where(step)
        found += f", the density of {sites[0]} is not finite now" if sites else ""
        raise NonFiniteLossError(f"{found}; {advice}")
    for name, value in state.values().items():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteLossError(f"{name!r} became nan or infinite in epoch {state.epoch + 1}; {advice}")


def _describe(history: History) -> str:
    row = history.rows[-1]
    parts = [f"{kind} {row[f'{kind}_elbo']:.2f}" for kind in ("train", "validation") if row[f"{kind}_elbo"] is not None]
    return f"ELBO {', '.join(parts)} nats" if parts else f"objective {row['train_objective']:.2f} nats"


def _param_sites(model: Program, guide: Program, *args: Any, **kwargs: Any) -> dict[str, Any]:
    with poutine.trace(param_only=True) as capture, evaluating(model, guide), pyro.validation_enabled(False):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        poutine.replay(model, trace=guide_trace)(*args, **kwargs)
    return dict(capture.trace.nodes)
