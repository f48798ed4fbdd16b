"""Programs that break the contract of `log_weights` are refused with the site and a remedy."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pyro import poutine

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    NormalEncoder,
    StandardNormalPrior,
    exact_log_marginal,
    log_joint,
    log_marginal,
    log_weights,
)
from pyrovae.evidence import GuideProposal


class TestRefusals:
    oracle = LinearGaussian()

    @pytest.fixture
    def pair(self):
        vae = self.oracle.vae(sd_factor=1.0)
        return vae.model, vae.guide, self.oracle.data(4)

    @pytest.mark.parametrize(("name", "given"), [("num_particles", 0), ("chunk_size", -1)])
    def test_log_marginal_refuses_counts_below_one_and_fractions(self, pair, name, given):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got {given}"):
            log_marginal(*pair, **{"num_particles": 2, name: given})
        with pytest.raises(ValueError, match=r"num_particles must be an integer, got 2\.5"):
            log_marginal(*pair, num_particles=2.5)

    def test_a_site_outside_the_plate_is_named(self, pair):
        def model(x):
            pyro.sample("theta", dist.Normal(0.0, 1.0))
            pair[0](x)

        def guide(x):
            pyro.sample("theta", dist.Normal(0.0, 1.0))
            pair[1](x)

        with pytest.raises(ValueError, match="site 'theta' of the model lies outside a plate"):
            log_weights(model, guide, pair[2])

    def test_log_weights_refuse_a_scale_and_name_its_site(self, pair):
        with pytest.raises(ValueError, match=r"site 'z' of the model carries scale 0\.5"):
            log_weights(poutine.scale(pair[0], 0.5), pair[1], pair[2])

    def test_a_subsampling_plate_is_refused(self, pair):
        def model(x):
            with pyro.plate("data", 4, subsample_size=2, dim=-1) as rows:
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(torch.zeros(5), 1.0).to_event(1), obs=x[rows])

        def guide(x):
            with pyro.plate("data", 4, subsample_size=2, dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        with pytest.raises(ValueError, match=r"site 'z' of the model carries scale 2 by the subsampling plate 'data'"):
            log_weights(model, guide, pair[2])

    def test_a_latent_the_guide_does_not_draw_is_named(self, pair):
        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        with pytest.raises(ValueError, match="guide does not draw site 'z'"):
            log_weights(pair[0], guide, pair[2])

    def test_an_auxiliary_site_of_the_guide_is_refused(self, pair):
        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("u", dist.Categorical(torch.ones(8)), infer={"is_auxiliary": True})
                pyro.sample("z", pair[1].encoder(x))

        with pytest.raises(ValueError, match="site 'u' of the guide is no latent of the model"):
            log_weights(pair[0], guide, pair[2])

    def test_a_conditioned_model_under_the_whole_guide_is_refused(self, pair):
        model = poutine.condition(pair[0], data={"z": torch.zeros(4, 2, dtype=torch.float64)})
        with pytest.raises(ValueError, match="site 'z' of the guide is no latent of the model"):
            log_weights(model, pair[1], pair[2])

    def test_two_plates_at_the_datas_place_are_refused(self, pair):
        def with_features(program):
            def wrapped(x):
                with pyro.plate("features", 4, dim=-1):
                    pyro.sample("w", dist.Normal(0.0, 1.0))
                program(x)

            return wrapped

        with pytest.raises(ValueError, match="site 'z' of the model lies in plate 'data', others in 'features'"):
            log_weights(with_features(pair[0]), with_features(pair[1]), pair[2])

    def test_a_mask_in_one_program_alone_is_refused(self, pair):
        mask = torch.tensor([True, False, True, True])
        with pytest.raises(ValueError, match="site 'z' carries one mask in the model and another in the guide"):
            log_weights(poutine.mask(pair[0], mask), pair[1], pair[2])

    def test_a_model_and_guide_of_different_sizes_are_refused(self, pair):
        def guide(x):
            with pyro.plate("data", 1, dim=-1):
                pyro.sample("z", pair[1].encoder(x[:1]))

        def model(x):
            with pyro.plate("rows", len(x), dim=-1):
                z = pyro.sample("z", pair[0].prior())
                pyro.sample("x", pair[0].likelihood(z), obs=x)

        with pytest.raises(ValueError, match="outside a plate over the 4 data, only in 'data' of size 1"):
            log_weights(model, guide, pair[2])

    def test_an_event_dimension_left_out_is_named(self, pair):
        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 1, 2), 1.0))

        with pytest.raises(ValueError, match=r"site 'z'|shape mismatch|Shape mismatch|invalid log_prob shape"):
            log_weights(pair[0], guide, pair[2])

    def test_data_outside_the_support_name_the_datum(self):
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 3)), NormalEncoder(MLP(3, 4)))
        x = torch.zeros(200, 3)
        x[150, 2] = 0.5
        with pytest.raises(ValueError, match=r"0\.5 at datum 150, entry 2.*ContinuousBernoulli"):
            log_marginal(vae.model, vae.guide, x, num_particles=5, chunk_size=64, proposal=GuideProposal())

    def test_nan_data_are_refused(self, pair):
        x = pair[2].clone()
        x[1, 3] = torch.nan
        with pytest.raises(ValueError, match="nan at datum 1, entry 3; if values are missing, pass mask="):
            log_marginal(pair[0], pair[1], x, num_particles=2)

    def test_log_joint_refuses_missing_and_unknown_latents(self, pair):
        z = torch.zeros(3, 4, 2, dtype=torch.float64)
        with pytest.raises(ValueError, match="no latent 'y'"):
            log_joint(pair[0], {"y": z, "z": z}, pair[2])
        with pytest.raises(ValueError, match="latents gives no value for site 'z'"):
            log_joint(pair[0], {}, pair[2])
        with pytest.raises(ValueError, match=r"shape \(4, N, ...\), got \(4,\)"):
            log_joint(pair[0], {"z": torch.zeros(4)}, pair[2])

    def test_a_latent_without_to_event_is_named(self):
        x = torch.zeros(3, 3)  # Pyro takes the last dim for that of the plate

        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x, 1.0))

        with pytest.raises(ValueError, match=r"value of site 'z' of the guide .* got \(3, 3\); call \.to_event"):
            log_weights(model, guide, x)

    def test_log_joint_of_a_model_without_latents_is_its_log_density(self):
        x = torch.tensor([0.5, -1.0, 2.0])

        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(1.0, 2.0), obs=x)

        torch.testing.assert_close(log_joint(model, {}, x), dist.Normal(1.0, 2.0).log_prob(x).unsqueeze(0))
        with pytest.raises(ValueError, match=r"no latent site.*use log_joint"):
            exact_log_marginal(model, x)

    def test_empty_data_are_refused(self, pair):
        with pytest.raises(ValueError, match="data are empty"):
            log_marginal(pair[0], pair[1], pair[2][:0], num_particles=2)
