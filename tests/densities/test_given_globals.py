"""Programs whose global latents are given by `poutine.condition` or replaced by `poutine.do`."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.ops.indexing import Vindex

from pyrovae import (
    ImportanceWeightedELBO,
    ais,
    evidence_lower_bound,
    exact_log_marginal,
    fit,
    linear_schedule,
    log_evidence,
    log_marginal,
)
from pyrovae.densities import log_joint, log_weights

GIVING = [poutine.condition, poutine.do]
LENGTH, STATES = 5, 3


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    yield
    torch.set_default_dtype(torch.float32)


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))


def hmm(x):
    with pyro.plate("states", STATES):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(STATES)))
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("sequences", len(x)):
        s = 0
        for t in pyro.markov(range(x.shape[1])):
            s = pyro.sample(f"s_{t}", dist.Categorical(transition[s]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(loc[s], 0.7), obs=x[:, t])


def no_guide(x):
    pass


def hmm_data():
    given = {"transition": torch.rand(STATES, STATES).softmax(-1), "loc": torch.tensor([-2.0, 0.3, 1.4])}
    return torch.randn(9, LENGTH), given


def forward_algorithm(x, transition, loc):
    """Sum over the paths of an HMM that starts in state 0."""
    log_alpha = transition.log()[0] + log_normal(x[:, :1], loc, 0.7)
    for t in range(1, x.shape[1]):
        log_alpha = (log_alpha[:, :, None] + transition.log()).logsumexp(1) + log_normal(x[:, t, None], loc, 0.7)
    return log_alpha.logsumexp(-1)


@pytest.mark.parametrize("give", GIVING)
def test_an_hmm_with_given_globals_has_the_log_p_of_the_forward_algorithm(give):
    x, given = hmm_data()
    exact = forward_algorithm(x, **given)
    model = give(hmm, data=given)
    for found in (
        log_marginal(model, no_guide, x, num_particles=2).value,
        evidence_lower_bound(model, no_guide, x, num_particles=2).value,
        exact_log_marginal(model, x).value,
        log_joint(model, {}, x)[0],
    ):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


def test_log_evidence_counts_a_condition_as_data_and_a_replaced_site_not():
    x, given = hmm_data()
    exact = forward_algorithm(x, **given).sum()
    prior = log_normal(given["loc"], 0.0, 3.0).sum() + STATES * math.lgamma(STATES)
    for give, expected in ((poutine.condition, exact + prior), (poutine.do, exact)):
        found = log_evidence(give(hmm, data=given), no_guide, x, num_particles=2)
        assert found.value.item() == pytest.approx(expected.item(), rel=1e-9)


def lda(words):
    with pyro.plate("topics", 2):
        topics = pyro.sample("phi", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("documents", len(words)):
        share = pyro.sample("share", dist.Dirichlet(torch.tensor([1.2, 1.2])))
        with pyro.plate("words", words.shape[1], dim=-2):
            k = pyro.sample("k", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("w", dist.Categorical(Vindex(topics)[..., k, :]), obs=words.T)


def lda_guide(words):
    with pyro.plate("topics", 2):
        pyro.sample("phi", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("documents", len(words)):
        pyro.sample("share", dist.Dirichlet(torch.tensor([1.3, 1.3])))


TOPICS = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.3, 0.5]], dtype=torch.float64)


def lda_by_quadrature(words):
    """Integrate over the share of the first topic by the midpoint rule, with the topics of words summed out."""
    share = (torch.arange(20_000) + 0.5) / 20_000
    log_beta = 2 * math.lgamma(1.2) - math.lgamma(2.4)
    log_prior = 0.2 * (share.log() + (1 - share).log()) - log_beta
    mixture = share[:, None] * TOPICS[0] + (1 - share)[:, None] * TOPICS[1]
    return torch.stack([(log_prior + mixture[:, w].log().sum(-1)).logsumexp(0) for w in words]) - math.log(20_000)


@pytest.mark.parametrize("give", GIVING)
@pytest.mark.parametrize("size", [2, 6])  # as many documents as topics, and more
@pytest.mark.thin(1)
def test_lda_with_given_topics_agrees_with_quadrature(give, size):
    words = torch.randint(4, (size, 7))
    exact = lda_by_quadrature(words)
    model = give(lda, data={"phi": TOPICS})
    guides = [poutine.condition(lda_guide, data={"phi": TOPICS}), poutine.block(lda_guide, hide=["phi"])]
    for guide in guides:
        for found in (
            log_marginal(model, guide, words, num_particles=3000),
            ais(model, words, guide=guide, num_particles=40, betas=linear_schedule(4), num_leapfrog=2, num_tuning=5),
            exact_log_marginal(model, words),
        ):
            std_error = getattr(found, "std_error", torch.tensor(1e-3))
            assert ((found.value - exact).abs() < 4.5 * std_error + 1e-3).all()


def test_a_guide_that_draws_a_given_site_is_told_to_hide_it():
    words = torch.randint(4, (6, 7))
    for give in GIVING:
        with pytest.raises(ValueError, match=r"'phi' of the guide .*poutine.block\(guide, hide=\['phi'\]\)"):
            log_marginal(give(lda, data={"phi": TOPICS}), lda_guide, words, num_particles=10)


def test_a_replaced_latent_of_each_datum_has_no_part_in_log_p():
    x = torch.randn(6)

    def model(x):
        with pyro.plate("data", len(x)):
            treated = pyro.sample("treated", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(treated, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    replaced = poutine.do(model, data={"treated": torch.ones(())})
    exact = log_normal(x, 1.0, math.sqrt(2.0))
    found = log_marginal(replaced, guide, x, num_particles=500)
    assert ((found.value - exact).abs() < 4.5 * found.std_error + 1e-4).all()
    torch.testing.assert_close(exact_log_marginal(replaced, x).value, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("of", ["latents", "data"])
def test_an_observed_site_outside_the_plate_that_depends_on_data_or_latents_is_refused(of):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("total", dist.Normal((z if of == "latents" else x).sum(), 1.0), obs=torch.tensor(1.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    with pytest.raises(ValueError, match="site 'total' of the model lies outside a plate"):
        log_marginal(model, guide, torch.randn(8), num_particles=10)


def test_an_objective_per_datum_refuses_to_leave_out_a_density_that_it_should_train():
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0))
        slope = pyro.sample("slope", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(slope, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 0.8))

    x, given = torch.randn(8), poutine.condition(model, data={"slope": torch.tensor(0.4)})
    exact = log_normal(x, 0.4, math.sqrt(2.0))
    found = log_marginal(given, guide, x, num_particles=300)
    assert ((found.value - exact).abs() < 4.5 * found.std_error + 1e-4).all()
    assert log_weights(given, guide, x, num_particles=3).shape == (3, 8)
    with pytest.raises(ValueError, match=r"site 'slope' of the model lies outside the data plate.*Trace_ELBO\(\)"):
        fit(given, guide, x, elbo=ImportanceWeightedELBO(num_particles=3), epochs=1)
    fit(given, guide, x, elbo=Trace_ELBO(), epochs=1)


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")  # Pyro's word on the observed site
def test_train_elbo_leaves_out_a_replaced_latent_and_the_given_sites_of_a_guide():
    def model(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(slope, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + pyro.param("a", torch.tensor(0.0)), math.sqrt(0.5)))  # the posterior

    x, given = torch.randn(8), {"slope": torch.tensor(0.0)}
    exact = log_normal(x, 0.0, math.sqrt(2.0)).mean().item()
    both = poutine.condition(guide, data=given)
    for trained in (poutine.block(guide, hide=["slope"]), both):
        for batch_size in (3, 8):
            history = fit(
                poutine.do(model, data=given),
                trained,
                x,
                elbo=Trace_ELBO(),
                epochs=1,
                batch_size=batch_size,
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-12),
            )
            assert history.rows[-1]["train_elbo"] == pytest.approx(exact, abs=1e-6)
    # A condition is data: its log density counts once for all data. That of an observed site of the guide is no data.
    options = {"elbo": Trace_ELBO(), "epochs": 1, "batch_size": 8}
    options["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=1e-12)
    conditioned = poutine.condition(model, data=given)
    history = fit(conditioned, poutine.block(guide, hide=["slope"]), x, **options)
    with_prior = exact + log_normal(given["slope"], 0.0, 10.0).item() / 8
    assert history.rows[-1]["train_elbo"] == pytest.approx(with_prior, abs=1e-6)
    with pytest.warns(UserWarning, match=r"train_elbo is left out.*site 'slope' of the guide is observed"):
        fit(conditioned, both, x, **options)
