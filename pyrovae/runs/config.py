"""The configuration of a run: the flags of `scripts/train.py`, checked, resolved, and turned into a VAE."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt
from pyro import poutine
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.optim import Optimizer

from pyrovae.data import Data
from pyrovae.densities import evaluating, isolated_rng, log_weights, sample_sites, take
from pyrovae.encoders import Encoder
from pyrovae.evidence import ProposalName
from pyrovae.execution import Execution, Precision
from pyrovae.likelihoods import Likelihood
from pyrovae.nn import Network
from pyrovae.objectives import KLWeight
from pyrovae.priors import Prior
from pyrovae.programs import Blueprint, OutputBias, ProgramPair, WatchedBlueprint
from pyrovae.runs.cli import Seed, make_parser, names, parse_flags
from pyrovae.runs.registry import BASES, checked_config, describe, known_parts, part_class, part_path, read_yaml

# What belongs to one call and not to the run that its config.yaml describes.
CALL_ONLY = ("config", "out", "resume", "trust_imports")

# Numbers in a batch of data below which a second thread does not pay.
SMALL_BATCH = 20_000

# What a resumed run may still be told.
WITH_RESUME = ("resume", "trust_imports", "data_dir", "help")

_DEFAULTS: dict[str, dict[str, Any]] = {
    "prior": {"class_path": "pyrovae.priors.StandardNormalPrior"},
    "encoder": {"class_path": "pyrovae.encoders.NormalEncoder"},
    "network": {"class_path": "pyrovae.nn.MLP"},
    "elbo": {"class_path": "pyro.infer.TraceMeanField_ELBO"},
    "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"fused": True}},
}

# What stands there where nobody chose; a likelihood follows from the data then.
_UNCHOSEN = {
    "prior": {"StandardNormalPrior"},
    "likelihood": {"BernoulliLikelihood", "BinomialLikelihood"},
    "encoder": {"NormalEncoder"},
    "network": {"MLP"},
}


def training_parser(**given: Any) -> ArgumentParser:
    """Make the parser of `scripts/train.py`; keyword arguments go to ArgumentParser."""
    parser = make_parser(epilog=_parts_help(), **given)
    add = parser.add_argument
    add("--data", type=str, default="digits", help="digits, mnist, or the reader's own PATH.npy or PATH.npz:key")
    add("--data_dir", type=str | None, default=None, help="folder that holds MNIST, or takes the download")
    add(
        "--binarize",
        type=Literal["dynamic", "static", "none"] | None,
        default=None,
        help="dynamic: every training minibatch anew; static: once; none: as they are (default: dynamic for mnist)",
    )
    add(
        "--covariates",
        type=str | None,
        default=None,
        help="c of p(x|c): labels (of digits and mnist, one-hot), PATH.npy or PATH.npz:key with a row for each datum",
    )
    add("--prior", type=Callable[[int], Prior], help="p(z): a name below, or module.Class")
    add(
        "--likelihood",
        type=Callable[[nn.Module], Likelihood] | None,
        help="p(x|z): a name below, or module.Class (default: the data's own)",
    )
    add("--encoder", type=Callable[[nn.Module], Encoder], help="q(z|x): a name below, or module.Class")
    add(
        "--network",
        type=Callable[[int, int], Network],
        help="of both encoder and decoder: a name below, or module.Class",
    )
    add(
        "--program",
        type=Callable[[Blueprint], nn.Module] | None,
        default=None,
        help="a whole model in place of z -> x: a name below, or module.Class",
    )
    add("--latent_dim", type=PositiveInt, default=10, help="size of z")
    add(
        "--output_bias",
        type=OutputBias,
        default="random",
        help="data: the decoder's last bias starts where p(x|z) has the means of the training data",
    )
    add("--elbo", type=ELBO, help="objective: a name below, or module.Class")
    add(
        "--kl_weight",
        type=KLWeight | None,
        default=None,
        help="weight of the KL divergence in training, a name below (default: 1 throughout)",
    )
    add("--optimizer", type=Callable[[Iterable, float], Optimizer], help="optimizer of torch.optim, or module.Class")
    add("--epochs", type=PositiveInt, default=300, help="passes over the training data, at most")
    add("--batch_size", type=PositiveInt, default=100, help="data per step")
    add("--lr", type=PositiveFloat, default=1e-3, help="learning rate of the optimizer")
    add(
        "--patience",
        type=PositiveInt | None,
        default=30,
        help="epochs without a better validation ELBO before it stops",
    )
    add(
        "--num_particles",
        type=PositiveInt,
        default=1000,
        help="draws per test datum for log p(x) in the closing table",
    )
    add("--proposal", type=ProposalName, default="default", help="where those draws come from")
    add(
        "--execution",
        type=Execution,
        default="auto",
        help="of training: eager, recorded (run once, replayed) or compiled (auto: by the number of steps)",
    )
    add("--precision", type=Precision, default="full", help="of the products of layers in training: full or bfloat16")
    add("--seed", type=Seed, default=0, help="seed of initial weights, order and noise")
    add("--stream", type=bool, default=False, help="leave training data of a PATH.npy on disk, read batch by batch")
    add("--split_seed", type=Seed, default=0, help="seed of the split into train, validation and test")
    add("--device", type=str, default="auto", help="cpu, cuda, cuda:1, ... (auto: cuda where there is one)")
    add(
        "--threads",
        type=PositiveInt | None,
        default=None,
        help="CPU threads (default: one for small batches, which gain nothing from more, else torch's choice)",
    )
    add("--out", type=str | None, default=None, help="new run folder (default: the next free runs/DATA-NUMBER)")
    add("--config", type=str | None, default=None, help="configuration to start from: the config.yaml of a run")
    add(
        "--resume",
        type=str | None,
        default=None,
        help="run folder to go on with; takes --trust_imports and --data_dir",
    )
    add(
        "--trust_imports",
        type=list[str],
        default=[],
        help="module that a file (--config, --resume) may import, or [a, b]; it runs their code",
    )
    parser.set_defaults({kind: _full(kind, value) for kind, value in _DEFAULTS.items()})
    return parser


def parse_training(argv: Sequence[str], **given: Any) -> Namespace:
    """Parse the flags of `scripts/train.py`, its --config file first, every part checked before it is imported.

    Raises:
        ValueError: In one line, for anything wrong.
        SystemExit: For --help.
    """
    argv = list(argv)
    parser = training_parser(**given)
    # The file and the trust in it are read ahead of the parser, which imports what it meets.
    trust = [name for value in _values_of(argv, "trust_imports") for name in names(value)]
    files = _values_of(argv, "config")
    if _values_of(argv, "resume"):
        for flag in (token.partition("=")[0] for token in argv if token.startswith("--")):
            if flag[2:] not in WITH_RESUME:
                raise ValueError(f"{flag}: a resumed run goes on as it was configured; leave the flag out")
    argv = _typed_parts(argv)
    for file in files:
        _adopt(parser, read_yaml(Path(file)), source=file, trust_imports=trust)
    return parse_flags(parser, argv)


def parse_config(config: Any, *, source: str, trust_imports: Iterable[str]) -> Namespace:
    """Parse the content of a run's config.yaml as `parse_training` would.

    Raises:
        ValueError: In one line, for anything wrong; also if it names a module that is not trusted.
    """
    parser = training_parser(prog=source)
    _adopt(parser, config, source=source, trust_imports=trust_imports)
    return parse_flags(parser, [])


def config_to_yaml(config: Namespace) -> bytes:
    """The resolved configuration as the text of config.yaml, without what belongs to one call."""
    kept = {key: value for key, value in config.as_dict().items() if key not in CALL_ONLY}
    text = yaml.safe_dump(_plain(kept), sort_keys=False, allow_unicode=True)
    return text.encode()


def resolve(config: Namespace, data: Data) -> Namespace:
    """Fill in what depends on the data and the machine: binarisation, device, threads, likelihood, image shape.

    Raises:
        ValueError: If the likelihood must be named, or the device is not there.
    """
    config = config.clone()
    config.binarize = data.binarize
    config.device = str(find_device(config.device))
    if config.threads is None:  # a step this small waits for its threads longer than it computes
        small = config.batch_size * data.train.shape[1] < SMALL_BATCH
        config.threads = 1 if small else torch.get_num_threads()
    # A config.yaml means the same from any folder.
    if data.name == "mnist":
        config.data_dir = _absolute(config.data_dir or "data")
    elif data.name != "digits":
        config.data = _absolute(config.data)
    if config.covariates not in (None, "labels"):
        config.covariates = _absolute(config.covariates)
    if config.likelihood is None:
        config.likelihood = Namespace(_default_likelihood(data))
    arguments = config.network.get("init_args") or Namespace()
    if "shape" in arguments and arguments.shape is None and len(data.shape) in (2, 3):
        arguments.shape = list(data.shape)
    return config


def build_vae(config: Namespace, num_dims: int, num_covariates: int = 0, x: Tensor | None = None) -> ProgramPair:
    """Build the model that a resolved configuration describes: a VAE, or another pair of programs `model` and `guide`.

    Args:
        config: Resolved configuration.
        num_dims: D, the size of one flat datum.
        num_covariates: C.
        x: Training data, with shape (N, D), as `Blueprint` takes them.

    Raises:
        ValueError: If a part refuses its arguments or does not take what the script gives it, or parts do not match.
    """
    made = _instantiate(config, ("prior", "likelihood", "encoder", "network", "program"))
    makers = {
        kind: partial(part_class(kind, config[kind].class_path), **made[kind].keywords)
        for kind in ("prior", "likelihood", "encoder", "network")
    }
    blueprint = WatchedBlueprint(
        num_dims,
        config.latent_dim,
        num_covariates,
        **makers,
        x=x,
        output_bias=config.output_bias,
    )
    try:
        vae = blueprint.vae() if made.program is None else made.program(blueprint)
    except ValueError:
        raise
    except Exception as error:  # the parts may be the reader's own, and fail in any way
        raise ValueError(f"a part cannot be made: {describe(error)}; see the base classes' docstrings") from error
    for program in ("model", "guide"):
        if not callable(getattr(vae, program, None)):
            raise ValueError(
                f"--program {config.program.class_path}: has no {program}; give it the programs model and guide"
            )
    for kind in makers:
        if kind not in blueprint.asked and _is_chosen(makers[kind], _UNCHOSEN[kind]):
            raise ValueError(
                f"--{kind} {config[kind].class_path}: {config.program.class_path} never asks its blueprint for one, "
                "so the flag would change nothing; leave it out"
            )
    return vae


def _is_chosen(maker: partial[Any], unchosen: set[str]) -> bool:
    defaults = {name: given.default for name, given in inspect.signature(maker.func).parameters.items()}
    others = [name for name, value in maker.keywords.items() if value != defaults.get(name)]
    # A network's size follows habits, a likelihood's arguments the data.
    part: Any = maker.func  # a class, as part_class gives it
    return part.__name__ not in unchosen or bool(others and issubclass(part, Prior | Encoder))


def check_parts(vae: ProgramPair, config: Namespace, x: Tensor, **kwargs: Tensor) -> None:
    """See that the parts work together, and with the objective, before anything is trained or written.

    Args:
        vae: What `build_vae` gave.
        config: Its configuration.
        x: Data with shape (N, D).
        **kwargs: The programs' keyword arguments, the covariates.

    Raises:
        ValueError: In one line, for anything wrong.
    """
    first, conditions = take((x,), kwargs, slice(0, 2))
    try:
        # Data outside the support are told better by their own check, below.
        with evaluating(vae), isolated_rng(), pyro.validation_enabled(False):
            log_weights(vae.model, vae.guide, *first, num_particles=2, **conditions)
            traced = poutine.trace(vae.guide).get_trace(*first, **conditions)
            replayed = poutine.trace(poutine.replay(vae.model, trace=traced)).get_trace(*first, **conditions)
            drawn, scored = sample_sites(traced), sample_sites(replayed)
    except Exception as error:
        raise ValueError(
            f"the parts do not work together: {describe(error)}; see the contract in the base classes' docstrings"
        ) from error
    if issubclass(part_class("elbo", config.elbo.class_path), TraceMeanField_ELBO):
        for name, site in drawn.items():
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"--elbo {config.elbo.class_path}: needs draws with gradients, which latent {name!r} of "
                    f"{type(site['fn']).__name__} has not; take --elbo TraceEnum_ELBO, which sums over discrete latents"
                )
        ours = [name for name in scored if name in drawn]
        if ours != list(drawn):  # Pyro warns, and its objective is no bound of log p(x)
            raise ValueError(
                f"--elbo {config.elbo.class_path}: takes the divergence latent by latent, which is right only where "
                f"the guide draws them in the model's order, {', '.join(ours)}; it draws {', '.join(drawn)}; take "
                "--elbo Trace_ELBO"
            )


def build_objective(config: Namespace) -> tuple[ELBO, Callable[[Iterable[Tensor]], Optimizer]]:
    """Build the objective, and the function that makes the optimizer from the parameters."""
    made = _instantiate(config, ("elbo", "optimizer"))
    return made.elbo, lambda parameters: made.optimizer(list(parameters), config.lr)


def build_kl_weight(config: Namespace) -> KLWeight | None:
    """Build the schedule of the KL divergence's weight; None for 1 throughout."""
    return None if config.kl_weight is None else _instantiate(config, ("kl_weight",)).kl_weight


