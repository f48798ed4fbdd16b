"""The plate over the data among plates of the same size: found on fewer rows, or named by the user."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from zoo.integrals import line, log_integral
from zoo.parts import log_normal, noise

from pyrovae import (
    GuideProposal,
    ImportanceWeightedELBO,
    ais,
    elbo_parts,
    evidence_lower_bound,
    exact_log_marginal,
    fit,
    linear_schedule,
    log_marginal,
    refine,
)

X = noise(72, 4, 4)  # as many words as documents
LOADINGS = noise(73, 4)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def documents(dim, size=None):
    """Make a pair with a plate of documents at a dim, -1 or -2, and one of words at the other."""

    def turned(x):
        return x if dim == -2 else x.T

    def model(x):
        scale = pyro.param("scale", torch.tensor(0.8))
        size_of_data = len(x) if size is None else size
        with pyro.plate("words", x.shape[1], dim=-3 - dim), pyro.plate("documents", size_of_data, dim=dim):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.sin(z) * turned(LOADINGS.expand(size_of_data, 4))
            pyro.sample("x", dist.Normal(loc, scale), obs=turned(x))

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("words", x.shape[1], dim=-3 - dim), pyro.plate("documents", len(x), dim=dim):
            pyro.sample("z", dist.Normal(slope * turned(x), 1.1))

    return model, guide


def log_p():
    """Integrate over the latent of each document and word alone."""
    words = X.flatten(), LOADINGS.repeat(4)

    def joint(x, loading, z):
        return log_normal(z, 0, 1) + log_normal(x, torch.sin(z) * loading, 0.8)

    return log_integral(joint, (line(size=961),), *words).reshape(4, 4).sum(-1)


def near(found, tolerance=4.5):
    assert ((found.value - log_p()).abs() < tolerance * found.std_error).all()
    assert (found.std_error < 0.2).all()


@pytest.mark.parametrize("options", [{}, {"plate": "documents"}], ids=["found", "named"])
@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.thin(1)
def test_estimators_sum_over_words_and_not_over_documents(dim, options):
    model, guide = documents(dim)
    pyro.set_rng_seed(1)
    near(log_marginal(model, guide, X, num_particles=3000, **options))
    near(log_marginal(model, guide, X, num_particles=3000, proposal=GuideProposal(), **options))
    near(
        ais(
            model,
            X,
            guide=guide,
            num_particles=100,
            betas=linear_schedule(15),
            num_leapfrog=3,
            num_tuning=30,
            **options,
        )
    )
    bound = evidence_lower_bound(model, guide, X, num_particles=1000, **options)
    refined = refine(model, guide, X, log_p=log_p(), steps=2, **options)
    assert (bound.value < log_p() + 4 * bound.std_error).all()
    error = torch.hypot(bound.std_error, refined.guide_elbo_error)
    assert ((bound.value - refined.guide_elbo).abs() < 4.5 * error).all()


def test_fit_and_parts_of_the_elbo_find_the_documents():
    model, guide = documents(-1)
    pyro.set_rng_seed(2)
    bound = evidence_lower_bound(model, guide, X, num_particles=4000)
    parts = elbo_parts(model, guide, X, num_particles=4000)
    elbo = parts.reconstruction.mean(0) - sum(parts.divergences.values()).mean(0)
    torch.testing.assert_close(elbo, bound.value, rtol=0, atol=0.4)
    options = {"epochs": 1, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    for elbo in (Trace_ELBO(num_particles=1000), ImportanceWeightedELBO(num_particles=1000)):
        history = fit(model, guide, X, elbo=elbo, batch_size=4, validation=X, **options)
        assert math.isfinite(history["validation_elbo"][0])
    assert history["train_objective"][0] == pytest.approx(log_p().mean().item(), abs=0.5)


def test_the_name_of_another_plate_is_refused():
    model, guide = documents(-1)
    with pytest.raises(ValueError, match="depends on which other data"):
        log_marginal(model, guide, X, num_particles=10, plate="words")
    with pytest.raises(ValueError, match="outside a plate"):
        exact_log_marginal(model, X, plate="sentences")


def test_plates_that_no_number_of_rows_tells_apart_must_be_named():
    model, guide = documents(-1, size=4)
    with pytest.raises(ValueError, match=r"plates \['documents', 'words'\] all may be .* plate='documents'"):
        log_marginal(model, guide, X, num_particles=10)
    pyro.set_rng_seed(3)
    near(log_marginal(model, guide, X, num_particles=3000, plate="documents"))
