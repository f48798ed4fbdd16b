"""Train with several weights beta of the KL divergence, and plot reconstruction against divergence.

python scripts/studies/betas.py --out betas
python scripts/studies/betas.py --out betas --betas [0.25,1,4] -- --data mnist --data_dir data --epochs 20

scripts/train.py trains each beta into a separate run folder. Flags after -- are passed to train.py. A second call
resumes an interrupted one. ELBO and log p(x) are of the test data, with weight 1 for every training weight.
Reconstruction and divergence are of the validation data at the best epoch.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from pathlib import Path

from jsonargparse.typing import NonNegativeFloat, PositiveInt
from matplotlib.figure import Figure

from pyrovae.plots import to_png
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
from pyrovae.runs.sweep import split_flags, train_all
from pyrovae.runs.tables import aligned


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
    check_folder("--out", flags.out)
    out = Path(flags.out)
    of_all = [*training, "--seed", str(flags.seed), "--num_particles", str(flags.num_particles)]
    runs = {
        out / f"beta-{beta:g}": [*of_all, "--kl_weight", "Beta", "--kl_weight.beta", str(beta)] for beta in flags.betas
    }
    train_all(Path(__file__).parents[1] / "train.py", runs, jobs=flags.jobs)

    rows = {beta: point(out / f"beta-{beta:g}") for beta in sorted(flags.betas)}
    write_json(out / "betas.json", {"training": training, "betas": {f"{beta:g}": row for beta, row in rows.items()}})
    write_whole(out / "betas.png", to_png(plot(rows)))
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
    best = max(run.metrics(), key=lambda row: row["validation_objective"])  # the epoch whose weights were kept
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


def plot(rows: dict[float, dict[str, float]]) -> Figure:
    """Plot reconstruction against divergence, with dotted lines of equal ELBO."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    kl, reconstruction = ([row[key] for row in rows.values()] for key in ("kl", "reconstruction"))
    axes.plot(kl, reconstruction, "o-", color="C0")
    for beta, x, y in zip(rows, kl, reconstruction, strict=True):
        axes.annotate(f"{beta:g}", (x, y), xytext=(5, -11), textcoords="offset points")
    axes.margins(0.1)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    step = max(1.0, round((high - low + right - left) / 12))
    elbo = step * round((low - right) / step)
    while elbo < high - left:
        axes.plot([left, right], [elbo + left, elbo + right], ":", color="0.8", zorder=0)
        elbo += step
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_xlabel("KL(q(z|x), p(z)), nats per datum")
    axes.set_ylabel("E log p(x|z), nats per datum")
    axes.set_title(f"beta as a dial; dotted: equal ELBO, {step:g} nats apart", fontsize=10)
    return figure


if __name__ == "__main__":
    run_script(main)
