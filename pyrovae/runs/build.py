"""Build model, objective and optimizer from a resolved configuration, and check that they match."""

import inspect
import math
import traceback
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from jsonargparse import Namespace
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae.columns import Columns
from pyrovae.densities import SupportError, check_support, evaluating, isolated_rng, log_weights, sample_sites, take
from pyrovae.encoders import Encoder
from pyrovae.evidence import check_memory
from pyrovae.likelihoods import MixedLikelihood
from pyrovae.objectives import KLWeight
from pyrovae.priors import Prior
from pyrovae.programs import Blueprint, ProgramPair, RecordedMaker
from pyrovae.runs.cli import out_of_memory
from pyrovae.runs.registry import describe, part_class
from pyrovae.runs.resolve import find_device
from pyrovae.runs.specs import make_arguments
from pyrovae.runs.table_data import table_parts, trusted_modules
from pyrovae.training import LearningRate

_RATES = 1_000  # of a schedule that are checked before the training

# Classes by default; a likelihood's default follows from the data.
_DEFAULTS = {
    "prior": {"StandardNormalPrior"},
    "likelihood": {"BernoulliLikelihood", "BinomialLikelihood"},
    "encoder": {"NormalEncoder"},
    "network": {"MLP"},
}


def build_vae(
    config: Namespace,
    num_dims: int,
    num_covariates: int = 0,
    x: Tensor | None = None,
    columns: Columns | None = None,
) -> ProgramPair:
    """Build the model of a resolved configuration: a VAE, or another object with programs `model` and `guide`.

    Args:
        config: Resolved configuration.
        num_dims: Dimension D of one flat datum.
        num_covariates: Number of covariates C; 0 for none.
        x: Training data, with shape (N, D), as for `Blueprint`.
        columns: Columns of a table; None for an array. Likelihoods of the user that they name must lie in modules that
            the configuration trusts.

    Raises:
        ValueError: If a part refuses its arguments, the parts do not match, or a chosen part would not be used.
    """
    makers = {kind: _maker(config, kind) for kind in _DEFAULTS if kind != "likelihood"}
    makers["likelihood"] = likelihood_maker(config, columns)
    takes_covariates = "num_covariates" in inspect.signature(makers["prior"].func).parameters
    if config.program is None and takes_covariates and not num_covariates:
        name = makers["prior"].func.__name__
        raise ValueError(f"--prior {name} needs covariates; give --covariates labels, PATH.npy or PATH.npz:key")
    used: set[str] = set()
    recorded: dict[str, Any] = {kind: RecordedMaker(maker, partial(used.add, kind)) for kind, maker in makers.items()}
    blueprint = Blueprint(
        num_dims,
        config.latent_dim,
        num_covariates,
        **recorded,
        x=x,
        output_bias=config.output_bias,
        columns=columns,
        mask_extra=config.mask_extra if columns is not None else 0.0,
    )
    try:
        vae = blueprint.vae() if config.program is None else _maker(config, "program")(blueprint)
    except ValueError:
        raise
    except Exception as error:  # a user's part may raise anything
        if out_of_memory(error):
            raise
        raise ValueError(f"a part cannot be made: {describe(error)}; see the base classes' docstrings") from error
    for program in ("model", "guide"):
        if not callable(getattr(vae, program, None)):
            raise ValueError(
                f"--program {config.program.class_path} has no {program}; define the programs model and guide"
            )
    for kind, maker in makers.items():
        if kind not in used and _is_chosen(kind, maker):
            named = config[kind].class_path if config[kind] else "of the columns"
            raise ValueError(
                f"--{kind} {named} would change nothing: {config.program.class_path} never makes a "
                f"{kind} from its blueprint; omit the flag"
            )
    return vae


def likelihood_maker(config: Namespace, columns: Columns | None) -> partial[Any]:
    """Return the maker of the likelihood from its network: that of the configuration, or by column for a table.

    Args:
        config: Resolved configuration.
        columns: Columns of a table; None for an array.

    Raises:
        ValueError: As `build_vae`.
    """
    if columns is None:
        return _maker(config, "likelihood")
    parts = table_parts(config, columns, trusted_modules(config))
    return partial(MixedLikelihood, columns=columns, parts=parts)


