"""Plot mean, standard deviation and signal-to-noise ratio of the guide's gradient against the draws K of a bound.

python scripts/studies/gradients.py --out gradients.png
python scripts/studies/gradients.py --out gradients.png --particles '[1,10,100]' --latent_dim 20 --shift 0.1

The model is z ~ N(0, I), x|z ~ N(z, I) with one datum, so the posterior is N(x/2, I/2). The guide is N(m, 2/3 I), where
m is off by --shift in each dimension (after Rainforth et al., "Tighter variational bounds are not necessarily better",
ICML 2018, https://arxiv.org/abs/1802.04537). The gradient of the bound with respect to m is drawn many times. The table
shows means over the dimensions. Unbiased estimators have equal means at each K.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import math
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae import ImportanceWeightedELBO
from pyrovae.execution import Progress
from pyrovae.objectives import Gradient
from pyrovae.plots import to_png
from pyrovae.runs import Seed, check_writable, make_parser, parse_flags, run_script, write_json, write_whole
from pyrovae.runs.tables import aligned

CHUNK_ELEMENTS = 2**21  # elements of the draws in a chunk
ESTIMATORS: dict[str, Gradient] = {
    "pathwise": "pathwise",
    "STL": "stl",
    "DReG": "dreg",
    "VIMCO": "vimco",
}
MEASURES = {"mean": "|mean|", "sd": "standard deviation", "snr": "signal-to-noise ratio, |mean| / sd"}
Row = dict[str, float]


class Copies:
    """Copies of one datum with separate guide means m, so that one backward pass gives many gradients.

    Args:
        num_copies: Number of copies N of the datum.
        latent_dim: Dimension Z of the latent.
        shift: Error of m in each dimension.
    """

    def __init__(self, num_copies: int, latent_dim: int, shift: float) -> None:
        self.x = torch.linspace(-1, 1, latent_dim).expand(num_copies, latent_dim)
        self.m = (self.x / 2 + shift).requires_grad_()

    def model(self) -> None:
        """Pyro program p(z) p(x|z)."""
        with pyro.plate("data", len(self.x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=self.x)

    def guide(self) -> None:
        """Pyro program q(z|x)."""
        with pyro.plate("data", len(self.x), dim=-1):
            pyro.sample("z", dist.Normal(self.m, math.sqrt(2 / 3)).to_event(1))

    def gradients(self, num_particles: int, gradient: Gradient) -> Tensor:
        """Draw the gradient of the bound for each copy, with shape (N, Z)."""
        loss = ImportanceWeightedELBO(num_particles, gradient).differentiable_loss(self.model, self.guide)
        return -torch.autograd.grad(loss, self.m)[0]


def main() -> int:
    """Measure, print the table, and plot the figure."""
    parser = make_parser(prog="gradients.py", description=__doc__)
    add = parser.add_argument
    add("--out", type=str, required=True, help="PNG file of the figure; the numbers go to a JSON file beside it")
    add("--particles", type=list[PositiveInt], default=[1, 2, 4, 8, 16, 32, 64, 128, 256], help="values of K")
    add("--num_copies", type=PositiveInt, default=10_000, help="number of gradients for each K")
    add("--latent_dim", type=PositiveInt, default=5, help="dimension Z of the latent")
    add("--shift", type=float, default=0.2, help="error of the guide's mean in each dimension")
    add("--seed", type=Seed, default=0, help="random seed")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.num_copies < 2:
        raise ValueError(f"--num_copies must be at least 2, got {flags.num_copies}; a standard deviation needs two")
    out = Path(flags.out)
    if out.suffix != ".png":
        raise ValueError(f"--out {out} must be a PNG file; give a name that ends in .png")
    check_writable("--out", out)
    pyro.set_rng_seed(flags.seed)
    found: dict[str, dict[int, Row]] = {name: {} for name in ESTIMATORS}
    with Progress(len(ESTIMATORS) * len(flags.particles), "cell") as progress:
        for num_particles in sorted(flags.particles):
            for name, gradient in ESTIMATORS.items():
                if gradient != "vimco" or num_particles > 1:  # VIMCO needs two draws
                    found[name][num_particles] = measure(flags, num_particles, gradient)
                progress.update()
    write_json(out.with_suffix(".json"), {"flags": vars(flags), "estimators": found})
    write_whole(out, to_png(plot(found)))
    lines = [["", "K", "mean", "s.e.", "sd", "SNR"]]
    for name, rows in found.items():
        lines += [
            [name, str(k), *(f"{row[key]:.4f}" for key in ("mean", "std_error", "sd", "snr"))]
            for k, row in rows.items()
        ]
    print(aligned(lines))
    print(f"wrote {out} and {out.with_suffix('.json').name}")
    return 0


def measure(flags: object, num_particles: int, gradient: Gradient) -> Row:
    """Average over dimensions the gradient's mean, standard error, standard deviation and signal-to-noise ratio."""
    copies, size, shift = (getattr(flags, key) for key in ("num_copies", "latent_dim", "shift"))
    chunk_size = max(1, CHUNK_ELEMENTS // (num_particles * size))
    starts = range(0, copies, chunk_size)
    parts = [
        Copies(min(chunk_size, copies - start), size, shift).gradients(num_particles, gradient) for start in starts
    ]
    drawn = torch.cat(parts).double()
    sd = drawn.std(0)
    return {
        "mean": drawn.mean().item(),
        "std_error": (sd.square().sum().sqrt() / (size * math.sqrt(copies))).item(),  # for independent dimensions
        "sd": sd.mean().item(),
        "snr": (drawn.mean(0).abs() / sd).mean().item(),
    }


def plot(found: dict[str, dict[int, Row]]) -> Figure:
    """Plot the three measures against K, with lines of slope 1/2 and -1/2 in the panel of the ratio."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for number, (name, rows) in enumerate(found.items()):
            axes.plot(list(rows), [abs(row[key]) for row in rows.values()], "o-", label=name, color=f"C{number}", ms=4)
        if key == "snr":
            counts = sorted({k for rows in found.values() for k in rows})
            start = found["pathwise"][counts[0]][key]
            for power in (0.5, -0.5):
                axes.plot(counts, [start * (k / counts[0]) ** power for k in counts], ":", color="0.7", zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("K, draws in the bound")
        axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run_script(main)
