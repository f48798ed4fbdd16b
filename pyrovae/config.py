"""The configuration of a run: the flags of `scripts/train.py`, checked, resolved, and turned into a VAE."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.optim import Optimizer

from pyrovae.data import Data
from pyrovae.densities import check_support, evaluating, isolated_rng, log_weights
from pyrovae.encoders import Encoder
from pyrovae.likelihoods import Likelihood
from pyrovae.nn import Network, Standardize
from pyrovae.parts import BASES, checked_config, describe, known_parts, part_class, part_path, read_yaml
from pyrovae.priors import Prior
from pyrovae.terminal import Seed, make_parser, names, parse_flags
from pyrovae.vae import VAE

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


def training_parser(**given: Any) -> ArgumentParser:
    """Make the parser of `scripts/train.py`; keyword arguments go to ArgumentParser."""
    parser = make_parser(epilog=_parts_help(), **given)
    add = parser.add_argument
    add(
        "--data",
        type=str,
        default="digits",
        help="digits, mnist, or the reader's own PATH.npy or PATH.npz:key",
    )
    add(
        "--data_dir",
        type=str | None,
        default=None,
        help="folder that holds MNIST, or takes the download",
    )
    add(
        "--binarize",
        type=Literal["dynamic", "static", "none"] | None,
        default=None,
        help="dynamic: every training minibatch anew; static: once; none: as they are (default: dynamic for mnist)",
    )
    add("--prior", type=Callable[[int], Prior], help="p(z): a name below, or module.Class")
    add(
        "--likelihood",
        type=Callable[[nn.Module], Likelihood] | None,
        help="p(x|z): a name below, or module.Class (default: the data's own)",
    )
    add(
        "--encoder",
        type=Callable[[nn.Module], Encoder],
        help="q(z|x): a name below, or module.Class",
    )
    add(
        "--network",
        type=Callable[[int, int], Network],
        help="of both encoder and decoder: a name below, or module.Class",
    )
    add("--latent_dim", type=PositiveInt, default=10, help="size of z")
    add("--elbo", type=ELBO, help="objective: a name below, or module.Class")
    add(
        "--optimizer",
        type=Callable[[Iterable, float], Optimizer],
        help="optimizer of torch.optim, or module.Class",
    )
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
    add("--seed", type=Seed, default=0, help="seed of initial weights, order and noise")
    add(
        "--split_seed",
        type=Seed,
        default=0,
        help="seed of the split into train, validation and test",
    )
    add(
        "--device",
        type=str,
        default="auto",
        help="cpu, cuda, cuda:1, ... (auto: cuda where there is one)",
    )
    add(
        "--threads",
        type=PositiveInt | None,
        default=None,
        help="CPU threads (default: one for small batches, which gain nothing from more, else torch's choice)",
    )
    add(
        "--out",
        type=str | None,
        default=None,
        help="new run folder (default: the next free runs/DATA-NUMBER)",
    )
    add(
        "--config",
        type=str | None,
        default=None,
        help="configuration to start from: the config.yaml of a run",
    )
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
    if config.likelihood is None:
        config.likelihood = Namespace(_default_likelihood(data))
    arguments = config.network.get("init_args") or Namespace()
    if "shape" in arguments and arguments.shape is None and len(data.shape) in (2, 3):
        arguments.shape = list(data.shape)
    return config


def build_vae(config: Namespace, num_dims: int, x: Tensor | None = None) -> VAE:
    """Build the VAE that a resolved configuration describes.

    Args:
        config: Resolved configuration.
        num_dims: D, the size of one flat datum.
        x: Training data, with shape (N, D), by which the encoder standardises and to which the prior is attached; None
            where the weights will bring what was taken from them.

    Raises:
        ValueError: If a part refuses its arguments or does not take what the script gives it, or parts do not match.
    """
    z = config.latent_dim
    likelihood_class, encoder_class = (part_class(k, config[k].class_path) for k in ("likelihood", "encoder"))
    mirrored = config.clone()
    network_class = part_class("network", config.network.class_path)
    mirrored.network.class_path = part_path(network_class.mirror())  # type: ignore[attr-defined]
    make, make_mirrored = (_instantiate(c, ("prior", "likelihood", "encoder", "network")) for c in (config, mirrored))
    x = torch.zeros(1, num_dims) if x is None else x
    try:
        decoder_size = likelihood_class.num_outputs(num_dims, **_arguments(config.likelihood))  # type: ignore[attr-defined]
        prior = make.prior(z)
        encoder_size = encoder_class.num_outputs(prior.encoder_dim, **_arguments(config.encoder))  # type: ignore[attr-defined]
        likelihood = make.likelihood(make_mirrored.network(z, decoder_size))
        encoder = make.encoder(nn.Sequential(Standardize.from_data(x), make.network(num_dims, encoder_size)))
        vae = VAE(prior.attach(encoder, x), likelihood, encoder)
    except ValueError:
        raise
    except Exception as error:  # the parts may be the reader's own, and fail in any way
        raise ValueError(f"a part cannot be made: {describe(error)}; see the base classes' docstrings") from error
    if prior.support.is_discrete and issubclass(part_class("elbo", config.elbo.class_path), TraceMeanField_ELBO):
        raise ValueError(
            f"--elbo {config.elbo.class_path}: needs draws with gradients, which the discrete latents of "
            f"{type(prior).__name__} have not; take --elbo TraceEnum_ELBO, which sums over them"
        )
    return vae


def check_parts(vae: VAE, x: Tensor) -> None:
    """See that the parts work together and with the data, before anything is trained or written.

    Args:
        vae: The VAE.
        x: Data with shape (N, D).

    Raises:
        ValueError: In one line, for anything wrong.
    """
    try:
        # Data outside the support are told better by their own check, below.
        with evaluating(vae), isolated_rng(), pyro.validation_enabled(False):
            log_weights(vae.model, vae.guide, x[:2], num_particles=2)
    except Exception as error:
        raise ValueError(
            f"the parts do not work together: {describe(error)}; see the contract in the base classes' docstrings"
        ) from error
    check_support(vae.model, x, guide=vae.guide)


def build_objective(config: Namespace) -> tuple[ELBO, Callable[[Iterable[Tensor]], Optimizer]]:
    """Build the objective, and the function that makes the optimizer from the parameters."""
    made = _instantiate(config, ("elbo", "optimizer"))
    return made.elbo, lambda parameters: made.optimizer(list(parameters), config.lr)


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
    for name, part in known_parts("likelihood").items():
        arguments = part.arguments_for(x)  # type: ignore[attr-defined]
        size = part.num_outputs(x.shape[-1], **arguments)  # type: ignore[attr-defined]
        p_x = part(nn.Linear(1, size), **arguments)(torch.zeros(1, 1))
        if bool(p_x.support.check(x).all()):
            found.append(" ".join([name, *(f"--likelihood.{key} {value}" for key, value in arguments.items())]))
    return found


def _default_likelihood(data: Data) -> dict[str, Any]:
    x = torch.cat([data.train, data.validation, data.test])
    name, arguments = "BernoulliLikelihood", {}
    if data.name == "digits" and data.binarize == "none":
        name, arguments = "BinomialLikelihood", {"total_count": 16}
    elif data.name != "mnist" and data.binarize != "dynamic" and not bool(((x == 0) | (x == 1)).all()):
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
    for action in training_parser()._actions:
        if action.dest in wanted:
            parser.add_argument(f"--{action.dest}", type=action._typehint)  # type: ignore[attr-defined]
    try:
        return parser.instantiate(wanted)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"a part cannot be made: {' '.join(str(error).split())}") from error


def _full(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    part = part_class(kind, value["class_path"])
    return {"class_path": part_path(part), "init_args": dict(value.get("init_args") or {})}


def _arguments(part: Namespace) -> dict[str, Any]:
    arguments = part.get("init_args")
    return {} if arguments is None else dict(arguments.items())


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
