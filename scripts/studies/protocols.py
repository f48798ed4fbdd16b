"""Protocols of published results that train.py can follow, and the table that sets them beside ours.

`published.py` runs them. Numbers are mean log p(x) of the test set in nats, estimated from draws of the guide, as the
papers do. All are of MNIST with bits of our own: those of Larochelle and Murray (2011), which "static" stands for in
the papers, are another draw from the same grey values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyrovae.execution import Progress
from pyrovae.runs import Run
from pyrovae.runs.sweep import measure, train_all, without_machine
from pyrovae.runs.tables import aligned
from pyrovae.stats import crossed_mean_and_std_error

_BURDA = (
    "--data mnist --latent_dim 50 --network.hidden [200,200] --network.activation tanh --output_bias data "
    "--batch_size 20 --optimizer.eps 1e-4 --lr 1e-3 --lr_schedule BurdaLR --patience null"
)
_STATIC = "--data mnist --binarize static --num_validation 10000 --latent_dim 40 --batch_size 100"
_COMPLETE = "complete protocol, with the differences named above"
_TRAINING = "--num_particles 25 --proposal guide --threads 1 --execution compiled"  # the table has draws of its own


@dataclass(frozen=True)
class Variant:
    """One row of a published table.

    Attributes:
        flags: Flags of train.py.
        published: Log p(x) of the source, in nats; None if it has none.
    """

    flags: str
    published: float | None


@dataclass(frozen=True)
class Protocol:
    """How a table was made, and where it is printed.

    Attributes:
        source: Paper or code, and what differs here.
        common: Flags of train.py that all variants share, without --epochs.
        variants: Rows by their names.
        epochs: Largest number of epochs of the full protocol.
        guide_particles: Number of draws K of the guide.
        here: Largest number of epochs without --full, where all of them would take days; None for all.
        epoch_seconds: Rough time of an epoch of one variant on one core.
        likely_epochs: Rough number of epochs after which early stopping ends a training; None for all.
        datum_seconds: Rough time of log p(x) of a test datum, by K draws of the guide and 1,000 of the default.
    """

    source: str
    common: str
    variants: dict[str, Variant]
    epochs: int
    guide_particles: int
    epoch_seconds: float
    likely_epochs: int | None = None
    here: int | None = None
    datum_seconds: float = 0.09


def _burda(objective: str, variants: dict[str, Variant]) -> Protocol:
    """Make a protocol of Burda et al.'s network with one stochastic layer."""
    return Protocol(
        source=(
            "Burda et al., https://arxiv.org/abs/1509.00519, Table 1; here with 55,000 of their 60,000 training\n"
            "images, since the others choose the epoch, and with PyTorch's initial weights, not Glorot's."
        ),
        common=f"{_BURDA} {objective}",
        variants=variants,
        epochs=3280,
        here=121,
        guide_particles=5000,
        epoch_seconds=8.0,
    )


