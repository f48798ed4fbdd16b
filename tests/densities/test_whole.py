"""`Whole`: an argument that is the same for all data, though its length is the number of data or of a batch."""

import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyrovae
from pyrovae import GuideProposal, ImportanceWeightedELBO, Whole, fit
from pyrovae.evidence import evaluate
from pyrovae.training.validation import validate

N = D = 33
OFFSET = torch.linspace(-2.0, 2.0, D)


def model(x, offset, scale=1.0):
    """x = z + offset + noise, so that x - offset ~ N(0, I + 11')."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) + offset, scale).to_event(1), obs=x)


def guide(x, offset, scale=1.0):
    """The exact posterior if shift is 0."""
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - offset).sum(-1) / (1 + D) + shift, (1 + D) ** -0.5))


@pytest.fixture(scope="module")
def x():
    pyro.set_rng_seed(0)
    return torch.randn(N, 1) + OFFSET + torch.randn(N, D)


@pytest.fixture(scope="module")
def exact(x):
    return dist.MultivariateNormal(OFFSET, torch.eye(D) + 1).log_prob(x).double()


def close(found, expected, tolerance=2e-3):
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


class TestEstimators:
    """With the exact posterior as the guide, every weight is log p(x)."""

    @pytest.mark.parametrize("chunk_size", [None, 20, 1])
    @pytest.mark.parametrize("execution", ["eager", "recorded"])
    def test_evidence_lower_bound_does_not_cut_it(self, x, exact, chunk_size, execution):
        found = pyrovae.evidence_lower_bound(
            model, guide, x, Whole(OFFSET), num_particles=10, chunk_size=chunk_size, execution=execution
        )
        close(found.value, exact)

    def test_other_estimators_do_not_cut_it(self, x, exact):
        options = {"proposal": GuideProposal(), "num_particles": 10, "chunk_size": 20}
        close(pyrovae.log_marginal(model, guide, x, Whole(OFFSET), **options).value, exact)
        close(pyrovae.exact_log_marginal(model, x, offset=Whole(OFFSET)).value, exact)
        close(evaluate(model, guide, x, offset=Whole(OFFSET), **options).elbo, exact)
        close(pyrovae.log_weights(model, guide, x, Whole(OFFSET))[0], exact)
        close(torch.tensor(validate(model, guide, x, Whole(OFFSET)).elbo), exact.mean())

    @pytest.mark.filterwarnings("ignore:the programs use dimensions by their position")
    @pytest.mark.parametrize("product", [lambda z, weights: z.unsqueeze(-1) * weights, torch.outer])
    def test_a_tensor_of_another_length_is_not_cut_by_a_batch_of_its_length(self, x, product):
        """Blocks of 11 data must not cut, nor repeat, a vector of 11 numbers."""
        weights = torch.linspace(0.5, 1.5, 11)
        thirds = x.reshape(N, 3, 11)[:, 0]

        def scaled(x, weights):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(product(z, weights), 1.0).to_event(1), obs=x)

        def posterior(x, weights):
            precision = 1 + weights.square().sum()
            shift = pyro.param("shift", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x * weights).sum(-1) / precision + shift, precision**-0.5))

        expected = dist.MultivariateNormal(torch.zeros(11), torch.eye(11) + torch.outer(weights, weights))
        for execution in ("eager", "recorded"):
            found = pyrovae.evidence_lower_bound(
                scaled, posterior, thirds, weights, num_particles=10, chunk_size=11, execution=execution
            )
            close(found.value, expected.log_prob(thirds).double())
        sgd = partial(torch.optim.SGD, lr=0.0)
        options = {"epochs": 1, "batch_size": 11, "optimizer": sgd, "execution": "eager"}
        history = fit(scaled, posterior, (thirds, weights), elbo=ImportanceWeightedELBO(2), **options)
        assert history["train_objective"][0] == pytest.approx(expected.log_prob(thirds).mean().item(), abs=1e-3)


class TestFit:
    @pytest.mark.parametrize("execution", ["eager", "recorded"])
    @pytest.mark.parametrize("elbo", [Trace_ELBO(), ImportanceWeightedELBO(2)], ids=["pyro", "ours"])
    @pytest.mark.parametrize("form", [lambda x: (x, Whole(OFFSET)), lambda x: {"x": x, "offset": Whole(OFFSET)}])
    def test_batches_do_not_cut_it(self, x, exact, elbo, execution, form):
        """At the exact posterior the gradient of the shift has mean 0, so the objective is that of log p(x)."""
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        history = fit(
            model, guide, form(x), elbo=elbo, epochs=3, batch_size=11, validation=form(x), execution=execution
        )
        for row in history.rows:
            assert row["train_objective"] == pytest.approx(exact.mean().item(), abs=0.01)
            assert row["validation_elbo"] == pytest.approx(exact.mean().item(), abs=0.01)

    def test_a_transform_keeps_it(self, x, exact):
        pyro.clear_param_store()
        history = fit(
            model,
            guide,
            (x - 1, Whole(OFFSET)),
            elbo=Trace_ELBO(),
            epochs=1,
            batch_size=11,
            transform=lambda rows: rows + 1,
        )
        assert history.rows[0]["train_objective"] == pytest.approx(exact.mean().item(), abs=0.01)


def test_whole_has_a_tensor_a_device_and_a_copy():
    whole = Whole(OFFSET)
    assert whole.to("cpu").tensor.device.type == "cpu"
    assert whole.to("meta").tensor.device.type == "meta"
    assert torch.equal(pickle.loads(pickle.dumps(whole)).tensor, OFFSET)
    assert repr(whole) == "Whole(tensor of shape (33,))"
    with pytest.raises(ValueError, match="Whole needs a tensor, got float; pass arguments of other types as they are"):
        Whole(1.0)
