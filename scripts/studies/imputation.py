"""Error of imputed cells: half of the cells of real tables deleted at random, and a linear-Gaussian table.

python scripts/studies/imputation.py                                # five masks of three tables; an hour on one core
python scripts/studies/imputation.py --data '[wine]' --masks 2
python scripts/studies/imputation.py --data '[linear]' --epochs 600   # against the exact conditional means

The protocol is that of Mattei and Frellsen ("MIWAE", ICML 2019): n p / 2 cells are deleted, chosen by a permutation of
all cells that the mask's number seeds. The model trains on all rows. The error is the mean over the deleted cells of
the squared difference, in standard deviations of the whole columns. All tables have one configuration: a Student-t per
column, with a scale and degrees of freedom for each, networks of two layers of 64, p / 2 latents, the
importance-weighted bound with 20 draws, AdamW with a weight decay of 0.1, and an average of the weights over about 100
steps. Layers, sizes and decay were chosen by the errors of diabetes and wine under masks 0 to 2: masks 5 to 9 are a
check that no choice saw. The number of epochs is that with the largest log p of held-out observed cells given the
others of their rows, by 100 draws of the guide, summed over three trainings without a tenth of the observed cells each,
as a mean over three looks, ten epochs apart. Three last trainings of that length have all observed cells and a seed
each: "model" is the error of the mean of their imputations, and "one" the mean error of each by itself.

"ridge" is scikit-learn's IterativeImputer with BayesianRidge. "oracle" is a simulated table, 1,000 rows of 8 columns
that are normal and linear in 2 latents, with noise 0.5, by the configuration of all tables. "linear" is the same table
by a model that contains the truth: normals with a linear mean of 2 latents, trained without decay for all epochs.
"exact" is the error of the exact conditional means, and "covariance" the relative difference of the mean covariance of
the draws from the exact one.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from pyrovae import MLP, Blueprint, Column, Columns, ImportanceWeightedELBO, conditional, fit, impute, read_table
from pyrovae.data import Table
from pyrovae.evidence import GuideProposal
from pyrovae.execution import Progress
from pyrovae.runs import check_writable, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error

Name = Literal["breast_cancer", "wine", "diabetes", "oracle", "linear"]
_LOADINGS_SEED = 0
_LINEAR_LATENTS = 2
_FOLDS, _TENTHS = 3, 10  # trainings, each without one tenth of the observed cells
_EVERY, _SMOOTHED = 10, 3  # epochs between looks, and looks of which the mean is taken
_LOOK_PARTICLES = 100
_RECORDED_FROM = 5_000  # rows in all epochs, from which a training is recorded
_NETWORKS = 3  # whose imputations are averaged
_SEED_STEP = 100  # between the seeds of the networks of a mask, so that masks do not share them


class Setup(NamedTuple):
    """Configuration of a model: the columns' likelihood, the latents of p columns, networks, optimizer and epochs."""

    likelihood: str
    arguments: dict[str, str]
    latent_dim: Callable[[int], int]
    network: Callable[[int, int], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    chooses_epochs: bool


def _linear_decoder(size: int, num_outputs: int) -> nn.Module:
    """Make the network of a linear decoder of two latents and its encoder, which has more inputs."""
    hidden = [] if size == _LINEAR_LATENTS else [64, 64]
    return MLP(size, num_outputs, hidden=hidden, activation="tanh")


COMMON = Setup(
    "StudentTLikelihood",
    {"scale": "dimension", "df": "dimension"},
    lambda columns: max(2, columns // 2),
    partial(MLP, hidden=[64, 64], activation="tanh"),
    partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    True,
)
LINEAR = Setup(
    "NormalLikelihood",
    {"scale": "dimension"},
    lambda columns: _LINEAR_LATENTS,
    _linear_decoder,
    partial(torch.optim.Adam, lr=5e-3),
    False,
)


class Problem(NamedTuple):
    """A complete table, with shape (n, p), which cells stay, and the exact conditional means if they are known."""

    setup: Setup
    x: np.ndarray
    mask: np.ndarray
    exact: np.ndarray | None = None
    covariances: np.ndarray | None = None


def main() -> int:
    """Impute each table under each mask, and print the errors."""
    parser = make_parser(prog="imputation.py", description=__doc__)
    add = parser.add_argument
    add("--data", type=list[Name], default=["breast_cancer", "wine", "diabetes"], help="tables")
    add("--masks", type=PositiveInt, default=5, help="number of masks, 0, 1, ...")
    add("--first", type=NonNegativeInt, default=0, help="number of the first mask")
    add("--epochs", type=PositiveInt, default=400, help="most epochs")
    add("--num_particles", type=PositiveInt, default=300, help="draws K per row of the imputation")
    add("--json", type=str | None, default=None, help="file for the numbers (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.json:
        check_writable("--json", flags.json)
    rows = []
    with Progress(len(flags.data) * flags.masks, "mask") as progress:
        for name in flags.data:
            for number in range(flags.first, flags.first + flags.masks):
                rows.append({"data": name, "mask": number, **errors(load(name, number), number, flags)})
                progress.update()
                if flags.json:
                    write_json(Path(flags.json), {"flags": vars(flags), "rows": rows})
    print_table(rows)
    return 0


def load(name: Name, number: int) -> Problem:
    """Load a table, and delete half of its cells at random."""
    if name in ("oracle", "linear"):
        return oracle(number, COMMON if name == "oracle" else LINEAR)
    import sklearn.datasets

    options = {"scaled": False} if name == "diabetes" else {}
    x = getattr(sklearn.datasets, f"load_{name}")(**options).data.astype(np.float64)
    return Problem(COMMON, x, kept(x.shape, number))


def kept(shape: tuple[int, int], number: int) -> np.ndarray:
    """Return which cells stay."""
    size = shape[0] * shape[1]
    mask = np.ones(size, dtype=bool)
    mask[np.random.RandomState(number).choice(size, size // 2, replace=False)] = False
    return mask.reshape(shape)


def oracle(number: int, setup: Setup) -> Problem:
    """Simulate a linear-Gaussian table, with the exact conditional means and covariances of its missing cells."""
    rng = np.random.default_rng([_LOADINGS_SEED, number])
    loadings = rng.normal(size=(8, 2))
    x = rng.normal(size=(1000, 2)) @ loadings.T + 0.5 * rng.normal(size=(1000, 8))
    mask, covariance = kept(x.shape, number), loadings @ loadings.T + 0.25 * np.eye(8)
    exact, variances = x.copy(), np.zeros((len(x), 8, 8))
    for n, seen in enumerate(mask):
        gain = covariance[~seen][:, seen] @ np.linalg.pinv(covariance[seen][:, seen])
        exact[n, ~seen] = gain @ x[n, seen]
        variances[n][np.ix_(~seen, ~seen)] = covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]
    return Problem(setup, x, mask, exact, variances)


def errors(problem: Problem, seed: int, flags: Any) -> dict[str, float]:
    """Impute by the model and by its peers, and return their errors."""
    setup, x, mask = problem.setup, problem.x, problem.mask
    table = as_table(problem)

    epochs = chosen_epochs(table, setup, seed, flags.epochs) if setup.chooses_epochs else flags.epochs
    draws = 40 if problem.covariances is not None else 0
    found = []
    for network in range(_NETWORKS):
        vae = trained(table, setup, seed + _SEED_STEP * network, epochs, table.mask)
        found.append(impute(vae.model, vae.guide, **given(table), num_particles=flags.num_particles, num_draws=draws))
    origins = np.array([column.origin for column in table.columns.data])
    values = [one.value.double().numpy() + origins for one in found]
    scale = x.std(0)

    def mse(filled: np.ndarray) -> float:
        return float(np.square(((filled - x) / scale)[~mask]).mean())

    holed = np.where(mask, x, np.nan)
    means = np.broadcast_to(np.nanmean(holed, axis=0), x.shape)
    rows = {"model": mse(np.mean(values, axis=0)), "one": float(np.mean([mse(value) for value in values]))}
    khat = torch.cat([one.log_marginal.khat for one in found])
    rows |= {"column mean": mse(means), "ridge": mse(ridge(holed)), "epochs": epochs}
    rows |= {"k-hat > 0.7": float((khat > 0.7).double().mean())}
    if problem.exact is not None and problem.covariances is not None:
        rows["exact"] = mse(problem.exact)
        drawn = torch.cat([one.draws for one in found]).double().numpy()
        rows["covariance"] = trace_ratio(drawn, problem.covariances)
    return rows


def trace_ratio(draws: np.ndarray, covariances: np.ndarray) -> float:
    """Return the norm of the mean covariance of draws, less the mean exact one, relative to that of the latter."""
    centred = draws - draws.mean(0)
    found = np.einsum("mni,mnj->ij", centred, centred) / (len(draws) - 1) / draws.shape[1]
    exact = covariances.mean(0)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def as_table(problem: Problem) -> Table:
    """Make the table of the cells that stay, all rows for training."""
    setup, x, mask = problem[:3]
    names = [f"x{place}" for place in range(x.shape[1])]
    rows: dict[str, list[Any]] = {
        name: [float(value) if seen else None for value, seen in zip(cells, there, strict=True)]
        for name, cells, there in zip(names, x.T, mask.T, strict=True)
    }
    columns = [Column(name, "real", likelihood=setup.likelihood, arguments=setup.arguments) for name in names]
    columns.append(Column("split", "category", role="split"))
    return read_table({**rows, "split": ["train"] * len(x)}, columns=Columns(tuple(columns)))


def given(table: Table, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Return the arguments of the programs, with all observed cells or some."""
    return {"x": table.x, "mask": table.mask if mask is None else mask}


def chosen_epochs(table: Table, setup: Setup, seed: int, most: int) -> int:
    """Return the number of epochs, of those looked at, with the largest log p of held-out cells."""
    fold = torch.from_numpy(np.random.default_rng([1, seed]).integers(0, _TENTHS, tuple(table.mask.shape)))
    looks = range(_EVERY, most + 1, _EVERY)
    if not looks:
        return most
    total = dict.fromkeys(looks, 0.0)
    for number in range(_FOLDS):
        kept = table.mask & (fold != number)

        def look(row: dict[str, Any], vae: Any, kept: Tensor = kept) -> None:
            if row["epoch"] in total:
                total[row["epoch"]] += held_out_log_p(vae, table, kept)

        trained(table, setup, seed, most, kept, look)
    width = min(_SMOOTHED, len(looks))
    smooth = np.convolve(list(total.values()), np.ones(width) / width, "valid")
    return looks[int(smooth.argmax()) + width // 2]


def held_out_log_p(vae: Any, table: Table, kept: Tensor) -> float:
    """Estimate log p of the cells that were held out given those that were kept, summed over rows, in nats."""
    options: dict[str, Any] = {"num_particles": _LOOK_PARTICLES, "num_draws": 0, "proposal": GuideProposal()}
    with torch.no_grad():
        return float(conditional(vae.model, vae.guide, **given(table), given=kept, **options).value.sum())


def trained(
    table: Table,
    setup: Setup,
    seed: int,
    epochs: int,
    mask: Tensor,
    look: Callable[[dict[str, Any], Any], object] | None = None,
) -> Any:
    """Train on the cells of a mask for a number of epochs, looking at the model after each; return the model."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae = Blueprint.of(table, latent_dim=setup.latent_dim(table.x.shape[1]), network=setup.network).vae()
    options: dict[str, Any] = {"elbo": ImportanceWeightedELBO(20), "epochs": epochs, "batch_size": 64, "seed": seed}
    options["optimizer"] = setup.optimizer
    if epochs * len(table) >= _RECORDED_FROM:
        options["execution"] = "recorded"
    on_epoch = None if look is None else partial(look, vae=vae)
    fit(vae.model, vae.guide, given(table, mask), average=0.99, on_epoch=on_epoch, **options)
    return vae.eval()


def ridge(holed: np.ndarray) -> np.ndarray:
    """Impute by chained Bayesian ridge regressions of standardised columns."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    centre, scale = np.nanmean(holed, axis=0), np.nanstd(holed, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that ten rounds do not converge
        filled: np.ndarray = IterativeImputer(random_state=0).fit_transform((holed - centre) / scale)
    return filled * scale + centre


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the means over masks with their standard errors, and the paired difference from ridge."""
    header = ["table", "column mean", "ridge", "one", "s.e.", "model", "s.e.", "model - ridge", "s.e."]
    lines = [[*header, "exact", "covariance", "epochs"]]
    for name in dict.fromkeys(row["data"] for row in rows):
        of_name = [row for row in rows if row["data"] == name]

        def mean(key: str, of_name: list[dict[str, Any]] = of_name) -> tuple[float, float]:
            return mean_and_std_error(torch.tensor([row[key] for row in of_name], dtype=torch.float64))

        gap = mean_and_std_error(torch.tensor([row["model"] - row["ridge"] for row in of_name], dtype=torch.float64))
        exact = [f"{mean(key)[0]:.4f}" if key in of_name[0] else "-" for key in ("exact", "covariance")]
        line = [name, f"{mean('column mean')[0]:.3f}", f"{mean('ridge')[0]:.4f}"]
        line += [f"{value:.4f}" for value in (*mean("one"), *mean("model"), *gap)]
        lines.append([*line, *exact, f"{mean('epochs')[0]:.0f}"])
    print(aligned(lines))


if __name__ == "__main__":
    run_script(main)