PROTOCOLS: dict[str, Protocol] = {
    "vae-mlp400": Protocol(
        source=(
            "Rezende and Mohamed, https://arxiv.org/abs/1505.05770, by the schedule of pythae's repetition, which\n"
            "reached -89.78 (https://github.com/clementchadebec/benchmark_VAE). Its script has one hidden layer\n"
            "of 400, and a second one commented out. The value comes out with two. Rezende and Mohamed's own\n"
            "network and optimiser differ from both."
        ),
        common=(
            f"{_STATIC} --lr 1e-4 --lr_schedule MultiStepLR "
            "--lr_schedule.milestones [200,350] --lr_schedule.gamma 0.630957 --patience null"
        ),
        variants={
            "VAE, 400-400": Variant("--network.hidden [400,400]", -89.9),
            "VAE, 400": Variant("--network.hidden [400]", None),
        },
        epochs=500,
        guide_particles=200,
        epoch_seconds=5.0,
    ),
    "burda-vae": _burda(
        "--elbo MultiplyImportanceWeightedELBO --elbo.num_particles 1",
        {f"VAE, k = {k}": Variant(f"--elbo.num_groups {k}", v) for k, v in ((1, -86.76), (5, -86.47))},
    ),
    "burda-iwae": _burda(
        "--elbo ImportanceWeightedELBO",
        {f"IWAE, k = {k}": Variant(f"--elbo.num_particles {k}", v) for k, v in ((1, -86.76), (5, -85.54))},
    ),
    "vampprior": Protocol(
        source=(
            "Tomczak and Welling, https://arxiv.org/abs/1705.07120; pythae's repetition reached -85.79. Their\n"
            "code differs from ours: its Adam divides the gradient of each parameter by its norm; weights begin\n"
            "normal with He's variance, and pseudo-inputs near 0.05, not at training images; pseudo-inputs and the\n"
            "log variance of q are clipped; and epochs without improvement count after the warm-up alone."
        ),
        common=(
            f"{_STATIC} --network GatedMLP --network.hidden [300,300] --lr 5e-4 --kl_weight LinearWarmup "
            "--kl_weight.epochs 100 --patience 50"
        ),
        variants={
            "VampPrior": Variant("--prior VampPrior --prior.num_components 500", -85.57),
            "standard": Variant("", None),
        },
        epochs=2000,
        guide_particles=5000,
        epoch_seconds=17.0,
        likely_epochs=270,
        datum_seconds=0.4,
    ),
    "rainforth": Protocol(
        source=(
            "Rainforth et al., https://arxiv.org/abs/1802.04537, with 64 draws per datum; figures as quoted by\n"
            "pythae, whose repetition reached -85.09, -84.58 and -84.74. Here with 55,000 of 60,000 training images\n"
            "and PyTorch's initial weights, not Glorot's."
        ),
        common=_BURDA,
        variants={
            "MIWAE (8, 8)": Variant("--elbo MultiplyImportanceWeightedELBO", -84.97),
            "PIWAE (8, 8)": Variant("--elbo PartiallyImportanceWeightedELBO", -84.46),
            "CIWAE 0.05": Variant(
                "--elbo CombinedImportanceWeightedELBO --elbo.share 0.05 --elbo.num_particles 64", -84.57
            ),
        },
        epochs=3280,
        here=13,
        guide_particles=5000,
        epoch_seconds=70.0,
    ),
}
"""Protocols by the names of published.py."""


@dataclass(frozen=True)
class Trained:
    """Runs of a protocol.

    Attributes:
        protocol: The protocol.
        folders: Run folders by variant and seed.
        label: Whether it is complete, in words.
    """

    protocol: Protocol
    folders: dict[tuple[str, int], Path]
    label: str


def train(
    name: str,
    runs: Path,
    *,
    seeds: Sequence[int],
    variants: Sequence[str] | None = None,
    epochs: int | None,
    full: bool,
    num_data: int | None,
    data_dir: str,
    jobs: int,
    changes: Sequence[str],
    shortened: Sequence[str] = (),
) -> Trained:
    """Train each variant with each seed, or resume it; say the cost first.

    Args:
        name: Name of the protocol.
        runs: Folder of the runs.
        seeds: Seeds of training.
        variants: Names of the variants; None for all.
        epochs: Largest number of epochs; None for that of the protocol.
        full: Whether to train for all epochs of the full protocol, where fewer are the default.
        num_data: Number of test data that `tabulate` will evaluate; None for none.
        data_dir: Folder of MNIST.
        jobs: Number of parallel trainings.
        changes: Further flags of train.py, which change the protocol.
        shortened: In what the evaluation is not the published one, in words.

    Raises:
        ValueError: If a training fails.
    """
    protocol = PROTOCOLS[name]
    most = epochs or (protocol.epochs if full or protocol.here is None else protocol.here)
    chosen = list(protocol.variants if variants is None else variants)
    changed = without_machine(changes)
    parent = runs / re.sub(r"[^\w.]+", "-", " ".join([f"{most} epochs", *changed])).strip("-")
    folders = {
        (variant, seed): parent / f"{re.sub(r'[^A-Za-z0-9.]+', '-', variant).strip('-')}-{seed}"
        for variant in chosen
        for seed in seeds
    }
    label = _label(protocol, most, num_data, changed, shortened)
    likely = min(most, protocol.likely_epochs or most)
    hours = len(folders) * (likely * protocol.epoch_seconds / jobs + (num_data or 0) * protocol.datum_seconds) / 3600
    work = "They" if num_data is None else f"With log p(x) of {num_data:,} test data they"
    print(f"{name}: {protocol.source}\n")
    trainings = "1 training" if len(folders) == 1 else f"{len(folders)} trainings"
    print(
        f"{trainings} of at most {most:,} epochs. {work} take about {hours:.1f} hours here, less what is finished in "
        f"{parent}, which is not repeated.\n{label}",
        flush=True,
    )
    flags = {
        folder: [
            *f"{protocol.common} {protocol.variants[variant].flags} --epochs {most} --seed {seed}".split(),
            *_TRAINING.split(),
            *("--data_dir", data_dir),
            *changes,
        ]
        for (variant, seed), folder in folders.items()
    }
    train_all(Path(__file__).parents[1] / "train.py", flags, jobs=jobs)
    return Trained(protocol, folders, label)


