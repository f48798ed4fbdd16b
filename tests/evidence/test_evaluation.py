"""Evaluation of held-out data: estimates per proposal, tables, and resuming."""

import copy
import csv
import io
from dataclasses import replace
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from torch import nn

import pyrovae.evidence.evaluation
from pyrovae import (
    VAE,
    BernoulliLikelihood,
    DefensiveProposal,
    GuideProposal,
    NormalEncoder,
    StandardNormalPrior,
    ladder,
    log_marginal,
)
from pyrovae.evidence import evaluate
from pyrovae.evidence.evaluation import Estimate
from pyrovae.evidence.importance import WeightBlock
from pyrovae.runs import read_state, write_state
from pyrovae.runs.tables import caution, ladder_lines, table


def shifted(num_data=20):
    """Data, and a VAE whose guide is diagonal and shifted by one standard deviation."""
    oracle = LinearGaussian()
    return oracle, oracle.data(num_data), oracle.vae(sd_factor=1.0, shift=1.0)


def test_evaluate_gives_the_default_estimate_and_the_published_protocol():
    oracle, x, vae = shifted()
    made = evaluate(vae.model, vae.guide, x, num_particles=1000)
    assert made.marginal.components == ("adapted Laplace t(5)", "adapted Laplace normal", "guide", "prior")
    assert (made.marginal.served == 0).all()
    summary = made.summary()
    assert summary["log_marginal"]["served"] == {
        "adapted Laplace t(5)": 1.0,
        "adapted Laplace normal": 0.0,
        "guide": 0.0,
        "prior": 0.0,
    }
    assert summary["log_marginal_guide"]["served"] == {"guide": 1.0}
    # KL(q, p(z|x)) is at least Z / 2 = 1 by the shift alone: draws of the mixture would give another bound.
    exact = oracle.log_marginal(x)
    assert ((exact - made.elbo).mean() - 1).abs() < 0.35
    for estimate, width in ((made.marginal, 0.1), (made.guide, 1.0)):
        assert ((estimate.log_marginal.value - exact).abs() < 6 * estimate.log_marginal.std_error + 1e-9).all()
        assert estimate.log_marginal.std_error.max() < width
    assert made.guide.log_marginal.std_error.mean() > 2 * made.marginal.log_marginal.std_error.mean()


def test_an_estimate_records_for_each_datum_the_component_with_the_largest_weight():
    # The weights of datum 0 are the first component's, those of datum 1 the second's.
    log_w = torch.tensor([[0.0, -9.0], [0.0, -9.0], [-9.0, 0.0], [-9.0, 0.0]], dtype=torch.float64)
    which = torch.tensor([0, 0, 1, 1])
    one = Estimate.of(WeightBlock(slice(0, 2), log_w, which, ("far", "near"), "both"))
    assert one.served.tolist() == [0, 1]
    other = Estimate.of(WeightBlock(slice(2, 4), log_w, which, ("guide", "far"), "fallback"))
    joined = Estimate.joined([one, other])
    assert [joined.components[index] for index in joined.served.tolist()] == ["far", "near", "guide", "far"]
    assert joined.proposal == "both; fallback"
    assert joined.summary()["served"] == {"far": 0.5, "near": 0.25, "guide": 0.25}


def test_data_outside_the_support_are_refused():
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(nn.Linear(2, 3)), NormalEncoder(nn.Linear(3, 4)))
    x = torch.zeros(300, 3)
    x[270, 1] = 0.5
    with pytest.raises(ValueError, match="datum 270, entry 1"):
        evaluate(vae.model, vae.guide, x, num_particles=5)


def test_weights_that_are_nan_name_the_datum_in_any_block():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            mean = torch.where(x > 5, torch.nan, z)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))

    x = torch.zeros(300, 1)
    x[270] = 6.0
    with pytest.warns(UserWarning, match=r"rows 270\): the log weights of datum 270 are NaN.*site 'x' of the model"):
        found = log_marginal(model, guide, x, num_particles=500, chunk_size=5000, proposal=GuideProposal())
    assert found.value.isnan().nonzero().flatten().tolist() == [270]


def test_the_ladder_rises_and_ends_at_the_estimate():
    _, x, vae = shifted(300)  # the rungs' means are 10 standard errors apart and more
    made = evaluate(vae.model, vae.guide, x, num_particles=500, proposal=GuideProposal())
    rungs = made.guide.ladder
    assert [rung.num_particles for rung in rungs] == [1, 10, 100, 500]
    assert all(low.lower_bound.mean() < high.lower_bound.mean() for low, high in pairwise(rungs))
    torch.testing.assert_close(rungs[-1].lower_bound, made.guide.log_marginal.value)
    assert rungs[1].bias_corrected.mean() > rungs[1].lower_bound.mean()
    assert ladder_lines(made.summary()).splitlines()[1].split()[:3] == ["1", f"{rungs[0].lower_bound.mean():.3f}", "-"]


