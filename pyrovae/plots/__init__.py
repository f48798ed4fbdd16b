"""Pictures of a fit, one function per result, which return matplotlib axes and do not change the state of pyplot.

base: new axes, colours, and the bytes of a figure.
training: curves over the epochs. epochs: codes and samples by epoch. latents: codes, decoded places, columns.
figures: grids of samples and reconstructions. samples: the same for data that are no images.
calibration: ECDFs of ranks with bands. guides: k-hat, NUTS, entropies. rates: reconstruction against KL.
predictive: replicates, typicality, foreign data. counts: rootograms. tables: columns by their kind.
"""

from pyrovae.plots.base import COLOURS, figure_of, new_axes, short_name, to_pdf, to_png, to_svg
from pyrovae.plots.calibration import plot_calibration, plot_pit, plot_uniformity
from pyrovae.plots.counts import plot_rootogram
from pyrovae.plots.dimensions import (
    plot_activity,
    plot_collapse,
    plot_information,
    plot_kl,
    plot_latent_posteriors,
    plot_pca_alignment,
)
from pyrovae.plots.epochs import plot_codes_by_epoch, plot_reconstructions_by_epoch, plot_samples_by_epoch
from pyrovae.plots.figures import num_per_figure, plot_grids, prior_samples, reconstructions
from pyrovae.plots.guides import plot_entropies, plot_khat, plot_nuts
from pyrovae.plots.latents import plot_codes, plot_columns, plot_decoded_grid
from pyrovae.plots.planes import plot_ascent, plot_khat_plane, plot_tsne
from pyrovae.plots.predictive import plot_foreign, plot_predictive, plot_statistic, plot_typicality
from pyrovae.plots.rates import plot_rates
from pyrovae.plots.samples import plot_pairs, plot_reconstructions, plot_samples
from pyrovae.plots.tables import plot_marginal, plot_pair, plot_recovered
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
    "plot_calibration",
    "plot_codes",
    "plot_codes_by_epoch",
    "plot_collapse",
    "plot_columns",
    "plot_decoded_grid",
    "plot_entropies",
    "plot_foreign",
    "plot_grids",
    "plot_history",
    "plot_information",
    "plot_interpolation",
    "plot_khat",
    "plot_khat_plane",
    "plot_kl",
    "plot_label_grids",
    "plot_latent_posteriors",
    "plot_marginal",
    "plot_nuts",
    "plot_pair",
    "plot_pairs",
    "plot_pca_alignment",
    "plot_pit",
    "plot_predictive",
    "plot_rates",
    "plot_reconstructions",
    "plot_reconstructions_by_epoch",
    "plot_recovered",
    "plot_redraws",
    "plot_rootogram",
    "plot_samples",
    "plot_samples_by_epoch",
    "plot_statistic",
    "plot_traversals",
    "plot_tsne",
    "plot_typicality",
    "plot_uniformity",
    "prior_samples",
    "reconstructions",
    "short_name",
    "to_pdf",
    "to_png",
    "to_svg",
]
