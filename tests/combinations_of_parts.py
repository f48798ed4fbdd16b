"""Matching pairs of priors and encoders, and small VAEs built from a prior, an encoder and a likelihood."""

from functools import partial

import torch
from catalogue import ENCODERS, LIKELIHOODS, PRIORS, C, D
from pyro.distributions import constraints

from pyrovae import MLP, VAE
from pyrovae.distributions import MultiplesOf

N, LATENT = 4, 3


def of_each_class(parts, most=1):
    """Return the first names of every class, at most `most` of each."""
    names = {}
    for name, make in parts.items():
        names.setdefault(type(make()), []).append(name)
    return [name for each in names.values() for name in each[:most]]


# One variant of each class. The tests of each kind cover the other variants, and every pair of variants.
PRIOR_NAMES, LIKELIHOOD_NAMES = of_each_class(PRIORS), of_each_class(LIKELIHOODS)
ENCODER_NAMES = of_each_class(ENCODERS, most=2)
DISCRETE = [("categorical", "categorical"), ("vamp", "categorical")]
MEANLESS = [("exemplar", name) for name in ENCODER_NAMES if name.startswith(("flow", "two layers"))]
PAIRS = [(p, q) for p in PRIOR_NAMES for q in ENCODER_NAMES]
UNMATCHED = [pair for pair in PAIRS if "categorical" in pair and pair not in DISCRETE]
CELLS = [pair for pair in PAIRS if pair not in (*UNMATCHED, *MEANLESS)]


def some_data(support, generator):
    """Make N data in a support, without draws from a model."""
    u = torch.rand(N, D, generator=generator)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return 6 * u - 3
    if support is constraints.positive:
        return 0.1 + 3 * u
    if support is constraints.nonnegative_integer:
        return (8 * u).floor()
    if isinstance(support, MultiplesOf):
        return support.resolution * (8 * u - 4).floor()
    if support.event_dim == 1:  # counts with a sum
        return torch.nn.functional.one_hot((u[:, : support.total_count] * D).long(), D).sum(1).float()
    low, high = (
        torch.as_tensor(getattr(support, f"{end}_bound", default)) for end, default in (("lower", 0), ("upper", 1))
    )
    if support.is_discrete:
        return low + ((high - low + 1) * u).floor()
    return low + (high - low) * (0.01 + 0.98 * u)


def seed(value):
    torch.default_generator.manual_seed(value)  # `pyro.set_rng_seed` seeds six generators, for 3 ms


def build(prior, encoder, likelihood, x):
    """Make the VAE of a combination, with the prior attached as `Blueprint` does."""
    conditions = C if prior == "conditional" else 0
    p_z = PRIORS[prior](LATENT)
    q_z = ENCODERS[encoder](p_z.encoder_dim, D + conditions)
    decoder = LIKELIHOODS[likelihood](LATENT + conditions, partial(MLP, hidden=[6], activation="tanh"))
    return VAE(p_z.attach(q_z, x), decoder, q_z)
