"""The flags of `scripts/train.py`, one row each."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from pyro.infer import ELBO
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae.encoders import Encoder
from pyrovae.evidence import ProposalName
from pyrovae.execution import Execution, Precision
from pyrovae.likelihoods import Likelihood
from pyrovae.nn import Network
from pyrovae.objectives import KLWeight
from pyrovae.priors import Prior
from pyrovae.programs import Blueprint, OutputBias
from pyrovae.runs.parser import Flag, Parser, make_parser
from pyrovae.runs.registry import BASES
from pyrovae.runs.words import Decay, Seed

# Flags of one call, which config.yaml does not record.
CALL_ONLY = ("help_parts", "config", "out", "resume", "trust_imports", "describe")

# Flags that may accompany --resume.
WITH_RESUME = ("resume", "trust_imports", "data_dir", "help")

_ADAM = {"class_path": "Adam", "init_args": {"fused": True}}

# One row per flag, in the order of the keys of config.yaml: group, name, type, default, help.
# fmt: off
FLAGS = (
    Flag("data", "data", str, "digits",
         "digits, mnist, PATH.npy, PATH.npz:key, or a table: PATH.csv, .tsv or .parquet"),
    Flag("data", "data_dir", str | None, None,
         "folder that holds MNIST, or receives it (default: data)"),
    Flag("data", "binarize", Literal["dynamic", "static", "none"] | None, None,
         "binarisation (default: dynamic for mnist, else none)"),
    Flag("data", "covariates", str | None, None,
         "covariates c: labels (one-hot), PATH.npy, PATH.npz:key, or columns of a table (default: null)"),
    Flag("table", "describe", bool, False,
         "print the columns of the table for a columns.yaml, and stop"),
    Flag("table", "columns", str | None, None,
         "columns.yaml of the table; --columns.NAME.KEY VALUE changes one column (default: guessed)"),
    Flag("table", "na_values", list[str], [],
         "further texts that stand for missing cells", may_be_empty=True),
    Flag("table", "label", str | None, None,
         "column of class labels, with holes or without (default: null)"),
    Flag("table", "weights", str | None, None,
         "column of case weights (default: null)"),
    Flag("table", "group", str | None, None,
         "column of groups, such as patients, each of which stays in one split (default: null)"),
    Flag("table", "split", str | None, None,
         "column of the words train, validation and test (default: drawn by --split_seed)"),
    Flag("table", "unseen", Literal["refuse", "missing"], "refuse",
         "what to do with levels that columns.yaml does not name"),
    Flag("table", "mask_extra", Decay, 0.0,
         "share of the observed cells hidden from the encoder in training"),
    Flag("model", "prior", Callable[[int], Prior], "StandardNormalPrior",
         "prior p(z)"),
    Flag("model", "likelihood", Callable[[nn.Module], Likelihood] | None, None,
         "likelihood p(x|z) (default: Bernoulli for bits, binomial for digits, by column for tables)"),
    Flag("model", "encoder", Callable[[nn.Module], Encoder], "NormalEncoder",
         "encoder q(z|x)"),
    Flag("model", "network", Callable[[int, int], Network], "MLP",
         "network of encoder and decoder"),
    Flag("model", "program", Callable[[Blueprint], nn.Module] | None, None,
         "whole model, instead of a VAE with one latent z (default: null)"),
    Flag("model", "latent_dim", PositiveInt, 10,
         "dimension of z"),
    Flag("model", "output_bias", OutputBias | None, None,
         "initial bias of the decoder's output; data: the means (default: data for counts and tables, else random)"),
    Flag("objective", "elbo", ELBO, "TraceMeanField_ELBO",
         "objective of SVI"),
    Flag("objective", "kl_weight", KLWeight | None, None,
         "weight of the KL divergence (default: 1 throughout)"),
    Flag("optimisation", "optimizer", Callable[[Iterable, float], Optimizer], _ADAM,
         "optimizer of SVI"),
    Flag("optimisation", "epochs", PositiveInt, 300,
         "maximum number of passes over the training data"),
    Flag("optimisation", "batch_size", PositiveInt, 100,
         "data per step"),
    Flag("optimisation", "lr", PositiveFloat, 1e-3,
         "learning rate"),
    Flag("optimisation", "lr_schedule", Callable[[Optimizer], LRScheduler] | None, None,
         "schedule of the learning rate (default: constant)"),
    Flag("optimisation", "lr_warmup", NonNegativeFloat, 0.0,
         "epochs in which the learning rate rises from 0"),
    Flag("optimisation", "average", Decay | None, None,
         "decay of an average of the weights, such as 0.999 (default: no average)"),
    Flag("optimisation", "clip", PositiveFloat | None, None,
         "largest norm of a batch's gradient, divided by the batch size (default: no limit)"),
    Flag("optimisation", "patience", PositiveInt | None, 30,
         "epochs without improvement, then stop; null: never"),
    Flag("evaluation", "num_particles", PositiveInt, 1000,
         "draws K per test datum for log p(x)"),
    Flag("evaluation", "proposal", ProposalName, "default",
         "proposal for log p(x)"),
    Flag("run", "execution", Execution, "auto",
         "how training steps run"),
    Flag("run", "precision", Precision, "full",
         "precision of matrix products in training"),
    Flag("run", "seed", Seed, 0,
         "seed of initial weights, order and noise"),
    Flag("data", "stream", bool, False,
         "whether the training data of a PATH.npy stay on disk"),
    Flag("data", "split_seed", Seed, 0,
         "seed of the split into train, validation and test"),
    Flag("data", "num_validation", PositiveInt | None, None,
         "number of validation data of an array (default: a tenth; a twelfth of MNIST's training file)"),
    Flag("data", "folds", PositiveInt | None, None,
         "number of folds K of cross-validation, with --fold (default: a single split)"),
    Flag("data", "fold", PositiveInt | None, None,
         "fold that is the test set, 1 to K (default: null)"),
    Flag("run", "device", str, "auto",
         "cpu, cuda, cuda:1, ...; auto is cuda if available"),
    Flag("run", "threads", PositiveInt | None, None,
         "CPU threads (default: 1 for small batches, else torch's choice)"),
    Flag("run", "out", str | None, None,
         "new run folder (default: the next free runs/DATA-NUMBER)"),
    Flag("run", "config", str | None, None,
         "config.yaml to start from (default: null)"),
    Flag("run", "resume", str | None, None,
         "run folder to resume; --trust_imports and --data_dir may be added (default: null)"),
    Flag("run", "trust_imports", list[str], [],
         "modules that --config or --resume may import", may_be_empty=True),
    Flag("help", "help_parts", str | None, None,
         "list the parts of a kind, such as prior (default: of all kinds)"),
)
# fmt: on

TYPES: dict[str, Any] = {flag.name: flag.type for flag in FLAGS}

_EPILOG = f"""Parts ({", ".join(BASES)}) are given by name, or as
module.Class of your own. Their options follow the name: --prior MixturePrior --prior.num_components 20.
--help_parts KIND lists the parts of a kind, --KIND.help NAME the options of one: --prior.help MixturePrior."""


def training_parser(**given: Any) -> Parser:
    """Make the parser of `scripts/train.py`; keyword arguments go to ArgumentParser."""
    parser = make_parser(epilog=_EPILOG, **given)
    for flag in FLAGS:
        parser.flags[flag.name] = flag
        if flag.name not in BASES:  # `parse_training` reads the parts
            parser.add_argument(f"--{flag.name}", type=flag.type, default=flag.default, help=flag.help)
            parser.flags[flag.name] = flag
    return parser
