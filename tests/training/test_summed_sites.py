"""Training of models with discrete sites that are summed out, against Pyro's enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from goodness import within
from pyro.infer import TraceEnum_ELBO

from pyrovae import ImportanceWeightedELBO, exact_log_marginal, fit, log_marginal
from pyrovae.objectives import BetaTCELBO, WeightedELBO

F64 = torch.float64
SHARES = torch.tensor([0.2, 0.3, 0.5], dtype=F64)


class TestTraining:
    x = torch.linspace(-3, 5, 12, dtype=F64)

    @staticmethod
    def model(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0], dtype=F64))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(SHARES), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(locs[c] + z, 1.0), obs=x)

    @staticmethod
    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.1, dtype=F64))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc + 0.2 * x, 0.8))

    def gradients(self, elbo):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        loss = elbo.loss_and_grads(self.model, self.guide, self.x)
        store = pyro.get_param_store()
        return loss, [store[name].unconstrained().grad for name in ("locs", "loc")]

    def test_our_bound_of_one_draw_has_the_loss_and_gradient_of_pyros_enumeration(self):
        loss, gradients = self.gradients(TraceEnum_ELBO(max_plate_nesting=1))
        for elbo in (ImportanceWeightedELBO(num_particles=1), WeightedELBO(analytic=False)):
            ours, ours_gradients = self.gradients(elbo)
            torch.testing.assert_close(ours, loss)
            torch.testing.assert_close(ours_gradients, gradients)

    @pytest.mark.parametrize("execution", ["eager", "recorded"])
    def test_fit_validates_and_trains_a_summed_model(self, execution):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        history = fit(
            self.model,
            self.guide,
            self.x,
            validation=self.x[:5],
            elbo=ImportanceWeightedELBO(num_particles=4),
            epochs=2,
            batch_size=6,
            execution=execution,
        )
        rows = history.rows
        assert all(math.isfinite(row["validation_elbo"]) for row in rows)
        exact = exact_log_marginal(self.model, self.x).value
        assert within(log_marginal(self.model, self.guide, self.x, num_particles=4000), exact)

    def test_fit_with_pyros_enumeration_validates_by_the_summed_density(self):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        history = fit(self.model, self.guide, self.x, validation=self.x, elbo=elbo, epochs=1, batch_size=12)
        expected = -TraceEnum_ELBO(2000, max_plate_nesting=1, vectorize_particles=True).loss(
            self.model, self.guide, self.x
        )
        assert history.rows[0]["validation_elbo"] == pytest.approx(expected / 12, abs=0.15)

    @pytest.mark.parametrize("gradient", ["pathwise", "vimco"])
    def test_a_model_of_summed_sites_alone_follows_the_gradient_of_its_likelihood(self, gradient):
        def model(x):
            locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0], dtype=F64))
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                pyro.sample("x", dist.Normal(locs[c], 1.0), obs=x)

        pyro.clear_param_store()
        elbo = ImportanceWeightedELBO(num_particles=2, gradient=gradient)
        loss = elbo.loss_and_grads(model, lambda x: None, self.x)
        locs = torch.tensor([-1.0, 0.0, 1.0], dtype=F64, requires_grad=True)
        expected = -(SHARES.log() + dist.Normal(locs, 1.0).log_prob(self.x[:, None])).logsumexp(1).sum()
        expected.backward()
        torch.testing.assert_close(torch.as_tensor(loss, dtype=F64), expected.detach())
        torch.testing.assert_close(pyro.get_param_store()["locs"].grad, locs.grad)

    def test_an_objective_that_needs_one_prior_refuses_a_sum(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                z = pyro.sample("z", dist.Normal(c.unsqueeze(-1), 1.0).expand([*c.shape, 2]).to_event(1))
                w = pyro.sample("w", dist.Normal(z.sum(-1), 1.0 + c))
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
                pyro.sample("w", dist.Normal(x, 1.0))

        with pytest.raises(ValueError, match=r"divergences of latents \['z', 'w'\] are not separate"):
            WeightedELBO().loss(model, guide, self.x)

        def of_vector(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                z = pyro.sample("z", dist.Normal(c.unsqueeze(-1), 1.0).expand([*c.shape, 2]).to_event(1))
                pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

        def guide_of_vector(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))

        with pytest.raises(ValueError, match=r"need p\(z\) as one distribution, but it sums over sites \['c'\]"):
            BetaTCELBO(12).loss(of_vector, guide_of_vector, self.x)
