"""Coverage of pooled 95 % intervals of a regression slope, with cells missing at random.

python scripts/studies/pooling.py                      # 200 repetitions, an hour on one core
python scripts/studies/pooling.py --repetitions 20

Each repetition simulates n rows of y = 0.5 x + 0.3 w + e and x = 0.6 w + d, with standard normal w, d and e. It deletes
x in 40 % of the rows, the more likely the larger w and y are; w and y stay. The estimate is the slope of x in the
regression of y on x and w. "refits" pools draws of several refits by the nested rules, "one fit" draws of a single fit
as if they were independent. "complete cases" leaves rows out; "complete data" deletes nothing.
The latents are drawn from the guide and reweighted.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from pyrovae import (
    MLP,
    Blueprint,
    Column,
    Columns,
    ImportanceWeightedELBO,
    NormalLikelihood,
    fit,
    impute,
    pool,
    read_table,
)
from pyrovae.data import Table
from pyrovae.evidence import GuideProposal
from pyrovae.execution import Progress
from pyrovae.runs import Seed, check_writable, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error
from pyrovae.training import refit

SLOPE = 0.5
NAMES = ("x", "w", "y")


def main() -> int:
    """Simulate, impute and pool, and print how often the intervals contain the slope."""
    parser = make_parser(prog="pooling.py", description=__doc__)
    add = parser.add_argument
    add("--repetitions", type=PositiveInt, default=200, help="number of simulated tables")
    add("--num_data", type=PositiveInt, default=300, help="rows n of a table")
    add("--refits", type=PositiveInt, default=5, help="fits on bootstrap rows")
    add("--draws", type=PositiveInt, default=4, help="draws of each fit; as many in all for one fit")
    add("--epochs", type=PositiveInt, default=100, help="passes of each fit")
    add("--num_particles", type=PositiveInt, default=200, help="draws K of the latents per row")
    add("--first", type=Seed, default=0, help="seed of the first table")
    add("--json", type=str | None, default=None, help="file for the numbers (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.json:
        check_writable("--json", flags.json)
    rows: list[dict[str, Any]] = []
    with Progress(flags.repetitions, "table") as progress:
        for seed in range(flags.first, flags.first + flags.repetitions):
            rows.append({"seed": seed, **repetition(seed, flags)})
            progress.update()
            if flags.json:
                write_json(Path(flags.json), {"flags": vars(flags), "rows": rows})
    print_table(rows)
    return 0


def simulated(seed: int, num_data: int) -> np.ndarray:
    """Simulate the complete table, with shape (n, 3): x, w, y."""
    w, d, e = np.random.default_rng([0, seed]).normal(size=(3, num_data))
    x = 0.6 * w + d
    return np.stack([x, w, SLOPE * x + 0.3 * w + e], 1)


def without(values: np.ndarray, seed: int) -> np.ndarray:
    """Delete x in 40 % of the rows, by a logistic model of w and y."""
    score = values[:, 1] + values[:, 2]
    chance = 1 / (1 + np.exp(-(score - score.mean()) / score.std()))
    chosen = np.random.default_rng([1, seed]).choice(
        len(values), int(0.4 * len(values)), replace=False, p=chance / chance.sum()
    )
    holed = values.copy()
    holed[chosen, 0] = np.nan
    return holed


def as_table(holed: np.ndarray) -> Table:
    """Make the table of the cells that stay, all rows for training."""
    cells = {
        name: [None if value != value else value for value in column]
        for name, column in zip(NAMES, holed.T.tolist(), strict=True)
    }
    columns = (*(Column(name, "real") for name in NAMES), Column("split", "category", role="split"))
    return read_table({**cells, "split": ["train"] * len(holed)}, columns=Columns(columns))


def slope(values: np.ndarray) -> tuple[float, float]:
    """Regress y on x and w; return the slope of x and its squared standard error."""
    design = np.column_stack([np.ones(len(values)), values[:, :2]])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ values[:, 2]
    residual = values[:, 2] - design @ beta
    return float(beta[1]), float(residual @ residual / (len(values) - 3) * inverse[1, 1])


def repetition(seed: int, flags: Any) -> dict[str, Any]:
    """Return the estimate, the standard error and the ends of the interval of each way."""
    values = simulated(seed, flags.num_data)
    holed = without(values, seed)
    table, df = as_table(holed), flags.num_data - 3
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    parts = {"real": partial(NormalLikelihood, scale="dimension")}
    blueprint = Blueprint.of(table, latent_dim=2, parts=parts, network=partial(MLP, hidden=[32]))
    options: dict[str, Any] = {"elbo": ImportanceWeightedELBO(10), "epochs": flags.epochs, "batch_size": 100}
    options |= {"optimizer": partial(torch.optim.Adam, lr=0.01), "execution": "recorded"}
    arguments = {"x": table.x, "mask": table.mask}
    origins = torch.tensor([column.origin for column in table.columns.data])

    def draws(vae: Any, count: int) -> Tensor:
        sizes = {"num_particles": flags.num_particles, "num_draws": count}
        found = impute(vae.model, vae.guide, **arguments, proposal=GuideProposal(), **sizes)
        estimates = [slope((one + origins).double().numpy()) for one in found.draws]
        return torch.tensor(estimates, dtype=torch.float64)

    vae = blueprint.vae()
    fit(vae.model, vae.guide, arguments, seed=seed, **options)
    single = draws(vae, flags.refits * flags.draws)
    models = refit(blueprint.vae, arguments, refits=flags.refits, seed=seed, **options)
    nested = torch.stack([draws(each, flags.draws) for each in models])
    pooled = {
        "refits": pool(nested[..., 0], nested[..., 1], nested=True, df_complete=df),
        "one fit": pool(single[:, 0], single[:, 1], df_complete=df),
    }
    found: dict[str, Any] = {
        name: (float(one.estimate), float(one.std_error), *map(float, one.interval())) for name, one in pooled.items()
    }
    for name, rows in (("complete cases", values[~np.isnan(holed[:, 0])]), ("complete data", values)):
        estimate, variance = slope(rows)
        half = 1.96 * variance**0.5
        found[name] = (estimate, variance**0.5, estimate - half, estimate + half)
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the coverage of each way with its standard error, the bias, and the mean standard error."""
    lines = [["", "coverage", "s.e.", "bias", "s.e.", "sd of estimates", "mean s.e."]]
    for way in [key for key in rows[0] if key != "seed"]:
        found = torch.tensor([row[way] for row in rows], dtype=torch.float64)
        inside = ((found[:, 2] <= SLOPE) & (found[:, 3] >= SLOPE)).double()
        numbers = (*mean_and_std_error(inside), *mean_and_std_error(found[:, 0] - SLOPE))
        lines.append([way, *(f"{n:.3f}" for n in (*numbers, found[:, 0].std().item(), found[:, 1].mean().item()))])
    print(aligned(lines))


if __name__ == "__main__":
    run_script(main)
