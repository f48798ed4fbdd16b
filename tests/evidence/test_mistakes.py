"""Known mistakes of published VAE evaluations, each with the test that catches it here."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import pyrovae.evidence.evaluation
from pyrovae import VAE, BernoulliLikelihood, GuideProposal, NormalEncoder, StandardNormalPrior, log_marginal
from pyrovae.evidence import evaluate

CAUGHT = {
    "the prior is taken for N(0, I)": "test_importance.py::test_log_marginal_uses_the_prior_of_the_model",
    "log K is not of the number drawn": "test_mistakes.py::test_log_marginal_divides_by_the_draws_taken",
    "minibatch means averaged without weights": "test_mistakes.py::test_evaluate_counts_every_datum_once",
    "only the last minibatch counted": "test_mistakes.py::test_evaluate_counts_every_datum_once",
    "fewer samples than the batch size ignored": "test_mistakes.py::test_log_marginal_divides_by_the_draws_taken",
    "weights of the wrong sign": "test_importance.py::test_log_marginal_is_within_four_standard_errors",
    "joint instead of per-datum log-mean-exp": "test_importance.py::test_weights_are_per_datum_not_joint",
    "a Gaussian constant missing from the ELBO": "test_importance.py::test_the_elbo_is_log_p_minus_the_kl",
    "cross-entropy clamped at -100": "test_mistakes.py::test_a_bernoulli_log_density_is_not_clamped_at_minus_100",
    "a density at a transformed z": "test_proposals_exact.py::test_log_marginal_agrees_with_quadrature_on_a_simplex",
    "an evaluation that steps the optimizer": (
        "test_importance.py::test_evaluation_is_in_eval_mode_without_gradients_and_steps_nothing"
    ),
    "the bound at the posterior mean called ELBO": "test_importance.py::test_the_elbo_is_log_p_minus_the_kl",
    "the annealed loss reported as the ELBO": (
        "test_weighted.py::test_warm_up_weights_the_steps_and_not_the_reported_elbo"
    ),
    "static and dynamic binarisation compared": (
        "test_comparison.py::test_compare_refuses_runs_that_differ_in_data_or_protocol"
    ),
    "pseudo-inputs under dropout": "test_priors.py::test_a_vamp_prior_runs_its_encoder_in_evaluation_mode",
}


@pytest.mark.parametrize("mistake", CAUGHT)
def test_every_known_mistake_has_a_test(mistake):
    file, name = CAUGHT[mistake].split("::")
    tree = ast.parse(next(Path(__file__).parents[1].rglob(file)).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


class Constant(nn.Module):
    """A network that says the same of every datum."""

    def __init__(self, *outputs):
        super().__init__()
        self.register_buffer("outputs", torch.tensor(outputs))

    def forward(self, x):
        return self.outputs.expand(*x.shape[:-1], -1)


def blind(logit=0.3):
    """A decoder and an encoder that look at nothing: all weights are p(x), exactly."""
    likelihood = BernoulliLikelihood(Constant(logit, -logit))
    return VAE(StandardNormalPrior(1), likelihood, NormalEncoder(Constant(0.0, 0.0)))


@pytest.mark.parametrize("num_particles", [1, 3, 60])
def test_log_marginal_divides_by_the_draws_taken(num_particles):
    vae, x = blind(), torch.tensor([[0.0, 1.0]] * 10 + [[1.0, 1.0]])
    exact = vae.model.likelihood(torch.zeros(11, 1)).log_prob(x).double()
    for proposal in (GuideProposal(), None):
        chunk_size = 7 if proposal else None  # the default is made chunk by chunk too, and slowly
        made = log_marginal(
            vae.model, vae.guide, x, num_particles=num_particles, proposal=proposal, chunk_size=chunk_size
        )
        # One draw in the tail of the default proposal lies far below.
        tolerance = 1e-6 if proposal else 20.0 if num_particles == 1 else 6 / num_particles**0.5
        torch.testing.assert_close(made.value, exact, rtol=0, atol=tolerance)


def test_evaluate_counts_every_datum_once(monkeypatch):
    # Blocks of 8, 8 and 1: a mean of block means would weigh the last datum eightfold.
    monkeypatch.setattr(pyrovae.evidence.evaluation, "BLOCK", 8)
    vae, x = blind(2.0), torch.tensor([[1.0, 0.0]] * 16 + [[0.0, 1.0]])
    exact = vae.model.likelihood(torch.zeros(17, 1)).log_prob(x).double()
    made = evaluate(vae.model, vae.guide, x, num_particles=5, proposal=GuideProposal()).summary()
    assert made["log_marginal"]["mean"] == pytest.approx(exact.mean().item(), abs=1e-6)
    assert made["elbo"]["mean"] == pytest.approx(exact.mean().item(), abs=1e-6)


def test_a_bernoulli_log_density_is_not_clamped_at_minus_100():
    vae = blind(-250.0)
    made = log_marginal(vae.model, vae.guide, torch.tensor([[1.0, 1.0]]), num_particles=4, proposal=GuideProposal())
    assert made.value.item() == pytest.approx(-250.0, abs=1e-4)