def tabulate(
    trained: Trained, *, num_data: int, num_particles: int, device: torch.device
) -> dict[str, dict[str, float | None]]:
    """Evaluate the runs of a protocol, and print their table beside the published one.

    Args:
        trained: Result of `train`.
        num_data: Number of test data, from the first.
        num_particles: Number of draws of the default proposal per datum.
        device: Device of the evaluation.

    Returns:
        Numbers of each variant by name.
    """
    protocol = trained.protocol
    draws = {"guide_particles": protocol.guide_particles, "num_particles": num_particles}
    found: dict[str, list[dict[str, Tensor]]] = {}
    with Progress(num_data * len(trained.folders), "datum", "log p(x)") as progress:
        for done, ((variant, _), folder) in enumerate(trained.folders.items(), 1):
            values = measure(folder, num_data, **draws, device=device, on_progress=progress.update)
            values["epochs"] = torch.tensor(float(len(Run(folder).metrics())))
            found.setdefault(variant, []).append(values)
            progress.update(num_data * done - progress.done)  # what was measured before, or is not there
    rows = {variant: _row(values, protocol.variants[variant].published) for variant, values in found.items()}
    head = ["", "published", f"L_{protocol.guide_particles}", "s.e. data", "sd seeds", "difference", "log p(x)", "ELBO"]
    columns = ("published", "bound", "std_error", "sd", "difference", "log_marginal", "elbo")
    lines = [
        [variant, *(_number(row[c], "+.2f" if c == "difference" else ".2f") for c in columns), f"{row['epochs']:.0f}"]
        for variant, row in rows.items()
    ]
    seeds = sorted({seed for _, seed in trained.folders})
    size = len(next(iter(found.values()))[0]["bound"])
    print(f"\n{aligned([[*head, 'epochs'], *lines])}\n{trained.label}; {size:,} test data, seeds {seeds}")
    return rows


def _label(
    protocol: Protocol, epochs: int, num_data: int | None, changes: Sequence[str], shortened: Sequence[str]
) -> str:
    """Say whether the protocol is complete."""
    reasons = list(shortened)
    if epochs < protocol.epochs:
        reasons.append(f"at most {epochs:,} of {protocol.epochs:,} epochs")
    if num_data is not None and num_data < 10_000:
        reasons.append(f"{num_data:,} of 10,000 test data")
    kind = "shortened" if reasons else "changed"
    if epochs > protocol.epochs:
        reasons.append(f"at most {epochs:,} epochs in place of {protocol.epochs:,}")
    if changes:
        reasons.append(f"changed by {' '.join(changes)}")
    return f"{kind} ({'; '.join(reasons)}): the numbers do not claim to agree" if reasons else _COMPLETE


def _row(by_seed: list[dict[str, Tensor]], published: float | None) -> dict[str, float | None]:
    """Compute means over seeds and data, and the errors of L_K."""
    values = {key: torch.stack([one[key] for one in by_seed]) for key in by_seed[0]}
    bound, error = crossed_mean_and_std_error(values["bound"])
    return {
        "published": published,
        "bound": bound,
        "std_error": error,
        "sd": values["bound"].mean(1).std().item() if len(by_seed) > 1 else None,
        "difference": None if published is None else bound - published,
        "log_marginal": values["log_marginal"].mean().item(),
        "elbo": values["elbo"].mean().item(),
        "epochs": values["epochs"].mean().item(),
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