class Objective(NamedTuple):
    """Objective of training, its KL weight, its optimizer, and the schedule of its learning rate.

    Attributes:
        elbo: Objective of SVI.
        kl_weight: Weight of its KL divergence; None for 1.
        optimizer: Function from the parameters to the optimizer.
        lr_schedule: Function from the optimizer to the scheduler of its learning rate; None for a constant rate.
    """

    elbo: ELBO
    kl_weight: KLWeight | None
    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    lr_schedule: Callable[[Optimizer], LRScheduler] | None


def build_objective(config: Namespace) -> Objective:
    """Build the objective, its KL weight, and the functions that make the optimizer and its schedule.

    Raises:
        ValueError: If a part refuses its arguments.
    """
    made: dict[str, Any] = {}
    for kind in ("elbo", "kl_weight"):
        try:
            made[kind] = None if config[kind] is None else _maker(config, kind)()
        except (ValueError, TypeError) as error:
            raise ValueError(f"--{kind} {config[kind].class_path.rpartition('.')[2]}: {error}") from error
    make_optimizer = _maker(config, "optimizer")
    objective = Objective(
        made["elbo"],
        made["kl_weight"],
        lambda parameters: make_optimizer(list(parameters), config.lr),
        None if config.lr_schedule is None else _maker(config, "lr_schedule"),
    )
    if not math.isfinite(config.lr):
        raise ValueError(f"--lr {config.lr}: expected a finite number above 0")
    check_memory(config.num_particles)
    _check_optimizer(objective.optimizer, part_class("optimizer", config.optimizer.class_path).__name__, config.device)
    _check_learning_rate(objective, config)
    return objective


def check_contract(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check on the first two data that the programs run together and have log weights.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: With the error of the programs and its place in the code.
    """
    first, conditions = take(args, kwargs, slice(0, 2))
    try:
        # Data outside the support have a check of their own, with a better message.
        with evaluating(model, guide), isolated_rng(), pyro.validation_enabled(False):
            log_weights(model, guide, *first, num_particles=2, **conditions)
    except Exception as error:
        if out_of_memory(error):
            raise
        if _is_outside_support(model, guide, first, conditions):
            return
        reason = f"{describe(error)}; see the contract in the base classes' docstrings"
        if isinstance(error, ValueError) and _is_of_pyrovae(error):  # complete as it stands
            reason = str(error).splitlines()[0]  # Pyro appends the shapes of the trace
        raise ValueError(f"the parts do not work together: {reason}") from error


def check_reparameterised(guide: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check that every latent has reparameterised draws, as `TraceMeanField_ELBO` needs.

    Args:
        guide: Pyro program q(z|x).
        *args: Positional arguments of the guide, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of the guide.

    Raises:
        ValueError: With the name of a latent without them.
    """
    for name, site in sample_sites(_first_trace(guide, args, kwargs)).items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"TraceMeanField_ELBO needs reparameterised draws, but latent {name!r} ({type(site['fn']).__name__}) "
                "has none; use --elbo TraceEnum_ELBO, which enumerates discrete latents"
            )


