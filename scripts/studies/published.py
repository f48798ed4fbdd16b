"""Published results under their own protocols, beside what theory or the paper says.

python scripts/studies/published.py ppca
python scripts/studies/published.py ppca --latent_dims [1,10] --out ppca.json
python scripts/studies/published.py k-fold --runs k-fold --jobs 2                  # the same command resumes it
python scripts/studies/published.py k-fold --runs k-fold --folds 2 --epochs 5      # shortened, to see that it works

"ppca": the maximum of a linear VAE's likelihood is probabilistic PCA, in closed form (Tipping and Bishop,
"Probabilistic principal component analysis", 1999; Lucas et al., "Don't blame the ELBO!", NeurIPS 2019). A linear
decoder with one learned noise scale and a linear encoder with a diagonal covariance are trained on the digits by the
ELBO, all training data at each of 3,000 steps, with Adam and a cosine schedule. The table compares the default log p(x)
of the VAE with the closed form on the test data. Log p(x) is in nats per datum, of pixels in units of their common
standard deviation.

"k-fold": the standard VAE and one with a flow prior on the digits, by 10-fold cross-validation (see swap.py --folds):
the mean log p(x) of held-out data, in nats, and its difference paired by datum, with errors over data and over folds.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from jsonargparse.typing import PositiveInt
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovae import VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior, fit, log_marginal
from pyrovae.data import load_data
from pyrovae.execution import Progress
from pyrovae.runs import Seed, check_folder, check_writable, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.comparison import compare_folds
from pyrovae.runs.sweep import train_folds
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error

_LEARNING_RATE = 0.05
_FOLDS, _EPOCHS = 10, 300  # of the full k-fold
_SECONDS = 10, 50  # of a training and evaluation of k-fold on one idle core: of any, and of 300 epochs


def main() -> int:
    """Reproduce one result, and print its table."""
    parser = make_parser(prog="published.py", description=__doc__)
    add = parser.add_argument
    add("name", type=Literal["ppca", "k-fold"], help="name of the result")
    all_dims = list(range(1, 31))
    add("--latent_dims", type=list[PositiveInt], default=all_dims, help="numbers of latents Z (default: 1 to 30)")
    add("--steps", type=PositiveInt, default=3000, help="number of training steps of ppca")
    add("--folds", type=PositiveInt, default=_FOLDS, help="number of folds of k-fold")
    add("--epochs", type=PositiveInt, default=_EPOCHS, help="maximum number of epochs of k-fold")
    add("--runs", type=str, default="k-fold", help="folder of the runs of k-fold")
    add("--jobs", type=PositiveInt, default=1, help="parallel trainings of k-fold")
    add("--num_particles", type=PositiveInt, default=1000, help="draws per test datum for log p(x)")
    add("--seed", type=Seed, default=0, help="seed of training and draws")
    add("--out", type=str | None, default=None, help="JSON file of the numbers (default: null)")
    flags = parse_flags(parser, sys.argv[1:])
    check_writable("--out", flags.out)
    rows = RESULTS[flags.name](flags)
    if flags.out is not None:
        write_json(Path(flags.out), {"flags": vars(flags), "rows": rows})
        print(f"wrote {flags.out}")
    return 0


def ppca(flags: Any) -> list[dict[str, float]]:
    """Compare linear VAEs with probabilistic PCA on the digits, for each number of latents."""
    data = load_data("digits", binarize="none")
    unit, centre = data.train.std(), data.train.mean(0)
    train, test = (data.train - centre) / unit, (data.test - centre) / unit
    if max(flags.latent_dims) >= train.shape[1]:
        raise ValueError(f"--latent_dims: probabilistic PCA of {train.shape[1]} pixels needs fewer latents than pixels")
    rows = []
    with Progress(len(flags.latent_dims), "model", "training") as progress:
        for size in flags.latent_dims:
            start = time.perf_counter()
            vae = trained_linear(train, size, steps=flags.steps, seed=flags.seed)
            found = log_marginal(vae.model, vae.guide, test, num_particles=flags.num_particles)
            exact = probabilistic_pca(train, size).log_prob(test.double())
            difference, error = mean_and_std_error(found.value - exact)
            rows.append(
                {
                    "latents": size,
                    "ppca": exact.mean().item(),
                    "vae": found.value.mean().item(),
                    "mc_std_error": found.std_error.square().sum().sqrt().item() / len(test),
                    "difference": difference,
                    "std_error": error,
                    "seconds": time.perf_counter() - start,
                }
            )
            progress.update()
    head = ["Z", "probabilistic PCA", "linear VAE", "s.e. MC", "difference", "s.e. data", "seconds"]
    forms = ("d", ".3f", ".3f", ".4f", "+.3f", ".3f", ".0f")
    print(aligned([head, *([format(v, form) for v, form in zip(row.values(), forms, strict=True)] for row in rows)]))
    return rows


def k_fold(flags: Any) -> dict[str, dict[str, Any]]:
    """Compare the standard VAE with a flow prior on the digits by cross-validation, and resume it."""
    check_folder("--runs", flags.runs)
    runs = Path(flags.runs) / f"{flags.epochs}-epochs-{flags.num_particles}-draws-seed-{flags.seed}"
    variants = {"standard": "", "flow-prior": "--prior FlowPrior --prior.kind maf"}
    count = len(variants) * flags.folds
    full = (flags.folds, flags.epochs) == (_FOLDS, _EPOCHS)
    minutes = count * (_SECONDS[0] + _SECONDS[1] * flags.epochs / _EPOCHS) / 60
    print(
        f"{count} trainings of at most {flags.epochs} epochs, about {max(1, round(minutes))} min on one idle core; "
        f"finished ones in {runs} are not trained again"
    )
    if not full:
        print(f"shortened: the full study has {_FOLDS} folds and {_EPOCHS} epochs, and its numbers differ")
    sys.stdout.flush()
    common = f"--data digits --epochs {flags.epochs} --num_particles {flags.num_particles}"
    folders = train_folds(
        Path(__file__).parents[1] / "train.py",
        runs,
        {name: f"{common} {own}".split() for name, own in variants.items()},
        folds=flags.folds,
        seed=flags.seed,
        jobs=flags.jobs,
    )
    found, text = compare_folds(folders, "standard")
    print(f"\n{text}{'' if full else ' (shortened)'}")
    return {name: asdict(row) for name, row in found.items()}


def trained_linear(x: Tensor, size: int, *, steps: int, seed: int) -> VAE:
    """Train a linear VAE on data with shape (N, D), with a number of latents."""
    pyro.set_rng_seed(seed)
    num_dims = x.shape[1]
    likelihood = NormalLikelihood(nn.Linear(size, num_dims), scale="global")
    vae = VAE(StandardNormalPrior(size), likelihood, NormalEncoder(nn.Linear(num_dims, 2 * size)))
    fit(
        vae.model,
        vae.guide,
        x,
        elbo=TraceMeanField_ELBO(),
        epochs=steps,
        batch_size=len(x),
        optimizer=partial(torch.optim.Adam, lr=_LEARNING_RATE, fused=True),
        lr_schedule=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        seed=seed,
    )
    return vae


def probabilistic_pca(x: Tensor, size: int) -> torch.distributions.MultivariateNormal:
    """Fit probabilistic PCA by maximum likelihood to data with shape (N, D): its density, in double precision.

    The covariance is W W' + s^2 I, W = V (L - s^2 I)^(1/2), with the largest eigenvalues L and eigenvectors V of the
    covariance of the data, and s^2 the mean of the other eigenvalues (Tipping and Bishop 1999, equations 7 and 8).
    """
    x = x.double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    values, vectors = values.flip(0), vectors.flip(1)
    noise = values[size:].mean()
    weight = vectors[:, :size] * (values[:size] - noise).sqrt()
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    return torch.distributions.MultivariateNormal(x.mean(0), weight @ weight.T + noise * identity)


RESULTS: dict[str, Callable[[Any], Any]] = {"ppca": ppca, "k-fold": k_fold}
"""Results by name."""


if __name__ == "__main__":
    run_script(main)
