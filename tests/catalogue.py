"""Catalogue of small priors, likelihoods and encoders. A new part joins the tests of its kind by one line."""

import torch

from pyrovae import (
    MLP,
    AutoregressivePrior,
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    BetaLikelihood,
    BinomialLikelihood,
    CategoricalEncoder,
    CategoricalLikelihood,
    CategoricalPrior,
    ConditionalNormalPrior,
    ContinuousBernoulliLikelihood,
    DirichletPrior,
    DiscretizedLogisticMixtureLikelihood,
    ExemplarPrior,
    FlowEncoder,
    FlowPrior,
    FullCovarianceNormalEncoder,
    GammaLikelihood,
    HurdleGammaLikelihood,
    HurdleLogNormalLikelihood,
    LaplaceLikelihood,
    LaplacePrior,
    LogisticNormalPrior,
    LogNormalLikelihood,
    LowRankNormalEncoder,
    MixtureEncoder,
    MixturePrior,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    NormalEncoder,
    NormalLikelihood,
    NormalPrior,
    OrderedLogisticLikelihood,
    PoissonLikelihood,
    Prior,
    RoundedNormalLikelihood,
    RoundedStudentTLikelihood,
    StandardNormalPrior,
    StudentTEncoder,
    StudentTLikelihood,
    StudentTPrior,
    TruncatedNormalLikelihood,
    TwoLayerEncoder,
    TwoLayerPrior,
    VampPrior,
    ZeroInflatedNegativeBinomialLikelihood,
    ZeroInflatedPoissonLikelihood,
    ZeroOneInflatedBetaLikelihood,
)

Z, D, C = 2, 6, 3


def network(num_outputs, num_inputs=D):
    return MLP(num_inputs, num_outputs, hidden=[8], activation="tanh")


def attached(prior, encoder=None):
    return prior.attach(encoder or NormalEncoder(network(2 * prior.latent_dim)), torch.rand(7, D))


# The dimension of the latent is an argument, so that densities can be integrated.
PRIORS = {
    "standard": lambda z=Z: StandardNormalPrior(z),
    "normal": lambda z=Z: NormalPrior(z),
    "laplace": lambda z=Z: LaplacePrior(z),
    "student-t": lambda z=Z: StudentTPrior(z),
    "mixture": lambda z=Z: MixturePrior(z, num_components=3),
    "vamp": lambda z=Z: attached(VampPrior(z, num_components=4)),
    "vamp, weights": lambda z=Z: attached(VampPrior(z, num_components=4, learn_weights=True)),
    "exemplar": lambda z=Z: attached(ExemplarPrior(z, num_components=4)),
    "flow, nsf": lambda z=Z: FlowPrior(z, hidden=[8]),
    "flow, maf": lambda z=Z: FlowPrior(z, kind="maf", hidden=[8]),
    "autoregressive": lambda z=Z: AutoregressivePrior(z, hidden=[8]),
    "two layers": lambda z=Z: TwoLayerPrior(z, hidden=[8]),
    "conditional": lambda z=Z: ConditionalNormalPrior(z, num_covariates=C, network=network(2 * z, C)),
    "dirichlet": lambda z=Z: DirichletPrior(z, concentration=2.0),
    "dirichlet, learned": lambda z=Z: DirichletPrior(z, concentration=2.0, learned=True),
    "logistic normal": lambda z=Z: LogisticNormalPrior(z),
    "categorical": lambda z=Z: CategoricalPrior(z),
}


def _likelihood(part, **arguments):
    def make(num_inputs=Z, network=MLP):
        return part(network(num_inputs, part.num_outputs(D, **arguments)), **arguments)

    return make


