"""Build model, objective and optimizer from a resolved configuration, and check that they match."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import pyro
from jsonargparse import ArgumentError, Namespace
from pyro import poutine
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.densities import evaluating, isolated_rng, log_weights, sample_sites, take
from pyrovae.encoders import Encoder
from pyrovae.objectives import KLWeight
from pyrovae.priors import Prior
from pyrovae.programs import Blueprint, ProgramPair, RecordedMaker
from pyrovae.runs.flags import TYPES
from pyrovae.runs.parser import make_parser
from pyrovae.runs.registry import describe, part_class

# Classes by default; a likelihood's default follows from the data.
_DEFAULTS = {
    "prior": {"StandardNormalPrior"},
    "likelihood": {"BernoulliLikelihood", "BinomialLikelihood"},
    "encoder": {"NormalEncoder"},
    "network": {"MLP"},
}


def build_vae(config: Namespace, num_dims: int, num_covariates: int = 0, x: Tensor | None = None) -> ProgramPair:
    """Build the model of a resolved configuration: a VAE, or another object with programs `model` and `guide`.

    Args:
        config: Resolved configuration.
        num_dims: Dimension D of one flat datum.
        num_covariates: Number of covariates C; 0 for none.
        x: Training data, with shape (N, D), as for `Blueprint`.

    Raises:
        ValueError: If a part refuses its arguments, the parts do not match, or a chosen part would not be used.
    """
    made = _instantiate(config, ("prior", "likelihood", "encoder", "network", "program"))
    makers = {kind: partial(part_class(kind, config[kind].class_path), **made[kind].keywords) for kind in _DEFAULTS}
    used: set[str] = set()
    blueprint = Blueprint(
        num_dims,
        config.latent_dim,
        num_covariates,
        **{kind: RecordedMaker(maker, partial(used.add, kind)) for kind, maker in makers.items()},
        x=x,
        output_bias=config.output_bias,
    )
    try:
        vae = blueprint.vae() if made.program is None else made.program(blueprint)
    except ValueError:
        raise
    except Exception as error:  # a user's part may raise anything
        raise ValueError(f"a part cannot be made: {describe(error)}; see the base classes' docstrings") from error
    for program in ("model", "guide"):
        if not callable(getattr(vae, program, None)):
            raise ValueError(
                f"--program {config.program.class_path} has no {program}; define the programs model and guide"
            )
    for kind, maker in makers.items():
        if kind not in used and _is_chosen(kind, maker):
            raise ValueError(
                f"--{kind} {config[kind].class_path} would change nothing: {config.program.class_path} never makes a "
                f"{kind} from its blueprint; omit the flag"
            )
    return vae


class Objective(NamedTuple):
    """Objective of training, its KL weight and its optimizer.

    Attributes:
        elbo: Objective of SVI.
        kl_weight: Weight of its KL divergence; None for 1.
        optimizer: Function from the parameters to the optimizer.
    """

    elbo: ELBO
    kl_weight: KLWeight | None
    optimizer: Callable[[Iterable[Tensor]], Optimizer]


def build_objective(config: Namespace) -> Objective:
    """Build the objective, its KL weight, and the function that makes the optimizer from the parameters.

    Raises:
        ValueError: If a part refuses its arguments.
    """
    made = _instantiate(config, ("elbo", "optimizer"))
    kl_weight = None
    if config.kl_weight is not None:
        part = part_class("kl_weight", config.kl_weight.class_path)
        try:
            kl_weight = part(**dict(config.kl_weight.get("init_args") or {}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"--kl_weight {part.__name__}: {error}") from error
    return Objective(made.elbo, kl_weight, lambda parameters: made.optimizer(list(parameters), config.lr))


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
        raise ValueError(
            f"the parts do not work together: {describe(error)}; see the contract in the base classes' docstrings"
        ) from error


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


def needs_mean_field(config: Namespace) -> bool:
    """Whether the objective is `TraceMeanField_ELBO`, which needs reparameterised latents in the model's order."""
    return issubclass(part_class("elbo", config.elbo.class_path), TraceMeanField_ELBO)


def _instantiate(config: Namespace, kinds: Iterable[str]) -> Namespace:
    wanted = Namespace({kind: config[kind] for kind in kinds})
    parser = make_parser()
    for kind in kinds:
        parser.add_argument(f"--{kind}", type=TYPES[kind])
    try:
        return parser.instantiate(wanted)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"a part cannot be made: {' '.join(str(error).split())}") from error


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
