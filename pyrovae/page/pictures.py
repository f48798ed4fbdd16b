"""Pictures of the page, in its order.

To add a picture, write a function from a `Fit` to blocks, with a caption and an alt text that says what is seen, and
add it to `PICTURES`. It yields nothing where the picture makes no sense. Pictures of latent space are in
latent_pictures.py, those of single columns in column_pictures.py, those of diagnostics in diagnostic_pictures.py.
"""

from collections.abc import Callable, Iterator

import torch

from pyrovae.page.blocks import Block, Picture
from pyrovae.page.column_pictures import COLUMN_PICTURES
from pyrovae.page.epoch_pictures import by_epoch
from pyrovae.page.fit import Fit
from pyrovae.page.latent_pictures import LATENT_PICTURES
from pyrovae.plots import is_image, plot_grids, plot_history, reconstructions

_IMAGES = 40  # in a grid of samples


def training(fit: Fit) -> Iterator[Block]:
    """Training curves."""
    history = fit.history
    known = [value for value in history["validation_elbo"] if value is not None]
    if not known:
        return
    way = "rises" if known[-1] > known[0] else "falls"
    alt = (
        f"The validation ELBO {way} from {known[0]:.1f} in epoch 1 to {known[-1]:.1f} in epoch {len(known)}; the epoch "
        f"kept is {history.best_epoch}."
    )
    caption = "ELBO per datum by epoch. The training curve is a mean while the weights change."
    yield Picture("Training", plot_history(history), caption, alt)
    parts = [value for value in history["validation_kl"] if value is not None]
    if parts:
        alt = f"The KL divergence goes from {parts[0]:.1f} to {parts[-1]:.1f} nats."
        caption = "KL(q(z|x), p(z)) per datum of the validation data. At 0 the latents carry nothing."
        yield Picture("Cost of the code", plot_history(history, part="kl"), caption, alt)


def samples(fit: Fit) -> Iterator[Block]:
    """Samples and reconstructions."""
    if not is_image(fit.data.shape):
        return
    (x,), kwargs = fit.arguments(slice(0, _IMAGES))
    again = reconstructions(fit.vae.model, fit.vae.guide, x, seed=fit.seed, **kwargs)
    both = torch.stack([x, again], 1).flatten(0, 1)[:_IMAGES]
    error = (again - x).square().nanmean().sqrt()
    yield Picture(
        "Data and reconstructions",
        plot_grids([("", both)], fit.data.shape),
        f"Pairs: a {fit.split} datum, and to its right the mean E[x|z] at one draw z of q(z|x).",
        f"{len(both) // 2} pairs; the root mean square difference in a pair is {error:.3g}.",
        pixels=True,
    )
    drawn = fit.samples[:_IMAGES]
    yield Picture(
        "Samples",
        plot_grids([("", drawn)], fit.data.shape),
        "Draws from the model: z from the prior, x from p(x|z).",
        f"{len(drawn)} draws; their mean value is {drawn.mean():.3g}, that of the data {fit.x.nanmean():.3g}.",
        pixels=True,
    )


PICTURES: tuple[Callable[[Fit], Iterator[Block]], ...] = (
    training,
    *LATENT_PICTURES,
    by_epoch,
    samples,
    *COLUMN_PICTURES,
)
"""Pictures in the order of the page."""