LIKELIHOODS = {
    "bernoulli": _likelihood(BernoulliLikelihood),
    "continuous bernoulli": _likelihood(ContinuousBernoulliLikelihood),
    "beta": _likelihood(BetaLikelihood),
    "beta, network": _likelihood(BetaLikelihood, concentration="network"),
    "truncated normal": _likelihood(TruncatedNormalLikelihood),
    "truncated normal, network": _likelihood(TruncatedNormalLikelihood, low=-1, high=3, scale="network"),
    "normal, fixed": _likelihood(NormalLikelihood, scale=0.3),
    "normal, global": _likelihood(NormalLikelihood, scale="global"),
    "normal, dimension": _likelihood(NormalLikelihood, scale="dimension"),
    "normal, network": _likelihood(NormalLikelihood, scale="network"),
    "normal, bounded": _likelihood(NormalLikelihood, scale="network", scale_bounds=(0.01, 2.0)),
    "laplace": _likelihood(LaplaceLikelihood, scale="dimension"),
    "laplace, network": _likelihood(LaplaceLikelihood, scale="network"),
    "student": _likelihood(StudentTLikelihood, df="dimension"),
    "student, network": _likelihood(StudentTLikelihood, scale="network", df="network"),
    "log-normal": _likelihood(LogNormalLikelihood, scale=0.5),
    "log-normal, network": _likelihood(LogNormalLikelihood, scale="network"),
    "gamma": _likelihood(GammaLikelihood, concentration="dimension"),
    "gamma, network": _likelihood(GammaLikelihood, concentration="network"),
    "binomial": _likelihood(BinomialLikelihood, total_count=4),
    "beta-binomial": _likelihood(BetaBinomialLikelihood, total_count=4, concentration="dimension"),
    "beta-binomial, network": _likelihood(BetaBinomialLikelihood, total_count=4, concentration="network"),
    "poisson": _likelihood(PoissonLikelihood),
    "negative binomial": _likelihood(NegativeBinomialLikelihood, total_count=3.0),
    "negative binomial, network": _likelihood(NegativeBinomialLikelihood, total_count="network"),
    "zero-inflated poisson": _likelihood(ZeroInflatedPoissonLikelihood),
    "zero-inflated negative binomial": _likelihood(ZeroInflatedNegativeBinomialLikelihood, total_count="dimension"),
    "categorical": _likelihood(CategoricalLikelihood, num_classes=5),
    "ordered logistic": _likelihood(OrderedLogisticLikelihood, num_levels=5),
    "ordered logistic, two levels": _likelihood(OrderedLogisticLikelihood, num_levels=2),
    "logistic mixture": _likelihood(DiscretizedLogisticMixtureLikelihood, num_bins=5, num_components=3),
    "hurdle log-normal": _likelihood(HurdleLogNormalLikelihood, scale=0.5),
    "hurdle log-normal, network": _likelihood(HurdleLogNormalLikelihood, scale="network"),
    "hurdle gamma": _likelihood(HurdleGammaLikelihood),
    "hurdle gamma, network": _likelihood(HurdleGammaLikelihood, concentration="network"),
    "zero-one beta": _likelihood(ZeroOneInflatedBetaLikelihood, concentration="dimension"),
    "zero-one beta, network": _likelihood(ZeroOneInflatedBetaLikelihood, concentration="network"),
    "rounded normal": _likelihood(RoundedNormalLikelihood, resolution=0.5),
    "rounded normal, network": _likelihood(RoundedNormalLikelihood, resolution=2.0, scale="network"),
    "rounded student": _likelihood(RoundedStudentTLikelihood, resolution=0.5, df="dimension"),
    "rounded student, network": _likelihood(RoundedStudentTLikelihood, resolution=2.0, scale="network", df="network"),
    "multinomial": _likelihood(MultinomialLikelihood, total_count=4),
}


def _encoder(part, **arguments):
    def make(z=Z, num_inputs=D):
        return part(network(part.num_outputs(z, **arguments), num_inputs), **arguments)

    return make


ENCODERS = {
    "normal": _encoder(NormalEncoder),
    "full covariance": _encoder(FullCovarianceNormalEncoder),
    "low rank": _encoder(LowRankNormalEncoder, rank=1),
    "student-t": _encoder(StudentTEncoder),
    "mixture": _encoder(MixtureEncoder, num_components=3),
    "flow, maf": _encoder(FlowEncoder, num_features=3),
    "flow, nsf": _encoder(FlowEncoder, kind="nsf", num_features=3),
    "two layers, up": _encoder(TwoLayerEncoder, num_features=4, hidden=[8]),
    "two layers, down": _encoder(TwoLayerEncoder, direction="top-down", num_features=4, hidden=[8]),
    "categorical": _encoder(CategoricalEncoder),
}
SIMPLEX = [name for name in PRIORS if "dirichlet" in name or "logistic" in name]
REAL_PRIORS = [name for name in PRIORS if name not in (*SIMPLEX, "categorical")]
REAL_ENCODERS = [name for name in ENCODERS if name != "categorical"]
# Every pair whose encoder can be mapped to the support of the prior.
PAIRS = [(p, q) for p in (*REAL_PRIORS, *SIMPLEX) for q in REAL_ENCODERS] + [("categorical", "categorical")]


def smallest(name):
    """Return the smallest latent_dim of a prior or encoder: 2 for two layers, else 1."""
    return 2 if name.startswith("two layers") else 1


def matching_encoder(prior, name=None):
    """Make an encoder for this prior, with outputs of the dimension that the prior needs."""
    conditional = isinstance(prior, ConditionalNormalPrior)
    name = name or ("categorical" if prior.support.is_discrete else "normal")
    return ENCODERS[name](prior.encoder_dim, D + C if conditional else D)


def call(part, leading, dtype=torch.float32, device="cpu"):
    """Return the distribution of a part for a random argument of this leading shape, which only some priors use."""
    if isinstance(part, ConditionalNormalPrior):
        return part(torch.randn(leading[-1], C, dtype=dtype, device=device))
    if isinstance(part, Prior):
        return part()
    size = Z if any(isinstance(part, type(make())) for make in LIKELIHOODS.values()) else D
    return part(torch.randn(*leading, size, dtype=dtype, device=device))


def perturbed(part):
    """Convert a part to float64 and add noise to its parameters, less noise for parts with stacked layers."""
    part = part.double()
    scale = 0.1 if hasattr(part, "transform") or hasattr(part, "link") else 0.3
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return part
