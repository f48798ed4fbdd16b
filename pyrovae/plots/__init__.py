"""Pictures of a fit, one function per result, which return matplotlib axes and do not change the state of pyplot.

base: new axes, colours, and the bytes of a figure.
training: curves over the epochs. latents: codes, decoded places, quantiles of columns.
tiles: tables of decoded data, of walks through latent space. dimensions: numbers by latent.
planes: codes with k-hat, t-SNE, and the curve of an ascent.
figures: grids of samples and reconstructions.
"""

from pyrovae.plots.base import COLOURS, figure_of, new_axes, short_name, to_png, to_svg
from pyrovae.plots.dimensions import (
    plot_activity,
    plot_collapse,
    plot_information,
    plot_kl,
    plot_latent_posteriors,
    plot_pca_alignment,
)
from pyrovae.plots.figures import num_per_figure, plot_grids, prior_samples, reconstructions
from pyrovae.plots.latents import plot_codes, plot_columns, plot_decoded_grid
from pyrovae.plots.planes import plot_ascent, plot_khat_plane, plot_tsne
from pyrovae.plots.tiles import (
    is_image,
    is_skewed,
    plot_ascent_path,
    plot_attribute_steps,
    plot_interpolation,
    plot_label_grids,
    plot_redraws,
    plot_traversals,
)
from pyrovae.plots.training import plot_history

__all__ = [
    "COLOURS",
    "figure_of",
    "is_image",
    "is_skewed",
    "new_axes",
    "num_per_figure",
    "plot_activity",
    "plot_ascent",
    "plot_ascent_path",
    "plot_attribute_steps",
    "plot_codes",
    "plot_collapse",
    "plot_columns",
    "plot_decoded_grid",
    "plot_grids",
    "plot_history",
    "plot_information",
    "plot_interpolation",
    "plot_khat_plane",
    "plot_kl",
    "plot_label_grids",
    "plot_latent_posteriors",
    "plot_pca_alignment",
    "plot_redraws",
    "plot_traversals",
    "plot_tsne",
    "prior_samples",
    "reconstructions",
    "short_name",
    "to_png",
    "to_svg",
]
