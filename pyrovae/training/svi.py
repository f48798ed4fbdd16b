"""Stochastic variational inference: `fit`, its loop and its early stopping."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.densities import (
    Program,
    entry,
    generator_states,
    modules_of,
    set_generator_states,
    vectorize_pair,
)
from pyrovae.execution import Execution, Precision, Progress, Workers
from pyrovae.objectives import KLControl, TensorELBO, check_weighable, uncompiled
from pyrovae.training.batch_sites import compared_sites
from pyrovae.training.batches import Arguments, Batches
from pyrovae.training.case_weights import weigh_cases
from pyrovae.training.checks import (
    NonFiniteLossError,
    check_finite,
    check_one_process,
    check_options,
    check_particles,
    check_programs,
    check_separable,
    keeps_rows,
)
from pyrovae.training.cuts import cut_along
from pyrovae.training.epochs import GraphedEpoch, SingleSteps
from pyrovae.training.inputs import HeldOut, hold_out, make_batches
from pyrovae.training.learning_rate import LearningRate, ScheduleFactory
from pyrovae.training.loaders import LoaderBatches
from pyrovae.training.optimizers import OptimizerFactory, make_optimizer, parameter_names
from pyrovae.training.parameters import find_parameters
from pyrovae.training.plates import Subsampling, find_outside_sites, find_subsampling, hide_unused
from pyrovae.training.shares import Sharing, check_alike, check_enumerated, find_sharing
from pyrovae.training.stepper import Stepper
from pyrovae.training.training_state import History, TrainingState, Validated
from pyrovae.training.validation import validate, validate_objective

_STEPS_PER_STOP_REQUEST = 20  # for several processes, which wait for each other at each request


class StoppedError(Exception):
    """`should_stop` asked `fit` to stop. The state after the last step has been committed."""


@entry()
def fit(
    model: Program,
    guide: Program,
    data: Arguments | DataLoader[Any],
    *,
    elbo: ELBO,
    epochs: int,
    batch_size: int = 128,
    optimizer: OptimizerFactory | PyroOptim | None = None,
    validation: Arguments | DataLoader[Any] | None = None,
    weights: Tensor | None = None,
    validation_weights: Tensor | None = None,
    patience: int | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    kl_weight: Callable[[float], float] | None = None,
    lr_schedule: ScheduleFactory | None = None,
    lr_warmup: float = 0.0,
    average: float | None = None,
    clip: float | None = None,
    plate: str | None = None,
    execution: Execution = "auto",
    precision: Precision = "full",
    skip_support_check: bool = False,
    seed: int = 0,
    progress: bool = False,
    resume: Mapping[str, Any] | None = None,
    commit: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_start: Callable[[], object] | None = None,
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
) -> History:
    """Train a model and a guide by stochastic variational inference.

    Each step uses the next `batch_size` data in the order of the epoch (`epoch_order`). It computes the loss of `elbo`,
    which Pyro sums over the batch, and takes one step of `optimizer`. All parameters are trained: those of the modules,
    and those that the programs declare by `pyro.param` or `pyro.module`. Modules are set to training mode.

    Sites outside the plate over the data, such as global weights, count once for all data: if the plate takes its size
    from the batch, each step weighs them by B/N. Programs with a subsampling plate or a scale weigh theirs themselves.

    With validation data, the programs end with the parameters of the best epoch, as measured by the objective. They end
    with those of the last epoch if there are no validation data, or if the KL weight depends on the divergence itself
    (a capacity, a constraint). Noise comes from the global generator; seed it with `pyro.set_rng_seed`.

    If torch.distributed is initialised, each process computes its share of every batch, and gradients are summed. All
    processes must call `fit` with the same arguments and random state. Their result equals that of one process up to
    the order of summation. Only rank 0 calls `commit`.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        data: Arguments of both programs: x alone with shape (N, ...), a sequence of positional arguments, or a mapping
            of keyword arguments, each with leading length N. Batches of a `Streamed` argument are read from disk one
            step ahead. `Whole(tensor)` is the same for all data. A `torch.utils.data.DataLoader` of tensors, tuples or
            dicts gives its own batches in its own order; a resumed run then differs from an uninterrupted one.
        elbo: Objective with `differentiable_loss`, such as Pyro's `Trace_ELBO()` or `TraceMeanField_ELBO()`. One with a
            false attribute `is_elbo` is not reported as the ELBO. If it is a module, its parameters are trained too.
            Pyro's Jit objectives run uncompiled, since `execution` compiles.
        epochs: Maximum number of passes over the data.
        batch_size: Number of data per step. The last batch of an epoch may be smaller. A DataLoader has its own.
        optimizer: Function from the parameters to a torch optimizer, or one of `pyro.optim` without a schedule; None
            for fused Adam with learning rate 1e-3.
        validation: Held-out arguments, in the form of `data`, those of a DataLoader read into memory; None for no
            validation.
        weights: Case weights of the data, not negative, with shape (N,), such as sampling weights; None for 1. The term
            of each datum in the objective is multiplied by its weight. Weights are scaled to mean 1, so that the
            learning rate and `clip` keep their meaning, and latents outside the plate count as for N data. A datum of
            weight 2 trains like two equal rows, and the ELBOs of the history are weighted means.
        validation_weights: Case weights of the held-out data, as `weights`; None for 1.
        patience: Number of epochs without improvement before training stops; None disables early stopping.
        transform: Transform of x, the first argument, applied to each training batch anew, such as dynamic
            binarisation; None for no transform.
        kl_weight: Weight of the KL divergence in the objective (see `temper`), as a function of the number of passes
            over the data so far, such as `LinearWarmup(10)`, or an object that depends on the divergence itself, such
            as `Capacity()` or `KLConstraint()`; None for 1. A learned weight starts anew at 1. The reported ELBO always
            has weight 1.
        lr_schedule: Function from the optimizer to a scheduler of torch, such as `partial(CosineAnnealingLR,
            T_max=100)` or `BurdaLR`; None for a constant learning rate. The scheduler steps after every epoch;
            `OneCycleLR`, `CyclicLR`, and classes with a true attribute `every_step`, after every step.
            `ReduceLROnPlateau` watches the loss on the validation data, or on the training data without them. Not for
            an optimizer with a decay of its own, such as `lrd` of Pyro's `ClippedAdam`.
        lr_warmup: Number of epochs, also a fraction, in which the learning rate rises linearly from 0, step by step.
        average: Largest decay of an exponential average of the weights (`WeightAverage`), such as 0.999 for about 1,000
            steps; None for none. The average is validated, and the programs end with that of the best epoch.
        clip: Largest norm of the gradient of a batch, divided by the batch size; a longer one is shortened to it. None
            for no limit.
        plate: Name of the plate over the data; None for the plate of the batch's size. Batches are cut along the dim of
            the data that has the plate's size, such as the second one of words by documents.
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            steps. "recorded" runs the programs once per batch shape and replays their tensor operations; "compiled"
            compiles these with Inductor first. Results agree up to rounding. A resumed run keeps its first choice.
            Programs that cannot be recorded run eagerly, with a `NotRecordedWarning` that gives the reason.
        precision: Precision of the products of linear and convolutional layers: "full", or "bfloat16", which rounds
            their operands. Parameters, latents and log densities stay in single precision, and validation is in full.
        skip_support_check: Whether to trust that the data lie in the support.
        seed: Random seed of the order of the data.
        progress: Whether to show a progress bar with the ELBO in nats per datum; a line per epoch where stderr is no
            terminal.
        resume: State that `commit` received, from which training resumes; bit-identical on CPU. None starts anew.
        commit: Function that receives the whole state, as tensors and plain values, after each epoch and before a stop.
        should_stop: Function that is called after each step and returns whether to commit and raise StoppedError.
            Several processes call it after every 20 steps, and GPU runs after each CUDA graph of 25 steps.
        on_start: Function that is called once before the first step, like `on_epoch`; a resumed run does not call it.
        on_epoch: Function that is called after each epoch, on rank 0, with the epoch's numbers, a row of
            `History.rows`. The programs have the weights that were validated. Its random numbers and the modes it sets
            leave training alone. An epoch whose function raises an error is not committed; a resumed run repeats it.

    Returns:
        History, with the ELBO per datum of each epoch.

    Raises:
        ValueError: If data lie outside the support, the programs have no parameters, an argument is out of range, the
            programs break the contract of `log_weights` on the validation data, an observation or factor outside the
            plate depends on the rows of a batch, or case weights are given for an objective that is no sum of terms
            per datum.
        NonFiniteLossError: If the loss or a parameter becomes NaN or infinite.
        StoppedError: If `should_stop` returns True.
    """
    check_options(
        elbo, epochs=epochs, batch_size=batch_size, patience=patience, validated=validation is not None, clip=clip
    )
    elbo = uncompiled(elbo)
    if not (weights is validation_weights is None):
        check_weighable(elbo)
    if plate is not None:
        model, guide, data, validation, transform = cut_along(
            plate, model, guide, data, validation, transform, batch_size=batch_size
        )
    held_out = hold_out((model, guide), validation, validation_weights)
    batches = make_batches(
        (model, guide),
        data,
        weights,
        batch_size=batch_size,
        transform=transform,
        seed=seed,
        least_data=getattr(elbo, "least_data", 1),
    )
    model, guide = hide_unused(model, guide, batches)
    if isinstance(batches, LoaderBatches) and not (commit is resume is None):
        warnings.warn(
            "a DataLoader chooses its order itself, so that a resumed run is not bit-identical to an uninterrupted "
            "one; for that, give tensors, or Streamed(array)",
            stacklevel=2,
        )
    skip_support_check = skip_support_check or resume is not None
    check_programs(
        model,
        guide,
        batches,
        None if held_out is None else held_out[:2],
        skip_support_check=skip_support_check,
        plate=plate,
    )
    run = _prepare(
        model,
        guide,
        elbo,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        kl_weight=kl_weight,
        lr_schedule=lr_schedule,
        lr_warmup=lr_warmup,
        average=average,
        clip=clip,
        plate=plate,
        execution=execution,
        precision=precision,
        resume=resume,
        commit=commit,
        should_stop=should_stop,
    )
    state = run.state
    with _progress(run, epochs, shown=progress) as shown, closing(run.stepper), _quiet():
        if on_start is not None and run.first_step == (0, 0):
            _call_apart(run, on_start)
        while state.history.stop_reason is None:
            _train_epoch(run, shown)
            with state.averaged():
                _end_epoch(run, held_out)
                if on_epoch is not None:
                    _call_apart(run, on_epoch, dict(state.history.rows[-1]))
            state.history.stop_reason = _stop_reason(state, epochs, patience)
            shown.note(_describe(state.history), at=f"epoch {state.epoch} of {epochs}")
            run.save()
    state.take_best()
    return state.history


@dataclass
class _Run:
    """A run of `fit`, ready to train."""

    model: Program
    guide: Program
    batches: Batches | LoaderBatches
    workers: Workers
    control: KLControl
    stepper: Stepper
    state: TrainingState
    take_steps: SingleSteps | GraphedEpoch
    subsampling: Subsampling
    sharing: Sharing | None
    first_step: tuple[int, int]  # epoch and step at which this call starts
    plate: str | None
    commit: Callable[[dict[str, Any]], None] | None
    should_stop: Callable[[], bool] | None

    def save(self) -> None:
        """Commit the state, on rank 0."""
        if self.commit is not None and self.workers.rank == 0:
            self.commit(self.state.snapshot())

    def stop_requested(self) -> bool:
        """Return whether to stop after the current step."""
        if self.should_stop is None:
            return False
        step = self.state.step
        due = self.workers.size == 1 or step % _STEPS_PER_STOP_REQUEST == 0 or step == self.batches.steps
        return due and self.workers.any(self.should_stop())


def _prepare(
    model: Program,
    guide: Program,
    elbo: ELBO,
    batches: Batches | LoaderBatches,
    *,
    epochs: int,
    optimizer: OptimizerFactory | PyroOptim | None,
    kl_weight: Callable[[float], float] | None,
    lr_schedule: ScheduleFactory | None,
    lr_warmup: float,
    average: float | None,
    clip: float | None,
    plate: str | None,
    execution: Execution,
    precision: Precision,
    resume: Mapping[str, Any] | None,
    commit: Callable[[dict[str, Any]], None] | None,
    should_stop: Callable[[], bool] | None,
) -> _Run:
    """Find the parameters, and make the optimizer, the stepper and the state, resumed if asked."""
    parameters = find_parameters(model, guide, elbo, batches)
    workers = Workers.current()
    if keeps_rows(model, guide, batches):
        batches.keep_order()
        check_one_process(workers)
    for program in (model, guide):
        for module in modules_of(program):
            module.train()
    device = parameters[0].device
    control = KLControl(kl_weight, elbo, device)
    if workers.size > 1:
        check_separable(model, guide, control.elbo)
    names = parameter_names(module for program in (model, guide) for module in modules_of(program))
    descent = make_optimizer(optimizer, parameters, names)
    first_batch = batches.first()
    pair = model, guide
    if isinstance(control.elbo, TensorELBO):
        pair = vectorize_pair(model, guide, *first_batch, plate=plate)
    else:
        check_particles(model, guide, control.elbo, *first_batch, plate)
    sites = compared_sites(model, guide, batches, plate)
    sharing = find_sharing(sites, model, guide, batches, workers)
    check_enumerated(control.elbo, sites, batches, sharing)
    check_alike(workers, parameters, [*first_batch[0], *first_batch[1].values(), batches.weights])
    outside = find_outside_sites(sites, model, guide, batches)
    objective: Any = control.elbo
    if batches.weights is not None:
        objective = weigh_cases(objective, sites, model, guide, batches, plate, dtype=parameters[0].dtype)
    stepper = Stepper(
        *pair,
        objective,
        parameters,
        descent,
        execution=execution,
        calls=batches.calls(epochs),
        weighted=kl_weight is not None,
        device=device,
        workers=workers,
        precision=precision,
        outside=outside,
        sharing=sharing,
        clip=clip,
    )
    rate = LearningRate(descent, lr_schedule, warmup=lr_warmup, epochs=epochs, steps=batches.steps)
    programs = {"model": model, "guide": guide, "elbo": elbo}
    state = TrainingState(programs, descent, stepper, control, batches.steps, device, rate=rate, average=average)
    if resume is not None:
        state.restore(resume)
    single = SingleSteps(stepper, batches, state.losses)
    each_step = rate.varies_within_epoch or average is not None  # Python between the steps
    graphed = stepper.on_gpu and control.follows_epoch and workers.size == 1 and not each_step
    in_memory = isinstance(batches, Batches) and batches.device == device and not batches.streamed
    take_steps = GraphedEpoch(single) if graphed and in_memory else single
    subsampling = find_subsampling(sites, batches, outside, plate)
    if control.is_elbo and subsampling.reason is not None:
        warnings.warn(
            f"train_elbo is left out (None), since {subsampling.reason}, so the objective is no ELBO per datum; "
            f"{subsampling.remedy}",
            stacklevel=3,
        )
    return _Run(
        model,
        guide,
        batches,
        workers,
        control,
        stepper,
        state,
        take_steps,
        subsampling,
        sharing,
        (state.epoch, state.step),
        plate,
        commit,
        should_stop,
    )


def _train_epoch(run: _Run, shown: Progress) -> None:
    """Take the remaining steps of the current epoch.

    Raises:
        NonFiniteLossError: If the loss or a parameter becomes NaN or infinite.
        StoppedError: If a stop is requested. The state is committed before.
    """
    state, batches = run.state, run.batches

    def weight_at(step: int) -> float | Tensor:
        return run.control.at(state.epoch + step / batches.steps)

    state.start_clock()
    batches.start_epoch(state.epoch, state.step)
    while state.step < batches.steps:
        state.rate.before_step(state.epoch * batches.steps + state.step)
        # Pyro's checks of shapes and supports cost time, so that only the first step makes them.
        weights = run.take_steps(state.step, weight_at, validate=(state.epoch, state.step) == run.first_step)
        run.control.learn()
        state.count_steps(weights)
        state.rate.after_step()
        if state.average is not None:
            state.average.update(state.epoch * batches.steps + state.step)
        shown.update(len(weights))
        if run.stop_requested():
            check_finite(run.model, run.guide, batches, state)
            state.stop_clock()
            run.save()
            raise StoppedError(f"stopped in epoch {state.epoch + 1}, after step {state.step} of {batches.steps}")
    check_finite(run.model, run.guide, batches, state)


def _end_epoch(run: _Run, held_out: HeldOut | None) -> None:
    """Validate, and close the epoch."""
    state, control = run.state, run.control
    objective = -state.losses.sum().item() / run.batches.sizes.sum().item()
    state.end_epoch(
        train_objective=objective,
        train_elbo=_train_elbo(run, objective) if control.is_elbo and not state.weighted else None,
        validation=None if held_out is None else _validate(run, *held_out),
    )


def _call_apart(run: _Run, function: Callable[..., object], *args: Any) -> None:
    """Call a function of the user on rank 0, then restore random states and modes of modules."""
    if run.workers.rank > 0:
        return
    before = generator_states(run.state.losses.device)
    modules = [part for program in (run.model, run.guide) for one in modules_of(program) for part in one.modules()]
    training = [module.training for module in modules]
    try:
        function(*args)
    finally:
        set_generator_states(before, run.state.losses.device)
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def _train_elbo(run: _Run, objective: float) -> float | None:
    """Undo the scale of a subsampling plate over the data; None if the objective is no ELBO per datum."""
    if run.subsampling.reason is not None:
        return None
    if run.subsampling.full_size is None:
        return objective
    losses, sizes = run.state.losses, run.batches.sizes
    return -(losses * sizes.to(losses)).sum().item() / run.subsampling.full_size / sizes.sum().item()


def _validate(run: _Run, args: tuple[Any, ...], kwargs: dict[str, Any], case_weights: Tensor | None) -> Validated:
    """Estimate the ELBO of held-out data, and the objective unless the last epoch is kept."""
    model, guide, control = run.model, run.guide, run.control
    shares: dict[str, Any] = {
        "workers": run.workers,
        "plates": None if run.sharing is None else run.sharing.plates,
        "case_weights": case_weights,
    }
    try:
        if run.plate is not None:
            model, guide = vectorize_pair(model, guide, args, kwargs, plate=run.plate, in_training=True)
        found, weight = validate(model, guide, *args, **shares, **kwargs), control.validation_weight
        if weight is None:
            return found, None
        if control.is_elbo:
            return found, found.elbo if weight == 1 else found.reconstruction - weight * found.kl
        return found, validate_objective(control.elbo, model, guide, *args, weight=weight, **shares, **kwargs)
    except ValueError as error:
        raise NonFiniteLossError(f"on the validation data, {error}") from error


def _stop_reason(state: TrainingState, epochs: int, patience: int | None) -> str | None:
    if patience is not None and state.epoch - state.history.best_epoch >= patience:
        return "plateau"
    return "epochs" if state.epoch >= epochs else None


def _progress(run: _Run, epochs: int, *, shown: bool) -> Progress:
    state, steps = run.state, run.batches.steps
    done = min(state.epoch, epochs) * steps + state.step
    return Progress(epochs * steps, "step", initial=done, shown=shown and run.workers.rank == 0, noted=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off Pyro's checks, and warnings that do not apply to training."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")  # check_finite raises a clearer error
        # An optimizer set up for CUDA graphs steps outside of one while the record is verified.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
        yield


def _describe(history: History) -> str:
    """Say the objective of the last epoch, if it is not the ELBO, and the ELBO."""
    row, texts = history.rows[-1], []
    for name in ("ELBO",) if row["train_elbo"] is not None else ("objective", "ELBO"):
        values = {kind: row[f"{kind}_{name.lower()}"] for kind in ("train", "validation")}
        known = [f"{kind} {value:.2f}" for kind, value in values.items() if value is not None]
        texts += [f"{name} {', '.join(known)}"] if known else []
    return f"{'; '.join(texts)} nats"
