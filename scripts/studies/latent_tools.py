"""Directions, ascents, axes and exact posteriors in the latent space of a trained run on images with labels.

python scripts/studies/latent_tools.py runs/digits-001 --figure latent-tools.png

The attribute is ink, the mean of a datum, above its median; its direction is balanced over the labels. The property of
the ascent is ink too, predicted from codes and measured on decoded images. Axes are compared with the principal
components of the data. NUTS draws from the exact posterior of the datum with the largest k-hat.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.data import Data
from pyrovae.diagnostics import (
    ascend_property,
    attribute_steps,
    attribute_vector,
    decoded_axes,
    encode_codes,
    khat_map,
    nuts_check,
    pca_alignment,
)
from pyrovae.plots import (
    is_image,
    plot_ascent,
    plot_ascent_path,
    plot_attribute_steps,
    plot_nuts,
    plot_pca_alignment,
    to_png,
)
from pyrovae.runs import check_writable, make_run_parser, open_run, parse_flags, run_script, write_whole
from pyrovae.runs.tables import aligned

_SEARCHED = 100  # data of which the worst k-hat is chosen


def main() -> int:
    """Measure, print what each tool found, and plot the figure."""
    parser = make_run_parser(prog="latent_tools.py", description=__doc__)
    parser.add_argument("--num_samples", type=PositiveInt, default=250, help="draws of each NUTS chain")
    parser.add_argument("--figure", type=str | None, default=None, help="file for the figure, a PNG (default: none)")
    flags = parse_flags(parser, sys.argv[1:])
    if flags.figure:
        check_writable("--figure", flags.figure)
    _, vae, data = open_run(flags, bits=True)
    if not is_image(data.shape) or data.labels is None:
        raise ValueError(f"{flags.run} has no images with labels; choose a run on digits or MNIST")
    found = measure(vae, data, flags.seed, flags.num_samples)
    print(aligned(found["lines"]))
    print(*found["nuts"].words, sep="\n")
    if flags.figure:
        write_whole(Path(flags.figure), to_png(plot(found, data)))
        print(f"wrote {flags.figure}")
    return 0


def ink(x: Tensor) -> Tensor:
    """Compute the ink of images, with shape (N, D): the mean of their values."""
    return x.mean(-1)


def measure(vae: Any, data: Data, seed: int, num_samples: int) -> dict[str, Any]:
    """Use each tool on the test data."""
    assert data.labels is not None
    x, first = data.test[:], data.test[:1]
    codes = encode_codes(vae.model, vae.guide, x, seed=seed)
    vector = attribute_vector(codes.mean, ink(x) > ink(x).median(), data.labels["test"])
    steps = attribute_steps(vae.model, first, codes=codes, vector=vector, seed=seed)
    ascent = ascend_property(vae.model, first, codes=codes, values=ink(x), measure=ink, seed=seed)
    axes = pca_alignment(decoded_axes(vae.model, vae.guide, x, seed=seed), data.train[:])
    worst = int(khat_map(vae.model, vae.guide, x[:_SEARCHED], seed=seed).worst[0])
    nuts = nuts_check(vae.model, vae.guide, x, data=[worst], num_samples=num_samples, seed=seed)
    gain = ascent.measured - ascent.measured[0]
    lines = [
        ["", "value"],
        ["angle of the balanced to the unbalanced vector, degrees", f"{float(vector.angle):.1f}"],
        ["ink gained by the ascent, predicted", f"{float(ascent.predicted[-1] - ascent.predicted[0]):.3f}"],
        ["ink gained by the ascent, measured", f"{float(gain[-1]):.3f}"],
        ["largest |cos| of an axis and its component", f"{float(axes.cosines.max()):.2f}"],
        ["smallest |cos|", f"{float(axes.cosines.min()):.2f}"],
        ["datum with the largest k-hat", f"{worst}"],
        ["its largest R-hat under NUTS", f"{float(nuts.rhat.max()):.3f}"],
        ["its smallest effective sample size", f"{float(nuts.ess.min()):.0f}"],
    ]
    return {"lines": lines, "steps": steps, "ascent": ascent, "axes": axes, "nuts": nuts}


def plot(found: dict[str, Any], data: Data) -> Figure:
    """Plot the steps along the attribute, the ascent and its path, the axes, and two latents under NUTS."""
    figure = Figure(figsize=(13.0, 7.4), layout="constrained")
    first, second = figure.subplots(2, 3)
    plot_attribute_steps(found["steps"], data.shape, first[0])
    plot_ascent(found["ascent"], first[1])
    plot_ascent_path(found["ascent"], data.shape, first[2])
    plot_pca_alignment(found["axes"], second[0])
    for latent, axes in enumerate(second[1:]):
        plot_nuts(found["nuts"], axes, latent=latent)
    return figure


if __name__ == "__main__":
    run_script(main)