def find_device(name: str) -> torch.device:
    """Find the device of this name; "auto" means CUDA where there is one.

    Raises:
        ValueError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: not to be had here ({reason}); use --device auto or cpu") from error
    return device


def fitting_likelihoods(x: Tensor) -> list[str]:
    """Flags of the likelihoods in whose support the data, with shape (N, D), lie."""
    found = []
    likelihoods: Mapping[str, Any] = known_parts("likelihood")
    for name, part in likelihoods.items():
        arguments = part.arguments_for(x)
        size = part.num_outputs(x.shape[-1], **arguments)
        p_x = part(nn.Linear(1, size), **arguments)(torch.zeros(1, 1))
        if bool(p_x.support.check(x).all()):
            found.append(" ".join([name, *(f"--likelihood.{key} {value}" for key, value in arguments.items())]))
    return found


def _default_likelihood(data: Data) -> dict[str, Any]:
    name, arguments = "BernoulliLikelihood", {}
    if data.name == "digits" and data.binarize == "none":
        name, arguments = "BinomialLikelihood", {"total_count": 16}
    elif data.name != "mnist" and data.binarize != "dynamic" and not data.binary:
        x = torch.cat([data.examples, data.validation, data.test])
        fitting = ", or ".join(f"--likelihood {flags}" for flags in fitting_likelihoods(x))
        raise ValueError(f"{data.name}: the values are not all 0 or 1, so the likelihood must be named: {fitting}")
    return _full("likelihood", {"class_path": name, "init_args": arguments})


def _adopt(parser: ArgumentParser, config: Any, *, source: str, trust_imports: Iterable[str]) -> None:
    keys = [action.dest for action in parser._actions if "." not in action.dest and action.dest != "help"]
    keys = [key for key in keys if key not in CALL_ONLY and not key.startswith("print_")]
    parser.set_defaults(checked_config(config, source=source, keys=keys, trust_imports=trust_imports))


def _instantiate(config: Namespace, kinds: Iterable[str]) -> Namespace:
    wanted = Namespace({kind: config[kind] for kind in kinds})
    parser = make_parser()
    actions: Iterable[Any] = training_parser()._actions  # those with a class for a value keep its type to themselves
    for action in actions:
        if action.dest in wanted:
            parser.add_argument(f"--{action.dest}", type=action._typehint)
    try:
        return parser.instantiate(wanted)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"a part cannot be made: {' '.join(str(error).split())}") from error


def _full(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    part = part_class(kind, value["class_path"])
    return {"class_path": part_path(part), "init_args": dict(value.get("init_args") or {})}


def _values_of(argv: Sequence[str], flag: str) -> list[str]:
    found = []
    for index, token in enumerate(argv):
        if token == f"--{flag}" and index + 1 < len(argv):
            found.append(argv[index + 1])
        elif token.startswith(f"--{flag}="):
            found.append(token.split("=", 1)[1])
    return found


def _typed_parts(argv: Sequence[str]) -> list[str]:
    """The command line with every part's name as the full path of a class that is there."""
    out: list[str] = []
    pending = None
    for token in argv:
        flag, equals, value = token.partition("=")
        if pending:
            token, pending = _typed_part(pending, token), None
        elif flag[2:].removesuffix(".class_path") in BASES and flag.startswith("--"):
            kind = flag[2:].removesuffix(".class_path")
            if equals:
                token = f"--{kind}={_typed_part(kind, value)}"
            else:
                token, pending = f"--{kind}", kind
        out.append(token)
    return out


def _typed_part(kind: str, value: str) -> str:
    if value.startswith("{"):
        try:
            given = yaml.safe_load(value)
            return yaml.safe_dump(_full(kind, given), default_flow_style=True, width=10**6).strip()
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ValueError(f"--{kind} {value}: expected a name, or class_path with init_args") from error
    return part_path(part_class(kind, value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | Namespace):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float):  # jsonargparse's restricted numbers are subclasses
        if isinstance(value, plain):
            return plain(value)
    return str(value)


def _absolute(path: str) -> str:
    file, colon, key = path.partition(".npz:")
    whole = Path(f"{file}.npz" if colon else path).expanduser().resolve()
    return f"{whole}:{key}" if colon else str(whole)


def _parts_help() -> str:
    lines = ["parts, each with options of its own (--prior MixturePrior --prior.num_components 20):"]
    for kind in BASES:
        lines.append(f"  --{kind}")
        for name, part in known_parts(kind).items():
            summary = (part.__doc__ or "").strip().splitlines()
            lines.append(f"      {name:30} {summary[0] if summary else ''}".rstrip())
    return "\n".join(lines)