def check_site_order(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check that the guide draws the latents in the model's order, as `TraceMeanField_ELBO` needs.

    Pyro only warns about another order, although its objective is then no bound of log p(x).

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: With both orders.
    """
    trace = _first_trace(guide, args, kwargs)
    replayed = _first_trace(poutine.replay(model, trace=trace), args, kwargs)
    drawn = list(sample_sites(trace))
    scored = [name for name in sample_sites(replayed) if name in drawn]
    if scored != drawn:
        raise ValueError(
            f"TraceMeanField_ELBO needs a guide that draws the latents in the model's order, {', '.join(scored)}, but "
            f"it draws {', '.join(drawn)}; use --elbo Trace_ELBO"
        )


def check_enumeration(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check that a latent is enumerated, as `TraceEnum_ELBO` is for.

    Pyro only warns, twice, that it is otherwise `Trace_ELBO`.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If no site of either program is configured for enumeration.
    """
    trace = _first_trace(guide, args, kwargs)
    replayed = _first_trace(poutine.replay(model, trace=trace), args, kwargs)
    sites = [*trace.nodes.values(), *replayed.nodes.values()]
    if not any(site["type"] == "sample" and (site["infer"] or {}).get("enumerate") for site in sites):
        raise ValueError(
            "TraceEnum_ELBO sums over discrete latents, but no latent is enumerated; use --elbo Trace_ELBO, or "
            "pyro.infer.config_enumerate in your own program"
        )


def needs_enumeration(config: Namespace) -> bool:
    """Whether the objective is `TraceEnum_ELBO`, and its check of enumeration is not switched off."""
    strict = (config.elbo.get("init_args") or {}).get("strict_enumeration_warning", True)
    return issubclass(part_class("elbo", config.elbo.class_path), TraceEnum_ELBO) and strict is not False


def needs_mean_field(config: Namespace) -> bool:
    """Whether the objective is `TraceMeanField_ELBO`, which needs reparameterised latents in the model's order."""
    return issubclass(part_class("elbo", config.elbo.class_path), TraceMeanField_ELBO)


def _check_optimizer(make_optimizer: Callable[[Iterable[Tensor]], Optimizer], name: str, device: str) -> None:
    """Check the options of an optimizer by one step of a small parameter."""
    parameter = torch.zeros(2, 2, device=find_device(device), requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    try:
        with isolated_rng():
            make_optimizer([parameter]).step()
    except Exception as error:  # torch raises RuntimeError and AssertionError as well as ValueError
        if out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(
            f"--optimizer {name} cannot take a step with these options: {reason}; see --optimizer.help {name}"
        ) from error


def _check_learning_rate(objective: Objective, config: Namespace) -> None:
    """Check the schedule and the warm-up by the rates of the run, 1,000 changes at most, of a small parameter.

    Raises:
        ValueError: If the schedule refuses its options, or a rate is negative or not finite.
    """
    name = f"--lr_schedule {config.lr_schedule.class_path.rpartition('.')[2]}" if config.lr_schedule else "--lr_warmup"
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=config.lr)
    try:
        with isolated_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer takes no step
            rate = LearningRate(optimizer, objective.lr_schedule, warmup=config.lr_warmup, epochs=1, steps=1)
            rates = []
            for epoch in range(min(config.epochs, _RATES)):
                rate.before_step(epoch)
                rates.append(float(optimizer.param_groups[0]["lr"]))
                rate.after_step()
                rate.end_epoch(0.0)
    except Exception as error:  # a schedule may raise anything
        if out_of_memory(error):
            raise
        raise ValueError(f"{name} cannot be used: {describe(error)}; see --help_parts lr_schedule") from error
    wrong = next((each for each in rates if not 0 <= each < math.inf), None)
    if wrong is not None:
        raise ValueError(f"{name} leads to the learning rate {wrong:g}; see --help_parts lr_schedule")


def _is_outside_support(model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether data lie outside the support; False if the programs do not run either."""
    try:
        check_support(model, *args, guide=guide, **kwargs)
    except SupportError:
        return True
    except Exception:
        return False
    return False


def _is_of_pyrovae(error: BaseException) -> bool:
    """Whether code of this package raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def _maker(config: Namespace, kind: str) -> partial[Any]:
    """Return the class of a part with its arguments."""
    return partial(part_class(kind, config[kind].class_path), **make_arguments(kind, config[kind]))


def _is_chosen(kind: str, maker: partial[Any]) -> bool:
    """Whether a part differs from the default by more than its size."""
    defaults = {name: given.default for name, given in inspect.signature(maker.func).parameters.items()}
    others = [name for name, value in maker.keywords.items() if value != defaults.get(name)]
    # A network's size follows habits, a likelihood's arguments the data.
    part: Any = maker.func  # a class, as part_class gives it
    return part.__name__ not in _DEFAULTS[kind] or bool(others and issubclass(part, Prior | Encoder))


def _first_trace(program: Callable[..., Any], args: Any, kwargs: Any) -> poutine.Trace:
    """Trace a program on the first two data, in evaluation mode."""
    first, conditions = take(args, kwargs, slice(0, 2))
    with evaluating(program), isolated_rng(), pyro.validation_enabled(False):
        return poutine.trace(program).get_trace(*first, **conditions)
