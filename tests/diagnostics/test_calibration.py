"""Calibration of guides: exact posteriors pass, broken guides are named, and weights are tested whatever the guide."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyrovae import VAE, Encoder, NormalLikelihood, StandardNormalPrior
from pyrovae.diagnostics import sbc, weighted_sbc
from pyrovae.evidence import GuideProposal, LaplaceProposal, MixtureProposal, PriorProposal
from pyrovae.evidence.proposal_components import MixtureComponent


class PriorEncoder(Encoder):
    def forward(self, x, covariates=None):
        return dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)


def correlated():
    """A linear-Gaussian model whose posterior has correlation 0.9: its precision is ((10, -9), (-9, 10))."""
    oracle = LinearGaussian(data_dim=1, latent_dim=2)
    oracle.weight = torch.tensor([[3.0, -3.0]], dtype=torch.float64) * oracle.scale
    _, covariance = oracle.posterior(torch.zeros(1, 1, dtype=torch.float64))
    torch.testing.assert_close(covariance[0, 1] / covariance[0, 0], torch.tensor(0.9, dtype=torch.float64))
    return oracle


def with_encoder(oracle, encoder):
    likelihood = NormalLikelihood(oracle.decoder(), scale=oracle.scale).double()
    return VAE(StandardNormalPrior(2).double(), likelihood, encoder)


FAULTS = {
    "narrow": (lambda: LinearGaussian().vae(sd_factor=0.8), 5, "too narrow in z[0], z[1]"),
    "wide": (lambda: LinearGaussian().vae(sd_factor=1.3), 5, "too wide in z[0], z[1]"),
    "shifted": (lambda: LinearGaussian().vae(sd_factor=1.0, shift=1.0), 5, "lies too high in z[0], z[1]"),
    "marginals": (lambda: correlated().vae(sd_factor=1.0), 1, "misses the dependence between latents"),
    "mean-field": (lambda: correlated().vae(sd_factor=0.19**0.5), 1, "too narrow in z[0], z[1]"),
    "prior": (lambda: with_encoder(LinearGaussian(), PriorEncoder(torch.nn.Identity())), 5, "the guide ignores x:"),
}


def calibrate(vae, width, *, num_simulations=1000, num_draws=19, seed=0):
    x = torch.full((7, width), 3.0, dtype=torch.float64)
    return sbc(vae.model, vae.guide, x, num_simulations=num_simulations, num_draws=num_draws, seed=seed)


def test_the_exact_posterior_passes():
    found = calibrate(LinearGaussian().vae(), 5)
    assert found.p_value > 0.05
    assert found.words == ("nothing wrong found in 1,000 simulations of the model's own data",)
    assert list(found.ranks) == ["z[0]", "z[1]", "log p(x|z)", "log p(z)"]
    for ranks in found.ranks.values():
        assert ranks.shape == (1000,)
        assert set(ranks.tolist()) == set(range(20))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_guide_is_named(fault):
    make, width, words = FAULTS[fault]
    found = calibrate(make(), width)
    assert found.p_value < 1e-4
    assert any(words in sentence for sentence in found.words), found.words
    if fault == "prior":  # found by log p(x|z) alone
        assert min(found.uniformity[name].p_value for name in ("z[0]", "z[1]", "log p(z)")) > 0.01
        assert found.uniformity["log p(x|z)"].p_value < 1e-50
        assert max(map(abs, found.activity.values())) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_guides_are_named_with_power_above_nine_tenths(fault):
    make, width, words = FAULTS[fault]
    vae = make()
    named = [any(words in s for s in calibrate(vae, width, seed=seed).words) for seed in range(40)]
    assert sum(named) > 36


@pytest.mark.slow
def test_exact_posteriors_raise_false_alarms_at_the_nominal_level():
    vae, rejected, together = LinearGaussian().vae(), torch.zeros(4), 0
    for seed in range(500):
        found = calibrate(vae, 5, num_simulations=200, seed=seed)
        rejected += torch.tensor([test.rejects for test in found.uniformity.values()])
        together += found.p_value <= 0.05
    assert ((rejected / 500 > 0.02) & (rejected / 500 < 0.09)).all(), rejected
    assert together / 500 < 0.08


def test_activity_is_the_share_of_the_variance_between_data():
    oracle = LinearGaussian(data_dim=3, latent_dim=1)
    found = calibrate(oracle.vae(), 3, num_simulations=4000)
    _, covariance = oracle.posterior(torch.zeros(1, 3, dtype=torch.float64))
    share = 1 - covariance.item()  # of the prior's variance, 1, by the law of total variance
    assert abs(found.activity["z[0]"] - share) < 4.5 * share * (2 / 4000) ** 0.5


def coins(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample("x", dist.Bernoulli(torch.tensor([0.1, 0.6, 0.9])[z]), obs=x)


def posterior_of_coins(x):
    p = torch.tensor([0.1, 0.6, 0.9])
    joint = torch.tensor([0.5, 0.3, 0.2]) * torch.where(x.unsqueeze(-1) == 1, p, 1 - p)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Categorical(joint / joint.sum(-1, keepdim=True)))


def test_ranks_of_discrete_latents_are_uniform_though_most_draws_tie():
    found = sbc(coins, posterior_of_coins, torch.zeros(10), num_simulations=2000, num_draws=9)
    assert list(found.ranks) == ["z", "log p(x|z)", "log p(z)"]
    assert min(test.p_value for test in found.uniformity.values()) > 0.01
    weighted = weighted_sbc(coins, lambda x: coins_guide(x, 0.4), torch.zeros(10), num_simulations=2000, num_draws=3)
    assert min(test.p_value for test in weighted.uniformity.values()) > 0.01
    wrong = sbc(coins, lambda x: coins_guide(x, 0.4), torch.zeros(10), num_simulations=2000, num_draws=9)
    assert wrong.p_value < 1e-6


def test_values_that_differ_by_rounding_tie():
    """The true value comes first, where sums of other batches may round otherwise."""

    def rounded_up(latents, x):
        z = latents["z"].float() + 5
        return z + 5e-7 * (torch.arange(len(z)) == 0).unsqueeze(-1)

    x = torch.zeros(10)
    assert not torch.equal(rounded_up({"z": torch.ones(2, 1)}, x)[0], torch.tensor([6.0]))
    found = sbc(coins, posterior_of_coins, x, num_simulations=1000, num_draws=9, quantities={"z up": rounded_up})
    assert found.uniformity["z up"].p_value > 0.01


def coins_guide(x, p):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Categorical(torch.tensor([p, p / 2, 1 - 1.5 * p]).expand(len(x), 3)))


def shifted_by(x, covariates, mask=None):
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        fn = dist.Normal(z[..., 0, :] + covariates, 1.0)
        pyro.sample("x", (fn if mask is None else fn.mask(mask)).to_event(1), obs=x.nan_to_num())


def shifted_by_guide(x, covariates, mask=None):
    seen = torch.ones_like(x) if mask is None else mask.to(x)
    loc = torch.stack([seen * (x.nan_to_num() - covariates) / 2, torch.zeros_like(x)], -2)
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, torch.stack([(1 - seen / 2).sqrt(), torch.ones_like(x)], -2)).to_event(2))


def test_covariates_and_masks_stay_and_only_the_shape_of_x_is_used():
    covariates = 10 * torch.randn(60, 2)
    mask = torch.rand(60, 2) < 0.7
    x = torch.where(mask, 1e3, math.nan)
    arguments = {"covariates": covariates, "mask": mask}
    found = sbc(shifted_by, shifted_by_guide, x, num_simulations=600, num_draws=19, **arguments)
    assert found.p_value > 0.01
    assert list(found.ranks)[:4] == ["z[0,0]", "z[0,1]", "z[1,0]", "z[1,1]"]
    other = sbc(shifted_by, shifted_by_guide, torch.where(mask, 0.5, math.nan), num_simulations=600, num_draws=19,
                **arguments)  # fmt: skip
    assert all(torch.equal(found.ranks[name], other.ranks[name]) for name in found.ranks)
    # A guide that takes no notice of the covariates lies too high or too low by 5, whichever their sign.
    wrong = sbc(
        shifted_by, lambda x, covariates, mask: shifted_by_guide(x, 0 * covariates, mask), x, num_simulations=600,
        num_draws=19, **arguments,
    )  # fmt: skip
    assert wrong.p_value < 1e-10


def test_your_own_quantities_are_tested():
    def product(latents, x):
        return latents["z"].prod(-1)

    vae = correlated().vae(sd_factor=1.0)  # the marginals are right, their product is not
    x = torch.zeros(5, 1, dtype=torch.float64)
    found = sbc(vae.model, vae.guide, x, num_simulations=500, num_draws=19, quantities={"z0 z1": product})
    assert found.uniformity["z0 z1"].p_value < 1e-6
    assert any("the guide's distribution of z0 z1" in words for words in found.words)
    with pytest.raises(ValueError, match=r"quantity 'bad' must return shape \(K, N\)"):
        sbc(vae.model, vae.guide, x, num_simulations=5, num_draws=3, quantities={"bad": lambda z, x: z["z"]})
    with pytest.raises(ValueError, match="bad is NaN"):
        sbc(vae.model, vae.guide, x, num_simulations=5, num_draws=3,
            quantities={"bad": lambda z, x: z["z"][..., 0] * math.nan})  # fmt: skip
    with pytest.raises(ValueError, match="among those that are always tested"):
        sbc(vae.model, vae.guide, x, quantities={"log p(z)": product})


def test_a_seed_repeats_and_leaves_the_random_state():
    vae, x, state = LinearGaussian().vae(), torch.zeros(5, 5, dtype=torch.float64), torch.random.get_rng_state()
    one, again, other = (
        sbc(vae.model, vae.guide, x, num_simulations=20, num_draws=4, seed=seed, chunk_size=50) for seed in (1, 1, 2)
    )
    assert torch.equal(one.ranks["z[0]"], again.ranks["z[0]"])
    assert not torch.equal(one.ranks["z[0]"], other.ranks["z[0]"])
    assert torch.equal(state, torch.random.get_rng_state())


class TestWeighted:
    """SBC of the weights."""

    x = torch.zeros(5, 5, dtype=torch.float64)

    @pytest.mark.parametrize("guide", [{"sd_factor": 0.6}, {"sd_factor": 1.5, "shift": 0.7}], ids=["narrow", "off"])
    def test_right_weights_pass_for_wrong_guides(self, guide):
        vae = LinearGaussian().vae(**guide)
        # 1 in 25 seeds gives a p-value below 0.05, among them 0; see the false alarms below.
        found = weighted_sbc(vae.model, vae.guide, self.x, num_draws=19, seed=1)
        assert found.p_value > 0.05
        assert found.words == ("nothing wrong found with the log weights in 1,000 simulations",)
        assert sbc(vae.model, vae.guide, self.x, num_draws=19).p_value < 1e-6
        assert found.ess.min() >= 1
        assert found.ess.max() <= 20

    @pytest.mark.slow
    def test_right_weights_raise_false_alarms_at_the_nominal_level(self):
        vae, rejected = LinearGaussian().vae(sd_factor=0.6), torch.zeros(4)
        for seed in range(200):
            found = weighted_sbc(vae.model, vae.guide, self.x, num_simulations=400, num_draws=19, seed=seed)
            rejected += torch.tensor([test.rejects for test in found.uniformity.values()])
        assert (rejected / 200 < 0.12).all(), rejected

    def test_the_true_latent_has_the_share_of_one_draw_if_the_guide_is_the_posterior(self):
        vae = LinearGaussian().vae()
        found = weighted_sbc(vae.model, vae.guide, self.x, num_simulations=50, num_draws=9)
        torch.testing.assert_close(found.true_weight, torch.full((50,), 0.1, dtype=torch.float64))
        torch.testing.assert_close(found.ess, torch.full((50,), 10.0, dtype=torch.float64))

    def test_wrong_weights_are_found(self):
        class Wrong(dist.Normal):
            """Draws with sd 1.5 times the scale of its density."""

            def rsample(self, sample_shape=()):
                return self.loc + 1.5 * (super().rsample(sample_shape) - self.loc)

            def expand(self, batch_shape, _instance=None):
                return super().expand(batch_shape, self._get_checked_instance(Wrong, _instance))

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x, kind=Wrong):
            with pyro.plate("data", len(x)):
                pyro.sample("z", kind(x / 2, 0.6))

        x = torch.zeros(10)
        found = weighted_sbc(model, guide, x, num_draws=19)
        assert found.p_value < 1e-6
        assert "the log weights are wrong, as z" in found.words[0]
        right = weighted_sbc(model, lambda x: guide(x, dist.Normal), x, num_draws=19)
        assert right.p_value > 0.01

    @pytest.mark.parametrize("num_draws", [9, 12])
    def test_weights_of_a_mixture_of_proposals_pass_and_wrong_shares_are_found(self, num_draws, monkeypatch):
        vae = LinearGaussian().vae(sd_factor=0.5, shift=0.5)
        proposal = MixtureProposal([GuideProposal(), PriorProposal()], [0.6, 0.4])
        found = weighted_sbc(vae.model, vae.guide, self.x, num_draws=num_draws, proposal=proposal)
        assert found.p_value > 0.05
        assert found.ess.max() <= num_draws + 1

        def without_shares(self, points):
            return torch.stack([part.log_density(points).double() for part in self.parts]) - math.log(2)

        monkeypatch.setattr(MixtureComponent, "_log_densities", without_shares)
        if num_draws == 9:
            proposal = MixtureProposal([GuideProposal(), PriorProposal()], [0.9, 0.1])
            assert weighted_sbc(vae.model, vae.guide, self.x, num_draws=9, proposal=proposal).p_value < 1e-3

    def test_weights_of_an_adapted_proposal_pass_for_a_wrong_guide(self):
        vae = LinearGaussian().vae(sd_factor=0.5, shift=0.5)
        found = weighted_sbc(vae.model, vae.guide, self.x, num_simulations=200, num_draws=9, proposal=LaplaceProposal())
        assert found.p_value > 0.05
        assert found.ess.median() > 7  # the posterior is normal, and the proposal Student-t around it
        with pytest.raises(ValueError, match="proposal must be a Proposal"):
            weighted_sbc(vae.model, vae.guide, self.x, proposal="laplace")

    def test_a_guide_that_never_draws_a_part_of_the_posterior_is_said_to(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Uniform(-torch.ones_like(x), 1.0))

        found = weighted_sbc(model, guide, torch.zeros(10), num_draws=19)
        share = 2 * dist.Normal(0.0, 1.0).cdf(torch.tensor(-1.0)).item()
        assert abs(found.num_outside / 1000 - share) < 4.5 * (share * (1 - share) / 1000) ** 0.5
        assert found.p_value > 0.01
        assert any("never draws" in words for words in found.words)


class TestMistakes:
    """Programs that cannot be calibrated are refused in one line."""

    @staticmethod
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    def refuse(self, model, message, guide=None, **options):
        with pytest.raises(ValueError, match=message) as raised:
            sbc(model, guide or self.guide, torch.zeros(6), num_simulations=12, num_draws=3, **options)
        assert "\n" not in str(raised.value)

    def test_data_that_are_transformed_in_the_model_are_refused(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x + 1)

        self.refuse(model, "the value of site 'x' is none of the arguments")

    def test_distributions_that_use_the_given_data_are_refused(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + x, 1.0), obs=x)

        self.refuse(model, "a distribution of the model depends on the data that it is given")

    def test_factors_are_refused(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.factor("x", -((x - z) ** 2))

        self.refuse(model, "site 'x' of the model is a factor")

    def test_auto_guides_with_parameters_for_each_datum_are_refused(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        self.refuse(model, "AutoNormal holds one row of parameters for each datum", AutoNormal(model))

    def test_too_few_draws_are_refused(self):
        with pytest.raises(ValueError, match="num_draws must be at least 2, got 1"):
            sbc(coins, posterior_of_coins, torch.zeros(3), num_draws=1)


def columns(x):
    """z ~ N(0, 1), and two sites that observe a column each, the second given the first."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        first = pyro.sample("first", dist.Normal(z, 1.0), obs=x[:, 0])
        pyro.sample("second", dist.Normal(first - z, 1.0), obs=x[:, 2])


