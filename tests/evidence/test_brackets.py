"""Lower and upper bounds of log p(x) for simulated data, against closed forms."""

import sys

import pyro
import pytest
import torch
from oracles import LinearGaussian, normal_near
from pyro import poutine

from pyrovae import bracket, linear_schedule, sigmoidal_schedule
from pyrovae.evidence import DefensiveProposal, GuideProposal, LatentSpace
from pyrovae.evidence.brackets import _slot
from pyrovae.evidence.points import Points

QUICK = {"num_leapfrog": 2, "acceptance": 0.9, "num_tuning": 50}


class TestBracket:
    oracle = LinearGaussian()

    def simulated(self, vae, size):
        nodes = poutine.trace(vae.model).get_trace(size=size).nodes
        return {"z": nodes["z"]["value"].detach()}, nodes["x"]["value"].detach()

    def close(self, found, exact, gap):
        root = len(exact) ** 0.5
        for off in (exact - found.lower, found.upper - exact):
            assert off.mean() > -4 * off.std() / root  # never on the other side beyond error
            assert off.std() < 20 * gap
        assert found.gap.mean() > -4 * found.gap.std() / root
        assert abs(found.gap.mean()) + 4 * found.gap.std() / root < gap
        torch.testing.assert_close(found.gap, found.upper - found.lower)

    @pytest.mark.parametrize("proposal", [GuideProposal(), pytest.param(None, marks=pytest.mark.slow)])
    def test_the_bracket_of_importance_sampling_is_below_a_hundredth_of_a_nat(self, proposal):
        vae = self.oracle.vae(sd_factor=1.2)
        latents, x = self.simulated(vae, 300)
        found = bracket(vae.model, vae.guide, latents, x, num_particles=1000, chunk_size=40_000, proposal=proposal)
        self.close(found, self.oracle.log_marginal(x), 0.01)
        for value, error in ((found.lower, found.lower_error), (found.upper, found.upper_error)):
            z = (value - self.oracle.log_marginal(x)) / error
            assert z.abs().max() < 5
            assert 0.85 < z.std() < 1.15  # 300 z-scores have their sd within 0.04
        # That of the gap is its standard deviation over data at least.
        assert 0.99 < found.gap_error.square().mean().sqrt() / found.gap.std() < 1.3

    @pytest.mark.parametrize("guide", [{"sd_factor": 0.7}, {"sd_factor": 1.0, "shift": 1.0}], ids=["narrow", "shifted"])
    def test_errors_cover_log_p_where_most_draws_miss_a_tail(self, guide):
        # A narrow or shifted guide: a datum's own error covered 0.81 and 0.86. 1,000 data know 0.95 within 0.02 (three
        # standard errors).
        vae = self.oracle.vae(**guide)
        latents, x = self.simulated(vae, 1000)
        exact = self.oracle.log_marginal(x)
        found = bracket(vae.model, vae.guide, latents, x, num_particles=300, proposal=GuideProposal(), chunk_size=2**17)
        for value, error in ((found.lower, found.lower_error), (found.upper, found.upper_error)):
            assert ((value - exact).abs() <= 1.96 * error).double().mean() > 0.93
            assert error.median() < 3 * (value - exact).std()

    def test_errors_are_unknown_where_the_true_latents_show_that_draws_are_too_few(self):
        # Twenty latents and the mean-field guide's upper end: 3 to 7 nats too high, with an error of 0.4.
        oracle = LinearGaussian(32, 20)
        vae = oracle.vae(sd_factor=1.3)
        latents, x = self.simulated(vae, 200)
        with pytest.warns(UserWarning, match="the errors of the bracket are unknown"):
            found = bracket(vae.model, vae.guide, latents, x, num_particles=100, proposal=GuideProposal())
        for error in (found.lower_error, found.upper_error, found.gap_error):
            assert error.isnan().all()
        exact = oracle.log_marginal(x)
        assert found.lower.mean() < exact.mean() < found.upper.mean()

    @pytest.mark.filterwarnings("ignore:the errors of the bracket are unknown")
    @pytest.mark.parametrize("proposal", [GuideProposal(), DefensiveProposal(0.5)])
    def test_the_upper_bound_is_above_log_p(self, proposal):
        # Few draws from a narrow, shifted guide: a wide bracket, whose upper end holds only thanks to the true latent.
        # Of a mixture too, whose slot for it is to be of its own component.
        vae = self.oracle.vae(sd_factor=0.7, shift=0.7)
        latents, x = self.simulated(vae, 4000)
        exact = self.oracle.log_marginal(x)
        found = bracket(vae.model, vae.guide, latents, x, num_particles=4, proposal=proposal)
        above, below = found.upper - exact, exact - found.lower
        assert above.mean() > 8 * above.std() / 4000**0.5
        assert below.mean() > 8 * below.std() / 4000**0.5
        # E p(x) / p^(x) = 1 with the true latent in a slot, as E p^(x) / p(x) = 1 without it.
        for ratio in ((-above).exp(), (-below).exp()):
            assert abs(ratio.mean() - 1) < 4 * ratio.std() / 4000**0.5 + 0.02

    def test_the_true_latent_takes_a_slot_of_the_component_it_belongs_to(self):
        # The guide's draws are nowhere near, so all true latents are the prior's, which has a tenth of the slots.
        vae = self.oracle.vae(sd_factor=0.1, shift=30.0)
        latents, x = self.simulated(vae, 50)
        space = LatentSpace(vae.model, vae.guide, x)
        component = DefensiveProposal(0.1).adapt(space)
        with torch.no_grad():
            which = component.draw(40).component
            slots = _slot(component, Points(space, {"z": latents["z"].unsqueeze(0)}), which)
        assert which.bincount().tolist() == [36, 4]
        assert (which[slots] == 1).all()
        assert len(slots.unique()) > 1  # any of these

    @pytest.mark.parametrize(
        "start", ["prior", *(pytest.param(each, marks=pytest.mark.slow) for each in ("guide", "normal"))]
    )
    def test_the_bracket_of_annealing_encloses_log_p_within_its_errors(self, start):
        vae = self.oracle.vae(sd_factor=0.6, shift=0.5)
        latents, x = self.simulated(vae, 150)
        guide = vae.guide if start == "guide" else None
        found = bracket(
            vae.model,
            guide,
            latents,
            x,
            num_particles=40,
            betas=sigmoidal_schedule(40),
            start=normal_near(self.oracle, x) if start == "normal" else None,
            num_equilibrium=10,
            **QUICK,
        )
        self.close(found, self.oracle.log_marginal(x), 0.1)
        above = (found.upper - self.oracle.log_marginal(x)).neg().exp()
        assert abs(above.mean() - 1) < 4 * above.std() / 150**0.5  # 1 / p(x) is unbiased
        for value, error in ((found.lower, found.lower_error), (found.upper, found.upper_error)):
            z = (value - self.oracle.log_marginal(x)) / error
            assert 0.6 < z.std() < 1.3  # the log weights from the prior are skewed to the left, so the error is large
        # Both ends are drawn apart: the error of the gap holds both, and either alone would not.
        assert 0.6 < found.gap.std() / found.gap_error.square().mean().sqrt() < 1.2

    def test_long_annealing_runs_of_bracket_are_recorded(self, monkeypatch):
        vae = self.oracle.vae(sd_factor=0.6)
        latents, x = self.simulated(vae, 4)
        replay, found, calls = sys.modules["pyrovae.execution.replay"], [], []
        record = replay.record
        monkeypatch.setattr(replay, "record", lambda *given: calls.append(given) or record(*given))
        for least in (1000, 12):  # of 6 temperatures of 2 steps
            monkeypatch.setattr(sys.modules["pyrovae.evidence.annealing"], "_RECORDED_FROM", least)
            pyro.set_rng_seed(5)
            settings = {"num_particles": 3, "betas": linear_schedule(5), "num_equilibrium": 2, **QUICK}
            found.append(bracket(vae.model, vae.guide, latents, x, **settings))
            assert bool(calls) == (least == 12)
        for eager, recorded in zip(*found, strict=True):
            torch.testing.assert_close(eager, recorded, rtol=0, atol=1e-8)

    def test_bracket_refuses_wrong_arguments(self):
        vae = self.oracle.vae(sd_factor=1.0)
        latents, x = self.simulated(vae, 4)
        with pytest.raises(
            ValueError, match=r"latents are of sites \['y'\], but the model's are \['z'\]; give a tensor for each"
        ):
            bracket(vae.model, vae.guide, {"y": latents["z"]}, x, num_particles=3)
        with pytest.raises(ValueError, match=r"latent 'z' has shape \(3, 2\); expected one for each of 4 data"):
            bracket(vae.model, vae.guide, {"z": latents["z"][:3]}, x, num_particles=3)
        with pytest.raises(ValueError, match="num_particles must be at least 2"):
            bracket(vae.model, vae.guide, latents, x, num_particles=1)
        with pytest.raises(ValueError, match="needs a guide; give one"):
            bracket(vae.model, None, latents, x, num_particles=3)
        with pytest.raises(ValueError, match="needs either a proposal or betas, got both"):
            bracket(vae.model, None, latents, x, num_particles=3, proposal=GuideProposal(), betas=linear_schedule(3))
