"""Estimates of log p(x), their errors and diagnostics, computed from log weights and per-datum values.

log_weights   log-mean-exp over draws, its standard error, effective sample size
pareto        k-hat, smoothed weights
critical      critical values of t, for one difference or many at once
means         means over data, standard errors, bits per dimension
pooling       Rubin's rules for estimates from several imputations
summaries     results of the estimators: `LogMarginal`, `LowerBound`, `Rung`

Functions of log weights reduce over dim 0, the K particles, and keep every other dimension, the data. They compute and
return float64 for every input dtype, and leave the average over data to the caller. This room imports torch and SciPy
alone.
"""

from pyrovae.stats.critical import joint_critical, student_t_critical
from pyrovae.stats.log_weights import Rounding, component_shares, log_mean_exp, log_mean_std_error, sampling_std_error
from pyrovae.stats.means import (
    bits_per_dim,
    check_case_weights,
    clustered_mean_and_std_error,
    crossed_mean_and_std_error,
    effective_sample_size_of_weights,
    mean_and_std_error,
    monte_carlo_std_error,
)
from pyrovae.stats.pareto import pareto_khat, pareto_smoothed_log_weights
from pyrovae.stats.pooling import Pooled, pool
from pyrovae.stats.summaries import (
    LogMarginal,
    LowerBound,
    Rung,
    summarize_log_weights,
    summarize_lower_bound,
    summarize_rungs,
)

__all__ = [
    "LogMarginal",
    "LowerBound",
    "Pooled",
    "Rounding",
    "Rung",
    "bits_per_dim",
    "check_case_weights",
    "clustered_mean_and_std_error",
    "component_shares",
    "crossed_mean_and_std_error",
    "effective_sample_size_of_weights",
    "joint_critical",
    "log_mean_exp",
    "log_mean_std_error",
    "mean_and_std_error",
    "monte_carlo_std_error",
    "pareto_khat",
    "pareto_smoothed_log_weights",
    "pool",
    "sampling_std_error",
    "student_t_critical",
    "summarize_log_weights",
    "summarize_lower_bound",
    "summarize_rungs",
]
