"""Compare scalings of the encoder's input: test ELBO and log p(x) after training at equal budget.

python scripts/studies/scaling.py                                                     # digits, real columns, counts
python scripts/studies/scaling.py --data '[mnist]' --data_dir data --seeds '[0,1]'

cancer and wine are scikit-learn's breast_cancer and wine; their columns have mean 0 and variance 1 over training and
validation data, and their splits depend on the seed.
counts has 20 columns of Poisson counts up to 5,000, log-linear in two latents. "unit" centres each column and divides
all by the root of their mean variance; "third" and "tenth" divide by 3 and 10 times as much; "log" does so with
log(1 + x); "range" only divides by the largest value.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import torch
from jsonargparse.typing import PositiveInt
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovae import (
    MLP,
    BernoulliLikelihood,
    BinomialLikelihood,
    Blueprint,
    NormalLikelihood,
    PoissonLikelihood,
    Standardize,
    fit,
    log_marginal,
)
from pyrovae.data import Binarize, load_data
from pyrovae.evidence import evidence_lower_bound
from pyrovae.execution import Progress
from pyrovae.nn import StandardizeCounts
from pyrovae.runs import Seed, check_writable, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error

Name = Literal["digits", "mnist", "cancer", "wine", "counts"]


class Problem(NamedTuple):
    """Splits, with shape (N, D), values for the scaling, and arguments of the blueprint and of `fit`."""

    train: Tensor
    validation: Tensor
    test: Tensor
    examples: Tensor
    latent_dim: int
    likelihood: Any
    network: Any = MLP
    epochs: int = 300
    transform: Any = None


def main() -> int:
    """Train with each scaling, evaluate, and print the tables."""
    parser = make_parser(prog="scaling.py", description=__doc__)
    add = parser.add_argument
    add("--data", type=list[Name], default=["digits", "cancer", "wine", "counts"], help="data of the tables")
    add("--data_dir", type=str | None, default=None, help="folder of MNIST (default: data)")
    add("--scalings", type=list[str] | None, default=None, help="scalings (default: all)")
    add("--epochs", type=PositiveInt | None, default=None, help="most epochs (default: 20 for MNIST, else 300)")
    add("--seeds", type=list[Seed], default=[0, 1, 2], help="training seeds")
    add("--num_data", type=PositiveInt, default=200, help="largest number of test data for log p(x)")
    add("--json", type=str | None, default=None, help="file for the numbers (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.json:
        check_writable("--json", flags.json)
    known = {name: list(scalings(torch.rand(3, 2), name)) for name in flags.data}
    for scaling in flags.scalings or []:
        if not any(scaling in names for names in known.values()):
            all_names = ", ".join(dict.fromkeys(each for names in known.values() for each in names))
            raise ValueError(f"--scalings: no scaling {scaling!r} of {', '.join(flags.data)}; use {all_names}")
    rows = []
    for name in flags.data:
        names = [key for key in known[name] if flags.scalings is None or key in flags.scalings]
        with Progress(len(flags.seeds) * len(names), "training", name) as progress:
            for seed in flags.seeds:
                problem = load(name, seed, flags.data_dir)
                for scaling in names:
                    found = measured(problem, scalings(problem.examples, name)[scaling], seed, flags)
                    rows.append({"data": name, "scaling": scaling, "seed": seed, **found})
                    progress.update()
        print_table(name, [row for row in rows if row["data"] == name])
    if flags.json:
        write_json(Path(flags.json), {"flags": vars(flags), "rows": rows})
    return 0


def load(name: Name, seed: int, data_dir: str | None) -> Problem:
    """Load the data. The splits of cancer and wine depend on the seed."""
    if name in ("digits", "mnist"):
        data = load_data(name, data_dir=data_dir)
        parts = data.train, data.validation, data.test, data.examples
        if name == "digits":
            return Problem(*parts, 10, partial(BinomialLikelihood, total_count=16))
        network = partial(MLP, hidden=[400], activation="softplus")
        return Problem(*parts, 50, BernoulliLikelihood, network, epochs=20, transform=Binarize())
    if name == "counts":
        x, likelihood, seed = simulated_counts(), PoissonLikelihood, 0
    else:
        import sklearn.datasets

        x = getattr(sklearn.datasets, {"cancer": "load_breast_cancer"}.get(name, f"load_{name}"))().data
        likelihood = NormalLikelihood
    x = x[np.random.default_rng(seed).permutation(len(x))]
    first, second = int(0.7 * len(x)), int(0.8 * len(x))
    if name != "counts":
        x = (x - x[:second].mean(0)) / x[:second].std(0)
    values = torch.tensor(x, dtype=torch.float32)
    return Problem(values[:first], values[first:second], values[second:], values[:first], 10, likelihood)


def simulated_counts() -> np.ndarray:
    """Simulate counts that are log-linear in two latents, with shape (2000, 20)."""
    generator = np.random.default_rng(0)
    z, loadings = generator.standard_normal((2000, 2)), 0.9 * generator.standard_normal((2, 20))
    log_rate = np.minimum(z @ loadings + math.log(20) + 0.3 * generator.standard_normal(20), math.log(5000))
    return generator.poisson(np.exp(log_rate))


def scalings(x: Tensor, name: Name) -> dict[str, nn.Module]:
    """Make the first layers of the encoder that are compared."""
    if name == "counts":
        log = StandardizeCounts.from_data(x)
        raw = StandardizeCounts(torch.zeros_like(log.log_loc), torch.ones_like(log.log_scale))
        wide = {
            each: StandardizeCounts(log.log_loc, times * log.log_scale) for each, times in (("third", 3), ("tenth", 10))
        }
        return {"log": log, **{f"log, {each}": layer for each, layer in wide.items()}, "log, not standardised": raw}
    unit, zero = Standardize.from_data(x.float()), torch.zeros(())
    wide = {each: Standardize(unit.loc, times * unit.scale) for each, times in (("third", 3), ("tenth", 10))}
    if name in ("cancer", "wine"):
        return {"unit": unit, **wide}
    largest = x.float().max()
    return {
        "unit": unit,
        **wide,
        "range, centred": Standardize(unit.loc, largest),
        "range": Standardize(zero, largest),
    }


def measured(problem: Problem, layer: nn.Module, seed: int, flags: Any) -> dict[str, float]:
    """Train with a first layer of the encoder; estimate ELBO and log p(x) of the test data, in nats per datum."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    blueprint = Blueprint(
        problem.train.shape[1],
        problem.latent_dim,
        likelihood=problem.likelihood,
        network=problem.network,
        x=problem.examples,
    )
    vae = blueprint.vae()
    first_layer(vae)[0] = layer
    fit(
        vae.model,
        vae.guide,
        problem.train,
        elbo=TraceMeanField_ELBO(),
        epochs=flags.epochs or problem.epochs,
        batch_size=100,
        validation=problem.validation,
        patience=30,
        transform=problem.transform,
        seed=seed,
        skip_support_check=True,
    )
    vae.eval()
    pyro.set_rng_seed(1)
    x = problem.test[: flags.num_data]
    elbo = evidence_lower_bound(vae.model, vae.guide, x, num_particles=20).value
    log_p = log_marginal(vae.model, vae.guide, x, num_particles=300).value
    return {"ELBO": elbo.mean().item(), "log p(x)": log_p.mean().item()}


def first_layer(vae: nn.Module) -> nn.Sequential:
    """Find the sequence that starts with the scaling."""
    sequences = (module for module in vae.modules() if isinstance(module, nn.Sequential))
    return next(each for each in sequences if isinstance(each[0], Standardize | StandardizeCounts))


def print_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Print means over seeds and their standard errors."""
    table = [[name, "ELBO", "s.e.", "log p(x)", "s.e."]]
    for scaling in dict.fromkeys(row["scaling"] for row in rows):
        line = [scaling]
        for key in ("ELBO", "log p(x)"):
            values = torch.tensor([row[key] for row in rows if row["scaling"] == scaling])
            line += [f"{number:.2f}" for number in mean_and_std_error(values)]
        table.append(line)
    print(aligned(table))


if __name__ == "__main__":
    run_script(main)
