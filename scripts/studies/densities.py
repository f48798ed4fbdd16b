"""Held-out log p(x) of real tables, in nats per row and the tables' own units, beside densities without latents.

python scripts/studies/densities.py                       # three tables, five splits; an hour on two cores
python scripts/studies/densities.py --data '[wine]' --splits 2

The tables are scikit-learn's, all columns real: diabetes is without sex, which has two values. A permutation seeded by
the split's number gives 80 % of the rows to training. All tables have one configuration: a Student-t per column, whose
scale depends on z and is at least the resolution; ten latents; networks of one layer of 64; the importance-weighted
bound with 10 draws. The number of epochs is that with the largest sum of the bounds on five held-out fifths of the
training rows, a mean over nine epochs; a last training has all training rows. The baselines have the same rows; those
of several columns have floors of at least 0.001 standard deviations, the mixture of 0.03; "independent columns" are
Student-t too.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch
from folds import best_epochs
from jsonargparse.typing import PositiveInt
from torch import Tensor

from pyrovae import (
    MLP,
    Blueprint,
    Column,
    Columns,
    ImportanceWeightedELBO,
    StudentTLikelihood,
    fit,
    log_marginal,
    read_table,
)
from pyrovae.baselines import fit_baselines
from pyrovae.data import Table
from pyrovae.execution import Progress
from pyrovae.likelihoods import MixedLikelihood
from pyrovae.runs import check_writable, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error

Name = Literal["breast_cancer", "wine", "diabetes"]
_PARTS = {"real": StudentTLikelihood}


def main() -> int:
    """Train on each split of each table, and print the means of log p(x) over the test rows."""
    parser = make_parser(prog="densities.py", description=__doc__)
    add = parser.add_argument
    add("--data", type=list[Name], default=["breast_cancer", "wine", "diabetes"], help="tables")
    add("--splits", type=PositiveInt, default=5, help="number of splits, 0, 1, ...")
    add("--epochs", type=PositiveInt, default=600, help="most epochs")
    add("--num_particles", type=PositiveInt, default=500, help="draws K per test row")
    add("--json", type=str | None, default=None, help="file for the numbers (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.json:
        check_writable("--json", flags.json)
    rows = []
    with Progress(len(flags.data) * flags.splits, "split") as progress:
        for name in flags.data:
            for split in range(flags.splits):
                rows.append({"data": name, "split": split, **measured(load(name, split), split, flags)})
                progress.update()
                if flags.json:
                    write_json(Path(flags.json), {"flags": vars(flags), "rows": rows})
    for name in flags.data:
        print_table(name, [row for row in rows if row["data"] == name])
    return 0


def load(name: Name, split: int) -> Table:
    """Load a table with a column of splits: 80 % for training, 20 % for test."""
    import sklearn.datasets

    options = {"scaled": False} if name == "diabetes" else {}
    x = getattr(sklearn.datasets, f"load_{name}")(**options).data.astype(np.float64)
    x = np.delete(x, 1, axis=1) if name == "diabetes" else x
    order, count = np.random.RandomState(split).permutation(len(x)), int(0.8 * len(x))
    words = np.full(len(x), "train", dtype=object)
    words[order[count:]] = "test"
    rows: dict[str, list[Any]] = {f"x{place}": cells.tolist() for place, cells in enumerate(x.T)}
    columns = (*(Column(column, "real") for column in rows), Column("split", "category", role="split"))
    return read_table({**rows, "split": words.tolist()}, columns=Columns(columns))


def measured(table: Table, seed: int, flags: Any) -> dict[str, Any]:
    """Train, and return the test rows' mean of log p(x) of the model and of each baseline."""
    train, test = table.part("train").x, table.arguments("test")["x"]

    def held_out_history(rows: Tensor, held_out: Tensor, epochs: int) -> Any:
        return trained(table, train[rows], seed, epochs, validation=train[held_out])[1]

    epochs = best_epochs(held_out_history, len(train), seed, flags.epochs)
    vae, _ = trained(table, train, seed, epochs)
    with torch.no_grad():
        found = log_marginal(vae.model, vae.guide, test, num_particles=flags.num_particles)
    baselines = fit_baselines(train, partial(MixedLikelihood, columns=table.columns, parts=_PARTS), seed=seed)
    log_p = {"model": found.value, **{name: baseline.log_prob(test) for name, baseline in baselines.items()}}
    means = {name: values.mean().item() for name, values in log_p.items()}
    return {**means, "epochs": epochs, "k-hat > 0.7": float((found.khat > 0.7).double().mean())}


def trained(table: Table, x: Tensor, seed: int, epochs: int, *, validation: Tensor | None = None) -> tuple[Any, Any]:
    """Train for a number of epochs; return the model and the history."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae = Blueprint.of(table, latent_dim=10, parts=_PARTS, network=partial(MLP, hidden=[64])).vae()
    options: dict[str, Any] = {"elbo": ImportanceWeightedELBO(10), "epochs": epochs, "batch_size": 64, "seed": seed}
    return vae, fit(vae.model, vae.guide, x, validation=validation, **options)


def print_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the means over splits, and the paired differences of the model from each density."""
    lines = [[name, "log p(x)", "s.e.", "model - this", "s.e."]]
    for density in [key for key in rows[0] if key not in ("data", "split", "epochs", "k-hat > 0.7")]:
        values = torch.tensor([row[density] for row in rows], dtype=torch.float64)
        gaps = torch.tensor([row["model"] - row[density] for row in rows], dtype=torch.float64)
        difference = [f"{number:.2f}" for number in mean_and_std_error(gaps)] if density != "model" else ["", ""]
        lines.append([density, *(f"{number:.2f}" for number in mean_and_std_error(values)), *difference])
    print(f"{aligned(lines)}\n")


if __name__ == "__main__":
    run_script(main)
