"""Train with several weights beta of the KL divergence, and plot reconstruction against divergence.

python scripts/studies/betas.py --out betas
python scripts/studies/betas.py --out betas --betas '[0.25,1,4]' -- --data mnist --data_dir data --epochs 20

scripts/train.py trains each beta into a separate run folder. Flags after -- are passed to train.py. A second call
resumes an interrupted one. ELBO and log p(x) are of the test data, with weight 1 for every training weight.
Reconstruction and divergence are of the validation data at the best epoch.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from pathlib import Path

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from pyrovae.plots import figure_of, plot_rates, to_png
from pyrovae.runs import (
    Run,
    Seed,
    check_folder,
    make_parser,
    parse_flags,
    run_script,
    write_json,
    write_whole,
)
from pyrovae.runs.sweep import refuse_flags, split_flags, train_all
from pyrovae.runs.tables import aligned

TAKEN = {
    "kl_weight": "give --betas before --",
    "seed": "give --seed before --",
    "out": "give --out before --",
    "num_particles": "give --num_particles before --",
}


def main() -> int:
    """Train, print the table, and plot the figure."""
    parser = make_parser(prog="betas.py", description=__doc__)
    add = parser.add_argument
    add("--out", type=str, required=True, help="folder of the runs, of betas.json and of betas.png")
    add("--betas", type=list[NonNegativeFloat], default=[0.1, 0.3, 1.0, 3.0, 10.0], help="weights of the divergence")
    add("--num_particles", type=PositiveInt, default=1000, help="number of draws per test datum for log p(x)")
    add("--seed", type=Seed, default=0, help="training seed")
    add("--jobs", type=PositiveInt, default=1, help="number of trainings at the same time")
    own, training = split_flags(sys.argv[1:])
    flags = parse_flags(parser, own)
    refuse_flags(training, TAKEN)
    check_folder("--out", flags.out)
    out = Path(flags.out)
    of_all = [*training, "--seed", str(flags.seed), "--num_particles", str(flags.num_particles)]
    runs = {
        out / f"beta-{beta:g}": [*of_all, "--kl_weight", "Beta", "--kl_weight.beta", str(beta)] for beta in flags.betas
    }
    train_all(Path(__file__).parents[1] / "train.py", runs, jobs=flags.jobs)

    rows = {beta: point(out / f"beta-{beta:g}") for beta in sorted(flags.betas)}
    write_json(out / "betas.json", {"training": training, "betas": {f"{beta:g}": row for beta, row in rows.items()}})
    axes = plot_rates({beta: Run(out / f"beta-{beta:g}").history() for beta in rows})
    write_whole(out / "betas.png", to_png(figure_of(axes)))
    lines = [["beta", "reconstruction", "KL", "ELBO", "log p(x)", "s.e. data", "s.e. MC"]]
    for beta, row in rows.items():
        numbers = [row[key] for key in ("reconstruction", "kl", "elbo", "log_marginal", "std_error")]
        lines.append([f"{beta:g}", *(f"{value:.2f}" for value in numbers), f"{row['mc_std_error']:.3f}"])
    print("\nnats per datum; reconstruction and KL of the validation data, ELBO and log p(x) of the test data\n")
    print(aligned(lines))
    print(f"wrote {out / 'betas.png'} and betas.json")
    return 0


def point(path: Path) -> dict[str, float]:
    """Load the results of a run: reconstruction, divergence, ELBO, and log p(x) with its errors."""
    run = Run(path)
    found = run.history()
    best = found.rows[found.best_epoch - 1]
    held, _ = run.evaluation()
    marginal = held["log_marginal"]
    return {
        "reconstruction": best["validation_reconstruction"],
        "kl": best["validation_kl"],
        "elbo": held["elbo"]["mean"],
        "log_marginal": marginal["mean"],
        "std_error": marginal["std_error"],
        "mc_std_error": marginal["mc_std_error"],
    }


if __name__ == "__main__":
    run_script(main)
