"""The three latent spaces of one network: trained for reconstruction alone, for the KL divergence alone, and for both.

python scripts/studies/latent_spaces.py --out latent_spaces.png
python scripts/studies/latent_spaces.py --epochs 300

The network has two latents and is trained on the digits, from the same start each time. Reconstruction alone is a KL
weight of 0, so that nothing holds the codes near the prior. The KL divergence alone is the model without its data site,
so that the codes hold nothing of the data. Both is the ELBO. The table has the parts of the ELBO of the test data, and
how far the codes spread in standard deviations of the prior; the figure has one draw of q(z|x) for each test datum.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

from pyrovae import MLP, Beta, BinomialLikelihood, Blueprint, fit, log_weights
from pyrovae.data import Data, load_data
from pyrovae.diagnostics import Codes, encode_codes, kl_by_dimension
from pyrovae.plots import plot_codes, to_png
from pyrovae.runs import Seed, check_writable, make_parser, parse_flags, run_script, write_whole
from pyrovae.runs.tables import aligned

_PARTICLES = 100  # of the guide, for the ELBO
WAYS = ("reconstruction alone", "KL alone", "both")


def main() -> int:
    """Train in the three ways, print the table, and plot the figure."""
    parser = make_parser(prog="latent_spaces.py", description=__doc__)
    add = parser.add_argument
    add("--epochs", type=PositiveInt, default=100, help="passes of each training")
    add("--seed", type=Seed, default=0, help="seed of the start and of the training")
    add("--out", type=str | None, default=None, help="file for the figure, a PNG (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.out:
        check_writable("--out", flags.out)
    data, found = load_data("digits"), {}
    lines = [["", "reconstruction", "KL", "ELBO", "spread of z[0]", "of z[1]"]]
    for way in WAYS:
        vae = trained(way, data, flags)
        codes = encode_codes(vae.model, vae.guide, data.test)
        with torch.no_grad():
            elbo = float(log_weights(vae.model, vae.guide, data.test, num_particles=_PARTICLES).double().mean())
        kl = float(kl_by_dimension(vae.model, vae.guide, data.test).total_mean)
        spread = (codes.draw.std(0) / codes.prior.std(0)).tolist()
        lines.append([way, *(f"{value:.2f}" for value in (elbo + kl, kl, elbo, *spread))])
        found[way] = codes
    print("nats per datum, test data\n")
    print(aligned(lines))
    if flags.out:
        write_whole(Path(flags.out), to_png(plot(found, data)))
        print(f"wrote {flags.out}")
    return 0


def trained(way: str, data: Data, flags: Any) -> Any:
    """Train the network in one of the ways."""
    pyro.clear_param_store()
    pyro.set_rng_seed(flags.seed)
    likelihood, network = partial(BinomialLikelihood, total_count=16), partial(MLP, hidden=[200, 200])
    vae = Blueprint(data.train.shape[1], 2, likelihood=likelihood, network=network, x=data.examples).vae()
    model = poutine.block(vae.model, hide=["x"]) if way == "KL alone" else vae.model
    weight = Beta(0.0) if way == "reconstruction alone" else None
    options: dict[str, Any] = {"epochs": flags.epochs, "batch_size": 100, "seed": flags.seed, "kl_weight": weight}
    fit(model, vae.guide, data.train, elbo=TraceMeanField_ELBO(), **options)
    return vae.eval()


def plot(found: dict[str, Codes], data: Data) -> Figure:
    """Plot the draws of the codes by label, one panel for each way."""
    figure = Figure(figsize=(12.6, 4.4), layout="constrained")
    assert data.labels is not None
    for axes, (way, codes) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        plot_codes(codes, axes, labels=data.labels["test"], draws=True)
        axes.set_title(way)
    return figure


if __name__ == "__main__":
    run_script(main)