def columns_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal((2 * x[:, 0] - x[:, 2]) / 3, 3**-0.5))


def test_sites_may_observe_columns_of_an_argument():
    x = torch.full((5, 3), 7.0)
    found = sbc(columns, columns_guide, x, num_simulations=1000, num_draws=19)
    assert found.p_value > 0.05
    assert sbc(columns, lambda x: columns_guide(x + 0.7), x, num_simulations=1000, num_draws=19).p_value < 1e-6


def test_a_density_that_is_broadcast_over_columns_draws_each_of_them():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.sum(-1) / 4, 0.5))

    found = sbc(model, guide, torch.zeros(5, 3), num_simulations=1000, num_draws=19)
    assert found.p_value > 0.05


def test_values_given_outside_the_plate_stay():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + 30.0) / 2, 0.5**0.5))

    known = poutine.condition(model, data={"loc": torch.tensor(30.0)})
    found = sbc(known, guide, torch.zeros(10), num_simulations=500, num_draws=19)
    assert found.p_value > 0.01


def test_a_copy_of_the_data_among_the_arguments_is_simulated_too():
    def model(x, target):
        with pyro.plate("data", len(target), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=target)

    def guide(x, target):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(50)
    found = sbc(model, guide, x, x.clone(), num_simulations=300, num_draws=19)
    assert found.p_value > 0.01
