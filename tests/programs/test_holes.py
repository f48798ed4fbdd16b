"""Data with missing entries in blueprints: moments of the observed ones, and what the encoder gets for the others."""

from functools import partial

import numpy as np
import pytest
import torch

from pyrovae import BernoulliLikelihood, NegativeBinomialLikelihood, NormalLikelihood, VampPrior
from pyrovae.nn import Standardize, StandardizeCounts
from pyrovae.programs import Blueprint, MixtureVAE, TwoLayerVAE

N, D = 200, 4


def holed(kind, seed=0):
    rng = np.random.default_rng(seed)
    x = {
        "real": 170 + 8 * rng.normal(size=(N, D)),
        "count": rng.poisson(5, (N, D)),
        "bit": rng.integers(2, size=(N, D)),
    }[kind].astype(np.float32)
    x[rng.random((N, D)) < 0.3] = np.nan
    return torch.from_numpy(x)


LIKELIHOODS = {"real": NormalLikelihood, "count": NegativeBinomialLikelihood, "bit": BernoulliLikelihood}


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_encoder_scales_by_the_moments_of_the_observed_entries(kind):
    x = holed(kind)
    vae = Blueprint(D, 2, likelihood=LIKELIHOODS[kind], x=x).vae()
    scaled = next(m for m in vae.guide.modules() if isinstance(m, Standardize | StandardizeCounts))
    y = x.log1p() if kind == "count" else x
    mean = np.nanmean(y.numpy(), axis=0)
    if kind == "bit":
        mean = np.zeros(D)
    loc = scaled.log_loc if kind == "count" else scaled.loc
    assert loc.tolist() == pytest.approx(mean.tolist(), rel=1e-5)
    if kind == "count":
        assert float(scaled.log_scale) == pytest.approx(np.sqrt(np.nanvar(y.numpy(), axis=0).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("program", [lambda b: b.vae(), MixtureVAE, TwoLayerVAE])
def test_a_missing_entry_enters_the_encoder_as_the_centre_of_its_column(kind, program):
    x = holed(kind)
    mask = ~x.isnan()
    pair = program(Blueprint(D, 2, likelihood=LIKELIHOODS[kind], x=x))
    scaled = next(m for m in pair.guide.modules() if isinstance(m, Standardize | StandardizeCounts))
    seen = []
    scaled.register_forward_hook(lambda module, given, output: seen.append(output))
    pair.guide(x, mask=mask)
    assert seen
    for output in seen:
        assert output[..., :D][~mask].abs().max() < 1e-6
        assert output.isfinite().all()
    wild = torch.where(mask, x, 1e4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = pair.guide(x, mask=mask)
        torch.manual_seed(0)
        second = pair.guide(wild, mask=mask)
    assert first is None or torch.equal(first, second)


def test_a_vampprior_starts_from_complete_data():
    x = holed("real")
    vae = Blueprint(D, 2, prior=partial(VampPrior, num_components=9), likelihood=NormalLikelihood, x=x).vae()
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    assert vae.model(x, mask=~x.isnan()).isfinite().all()
