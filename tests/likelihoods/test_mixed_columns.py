"""The likelihood of rows with mixed columns: each column as its own likelihood would have it."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from pyrovae import MLP, Blueprint, GammaLikelihood, NormalLikelihood, fit, log_marginal, read_table, score
from pyrovae.columns import Column, Columns
from pyrovae.distributions import ByColumn
from pyrovae.likelihoods import MixedLikelihood

NUMBERS = {"centre": 4.0, "spread": 2.0, "low": 0.5, "high": 9.0, "resolution": 0.1, "missing": 0.0}
COLUMNS = Columns(
    (
        Column("height", "real", **NUMBERS),
        Column("sex", "binary", levels=("F", "M"), missing=0.0),
        Column("income", "positive", log_centre=1.0, log_spread=0.5, **NUMBERS),
        Column("region", "category", levels=("N", "S", "W"), missing=0.0),
        Column("visits", "count", **{**NUMBERS, "resolution": 1.0}),
        Column("weight", "real", **{**NUMBERS, "centre": 70.0}),
        Column("id", "drop", reason="as many levels as rows"),
        Column("grade", "ordered", levels=("low", "mid", "high", "top"), missing=0.0),
    )
)
X = torch.tensor([[4.5, 1.0, 2.0, 2.0, 3.0, 71.0, 3.0], [3.0, 0.0, 3.0, 0.0, 0.0, 66.0, 0.0]])


@pytest.fixture
def likelihood():
    pyro.set_rng_seed(0)
    return MixedLikelihood(MLP(2, MixedLikelihood.num_outputs(7, columns=COLUMNS)), COLUMNS)


def test_each_column_has_the_density_of_its_kind(likelihood):
    z = torch.randn(2, 2)
    p = likelihood(z).base_dist
    log_p = p.log_prob(X)
    assert log_p.shape == X.shape
    outputs = likelihood.outputs(z).split([group.num_outputs for group in likelihood.groups], -1)
    real = next(index for index, group in enumerate(likelihood.groups) if group.columns[0].name == "height")
    scale = (4 * outputs[real][:, 2:].exp().square() + 0.01).sqrt()  # of the spread and the network, and the resolution
    loc = torch.tensor([4.0, 70.0]) + 2 * outputs[real][:, :2]
    torch.testing.assert_close(log_p[:, [0, 5]], dist.Normal(loc, scale).log_prob(X[:, [0, 5]]), rtol=1e-5, atol=1e-4)
    binary = next(index for index, group in enumerate(likelihood.groups) if group.columns[0].name == "sex")
    expected = dist.Bernoulli(logits=outputs[binary]).log_prob(X[:, 1:2])
    torch.testing.assert_close(log_p[:, 1:2], expected)
    torch.testing.assert_close(likelihood(z).log_prob(X), log_p.sum(-1))


def test_draws_lie_in_the_support_and_have_the_stated_means(likelihood):
    p = likelihood(torch.randn(3, 2))
    draws = p.sample((4000,))
    assert draws.shape == (4000, 3, 7)
    assert bool(p.support.check(draws).all())
    countable = [0, 1, 4, 5]
    error = (draws.mean(0) - p.base_dist.mean) / (draws.std(0) / 4000**0.5)
    assert bool((error[:, countable].abs() < 4).all())


def test_a_mask_leaves_cells_out(likelihood):
    z = torch.randn(2, 2)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [0] * 7]).bool()
    p = likelihood(z)
    masked = p.base_dist.mask(mask).to_event(1)
    torch.testing.assert_close(masked.log_prob(X), (p.base_dist.log_prob(X) * mask).sum(-1))
    assert masked.log_prob(X)[1] == 0


def test_a_part_is_swapped_by_kind_and_by_name():
    parts = {"positive": GammaLikelihood, "weight": GammaLikelihood}
    size = MixedLikelihood.num_outputs(7, columns=COLUMNS, parts=parts)
    likelihood = MixedLikelihood(nn.Linear(2, size), COLUMNS, parts)
    pairs = zip(likelihood.parts, likelihood.groups, strict=True)
    by_name = {column.name: type(part) for part, group in pairs for column in group.columns}
    assert by_name["income"] is by_name["weight"] is GammaLikelihood
    assert by_name["height"] is NormalLikelihood


def test_an_unknown_likelihood_is_refused_with_the_column():
    columns = COLUMNS.replace("income", likelihood="ParetoLikelihood")
    with pytest.raises(ValueError, match=r"column 'income': there is no likelihood 'ParetoLikelihood'"):
        MixedLikelihood.num_outputs(7, columns=columns)


def test_groups_must_have_each_column_once():
    part = dist.Normal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="each column once"):
        ByColumn([part, part], [torch.tensor([0, 1]), torch.tensor([1, 2])])


def test_a_table_is_trained_and_its_log_p_has_an_error():
    pyro.set_rng_seed(0)
    x = torch.cat([X + 0 for _ in range(40)])
    vae = Blueprint(7, 2, likelihood=partial(MixedLikelihood, columns=COLUMNS), x=x).vae()
    history = fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), epochs=30)
    assert history["train_elbo"][-1] > history["train_elbo"][0] + 1
    mask = torch.ones_like(X).bool()
    mask[1] = False
    found = log_marginal(vae.model, vae.guide, X, mask=mask, num_particles=200)
    assert bool(found.value.isfinite().all())
    assert found.value[1].abs() < 0.1  # nothing is observed


@pytest.mark.parametrize("estimate", [log_marginal, score])
def test_missing_levels_without_a_mask_are_refused_in_words(estimate):
    rows = {"a": [float(n) for n in range(60)], "b": [None if n % 7 == 1 else "xyz"[n % 3] for n in range(60)]}
    table = read_table(rows)
    vae = Blueprint.of(table, latent_dim=1).vae()
    with pytest.raises(ValueError, match="if values are missing, pass mask="):
        estimate(vae.model, vae.guide, table.x[:5], num_particles=20)


def table_of_spreads():
    rng = np.random.default_rng(0)
    return {
        "schooling": rng.binomial(16, 0.7, 300).tolist(),  # less spread than a Poisson
        "hours": rng.normal(400, 100, 300).round().clip(1).tolist(),
        "visits": rng.negative_binomial(0.5, 0.1, 300).tolist(),
        "share": rng.beta(30, 50, 300).tolist(),
        "ends": np.where(rng.random(300) < 0.3, rng.integers(0, 2, 300), rng.beta(50, 30, 300)).tolist(),
        "size": rng.gamma(40, 2.0, 300).tolist(),
        "burst": np.where(rng.random(300) < 0.5, 0, rng.negative_binomial(2.0, 0.1, 300)).tolist(),
        "score": rng.binomial(20, rng.beta(3, 5, 300)).tolist(),
        "cost": np.where(rng.random(300) < 0.4, 0.0, rng.gamma(20, 2.0, 300)).tolist(),
    }


@pytest.mark.parametrize("holes", [False, True])
def test_dispersions_start_where_columns_have_their_variances(holes):
    rows = table_of_spreads()
    kinds = {"share": "interval", "ends": "interval", "size": "positive", "cost": "positive"}
    likelihoods = {
        "ends": "ZeroOneInflatedBetaLikelihood", "size": "GammaLikelihood", "cost": "HurdleGammaLikelihood",
        "burst": "ZeroInflatedNegativeBinomialLikelihood", "score": "BetaBinomialLikelihood",
    }  # fmt: skip
    totals = {"score": {"total_count": 20}}
    columns = [
        Column(name, kinds.get(name, "count"), likelihood=likelihoods.get(name), arguments=totals.get(name, {}))
        for name in rows
    ]
    if holes:
        rows = {
            name: [None if (7 * n + d) % 5 == 0 else cell for n, cell in enumerate(cells)]
            for d, (name, cells) in enumerate(rows.items())
        }
    columns.append(Column("split", "category", role="split"))
    table = read_table({**rows, "split": ["train"] * 300}, columns=Columns(tuple(columns)))
    blueprint = Blueprint.of(table, latent_dim=2)
    p = blueprint.make_likelihood()(torch.zeros(1, 2)).base_dist
    x = table.x.double()
    variance = torch.stack([one[~one.isnan()].var() for one in x.T])
    mean = torch.stack([one[~one.isnan()].mean() for one in x.T])
    expected = torch.where(torch.arange(9) == 0, 1.01 * mean, variance)  # a count has a Poisson's variance at least
    ratio = p.variance.squeeze(0).double() / expected
    assert bool((ratio > 0.6).all()), ratio  # the network has random biases below its last layer
    assert bool((ratio < 1.6).all()), ratio
