"""Compare trainings at equal budget: a loop written by hand in PyTorch, `fit` by default, with a schedule, averaged.

python scripts/studies/by_hand.py                                      # digits
python scripts/studies/by_hand.py --data '[digits,mnist]' --data_dir data

All trainings of a row have the same network, optimizer, minibatch size, number of epochs and seed, and end with their
last epoch. The loop by hand feeds its encoder raw bits, or grey values divided by the largest; `fit` scales by itself.
Every trained pair of programs is evaluated by the same function on the same test data. Standard errors are over seeds;
those of differences from the loop are paired by seed.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from jsonargparse.typing import PositiveInt
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyrovae import MLP, BernoulliLikelihood, BinomialLikelihood, Blueprint, fit, log_marginal
from pyrovae.data import Binarize, Data, load_data
from pyrovae.evidence import evidence_lower_bound
from pyrovae.execution import Progress
from pyrovae.runs import Seed, check_writable, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error

BY_HAND, LR, BATCH_SIZE = "by hand", 1e-3, 100
SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "default": lambda epochs: {},
    "cosine": lambda epochs: {"lr_schedule": partial(CosineAnnealingLR, T_max=epochs)},
    "average": lambda epochs: {"average": 0.999},
}


@dataclass(frozen=True)
class Problem:
    """Data and model of one comparison.

    Attributes:
        epochs: Number of epochs.
        hidden: Width of the one hidden layer, softplus.
        latent_dim: Number of latents.
        total_count: Largest grey value, the trials of a binomial; 1 for bits, drawn anew for each minibatch.
    """

    epochs: int
    hidden: int
    latent_dim: int
    total_count: int


PROBLEMS = {"digits": Problem(300, 200, 10, 16), "mnist": Problem(20, 400, 50, 1)}


class HandWritten(nn.Module):
    """VAE in plain PyTorch, and the programs that its evaluation needs."""

    def __init__(self, num_dims: int, problem: Problem) -> None:
        super().__init__()
        size, hidden = problem.latent_dim, problem.hidden
        self.total_count, self.latent_dim = problem.total_count, size
        self.encoder = nn.Sequential(nn.Linear(num_dims, hidden), nn.Softplus(), nn.Linear(hidden, 2 * size))
        self.decoder = nn.Sequential(nn.Linear(size, hidden), nn.Softplus(), nn.Linear(hidden, num_dims))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x, with shape (N, D), to location and log scale of q(z|x), with shapes (N, Z)."""
        loc, log_scale = self.encoder(x / self.total_count).chunk(2, -1)
        return loc, log_scale

    def loss(self, x: Tensor) -> Tensor:
        """Compute the mean of minus the ELBO, without the binomial coefficients."""
        loc, log_scale = self.encode(x)
        scale = log_scale.exp()
        logits = self.decoder(loc + scale * torch.randn_like(loc))
        log_lik = (x * logits - self.total_count * nn.functional.softplus(logits)).sum()
        kl = 0.5 * (loc.square() + scale.square() - 1).sum() - log_scale.sum()
        return (kl - log_lik) / len(x)

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Binomial(self.total_count, logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x)."""
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encode(x)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train_by_hand(data: Data, problem: Problem, epochs: int) -> HandWritten:
    """Train with a loop in PyTorch."""
    model, x = HandWritten(data.train.shape[1], problem), data.train
    binary = problem.total_count == 1
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            model.loss(torch.bernoulli(x[batch]) if binary else x[batch]).backward()
            optimizer.step()
    return model


def train_by_fit(data: Data, problem: Problem, epochs: int, seed: int, settings: dict[str, Any]) -> Any:
    """Train with `fit`."""
    count = problem.total_count
    likelihood = BernoulliLikelihood if count == 1 else partial(BinomialLikelihood, total_count=count)
    network = partial(MLP, hidden=[problem.hidden], activation="softplus")
    vae = Blueprint(
        data.train.shape[1], problem.latent_dim, likelihood=likelihood, network=network, x=data.examples
    ).vae()
    fit(
        vae.model,
        vae.guide,
        data.train,
        elbo=TraceMeanField_ELBO(),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        optimizer=partial(torch.optim.Adam, lr=LR),
        transform=Binarize() if count == 1 else None,
        seed=seed,
        **settings,
    )
    return vae


def measured(programs: Any, data: Data, num_data: int, num_particles: int) -> dict[str, float]:
    """Estimate the ELBO of all test data, and log p(x) of the first of them, in nats per datum."""
    pyro.set_rng_seed(0)
    elbo = evidence_lower_bound(programs.model, programs.guide, data.test, num_particles=5).value
    log_p = log_marginal(programs.model, programs.guide, data.test[:num_data], num_particles=num_particles).value
    return {"ELBO": elbo.mean().item(), "log p(x)": log_p.mean().item()}


def main() -> int:
    """Train and evaluate all, and print the tables."""
    parser = make_parser(prog="by_hand.py", description=__doc__)
    add = parser.add_argument
    add("--data", type=list[Literal["digits", "mnist"]], default=["digits"], help="data of the tables")
    add("--data_dir", type=str | None, default=None, help="folder of MNIST (default: data)")
    add("--epochs", type=PositiveInt | None, default=None, help="epochs (default: 300 for digits, 20 for MNIST)")
    add("--seeds", type=list[Seed], default=[0, 1, 2], help="training seeds")
    add("--num_data", type=PositiveInt, default=300, help="largest number of test data for log p(x)")
    add("--num_particles", type=PositiveInt, default=200, help="draws of the default proposal per test datum")
    add("--json", type=str | None, default=None, help="file for the numbers (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.json:
        check_writable("--json", flags.json)
    rows = []
    with Progress(len(flags.data) * len(flags.seeds) * (1 + len(SETTINGS)), "training") as progress:
        for name in flags.data:
            problem, data = PROBLEMS[name], load_data(name, data_dir=flags.data_dir)
            epochs = flags.epochs or problem.epochs
            for seed in flags.seeds:
                for way in (BY_HAND, *SETTINGS):
                    pyro.clear_param_store()
                    pyro.set_rng_seed(seed)
                    if way == BY_HAND:
                        programs: Any = train_by_hand(data, problem, epochs).eval()
                    else:
                        programs = train_by_fit(data, problem, epochs, seed, SETTINGS[way](epochs)).eval()
                    found = measured(programs, data, flags.num_data, flags.num_particles)
                    rows.append({"data": name, "seed": seed, "training": way, **found})
                    progress.update()
    for name in flags.data:
        print_table(name, [row for row in rows if row["data"] == name])
    if flags.json:
        write_json(Path(flags.json), {"flags": vars(flags), "rows": rows})
    return 0


def print_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Print means over seeds, and the paired differences from the loop by hand."""
    table = [[name, "ELBO", "s.e.", "difference", "s.e.", "log p(x)", "s.e.", "difference", "s.e."]]
    for way in (BY_HAND, *SETTINGS):
        line = [way]
        for key in ("ELBO", "log p(x)"):
            values, by_hand = (
                torch.tensor([row[key] for row in rows if row["training"] == each]) for each in (way, BY_HAND)
            )
            numbers = [*mean_and_std_error(values), *mean_and_std_error(values - by_hand)]
            line += [f"{number:.2f}" for number in numbers[: 2 if way == BY_HAND else 4]]
            line += ["-", "-"] if way == BY_HAND else []
        table.append(line)
    print(aligned(table))


if __name__ == "__main__":
    run_script(main)
