"""Checks of `fit`: its options, the data, the programs, and finite losses and parameters."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyrovae.densities import (
    Program,
    TiledWarning,
    advice_on_units,
    auto_guide_rows,
    check_support,
    evaluating,
    isolated_rng,
    log_weights,
    mismatch_of_rows,
    modules_of,
    nonfinite_sites,
    num_data,
    plain,
    run_once,
    set_up_auto_guides,
    take,
    vectorize_pair,
)
from pyrovae.execution import Workers
from pyrovae.training.batches import Batches, ProgramArguments
from pyrovae.training.loaders import LoaderBatches
from pyrovae.training.training_state import TrainingState

MOST_EPOCHS = 10**9
MOST_PARTICLES = 10**6  # draws per datum and step

# Objectives of Pyro without a differentiable loss, and what to write in their place.
_INSTEAD: dict[type[Any], str] = {
    pyro.infer.elbo.ELBOModule: "give the objective alone, such as Trace_ELBO(), since fit takes the programs itself",
    pyro.infer.RenyiELBO: "write pyrovae.RenyiELBO(alpha, num_particles), which has the same bound",
    pyro.infer.TraceGraph_ELBO: "write pyro.infer.Trace_ELBO(), which has the same gradient in expectation, or for "
    'discrete latents TraceEnum_ELBO() or pyrovae.ImportanceWeightedELBO(gradient="vimco")',
}


class NonFiniteLossError(ArithmeticError):
    """The loss or a parameter became NaN or infinite. The last committed state is the last good one."""


def check_options(
    elbo: ELBO, *, epochs: int, batch_size: int, patience: int | None, validated: bool, clip: float | None = None
) -> None:
    """Check the options of `fit` that need no data.

    Raises:
        ValueError: If a number is below 1 or beyond all use, `patience` has no validation data, or `fit` cannot step on
            the objective.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    num_particles = getattr(elbo, "num_particles", 1)
    for name, value, most in (("epochs", epochs, MOST_EPOCHS), ("num_particles", num_particles, MOST_PARTICLES)):
        if value > most:
            raise ValueError(f"{name} must be at most {most:,}, got {value:,}; no training ends otherwise")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}; leave it out for no limit")
    if patience is not None and not validated:
        raise ValueError("patience needs validation data, got none; give validation, or leave patience out")
    if isinstance(elbo, type):
        raise ValueError(f"elbo must be an object, got the class {elbo.__name__}; give {elbo.__name__}()")
    if not hasattr(elbo, "differentiable_loss"):
        raise ValueError(
            f"{type(elbo).__module__.partition('.')[0]}'s {type(elbo).__name__} has no differentiable_loss, which fit "
            f"needs; {_INSTEAD.get(type(elbo), 'use another objective')}"
        )


def check_programs(
    model: Program,
    guide: Program,
    batches: Batches | LoaderBatches,
    validation: ProgramArguments | None,
    *,
    skip_support_check: bool,
    plate: str | None = None,
) -> None:
    """Check before training that the data lie in the support and that the programs can be validated.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.
        validation: Positional and keyword arguments of the held-out data, if any.
        skip_support_check: Whether to trust that the data lie in the support.
        plate: Name of the plate over the data; None to find it by its size.

    Raises:
        SupportError: If a datum lies outside the support.
        ValueError: If the programs break the contract of `log_weights` on the held-out data, or the guide is an auto
            guide with rows of parameters for single data, but the batches are smaller than the data.
    """
    with isolated_rng(), evaluating(model, guide), pyro.validation_enabled(False):
        args, kwargs = batches.first()
        set_up_auto_guides(guide, args, kwargs)
        batch = num_data(args, kwargs)
    for name, sizes in auto_guide_rows(guide).items():
        if batch < batches.size and sizes & {batch, batches.size}:
            raise ValueError(
                f"{name} holds one row of parameters for each datum, so it cannot train on batches of {batch}; give "
                f"batch_size={batches.size}, or a guide with an encoder"
            )
    _check_row_parameters(model, guide, batches)
    if not skip_support_check:
        holds_rows = bool(auto_guide_rows(guide) or (batch == batches.size and row_parameters(model, guide, batches)))
        whole = isinstance(batches, Batches) and holds_rows
        _check_chunks(model, guide, [batches.first(batches.size)] if whole else batches.chunks())
        if validation is not None:
            if holds_rows:
                _check_chunks(model, guide, [validation])
            else:
                check_data(model, guide, *validation, None)
    if validation is not None:
        with isolated_rng(), evaluating(model, guide), pyro.validation_enabled(False):
            pair = vectorize_pair(model, guide, *validation, plate=plate)
            args, kwargs = take(*validation, slice(0, 1)) if pair[1].divisible else validation
            log_weights(*pair, *args, **kwargs)


