"""Published results under their own protocols, beside what theory or the paper says.

python scripts/studies/published.py ppca
python scripts/studies/published.py ppca --latent_dims '[1,10]' --out ppca.json
python scripts/studies/published.py k-fold --jobs 2                    # the same command resumes it
python scripts/studies/published.py vae-mlp400 --data_dir data         # MNIST; protocols.py holds the flags of train.py
python scripts/studies/published.py vampprior --epochs 5 --seeds '[0]'   # shortened, to see that it works
python scripts/studies/published.py burda-iwae --full true             # all epochs; the default has the first 121

"vae-mlp400", "burda-vae", "burda-iwae", "vampprior" and "rainforth" train on MNIST with several seeds, and compare L_K,
the bound of K draws of the guide, with the published value. They say their cost before they start. Runs lie in --runs,
and the same command resumes them. Flags after -- go to train.py; those that change more than the machine change the
protocol, which the table says too. "burda-vae", "burda-iwae" and "rainforth" would take days, so they are shortened by
default, and say so.

"wu-ais": annealed importance sampling against importance sampling on one decoder, that of the first seed of
"vae-mlp400", with two layers: 1,000 temperatures for 1,000 test images, and 10,000 for 50 (Wu et al.,
https://arxiv.org/abs/1611.04273).

"cremer-gaps": approximation gap and amortisation gap of the first seed of "burda-vae" with k = 1, on 1,000 test and
1,000 training images (Cremer et al., https://arxiv.org/abs/1801.03558, whose code has training images of fixed bits,
and raises the KL weight over the first epochs). Log p(x) is the default with --num_particles draws.

"ppca": the maximum of a linear VAE's likelihood is probabilistic PCA, in closed form (Tipping and Bishop,
"Probabilistic principal component analysis", 1999; Lucas et al., "Don't blame the ELBO!", NeurIPS 2019). A linear
decoder with one learned noise scale and a linear encoder with a diagonal covariance are trained on the digits by the
ELBO, all training data at each of 3,000 steps, with Adam and a cosine schedule. The table compares the default log p(x)
of the VAE with the closed form on the test data. Each model's row is saved in --runs. Log p(x) is in nats per datum, of
pixels in units of their common standard deviation.

"k-fold": the standard VAE and one with a flow prior on the digits, by 10-fold cross-validation (see swap.py --folds):
the mean log p(x) of held-out data, in nats, and its difference paired by datum, with errors over data and over folds.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyro
import torch
from estimators import summary
from jsonargparse.typing import PositiveInt
from protocols import PROTOCOLS, Trained, tabulate, train
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovae import VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior, fit, log_marginal
from pyrovae.data import load_data
from pyrovae.evidence import refine
from pyrovae.execution import Progress
from pyrovae.runs import (
    Seed,
    check_folder,
    check_writable,
    make_parser,
    parse_flags,
    read_json,
    run_script,
    write_json,
)
from pyrovae.runs.comparison import compare_folds
from pyrovae.runs.parser import flags_and_values
from pyrovae.runs.sweep import device_of, load_or_compute, model_and_data, refuse_flags, split_flags, train_folds
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error, monte_carlo_std_error

_LEARNING_RATE = 0.05
_FOLDS, _EPOCHS = 10, 300  # of the full k-fold
_SECONDS = 10, 50  # of a training and evaluation of k-fold on one idle core: of any, and of 300 epochs
_MNIST = 10_000  # test images
_WU = "Wu et al., for a decoder of their own: AIS -85.62, draws of the guide -86.90 (K = 10^4), -86.46 (K = 10^5)"
_WU_PLANS = {1000: 1000, 10_000: 50}  # test images, by the number of temperatures
_AIS_SECONDS = 0.007  # a temperature of a test image with 16 chains, on one core
_CREMER = 1000  # images of each split
_CREMER_SECONDS = 0.3  # log p(x) and the best normal of an image, on one core
_GAPS = {
    "log_marginal": "log p(x)",
    "elbo": "ELBO, best diagonal normal",
    "guide_elbo": "ELBO, guide",
    "approximation_gap": "approximation gap",
    "amortisation_gap": "amortisation gap",
}
_PPCA_STEPS, _PPCA_SECONDS = 3000, 13  # steps of a linear VAE, and their time on one core
_TAKEN = {
    "seed": "give --seed or --seeds before --",
    "epochs": "give --epochs before --",
    "data_dir": "give --data_dir before --",
    "out": "give --runs before --",
    "num_particles": "give --num_particles before --",
    "proposal": "the table uses the default and the guide",
}
_RUNS_OF = {"wu-ais": "vae-mlp400", "cremer-gaps": "burda-vae"}  # whose first run they use
_STUDIES = Path(__file__).parent


def main() -> int:
    """Reproduce one result, and print its table."""
    parser = make_parser(prog="published.py", description=__doc__)
    add = parser.add_argument
    add("name", type=Literal[tuple(RESULTS)], help="name of the result")
    add("--runs", type=str | None, default=None, help="folder of the runs (default: published/NAME)")
    add("--data_dir", type=str, default="data", help="folder that holds MNIST, or receives it")
    add("--seeds", type=list[Seed], default=[0, 1, 2], help="seeds of the trainings on MNIST")
    add("--epochs", type=PositiveInt | None, default=None, help="maximum number of epochs (default: the protocol's)")
    add("--full", type=bool, default=False, help="whether a protocol that is shortened by default runs in full")
    add("--num_data", type=PositiveInt | None, default=None, help="number of test data (default: the protocol's)")
    add("--num_particles", type=PositiveInt, default=1000, help="draws of the default proposal per test datum")
    add("--jobs", type=PositiveInt, default=1, help="number of trainings at the same time")
    all_dims = list(range(1, 31))
    add(
        "--latent_dims",
        type=list[PositiveInt],
        default=all_dims,
        help="numbers of latents of ppca (default: 1 to 30)",
    )
    add("--steps", type=PositiveInt, default=_PPCA_STEPS, help="number of training steps of ppca")
    add("--temperatures", type=list[PositiveInt], default=[1000, 10_000], help="numbers of temperatures of wu-ais")
    add("--folds", type=PositiveInt, default=_FOLDS, help="number of folds of k-fold")
    add("--seed", type=Seed, default=0, help="seed of the others, and of draws")
    add("--out", type=str | None, default=None, help="JSON file of the numbers (default: null)")
    own, changes = split_flags(sys.argv[1:])
    flags = parse_flags(parser, own)
    flags.changes = changes
    _check_flags(flags.name, own, changes)
    if flags.runs is not None:
        check_folder("--runs", flags.runs)
    flags.runs = Path(flags.runs or Path("published") / _RUNS_OF.get(flags.name, flags.name))
    check_writable("--out", flags.out)
    made = RESULTS[flags.name].make(flags)
    if flags.out is not None:
        used = ["name", *sorted(RESULTS[flags.name].flags - {"out"})]
        given = {flag: str(flags[flag]) if flag == "runs" else flags[flag] for flag in used}
        write_json(Path(flags.out), {"flags": {**given, "changes": changes}, **made})
        print(f"wrote {flags.out}")
    return 0


def _check_flags(name: str, own: Sequence[str], changes: Sequence[str]) -> None:
    """Check that the result uses all flags that were given, and sets none of those after "--" itself.

    Raises:
        ValueError: With the first flag that it does not use or sets itself.
    """
    used = RESULTS[name].flags
    for flag, _ in flags_and_values(own):
        if flag not in used:
            raise ValueError(f"--{flag}: {name} does not use it, only {', '.join(f'--{one}' for one in sorted(used))}")
    if changes and "data_dir" not in used:
        raise ValueError(f"--: {name} takes no flags of train.py; omit {' '.join(changes)}")
    refuse_flags(changes, _TAKEN)


def ppca(flags: Any) -> dict[str, Any]:
    """Compare linear VAEs with probabilistic PCA on the digits, for each number of latents, and resume it."""
    data = load_data("digits", binarize="none")
    unit, centre = data.train.std(), data.train.mean(0)
    train, test = (data.train - centre) / unit, (data.test - centre) / unit
    rank = int(torch.linalg.matrix_rank(torch.cov(train.double().T)))
    if max(flags.latent_dims) >= rank:
        raise ValueError(f"--latent_dims: probabilistic PCA needs fewer latents than {rank}, the rank of the data")
    count = len(flags.latent_dims)
    minutes = count * _PPCA_SECONDS * flags.steps / _PPCA_STEPS / 60
    print(
        f"{count} {'training' if count == 1 else 'trainings'} of {flags.steps:,} steps, about {minutes:.1f} min on one "
        f"core; finished ones in {flags.runs} are not repeated",
        flush=True,
    )
    rows = []
    with Progress(count, "model", "training") as progress:
        for size in flags.latent_dims:
            file = f"Z-{size}-{flags.steps}-steps-{flags.num_particles}-draws-seed-{flags.seed}.json"
            row = read_json(flags.runs / file) if (flags.runs / file).exists() else _ppca_row(train, test, size, flags)
            flags.runs.mkdir(parents=True, exist_ok=True)
            write_json(flags.runs / file, row)
            rows.append(row)
            progress.update()
    head = ["Z", "probabilistic PCA", "linear VAE", "s.e. MC", "difference", "s.e. data", "seconds"]
    forms = ("d", ".3f", ".3f", ".4f", "+.3f", ".3f", ".0f")
    print(aligned([head, *([format(v, form) for v, form in zip(row.values(), forms, strict=True)] for row in rows)]))
    return {"rows": rows}


def _ppca_row(train: Tensor, test: Tensor, size: int, flags: Any) -> dict[str, float]:
    """Train a linear VAE, and compare it with probabilistic PCA on the test data, both with a number of latents."""
    start = time.perf_counter()
    vae = trained_linear(train, size, steps=flags.steps, seed=flags.seed)
    found = log_marginal(vae.model, vae.guide, test, num_particles=flags.num_particles)
    exact = probabilistic_pca(train, size).log_prob(test.double())
    difference, error = mean_and_std_error(found.value - exact)
    return {
        "latents": size,
        "ppca": exact.mean().item(),
        "vae": found.value.mean().item(),
        "mc_std_error": found.std_error.square().sum().sqrt().item() / len(test),
        "difference": difference,
        "std_error": error,
        "seconds": time.perf_counter() - start,
    }


def protocol(flags: Any) -> dict[str, Any]:
    """Train and evaluate by a protocol of `PROTOCOLS`, and print its table."""
    num_data, device = flags.num_data or _MNIST, device_of(flags.changes)
    trained = _trained(flags, flags.name, flags.seeds, num_data)
    rows = tabulate(trained, num_data=num_data, num_particles=flags.num_particles, device=device)
    return {"source": trained.protocol.source, "label": trained.label, "rows": rows}


def wu_ais(flags: Any) -> dict[str, Any]:
    """Compare annealed importance sampling with draws of the guide and of the default, on one decoder."""
    device = device_of(flags.changes)
    plans = [(count, min(_wu_images(count), flags.num_data or _MNIST)) for count in flags.temperatures]
    hours = sum(count * size for count, size in plans) * _AIS_SECONDS / 3600
    print(f"annealing takes about {hours:.1f} hours on one core, after the training:")
    shortened = [
        f"{size:,} of {_wu_images(count):,} test data with {count:,} temperatures"
        for count, size in plans
        if size < _wu_images(count)
    ]
    shortened += [f"without {count:,} temperatures" for count in _WU_PLANS if count not in flags.temperatures]
    trained = _trained(flags, "vae-mlp400", [flags.seed], None, variants=["VAE, 400-400"], shortened=shortened)
    (run,) = trained.folders.values()
    print(_WU)
    rows = {}
    for count, size in plans:
        out = run.with_name(f"{run.name}-ais-{count}-{size}.json")
        estimators = f"--guide [5000] --default [{flags.num_particles}] --ais_prior [{count}] --ais_guide []"
        command = [sys.executable, str(_STUDIES / "estimators.py"), str(run), *estimators.split()]
        command += f"--ais_laplace [] --num_data {size} --seed {flags.seed} --device {device}".split()
        sys.stdout.flush()
        if subprocess.run([*command, "--data_dir", flags.data_dir, "--out", str(out)], check=False).returncode:
            raise ValueError(f"{out}: annealing with {count:,} temperatures failed; see the message above")
        rows[f"T = {count:,}, {size:,} test data"] = summary(read_json(out)["rows"])
    print(trained.label)
    return {"source": _WU, "label": trained.label, "rows": rows}


def _wu_images(num_temperatures: int) -> int:
    """Return the number of test images for a number of temperatures."""
    few, many = _WU_PLANS
    return _WU_PLANS[few if num_temperatures <= few else many]


def cremer_gaps(flags: Any) -> dict[str, Any]:
    """Measure approximation and amortisation gaps of a VAE on MNIST, and resume it."""
    num_data, device = flags.num_data or _CREMER, device_of(flags.changes)
    shortened = [f"{num_data:,} of {_CREMER:,} images"] if num_data < _CREMER else []
    minutes = 2 * num_data * _CREMER_SECONDS / 60
    print(f"{2 * num_data:,} normals, of test and training images, take about {minutes:.1f} min after the training:")
    trained = _trained(flags, "burda-vae", [flags.seed], None, variants=["VAE, k = 1"], shortened=shortened)
    (run,) = trained.folders.values()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for split in ("test", "train"):
        settings = ("gaps", split, num_data, flags.num_particles, flags.seed)
        compute = partial(_gaps, run, num_data, split, flags, device)
        values = load_or_compute(run, settings, compute, names=[*_GAPS, *(f"{name} error" for name in _GAPS)])
        lines = [["", "nats", "s.e. data", "s.e. MC"]]
        rows[split] = {}
        for name, words in _GAPS.items():
            value, error = values[name], values[f"{name} error"]
            known = ~value.isnan()
            mean, over_data = mean_and_std_error(value[known])
            monte_carlo = monte_carlo_std_error(error[known])
            about = {"mean": mean, "std_error": over_data, "mc_std_error": monte_carlo, "num_data": int(known.sum())}
            rows[split][name] = about
            lines.append([words, f"{mean:.3f}", f"{over_data:.3f}", f"{monte_carlo:.3f}"])
        lost = int(values["elbo"].isnan().sum())
        images = f"{len(values['elbo']):,} {'training' if split == 'train' else split} images"
        print(f"\n{aligned(lines)}\n{images}, of which {lost} without a converged normal")
    print(trained.label)
    return {"source": trained.protocol.source, "label": trained.label, "rows": rows}


def _gaps(run: Path, num_data: int, split: str, flags: Any, device: torch.device) -> dict[str, Tensor]:
    """Compute the values of `_GAPS` and their errors for the first data of a split, each with shape (N,)."""
    vae, x, _ = model_and_data(run, num_data, split=split, device=device)
    pyro.set_rng_seed(flags.seed)
    marginal = log_marginal(vae.model, vae.guide, x, num_particles=flags.num_particles)
    found = refine(vae.model, vae.guide, x, log_p=marginal)
    values = {
        "log_marginal": (marginal.value, marginal.std_error),
        "elbo": (found.elbo, found.elbo_error),
        "guide_elbo": (found.guide_elbo, found.guide_elbo_error),
        "approximation_gap": (found.approximation_gap, found.approximation_error),
        "amortisation_gap": (found.amortisation_gap, found.amortisation_error),
    }
    plain = {name: value for name, (value, _) in values.items()}
    return plain | {f"{name} error": error for name, (_, error) in values.items()}


def k_fold(flags: Any) -> dict[str, Any]:
    """Compare the standard VAE with a flow prior on the digits by cross-validation, and resume it."""
    epochs = flags.epochs or _EPOCHS
    runs = flags.runs / f"{epochs}-epochs-{flags.num_particles}-draws-seed-{flags.seed}"
    variants = {"standard": "", "flow-prior": "--prior FlowPrior --prior.kind maf"}
    count = len(variants) * flags.folds
    full = (flags.folds, epochs) == (_FOLDS, _EPOCHS)
    minutes = count * (_SECONDS[0] + _SECONDS[1] * epochs / _EPOCHS) / 60
    print(
        f"{count} trainings of at most {epochs} epochs, about {max(1, round(minutes))} min on one idle core; "
        f"finished ones in {runs} are not trained again"
    )
    if not full:
        print(f"not the full study, which has {_FOLDS} folds and {_EPOCHS} epochs: its numbers differ")
    sys.stdout.flush()
    common = f"--data digits --epochs {epochs} --num_particles {flags.num_particles}"
    folders = train_folds(
        Path(__file__).parents[1] / "train.py",
        runs,
        {name: f"{common} {own}".split() for name, own in variants.items()},
        folds=flags.folds,
        seed=flags.seed,
        jobs=flags.jobs,
    )
    found, text = compare_folds(folders, "standard")
    print(f"\n{text}{'' if full else ' (not the full study)'}")
    label = "complete study" if full else "not the full study"
    return {"label": label, "rows": {name: asdict(row) for name, row in found.items()}}


def _trained(
    flags: Any,
    name: str,
    seeds: Sequence[int],
    num_data: int | None,
    variants: Sequence[str] | None = None,
    shortened: Sequence[str] = (),
) -> Trained:
    """Train by a protocol, with the flags of this script."""
    return train(
        name,
        flags.runs,
        seeds=seeds,
        variants=variants,
        epochs=flags.epochs,
        full=flags.full,
        num_data=num_data,
        data_dir=flags.data_dir,
        jobs=flags.jobs,
        changes=flags.changes,
        shortened=shortened,
    )


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


class Result(NamedTuple):
    """Function of the parsed flags that prints a table and returns its numbers, and the names of the flags it uses."""

    make: Callable[[Any], Any]
    flags: frozenset[str]


_OF_RUNS = frozenset({"runs", "data_dir", "epochs", "full", "num_data", "num_particles", "jobs", "out"})
RESULTS: dict[str, Result] = {
    **dict.fromkeys(PROTOCOLS, Result(protocol, _OF_RUNS | {"seeds"})),
    "wu-ais": Result(wu_ais, _OF_RUNS - {"full", "jobs"} | {"seed", "temperatures"}),
    "cremer-gaps": Result(cremer_gaps, _OF_RUNS - {"jobs"} | {"seed"}),
    "ppca": Result(ppca, frozenset({"runs", "latent_dims", "steps", "num_particles", "seed", "out"})),
    "k-fold": Result(k_fold, frozenset({"runs", "folds", "epochs", "num_particles", "seed", "jobs", "out"})),
}
"""Results by name."""


if __name__ == "__main__":
    run_script(main)
