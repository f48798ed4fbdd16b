"""Train a dozen combinations of prior, encoder and program on one split, and tabulate their log p(x).

python scripts/studies/swap.py --out table/digits --jobs 2
python scripts/studies/swap.py --out table/mnist -- --data mnist --data_dir data --latent_dim 20 --epochs 20
python scripts/studies/swap.py --out table/digits --only flow-prior,two-layer-program
python scripts/studies/swap.py --out table/digits --folds 10 --only flow-prior     # cross-validation, for small data

scripts/train.py trains each combination with every seed in a separate run folder; flags after -- are passed to it.
A second call resumes the first. Differences from the standard VAE are paired by test datum and seed; their standard
error includes data and seeds. The ladder shows how much log p(x) still rises with more draws, on a common subset.
A difference below two standard errors, or below that rise, is not significant.

With --folds K each combination is trained K times, each time with another fold held out, the same for all. The seed of
fold k is that of --seeds plus k - 1. Log p(x) of every datum, by the model that was not trained on it, is compared with
the standard VAE's. compare.py reads the folders OUT/NAME-K-fold and explains the intervals.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from pyrovae.execution import Progress
from pyrovae.runs import Seed, check_folder, make_parser, near, parse_flags, run_script, write_json
from pyrovae.runs.comparison import compare_folds
from pyrovae.runs.parser import flags_and_values
from pyrovae.runs.sweep import device_of, measure, refuse_flags, split_flags, train_all, train_folds
from pyrovae.runs.tables import aligned
from pyrovae.stats import crossed_mean_and_std_error

ELBO_DRAWS = 100  # from the guide per datum: their Monte Carlo error is far below the standard error over data
BASELINE = "standard"
TAKEN = {
    "seed": "give --seeds before --",
    "out": "give --out before --",
    "folds": "give --folds before --",
    "fold": "give --folds before --",
    "num_particles": "give --num_particles before --",
    "proposal": "the table uses the default",
}
COMBINATIONS = {
    BASELINE: "",
    "Student-t-prior": "--prior StudentTPrior",
    "mixture-prior": "--prior MixturePrior --prior.num_components 100",
    "VampPrior": "--prior VampPrior --prior.num_components 100",
    "flow-prior": "--prior FlowPrior --prior.kind maf",
    "full-covariance": "--encoder FullCovarianceNormalEncoder",
    "low-rank": "--encoder LowRankNormalEncoder --encoder.rank 4",
    "mixture-encoder": "--encoder MixtureEncoder",
    "flow-encoder": "--encoder FlowEncoder",
    "flow-prior-flow-encoder": "--prior FlowPrior --prior.kind maf --encoder FlowEncoder",
    "two-layers-in-one-latent": "--prior TwoLayerPrior --encoder TwoLayerEncoder",
    "two-layer-program": "--program TwoLayerVAE",
}


def main() -> int:
    """Train the missing runs, evaluate all, and print the table."""
    flags, training = parse(sys.argv[1:])
    names = [name for name in COMBINATIONS if name in (BASELINE, *flags.only.split(","))]
    check_folder("--out", flags.out)
    out = Path(flags.out)
    train = Path(__file__).parents[1] / "train.py"
    if flags.folds is not None:
        variants = {
            name: [*training, *shlex.split(COMBINATIONS[name]), "--num_particles", str(flags.num_particles)]
            for name in names
        }
        folders = train_folds(train, out, variants, folds=flags.folds, seed=flags.seeds[0], jobs=flags.jobs)
        found, text = compare_folds(folders, BASELINE)
        path = out / f"table-{flags.folds}-fold.json"
        settings = {"training": training, "folds": flags.folds, "num_particles": flags.num_particles}
        write_json(path, {**settings, "rows": {name: asdict(row) for name, row in found.items()}})
        print(f"\n{text}\nwrote {path}")
        return 0
    jobs = [(out / f"{name}-{seed}", name, seed) for seed in flags.seeds for name in names]
    runs = {
        # The table uses other draws.
        path: [
            *training,
            *shlex.split(COMBINATIONS[name]),
            *f"--seed {seed} --num_particles 25 --proposal guide".split(),
        ]
        for path, name, seed in jobs
    }
    train_all(train, runs, jobs=flags.jobs)

    measured: dict[str, dict[int, dict[str, torch.Tensor]]] = {name: {} for name in names}
    ladder: dict[str, list[float]] = {}
    device = device_of(training)

    def values(path: Path, num_data: int, count: int) -> dict[str, torch.Tensor]:
        draws = {"num_particles": count, "guide_particles": min(count, ELBO_DRAWS)}
        return measure(path, num_data, **draws, device=device)

    with Progress(len(jobs), "run", "log p(x)") as progress:
        for path, name, seed in jobs:
            measured[name][seed] = values(path, flags.num_data, flags.num_particles)
            if seed == flags.seeds[0]:
                steps = [values(path, flags.ladder_data, count)["log_marginal"] for count in flags.ladder]
                ladder[name] = [step.mean().item() for step in steps]
            progress.update()
    rows = table(measured, ladder)
    write_json(out / "table.json", {"training": training, "ladder": flags.ladder, "rows": rows})

    size = len(next(iter(measured[BASELINE].values()))["log_marginal"])
    print(f"\n{size:,} test data, {len(flags.seeds)} seeds, K = {flags.num_particles:,}; nats per datum; ", end="")
    print(f"the ladder uses {flags.ladder_data:,} data and seed {flags.seeds[0]}\n")
    print(text_of(rows, flags.ladder))
    print(f"wrote {out / 'table.json'}")
    return 0


def parse(argv: list[str]) -> tuple[Namespace, list[str]]:
    """Parse the script's flags, and return the flags of train.py unparsed."""
    parser = make_parser(prog="swap.py", description=__doc__)
    add = parser.add_argument
    add("--out", type=str, required=True, help="folder of the runs and of table.json")
    add("--seeds", type=list[Seed] | None, default=None, help="training seeds (default: [0,1,2]; [0] with --folds)")
    add("--folds", type=PositiveInt | None, default=None, help="number of folds (default: a single split)")
    add("--only", type=str, default=",".join(COMBINATIONS), help="combinations besides standard, a,b (default: all)")
    add("--jobs", type=PositiveInt, default=1, help="parallel trainings")
    add("--num_data", type=PositiveInt, default=1000, help="maximum number of test data in the table, without --folds")
    add("--num_particles", type=PositiveInt, default=500, help="draws per datum in the table")
    add(
        "--ladder",
        type=list[PositiveInt],
        default=[500, 5000, 50_000],
        help="draws per datum in the ladder, without --folds",
    )
    add("--ladder_data", type=PositiveInt, default=25, help="test data in the ladder, of the first seed")
    own, training = split_flags(argv)
    flags = parse_flags(parser, own)
    refuse_flags(training, TAKEN)
    if flags.folds is not None:
        for name, _ in flags_and_values(own):
            if name in ("num_data", "ladder", "ladder_data"):
                raise ValueError(f"--{name}: with --folds all data are evaluated once, and there is no ladder; omit it")
    if flags.seeds is None:
        flags.seeds = [0, 1, 2] if flags.folds is None else [0]
    if flags.folds is not None and len(flags.seeds) > 1:
        raise ValueError("--seeds: with --folds each fold is trained once; give the seed of the first fold alone")
    for name in flags.only.split(","):
        if name not in COMBINATIONS:
            raise ValueError(f"--only {name}: no such combination; {near(name, COMBINATIONS)}")
    return flags, training


