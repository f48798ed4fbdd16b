"""Train the smallest linear VAE, one column and one latent, and look at it step by step.

python scripts/studies/linear_steps.py --out linear_steps.png
python scripts/studies/linear_steps.py --steps '[0,20,100,2000]' --lr 0.01

    z ~ N(0, 1),  x | z ~ N(w z + b, s^2),  q(z|x) = N(a x + c, t^2)

All of it is known: p(x) = N(b, w^2 + s^2), and the posterior is N(w (x - b) / (w^2 + s^2), s^2 / (w^2 + s^2)). The data
determine w^2 + s^2 alone, so w depends on the start. For each chosen step the table has the ELBO, the exact log p(x) of
the same decoder, and the best log p(x) of any normal density. The figure has the density of x beside the data, and the
line a x + c of the guide beside that of the posterior.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovae import fit
from pyrovae.plots import COLOURS, to_png
from pyrovae.runs import Seed, check_writable, make_parser, parse_flags, run_script, write_whole
from pyrovae.runs.tables import aligned

_MEAN, _SD = 2.0, 1.5  # of the data


class LinearVAE(nn.Module):
    """Linear VAE with one column and one latent, as two Pyro programs."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b, self.log_s = (nn.Parameter(torch.tensor(value)) for value in (0.3, 0.0, -0.7))
        self.a, self.c, self.log_t = (nn.Parameter(torch.tensor(value)) for value in (-0.2, 0.0, 0.0))

    def model(self, x: Tensor) -> None:
        """Model p(z) p(x|z) of x, with shape (N, 1)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.w * z + self.b, self.log_s.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Guide q(z|x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.a * x + self.c, self.log_t.exp()).to_event(1))

    def numbers(self) -> dict[str, float]:
        """Return the six parameters."""
        w, b, a, c = (part.item() for part in (self.w, self.b, self.a, self.c))
        return {"w": w, "b": b, "s": self.log_s.exp().item(), "a": a, "c": c, "t": self.log_t.exp().item()}


def main() -> int:
    """Train, print the table, and plot the figure."""
    parser = make_parser(prog="linear_steps.py", description=__doc__)
    add = parser.add_argument
    add("--steps", type=list[NonNegativeInt], default=[0, 10, 50, 200, 600], help="steps that are shown")
    add("--num_data", type=PositiveInt, default=500, help="number of data")
    add("--lr", type=PositiveFloat, default=0.02, help="learning rate of Adam")
    add("--seed", type=Seed, default=0, help="seed of the data and of the training")
    add("--out", type=str | None, default=None, help="file for the figure, a PNG (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.out:
        check_writable("--out", flags.out)
    x = _MEAN + _SD * torch.randn(flags.num_data, 1, generator=torch.Generator().manual_seed(flags.seed))
    found = trained(x, sorted(set(flags.steps)), flags)
    values, best = x.double().numpy()[:, 0], log_normal(x.std(correction=0).item() ** 2)
    lines = [["step", "w", "s", "sd of x", "a", "posterior's", "t", "posterior's", "ELBO", "log p(x)", "best"]]
    for step, p in found.items():
        slope, sd = p["w"] / variance(p), p["s"] / variance(p) ** 0.5
        row = (p["w"], p["s"], variance(p) ** 0.5, p["a"], slope, p["t"], sd)
        bounds = (*both(p, values), best)
        lines.append([f"{step}", *(f"{number:.3f}" for number in row), *(f"{value:.4f}" for value in bounds)])
    print(f"mean {values.mean():.3f} and standard deviation {values.std():.3f} of the data; nats per datum\n")
    print(aligned(lines))
    if flags.out:
        write_whole(Path(flags.out), to_png(plot(found, values)))
        print(f"wrote {flags.out}")
    return 0


def trained(x: Tensor, steps: list[int], flags: Any) -> dict[int, dict[str, float]]:
    """Train on all data at once, and return the parameters after each of the steps."""
    pyro.clear_param_store()
    vae = LinearVAE()
    found = {0: vae.numbers()} if 0 in steps else {}

    def keep(row: dict[str, Any]) -> None:
        if row["epoch"] in steps:
            found[row["epoch"]] = vae.numbers()

    if steps and max(steps):
        options: dict[str, Any] = {"epochs": max(steps), "batch_size": len(x), "seed": flags.seed, "on_epoch": keep}
        adam = partial(torch.optim.Adam, lr=flags.lr)
        fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(num_particles=10), optimizer=adam, **options)
    return found


def variance(p: dict[str, float]) -> float:
    """Return the variance of x, w^2 + s^2."""
    return p["w"] ** 2 + p["s"] ** 2


def log_normal(variance_of_x: float, square: float | None = None) -> float:
    """Return the mean of log N(x; b, v) for data with a mean square (x - b)^2; None for v."""
    square = variance_of_x if square is None else square
    return -0.5 * (math.log(2 * math.pi * variance_of_x) + square / variance_of_x)


def both(p: dict[str, float], x: np.ndarray) -> tuple[float, float]:
    """Return the means over data of the ELBO and of log p(x), both in closed form."""
    loc = p["a"] * x + p["c"]
    square = (x - p["b"] - p["w"] * loc) ** 2 + (p["w"] * p["t"]) ** 2
    fit_term = log_normal(p["s"] ** 2, float(square.mean()))
    kl = 0.5 * (p["t"] ** 2 + float((loc**2).mean()) - 1) - math.log(p["t"])
    return fit_term - kl, log_normal(variance(p), float(((x - p["b"]) ** 2).mean()))


def plot(found: dict[int, dict[str, float]], x: np.ndarray) -> Figure:
    """Plot the density of x and the guide's line at each step, one row each."""
    figure = Figure(figsize=(6.0, 1.9 * len(found) + 0.3), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False, sharex=True, sharey="col")
    grid = np.linspace(x.min() - 1, x.max() + 1, 200)
    for (step, p), (left, right) in zip(found.items(), rows, strict=True):
        left.hist(x, 25, density=True, color="0.8", label="data")
        density = np.exp(-0.5 * (grid - p["b"]) ** 2 / variance(p)) / math.sqrt(2 * math.pi * variance(p))
        left.plot(grid, density, color=COLOURS[0], label="model")
        left.set(ylabel="density", title=f"step {step}")
        slope, sd = p["w"] / variance(p), p["s"] / variance(p) ** 0.5
        exact, guide = slope * (grid - p["b"]), p["a"] * grid + p["c"]
        right.fill_between(grid, exact - sd, exact + sd, color="0.85", linewidth=0, label="posterior ± sd")
        right.plot(grid, guide, color=COLOURS[2], label="guide ± sd")
        for side in (-p["t"], p["t"]):
            right.plot(grid, guide + side, color=COLOURS[2], linewidth=0.8, linestyle="--")
        right.set(ylabel="z", ylim=(-4, 4))
    for axes in rows[0]:
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in rows[-1]:
        axes.set_xlabel("x")
    return figure


if __name__ == "__main__":
    run_script(main)