def check_data(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    transform: Callable[[Tensor], Tensor] | None,
) -> None:
    """Check chunk by chunk that all transformed data lie in the support.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments. Latents are drawn from it.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        transform: Transform of x, the first argument; None for no transform.

    Raises:
        SupportError: If a datum lies outside the support.
    """
    size = num_data(args, kwargs)
    _check_chunks(model, guide, Batches(args, kwargs, batch_size=size, transform=transform).chunks())


def _check_chunks(model: Program, guide: Program, chunks: Iterable[ProgramArguments]) -> None:
    with isolated_rng():
        start = 0
        for args, kwargs in chunks:
            check_support(model, *args, guide=guide, first=start, **kwargs)
            start += num_data(args, kwargs)


def keeps_rows(model: Program, guide: Program, batches: Batches | LoaderBatches) -> bool:
    """Return whether the programs need all data in their order, such as under parameters with one row per datum.

    The programs run on half of the data. Batches that are smaller than the data are never kept in order.
    """
    if batches.batch_size < batches.size or batches.size == 1:
        return False
    with suppress(Exception), isolated_rng(), evaluating(model, guide), pyro.validation_enabled(False), poutine.block():
        args, kwargs = plain(*batches.first(batches.size // 2))
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
        return bool(auto_guide_rows(guide) or row_parameters(model, guide, batches))
    return True


def row_parameters(model: Program, guide: Program, batches: Batches | LoaderBatches) -> list[str]:
    """List the parameters whose number or shape follows the number of data, such as one row or one name per datum.

    The programs make their parameters anew on a batch and on half of it. The parameter store is restored.
    """
    batch = min(batches.batch_size, batches.size)
    if batch == 1:
        return []
    with suppress(Exception):
        found, again, fewer = (_parameter_shapes(model, guide, batches, rows) for rows in (batch, batch, batch // 2))
        if found == again:  # else the programs draw which parameters they use
            return sorted(name for name, shape in found.items() if fewer.get(name) != shape)
    return []


def _parameter_shapes(
    model: Program, guide: Program, batches: Batches | LoaderBatches, rows: int
) -> dict[str, torch.Size]:
    """Run the programs on the first rows with an empty parameter store, and return the shapes of their parameters."""
    with (
        isolated_rng(),
        evaluating(model, guide),
        pyro.validation_enabled(False),
        pyro.get_param_store().scope(),
        torch.no_grad(),
        poutine.block(),
        poutine.trace(param_only=True) as tracer,
    ):
        for trace in run_once({"model": model, "guide": guide}, *batches.first(rows)).values():
            trace.compute_log_prob()
    nodes = dict[str, Any](tracer.trace.nodes)
    return {name: site["value"].shape for name, site in nodes.items() if site["type"] == "param"}


def _check_row_parameters(model: Program, guide: Program, batches: Batches | LoaderBatches) -> None:
    """Check that programs which train on batches hold no rows for single data.

    Raises:
        ValueError: If they do.
    """
    batch = min(batches.batch_size, batches.size)
    if batch == batches.size:
        return
    advice = f"give batch_size={batches.size}, or compute the values from the data, as an encoder does"
    names = row_parameters(model, guide, batches)
    if names:
        raise ValueError(
            f"parameter {names[0]!r} has rows for single data, so batches of {batch} would mix them up; {advice}"
        )
    error = _error_on(model, guide, batches, batch)
    if error is not None and _error_on(model, guide, batches, batches.size) is None:
        said = mismatch_of_rows((model, guide), *batches.first(batches.size), None, str(error))
        raise ValueError(
            said
            or f"the programs run on all {batches.size} data, but not on {batch}, so they hold rows for single data, "
            f"such as parameters of leading length {batches.size}; {advice}"
        ) from error


def _error_on(model: Program, guide: Program, batches: Batches | LoaderBatches, rows: int) -> Exception | None:
    """Run the programs on the first rows of the data, and return the error, if any."""
    try:
        _parameter_shapes(model, guide, batches, rows)
    except Exception as error:
        return error
    return None


def check_particles(
    model: Program,
    guide: Program,
    elbo: ELBO,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str | None = None,
) -> None:
    """Check that vectorized particles of Pyro's objectives do not change the densities of the programs.

    Raises:
        ValueError: If a program uses dimensions by their position, so that a plate of particles shifts them.
    """
    if not elbo.vectorize_particles or elbo.num_particles == 1:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TiledWarning)
        try:
            how = vectorize_pair(model, guide, args, kwargs, plate=plate)[0].how
        except ValueError:  # no density per datum, which Pyro's objectives do not need
            return
    if how == "tiled":
        raise ValueError(
            "the programs use dimensions by their position (such as softmax(dim=1)), so the vectorized particles of "
            f"{type(elbo).__name__} would change their densities; use vectorize_particles=False, or count dims from "
            "the right"
        )


def check_one_process(workers: Workers) -> None:
    """Refuse several processes for programs with one row of parameters per datum.

    Raises:
        ValueError: If there are several.
    """
    if workers.size > 1:
        raise ValueError(
            "the programs need all data at once, since they hold one row of parameters for each datum, but each of "
            "several processes has a share of the rows; train with one process, or use a guide with an encoder"
        )


def check_separable(model: Program, guide: Program, elbo: ELBO) -> None:
    """Check that several processes train the same model as one, that is, that the loss is a sum over data.

    Raises:
        ValueError: If the objective or a layer combines the data of a batch, of which each process has only a share.
    """
    if not getattr(elbo, "sums_over_data", True):
        raise ValueError(f"{type(elbo).__name__} combines the data of a batch; train with one process")
    for program in (model, guide):
        for module in modules_of(program):
            for part in module.modules():
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    raise ValueError(
                        f"{type(part).__name__} normalises over each process's own rows, so several processes train a "
                        "different model than one; use LayerNorm or one process"
                    )


def check_finite(model: Program, guide: Program, batches: Batches | LoaderBatches, state: TrainingState) -> None:
    """Check that all losses of the epoch so far and all parameters are finite, before the state is committed.

    Raises:
        NonFiniteLossError: If a loss or a parameter is NaN or infinite.
    """
    advice = "lower the learning rate, or look for a scale that collapses to 0 or grows without bound"
    bad = (~torch.isfinite(state.losses[: state.step])).nonzero()
    if len(bad):
        step = int(bad[0])
        found = f"the loss became {state.losses[step].item()} in epoch {state.epoch + 1}, step {step + 1}"
        args, kwargs = batches.taken(step)
        sites = nonfinite_sites(model, guide, args, kwargs)
        found += f"; the density of {sites[0]} is not finite" if sites else ""
        raise NonFiniteLossError(f"{found}; {advice}{advice_on_units(args, kwargs)}")
    for name, value in state.values().items():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteLossError(f"{name!r} became nan or infinite in epoch {state.epoch + 1}; {advice}")
