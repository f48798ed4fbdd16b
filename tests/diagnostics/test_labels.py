"""Latent dimensions have the same names in codes, divergences, calibrations and files."""

import pyro
import pyro.distributions as dist
import torch

from pyrovae import encode
from pyrovae.diagnostics import dimension_labels, encode_codes, kl_by_dimension, sbc
from pyrovae.runs.encodings import latent_names

NAMES = ("a", "b[0]", "c[0,0]", "c[0,1]", "c[1,0]", "c[1,1]")


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("c", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("a", dist.Normal(x / 2, 0.7))
        pyro.sample("b", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("c", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))


def test_all_results_name_the_dimensions_alike():
    x = torch.randn(20)
    assert tuple(dimension_labels("c", (2, 2))) == NAMES[2:]
    assert encode_codes(model, guide, x, num_particles=10, num_prior=100).names == NAMES
    assert kl_by_dimension(model, guide, x, num_particles=2).labels == NAMES
    assert tuple(sbc(model, guide, x, num_simulations=20, num_draws=9).activity) == NAMES
    assert tuple(latent_names(encode(model, guide, x).mean, 1)) == NAMES
