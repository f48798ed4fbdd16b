"""Estimators of log p(x) per datum, with their errors.

importance            `log_marginal`, `ladder`, `evidence_lower_bound`
whole                 `log_evidence`, of the whole data set
proposals             proposals and their shares
laplace               modes and widths of posteriors, hence location and scale of the default proposal; starts of climbs
proposal_components   draws and densities of adapted proposals; points has their shared densities
modes                 search for further modes
nested                one coordinate of a funnel on a grid, normals for the others; nested_component draws from them
splines               interpolation on this grid, densities with a piecewise linear logarithm
weight_blocks         log weights of a block of data, and their summaries
ais                   `ais`, its progress and resume
annealing             paths of densities, Hamiltonian transitions, adaptation of their step sizes
temperatures          schedules of inverse temperatures
brackets              lower and upper bounds on simulated data, temperatures at which they agree
exact                 `exact_log_marginal`: quadrature, enumeration, closed forms
quadrature, cubature  survey of each posterior, trapezoid sum, adaptive cells, checks of the result
refinement            approximation and amortisation gaps
encoding              `encode`, means, standard deviations and draws of the latents
imputation            `impute`, missing entries given the observed ones
conditioning          `conditional`, log p(x_a | x_b), and draws given x_b
scoring               `score`, log p(x_d | the other entries); `rank_among`, ranks among training rows
posterior             weighted draws of the latents for these; entries has means, medians and modes of entries at them
classification        `classify`, p(y|x) of a discrete latent, and `error_rate`
evaluation            `evaluate`, all estimates of a run: the fields of evaluation.json and evaluation.csv
latent_space, blocks  unconstrained coordinates, blocks of data
"""

from pyrovae.evidence.ais import ais
from pyrovae.evidence.blocks import DEFAULT_CHUNK_SIZE, check_counts, check_memory, chunk_size_or_default
from pyrovae.evidence.brackets import Bracket, agreeing_schedule, bracket, draws_with_true
from pyrovae.evidence.classification import Classification, ErrorRate, classify, error_rate
from pyrovae.evidence.conditioning import Conditional, conditional
from pyrovae.evidence.encoding import Encoding, encode, known_moments
from pyrovae.evidence.evaluation import KHAT_LIMIT, Evaluation, base_measure_of, evaluate, exact_summary
from pyrovae.evidence.exact import ExactMarginal, exact_log_marginal, linear_gaussian_log_marginal
from pyrovae.evidence.importance import evidence_lower_bound, ladder, log_marginal, log_weight_blocks
from pyrovae.evidence.imputation import Imputation, impute
from pyrovae.evidence.laplace import laplace_fit
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.proposals import (
    PROPOSALS,
    DefensiveProposal,
    GuideProposal,
    LaplaceProposal,
    MixtureProposal,
    NestedLaplaceProposal,
    PriorProposal,
    Proposal,
    ProposalName,
    WidenedProposal,
)
from pyrovae.evidence.refinement import Refinement, refine
from pyrovae.evidence.scoring import Rank, Score, rank_among, score
from pyrovae.evidence.temperatures import adaptive_schedule, linear_schedule, sigmoidal_schedule
from pyrovae.evidence.whole import log_evidence

__all__ = [
    "DEFAULT_CHUNK_SIZE",
    "KHAT_LIMIT",
    "PROPOSALS",
    "Bracket",
    "Classification",
    "Conditional",
    "DefensiveProposal",
    "Encoding",
    "ErrorRate",
    "Evaluation",
    "ExactMarginal",
    "GuideProposal",
    "Imputation",
    "LaplaceProposal",
    "LatentSpace",
    "MixtureProposal",
    "NestedLaplaceProposal",
    "PriorProposal",
    "Proposal",
    "ProposalName",
    "Rank",
    "Refinement",
    "Score",
    "WidenedProposal",
    "adaptive_schedule",
    "agreeing_schedule",
    "ais",
    "base_measure_of",
    "bracket",
    "check_counts",
    "check_memory",
    "chunk_size_or_default",
    "classify",
    "conditional",
    "draws_with_true",
    "encode",
    "error_rate",
    "evaluate",
    "evidence_lower_bound",
    "exact_log_marginal",
    "exact_summary",
    "impute",
    "known_moments",
    "ladder",
    "laplace_fit",
    "linear_gaussian_log_marginal",
    "linear_schedule",
    "log_evidence",
    "log_marginal",
    "log_weight_blocks",
    "rank_among",
    "refine",
    "score",
    "sigmoidal_schedule",
]
