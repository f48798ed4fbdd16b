"""Pictures of a fit, one function per result, which return matplotlib axes and do not change the state of pyplot.

base: new axes, colours, and the bytes of a figure.
training: curves over the epochs. latents: codes, decoded places, quantiles of columns.
figures: grids of samples and reconstructions.
"""

from pyrovae.plots.base import COLOURS, figure_of, new_axes, to_png, to_svg
from pyrovae.plots.figures import num_per_figure, plot_grids, prior_samples, reconstructions
from pyrovae.plots.latents import is_image, is_skewed, plot_codes, plot_columns, plot_decoded_grid
from pyrovae.plots.training import plot_history

__all__ = [
    "COLOURS",
    "figure_of",
    "is_image",
    "is_skewed",
    "new_axes",
    "num_per_figure",
    "plot_codes",
    "plot_columns",
    "plot_decoded_grid",
    "plot_grids",
    "plot_history",
    "prior_samples",
    "reconstructions",
    "to_png",
    "to_svg",
]