def table(
    measured: dict[str, dict[int, dict[str, torch.Tensor]]], ladder: dict[str, list[float]]
) -> dict[str, dict[str, float | list[float]]]:
    """Compute means over seeds and data, and paired differences from the standard VAE, with standard errors."""

    def stacked(name: str, key: str) -> torch.Tensor:
        return torch.stack([by_seed[key] for by_seed in measured[name].values()])

    rows: dict[str, dict[str, float | list[float]]] = {}
    for name in measured:
        log_p = stacked(name, "log_marginal")
        mean, error = crossed_mean_and_std_error(log_p)
        difference, difference_error = crossed_mean_and_std_error(log_p - stacked(BASELINE, "log_marginal"))
        rows[name] = {
            "elbo": stacked(name, "elbo").mean().item(),
            "log_marginal": mean,
            "std_error": error,
            "difference": difference,
            "difference_std_error": difference_error,
            "ladder": ladder[name],
        }
    return rows


def text_of(rows: dict[str, dict[str, float | list[float]]], ladder: list[int]) -> str:
    """Align the rows of the table as text."""
    columns = ["", "ELBO", "log p(x)", "s.e.", "against standard", "s.e.", *(f"K={count:,}" for count in ladder)]
    lines = [
        [
            name,
            *(f"{row[key]:.2f}" for key in ("elbo", "log_marginal", "std_error")),
            *((f"{row['difference']:+.2f}", f"{row['difference_std_error']:.2f}") if name != BASELINE else ("", "")),
            *(f"{value:.2f}" for value in row["ladder"]),
        ]
        for name, row in rows.items()
    ]
    return aligned([columns, *lines])


if __name__ == "__main__":
    run_script(main)
