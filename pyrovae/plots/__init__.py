"""Figures of a fit. Functions return matplotlib figures and do not change the state of pyplot."""

from pyrovae.plots.figures import num_per_figure, plot_grids, plot_history, prior_samples, reconstructions, to_png

__all__ = [
    "num_per_figure",
    "plot_grids",
    "plot_history",
    "prior_samples",
    "reconstructions",
    "to_png",
]
