"""Numbers about a fit that are neither log p(x) nor an objective, such as the latent dimensions in use.

active_units            latent dimensions that a guide uses
replicates              `replicate`: data sets that the model draws, with the data's covariates and holes
statistics, predictive  `check_predictive`: statistics of the data beside those of replicates
pit                     `pit`: where each value lies in its predictive distribution; distribution_functions
typicality              `typicality`: rank of log p(x) among the model's own draws
foreign                 `foreign_data`: how well log p(x) tells foreign data from test data
khat                    `khat_map`: which data the guide approximates badly
"""

from pyrovae.diagnostics.active_units import ACTIVE_FROM, unit_activity
from pyrovae.diagnostics.foreign import (
    AUC,
    ForeignData,
    foreign_data,
    noise_like,
    roc_auc,
    shuffled_columns,
    shuffled_entries,
)
from pyrovae.diagnostics.khat import KhatMap, khat_map
from pyrovae.diagnostics.pit import PIT, pit
from pyrovae.diagnostics.predictive import PredictiveCheck, check_predictive, tail_probabilities
from pyrovae.diagnostics.replicates import replicate
from pyrovae.diagnostics.statistics import default_statistics
from pyrovae.diagnostics.typicality import Typicality, typicality

__all__ = [
    "ACTIVE_FROM",
    "AUC",
    "PIT",
    "ForeignData",
    "KhatMap",
    "PredictiveCheck",
    "Typicality",
    "check_predictive",
    "default_statistics",
    "foreign_data",
    "khat_map",
    "noise_like",
    "pit",
    "replicate",
    "roc_auc",
    "shuffled_columns",
    "shuffled_entries",
    "tail_probabilities",
    "typicality",
    "unit_activity",
]