def test_the_target_error_is_reached_with_fewer_draws_than_the_maximum():
    _, x, vae = shifted(20)
    made = evaluate(vae.model, vae.guide, x, num_particles=20_000, guide_particles=50, target_std_error=0.04)
    assert (made.marginal.log_marginal.std_error <= 0.04).all()
    assert made.marginal.draws.max() < 20_000
    assert (made.guide.draws == 50).all()
    assert made.summary()["elbo"]["num_particles"] == 50
    assert [rung.num_particles for rung in made.marginal.ladder][:3] == [1, 10, 100]


def test_joining_estimates_keeps_the_rungs_that_all_have():
    _, x, vae = shifted()
    few = evaluate(vae.model, vae.guide, x, num_particles=30, proposal=GuideProposal()).guide
    many = evaluate(vae.model, vae.guide, x, num_particles=200, proposal=GuideProposal()).guide
    both = Estimate.joined([few, many])
    assert [rung.num_particles for rung in both.ladder] == [1, 10]
    assert both.draws.tolist() == [30] * 20 + [200] * 20
    assert both.summary()["num_particles"] == 115


def test_an_interrupted_evaluation_resumes_bit_identically(monkeypatch, tmp_path):
    monkeypatch.setattr(pyrovae.evidence.evaluation, "BLOCK", 8)
    _, x, vae = shifted(30)
    same = {"num_particles": 40, "seed": 3}
    whole = evaluate(vae.model, vae.guide, x, **same)

    def stop_after_two(state):
        write_state(tmp_path / "state", state)
        if len(state["blocks"]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(vae.model, vae.guide, x, **same, commit=stop_after_two)
    state, done = read_state(tmp_path / "state"), []
    again = evaluate(vae.model, vae.guide, x, **same, resume=state, on_progress=done.append)
    assert done == [16, 8, 6]
    rows = torch.arange(30)
    assert again.per_datum_csv(rows) == whole.per_datum_csv(rows)
    assert {**again.summary(), "seconds": 0} == {**whole.summary(), "seconds": 0}
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(vae.model, vae.guide, x, **{**same, "proposal": DefensiveProposal()}, resume=state)
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(vae.model, vae.guide, x.flip(0), **same, resume=state)
    changed = copy.deepcopy(vae)
    next(iter(changed.state_dict().values())).zero_()
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(changed.model, changed.guide, x, **same, resume=state)
    other = evaluate(vae.model, vae.guide, x, num_particles=40, seed=4)
    assert not torch.equal(other.elbo, whole.elbo)
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(vae.model, vae.guide, x, num_particles=41, seed=3, resume=state)


def test_the_table_and_the_csv_show_both_estimates():
    _, x, vae = shifted(4)
    made = evaluate(vae.model, vae.guide, x, num_particles=100, guide_particles=25)
    lines = table({"VAE": made.summary()}).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["VAE", "L_25,"]
    row = next(csv.DictReader(io.StringIO(made.per_datum_csv(torch.arange(4)).decode())))
    assert (row["served"], row["num_particles"]) == ("adapted Laplace t(5)", "100")
    assert float(row["log_marginal_guide"]) == made.guide.log_marginal.value[0].item()
    assert float(row["khat_guide"]) == pytest.approx(made.guide.log_marginal.khat[0].item())
    alone = evaluate(vae.model, vae.guide, x, num_particles=10, proposal=GuideProposal())
    assert len(table({"VAE": alone.summary()}).splitlines()) == 2
    assert "at least 21" in caution(alone.summary())


def test_the_summary_and_the_csv_say_which_data_miss_the_target():
    _, x, vae = shifted(8)
    given = {"num_particles": 40, "proposal": GuideProposal(), "seed": 1}
    free = evaluate(vae.model, vae.guide, x, **given)
    rows = lambda made: list(csv.DictReader(io.StringIO(made.per_datum_csv(torch.arange(8)).decode())))  # noqa: E731
    assert {row["reached"] for row in rows(free)} == {""}
    assert "target_std_error" not in free.summary()["log_marginal"]
    target = free.marginal.log_marginal.std_error.median().item()
    made = evaluate(vae.model, vae.guide, x, **given, target_std_error=target)
    errors = made.marginal.log_marginal.std_error
    assert [row["reached"] == "1" for row in rows(made)] == (errors <= target).tolist()
    missed = made.summary()["log_marginal"]["target_std_error"]
    assert missed == {"target": target, "missed_by": int((errors > target).sum()), "largest": errors.max().item()}
    assert 0 < missed["missed_by"] < 8


def test_the_first_rung_of_the_default_can_be_a_draw_of_the_prior():
    # As the docstring of `ladder` says: the first rung is one draw of one component, the second has some of each.
    oracle = LinearGaussian(data_dim=32, latent_dim=6)
    vae, x = oracle.vae(), oracle.data(20)
    first, second = [], []
    for _ in range(10):
        rungs = ladder(vae.model, vae.guide, x, num_particles=100)
        first.append((rungs[0].lower_bound - oracle.log_marginal(x)).mean().item())
        second.append((rungs[1].lower_bound - oracle.log_marginal(x)).mean().item())
    assert min(first) < -20
    assert min(second) > -1


def test_long_evaluations_commit_by_the_draws_they_took(monkeypatch):
    monkeypatch.setattr(pyrovae.evidence.evaluation, "BLOCK_DRAWS", 40)
    oracle, done = LinearGaussian(), []
    vae, x = oracle.vae(sd_factor=1.0), oracle.data(10)

    def commit(state):
        done.append(len(state["blocks"]))

    evaluate(vae.model, vae.guide, x, num_particles=10, proposal=GuideProposal(), commit=commit)
    assert done == [1, 2]  # blocks of 4, 4 and 2 data, the last of which needs no commit


def test_case_weights_enter_the_means_and_not_the_values():
    _, x, vae = shifted(6)
    weights = torch.tensor([2, 1, 0, 3, 0, 1])
    options = {"num_particles": 20, "proposal": GuideProposal(), "target_std_error": 0.1}
    plain, made = (evaluate(vae.model, vae.guide, x, **options, weights=w) for w in (None, weights))
    assert torch.equal(made.elbo, plain.elbo)
    summary, marginal = made.summary(), made.summary()["log_marginal"]
    value, std_error, _, khat = plain.marginal.log_marginal
    share = weights.double() / 7
    assert summary["num_data"] == 4
    assert summary["effective_num_data"] == pytest.approx(49 / 15)
    assert summary["elbo"]["mean"] == pytest.approx((share * plain.elbo).sum().item())
    assert marginal["mean"] == pytest.approx((share * value).sum().item())
    by_hand = (4 / 3 * (share * (value - marginal["mean"])).square().sum()).sqrt()
    assert marginal["std_error"] == pytest.approx(by_hand.item())
    assert marginal["mc_std_error"] == pytest.approx((share * std_error).square().sum().sqrt().item())
    corrected = (share * (value + std_error.square() / 2)).sum().item()
    assert marginal["bias_corrected_mean"] == pytest.approx(corrected)
    assert marginal["ladder"][-1]["lower_bound"] == pytest.approx((share * value).sum().item())
    assert marginal["khat"]["max"] == khat[weights > 0].max()
    assert marginal["khat"]["share_above_0.7"] == pytest.approx((share * (khat > 0.7)).sum().item())
    assert marginal["served"] == {"guide": pytest.approx(1.0)}
    assert marginal["target_std_error"]["missed_by"] == int((std_error[weights > 0] > 0.1).sum())
    lines = made.per_datum_csv(torch.arange(6)).decode().splitlines()
    assert [line.rsplit(",", 1)[1] for line in lines] == ["weight", "2.0", "1.0", "0.0", "3.0", "0.0", "1.0"]


def test_equal_case_weights_give_the_summary_without_weights():
    _, x, vae = shifted(6)
    made = evaluate(vae.model, vae.guide, x, num_particles=20, proposal=GuideProposal(), weights=torch.full((6,), 0.3))
    found, expected = made.summary(), replace(made, weights=None).summary()
    assert found.pop("effective_num_data") == pytest.approx(6)
    assert found["log_marginal"].keys() == expected["log_marginal"].keys()
    for key in ("mean", "std_error", "mc_std_error", "bias_corrected_mean", "khat", "ess"):
        assert found["log_marginal"][key] == pytest.approx(expected["log_marginal"][key], rel=1e-12)
    assert found["elbo"] == pytest.approx(expected["elbo"], rel=1e-12)


def test_other_case_weights_and_a_program_with_an_argument_of_this_name_are_refused():
    _, x, vae = shifted(6)
    with pytest.raises(ValueError, match=r"weights must have shape \(6,\), one for each datum, got \(5,\)"):
        evaluate(vae.model, vae.guide, x, num_particles=2, weights=torch.ones(5))

    def model(x, weights=None):
        return vae.model(x)

    with pytest.raises(ValueError, match="a program has an argument of this name, too"):
        evaluate(model, vae.guide, x, num_particles=2, weights=torch.ones(6))
