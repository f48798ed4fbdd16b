"""Data whose rows are not the first dim train and are evaluated along the plate that is named."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO

from pyrovae import ImportanceWeightedELBO, evidence_lower_bound, fit, log_marginal
from pyrovae.densities import log_weights
from pyrovae.training.batches import epoch_order
from pyrovae.training.validation import validate

WORDS, DOCUMENTS = 6, 20
TOPICS = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.3, 0.5]])


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(6)


@pytest.fixture
def words():
    return torch.randint(4, (WORDS, DOCUMENTS))


def lda(data, weights=None):
    """Words by documents, with topics of words enumerated, as in Pyro's example."""
    topics = pyro.param("topics", TOPICS.clone(), constraint=dist.constraints.simplex)
    with pyro.plate("documents", data.shape[1]):
        share = pyro.sample("share", dist.Dirichlet(torch.tensor([1.2, 1.2])))
        with pyro.plate("words", data.shape[0]):
            k = pyro.sample("k", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("w", dist.Categorical(topics[k]), obs=data)


def guide(data, weights=None):
    a = pyro.param("a", torch.tensor([1.3, 1.3]), constraint=dist.constraints.positive)
    counts = torch.stack([(data == word).sum(0) for word in range(4)], -1).float()
    with pyro.plate("documents", data.shape[1]):
        pyro.sample("share", dist.Dirichlet(a + 0.3 * counts @ TOPICS.T))


def by_quadrature(words):
    share = ((torch.arange(20_000) + 0.5) / 20_000).double()
    log_prior = 0.2 * (share.log() + (1 - share).log()) - 2 * math.lgamma(1.2) + math.lgamma(2.4)
    mixture = share[:, None] * TOPICS[0] + (1 - share)[:, None] * TOPICS[1]
    return torch.stack([(log_prior + mixture[:, w].log().sum(-1)).logsumexp(0) for w in words.T]) - math.log(20_000)


def test_estimators_cut_along_the_named_plate(words):
    exact = by_quadrature(words)
    found = log_marginal(lda, guide, words, num_particles=1000, plate="documents")
    assert found.value.shape == (DOCUMENTS,)
    assert ((found.value - exact).abs() < 4.5 * found.std_error + 1e-3).all()
    few = log_marginal(lda, guide, words, num_particles=200, chunk_size=600, plate="documents")  # 3 documents at once
    assert ((few.value - exact).abs() < 4.5 * few.std_error + 1e-3).all()
    bound = evidence_lower_bound(lda, guide, words, num_particles=200, plate="documents")
    assert (bound.value < exact + 4.5 * bound.std_error).all()
    assert log_weights(lda, guide, words, num_particles=3, plate="documents").shape == (3, DOCUMENTS)
    elbo = validate(lda, guide, words, plate="documents").elbo
    assert elbo == pytest.approx(bound.value.mean().item(), abs=0.3)


def by_hand(words, order, batch_size):
    """Train by SVI on columns, and return the mean ELBO per document."""
    svi, total = SVI(lda, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=2)), 0.0
    for start in range(0, DOCUMENTS, batch_size):
        total -= svi.step(words[:, order[start : start + batch_size]])
    return total / DOCUMENTS


@pytest.mark.parametrize("batch_size", [6, DOCUMENTS])  # as many documents as words, and all
def test_fit_trains_on_batches_of_documents_as_svi_does(words, batch_size):
    pyro.set_rng_seed(7)
    history = fit(
        lda,
        guide,
        words,
        elbo=TraceEnum_ELBO(max_plate_nesting=2),
        epochs=1,
        batch_size=batch_size,
        optimizer=pyro.optim.Adam({"lr": 0.01}),
        plate="documents",
        execution="eager",
    )
    trained = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    pyro.set_rng_seed(7)
    elbo = by_hand(words, epoch_order(DOCUMENTS, epoch=0, seed=0), batch_size)
    assert history.rows[-1]["train_elbo"] == pytest.approx(elbo, rel=1e-5)
    for name, value in pyro.get_param_store().items():
        torch.testing.assert_close(value, trained[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("elbo", [TraceEnum_ELBO(max_plate_nesting=2), ImportanceWeightedELBO(num_particles=1)])
def test_train_elbo_is_per_document_and_close_to_the_estimate(words, elbo):
    history = fit(
        lda,
        guide,
        words,
        elbo=elbo,
        epochs=1,
        batch_size=7,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-12),
        validation=words,
        plate="documents",
    )
    bound = evidence_lower_bound(lda, guide, words, num_particles=500, plate="documents").value.mean().item()
    row = history.rows[-1]
    assert row["train_elbo" if isinstance(elbo, TraceEnum_ELBO) else "train_objective"] == pytest.approx(bound, abs=0.5)
    assert row["validation_elbo"] == pytest.approx(bound, abs=0.3)


def test_a_plate_of_fixed_size_trains_on_all_data_alone(words):
    def fixed(data):
        lda(data.expand(WORDS, DOCUMENTS))

    with pytest.raises(ValueError, match=r"plate 'documents' keeps its size 20.*data.shape\[1\].*batch_size=20"):
        fit(fixed, guide, words, elbo=TraceEnum_ELBO(max_plate_nesting=2), epochs=1, batch_size=7, plate="documents")


def test_a_name_of_no_plate_and_a_plate_of_another_length_are_refused(words):
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    with pytest.raises(ValueError, match=r"no plate .* is named 'docs', only \['documents', 'words'\]"):
        fit(lda, guide, words, elbo=elbo, epochs=1, plate="docs")

    def model(x):
        with pyro.plate("others", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:5, 0].float())

    def of_five(x):
        with pyro.plate("others", 5):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(5)), 1.0))

    with pytest.raises(ValueError, match=r"'others' is over 5 data.*no dim of this length, only shapes \(6, 20\)"):
        fit(model, of_five, words, elbo=Trace_ELBO(), epochs=1, plate="others")


def test_a_square_of_words_by_documents_is_cut_along_the_documents():
    square = torch.randint(4, (8, 8))
    exact = by_quadrature(square)
    found = log_marginal(lda, guide, square, num_particles=1000, plate="documents")
    assert ((found.value - exact).abs() < 4.5 * found.std_error + 1e-3).all()
    history = fit(
        lda, guide, square, elbo=TraceEnum_ELBO(max_plate_nesting=2), epochs=1, batch_size=3, plate="documents"
    )
    assert history.rows[-1]["train_elbo"] == pytest.approx(exact.mean().item(), abs=1.5)
