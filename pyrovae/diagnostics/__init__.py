"""Numbers about a fit that are neither log p(x) nor an objective, each with its error and its source.

latents          active_units, kl, collapse, information, bits, pca, latent_posteriors
calibration      calibration (`sbc`), weighted_calibration, nuts, uniformity
fit to data      predictive, pit, typicality, foreign, khat, statistics
latent space     codes, projections, walks, attributes, ascent, snapshots
known factors    disentanglement, of arrays alone
what they share  draws, places, labels, simulation, replicates, distribution_functions
"""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, UnitActivity, unit_activity
from pyrovae.diagnostics.ascent import Ascent, ascend_property
from pyrovae.diagnostics.attributes import AttributeSteps, AttributeVector, attribute_steps, attribute_vector
from pyrovae.diagnostics.bits import Entropies, entropies
from pyrovae.diagnostics.calibration import Calibration, sbc
from pyrovae.diagnostics.codes import Codes, DecodedGrid, decode_means, decoded_grid, encode_codes
from pyrovae.diagnostics.collapse import COLLAPSED_BELOW, Collapse, collapse
from pyrovae.diagnostics.disentanglement import (
    DCI,
    Score,
    beta_vae_score,
    dci,
    factor_vae_score,
    half_sample_error,
    mig,
    sap,
)
from pyrovae.diagnostics.foreign import (
    AUC,
    ForeignData,
    foreign_data,
    noise_like,
    roc_auc,
    shuffled_columns,
    shuffled_entries,
)
from pyrovae.diagnostics.information import Ends, Information, information
from pyrovae.diagnostics.khat import KhatMap, khat_map
from pyrovae.diagnostics.kl import KLByDimension, kl_by_dimension
from pyrovae.diagnostics.labels import dimension_labels
from pyrovae.diagnostics.latent_posteriors import LatentPosteriors, latent_posteriors
from pyrovae.diagnostics.nuts import ESS_LIMIT, RHAT_LIMIT, NutsCheck, nuts_check
from pyrovae.diagnostics.pca import PCAAlignment, decoded_axes, pca_alignment
from pyrovae.diagnostics.pit import PIT, pit
from pyrovae.diagnostics.places import OutsideSupportError
from pyrovae.diagnostics.predictive import PredictiveCheck, check_predictive, tail_probabilities
from pyrovae.diagnostics.projections import TSNE_CAUTION, CodesPCA, CodesTSNE, pca_codes, tsne_codes
from pyrovae.diagnostics.replicates import replicate
from pyrovae.diagnostics.snapshots import Snapshot, take_snapshot
from pyrovae.diagnostics.statistics import default_statistics
from pyrovae.diagnostics.typicality import Typicality, typicality
from pyrovae.diagnostics.uniformity import (
    EcdfBand,
    Uniformity,
    cauchy_combination,
    check_uniform,
    ecdf_band,
    holm,
    randomised_pit,
)
from pyrovae.diagnostics.walks import (
    TRAVERSED,
    Interpolation,
    LabelGrids,
    Redraws,
    Traversals,
    by_kl,
    interpolate,
    label_grids,
    redraw,
    traverse,
)
from pyrovae.diagnostics.weighted_calibration import WeightedCalibration, weighted_sbc

__all__ = [
    "ACTIVE_FROM",
    "AUC",
    "COLLAPSED_BELOW",
    "DCI",
    "ESS_LIMIT",
    "PIT",
    "RHAT_LIMIT",
    "TRAVERSED",
    "TSNE_CAUTION",
    "Ascent",
    "AttributeSteps",
    "AttributeVector",
    "Calibration",
    "Codes",
    "CodesPCA",
    "CodesTSNE",
    "Collapse",
    "DecodedGrid",
    "EcdfBand",
    "Ends",
    "Entropies",
    "ForeignData",
    "Information",
    "Interpolation",
    "KLByDimension",
    "KhatMap",
    "LabelGrids",
    "LatentPosteriors",
    "NutsCheck",
    "OutsideSupportError",
    "PCAAlignment",
    "PredictiveCheck",
    "Redraws",
    "Score",
    "Snapshot",
    "Traversals",
    "Typicality",
    "Uniformity",
    "UnitActivity",
    "WeightedCalibration",
    "ascend_property",
    "attribute_steps",
    "attribute_vector",
    "beta_vae_score",
    "by_kl",
    "cauchy_combination",
    "check_predictive",
    "check_uniform",
    "collapse",
    "dci",
    "decode_means",
    "decoded_axes",
    "decoded_grid",
    "default_statistics",
    "dimension_labels",
    "ecdf_band",
    "encode_codes",
    "entropies",
    "factor_vae_score",
    "foreign_data",
    "half_sample_error",
    "holm",
    "information",
    "interpolate",
    "khat_map",
    "kl_by_dimension",
    "label_grids",
    "latent_posteriors",
    "mig",
    "noise_like",
    "nuts_check",
    "pca_alignment",
    "pca_codes",
    "pit",
    "randomised_pit",
    "redraw",
    "replicate",
    "roc_auc",
    "sap",
    "sbc",
    "shuffled_columns",
    "shuffled_entries",
    "tail_probabilities",
    "take_snapshot",
    "traverse",
    "tsne_codes",
    "typicality",
    "unit_activity",
    "weighted_sbc",
]
