"""Replicates and predictive checks: laws of replicates, error rates, holes, covariates, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from scipy import stats

from pyrovae.diagnostics import check_predictive, default_statistics, replicate, tail_probabilities
from pyrovae.distributions import ByColumn


def normal_model(x):
    """Columns that are normal around latents of their own, with variance 2."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def exact_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)).to_event(1))


SD = {"sd": lambda x: x.std(0)}
COLUMNS = 400  # each column is a data set of its own, with N = 100


def data_sets(noise=1.0):
    return torch.randn(100, COLUMNS) + noise * torch.randn(100, COLUMNS)


def test_p_values_of_model_data_are_uniform_and_those_of_wrong_noise_are_small():
    options = {"statistics": SD, "num_replicates": 99}
    right = check_predictive(normal_model, data_sets(), **options)
    assert right.source == "prior"
    counts = torch.bincount((right.upper * 100).round().long() - 1, minlength=100).view(10, 10).sum(1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert 0.02 < (right.p_value <= 0.05).double().mean() < 0.085  # nominal 0.04, the largest below 0.05 on this grid
    wrong = check_predictive(normal_model, data_sets(1.3), **options)
    # log sd of the data exceeds the model's by log(sqrt(1.345)) = 0.148, its standard error is 1/sqrt(2 N) = 0.071
    power = stats.norm.sf(1.96 - math.log(math.sqrt(1.345)) * math.sqrt(200))
    assert abs((wrong.p_value <= 0.05).double().mean() - power) < 0.1
    assert (right.joint_p_value, wrong.joint_p_value) == (pytest.approx(0.5, abs=0.49), 0.01)


def test_reconstructions_of_the_same_data_are_conservative():
    options = {"statistics": SD, "num_replicates": 99, "guide": exact_guide}
    right, wrong = (check_predictive(normal_model, data_sets(noise), **options) for noise in (1.0, 1.3))
    assert right.source == "guide"
    assert (right.p_value <= 0.05).double().mean() < 0.035
    assert abs((wrong.p_value <= 0.05).double().mean() - 0.3) < 0.1


def test_tail_probabilities_order_ties_at_random():
    replicated = torch.zeros(9, 2000).double()
    replicated[:3] = 1
    both, error, upper = tail_probabilities(torch.zeros(2000).double(), replicated)
    # Three replicates lie above, six are equal: the rank is uniform on 3, ..., 9
    counts = torch.bincount((upper * 10).round().long(), minlength=11)
    assert counts[:4].tolist() == [0, 0, 0, 0]
    assert stats.chisquare(counts[4:].numpy()).pvalue > 1e-4
    torch.testing.assert_close(both, (2 * torch.minimum(upper, 1.1 - upper)).clamp(max=1))
    assert bool((error > 0).all())


def test_replicates_have_the_moments_of_the_model_and_repeat_for_a_seed():
    oracle = LinearGaussian(data_dim=3, latent_dim=2)
    vae, x = oracle.vae(), oracle.data(50)
    before = torch.random.get_rng_state()
    drawn = replicate(vae.model, x, num_replicates=200)["x"]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn.shape == (200, 50, 3)
    torch.testing.assert_close(replicate(vae.model, x, num_replicates=200)["x"], drawn, rtol=0, atol=0)
    flat = drawn.flatten(0, 1)
    covariance = oracle.weight @ oracle.weight.T + oracle.scale**2 * torch.eye(3).double()
    error = (covariance.diagonal() / len(flat)).sqrt()
    assert bool(((flat.mean(0) - oracle.bias).abs() < 4.5 * error).all())
    assert torch.allclose(flat.T.cov(), covariance, atol=0.15 * covariance.diagonal().max().item())
    chunked = replicate(vae.model, x, num_replicates=7, chunk_size=30)["x"]  # more data than latents at once
    assert chunked.shape == (7, 50, 3)
    # Reconstructions of exact posteriors have mean W E[z|x] + b
    rebuilt = replicate(vae.model, x, guide=vae.guide, num_replicates=400)["x"]
    mean, posterior = oracle.posterior(x)
    spread = (oracle.weight @ posterior @ oracle.weight.T).diagonal() + oracle.scale**2
    assert bool(((rebuilt.mean(0) - mean @ oracle.weight.T - oracle.bias).abs() < 5 * (spread / 400).sqrt()).all())


def test_replicates_have_the_holes_and_covariates_of_the_data():
    def model(x, c, mask):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 0.1))
            pyro.sample(
                "x", dist.Normal((z + c).unsqueeze(-1), 0.1).expand([*z.shape, 2]).mask(mask).to_event(1), obs=x
            )

    x, c = torch.zeros(6, 2), 10.0 * torch.arange(6)
    mask = torch.ones(6, 2).bool()
    mask[2, 1] = mask[4, 0] = False
    found = replicate(model, x, c, mask, num_replicates=5)["x"]
    assert torch.equal(found.isnan(), ~mask.expand(5, -1, -1))
    assert bool(((found - c[:, None]).nan_to_num(0.0).abs() < 1).all())
    seen = []
    check = check_predictive(
        model, x, c, mask, statistics={"holes": lambda data: seen.append(data) or data.nansum()}, num_replicates=3
    )
    assert check.names == ("holes",)
    assert len(seen) == 4
    assert all(torch.equal(one.isnan(), ~mask) for one in seen)


def test_default_statistics_agree_with_numpy():
    x = torch.poisson(torch.full((50, 3), 2.0)).double()
    found = {name: function(x) for name, function in default_statistics(["count"] * 3).items()}
    assert set(found) == {"mean", "dispersion", "zeros", "max", "total sd", "correlation"}
    torch.testing.assert_close(found["dispersion"], x.var(0) / x.mean(0))
    torch.testing.assert_close(found["total sd"], x.sum(1).std().reshape(1))
    torch.testing.assert_close(found["correlation"], x.T.corrcoef()[[0, 0, 1], [1, 2, 2]])
    images = torch.rand(40, 6).double()
    found = {name: function(images) for name, function in default_statistics(["real"] * 6, (2, 3)).items()}
    torch.testing.assert_close(found["row profile"], images.reshape(40, 2, 3).mean((0, 2)))
    torch.testing.assert_close(found["column profile"], images.reshape(40, 2, 3).mean((0, 1)))
    torch.testing.assert_close(found["ink sd"], images.mean(1).std().reshape(1))
    with pytest.raises(ValueError, match="6 entries, but a datum has 5"):
        default_statistics(["real"] * 5, (2, 3))


class Table(torch.nn.Module):
    """A table of a real, a count, a category and a binary column."""

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            parts = [
                dist.Normal(z.unsqueeze(-1), 1.0),
                dist.Poisson(z.exp().unsqueeze(-1)),
                dist.Categorical(logits=torch.zeros(*z.shape, 1, 3)),
                dist.Bernoulli(0.5 * torch.ones(*z.shape, 1)),
            ]
            fn = ByColumn(parts, [torch.tensor([place]) for place in range(4)])
            pyro.sample("x", fn.to_event(1), obs=x)


def test_the_elements_of_tables_are_told_by_column_and_by_name():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 4, generator=generator).mul(torch.tensor([9.0, 9.0, 3.0, 2.0])).floor()
    kinds = ["real", "count", "category:3", "binary"]
    names, levels = ["income", "visits", "where", "member"], {2: ["east", "west", "south"]}
    named = check_predictive(Table(), x, statistics=default_statistics(kinds, names=names, levels=levels))
    found = dict(zip(named.names, zip(named.observed.tolist(), named.statistics, strict=True), strict=True))
    assert found["mean of income"] == (pytest.approx(x[:, 0].mean().item()), "mean")
    assert found["mean of visits"] == (pytest.approx(x[:, 1].mean().item()), "mean")
    assert found["mean of member"] == (pytest.approx(x[:, 3].mean().item()), "mean")
    assert found["sd of income"] == (pytest.approx(x[:, 0].std().item()), "sd")
    assert found["zeros of visits"] == (pytest.approx((x[:, 1] == 0).double().mean().item()), "zeros")
    assert found["share of where = west"] == (pytest.approx((x[:, 2] == 1).double().mean().item()), "share")
    expected = x[:, [0, 3]].T.corrcoef()[0, 1].item()
    assert found["correlation of income and member"] == (pytest.approx(expected, abs=1e-6), "correlation")
    codes = torch.stack([x[:, 2], x[:, 0] % 3, x[:, 3]], 1)
    share = default_statistics(["category:3", "category:3", "category:2"])["share"]
    places = [(column, level) for column, count in enumerate((3, 3, 2)) for level in range(count)]
    assert share.names == tuple(f"share of column {column} = {level}" for column, level in places)
    shares = [(codes[:, column] == level).double().mean() for column, level in places]
    torch.testing.assert_close(share(codes), torch.stack(shares))
    numbered = check_predictive(Table(), x)
    words = dict(zip(("income", "visits", "where", "member"), (f"column {d}" for d in range(4)), strict=True))
    words |= {"east": "0", "west": "1", "south": "2"}
    expected = [" ".join(words.get(word, word) for word in name.split(" ")) for name in named.names]
    assert [name for name in numbered.names if "correlation" not in name] == [
        name for name in expected if "correlation" not in name
    ]
    torch.testing.assert_close(numbered.observed, named.observed)


def test_default_statistics_leave_missing_entries_out():
    x, holes = torch.randn(60, 4).double(), torch.rand(60, 4) < 0.3
    given = torch.where(holes, torch.nan, x)
    found = {name: function(given) for name, function in default_statistics(["real"] * 4).items()}
    for column in range(4):
        kept = x[~holes[:, column], column]
        assert found["sd"][column] == pytest.approx(kept.std().item())
        assert found["quantile 0.5"][column] == pytest.approx(kept.quantile(0.5).item())
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_models_that_cannot_make_their_data_are_refused():
    def autoregressive(x):
        before = torch.cat([torch.zeros(len(x), 1), x[:, :-1]], 1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pyro.sample("x", dist.Normal(z + before, 1.0).to_event(1), obs=x)

    def factor(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", -((x[:, 0] - z) ** 2))

    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match="depends on the data that it is given, beside obs="):
        replicate(autoregressive, x)
    with pytest.raises(ValueError, match=r"observes no data|pyro\.factor"):
        replicate(factor, x)
    with pytest.raises(ValueError, match="num_replicates must be at least 1, got 0"):
        replicate(normal_model, x, num_replicates=0)
    with pytest.raises(ValueError, match="statistic 'bad' is NaN"):
        check_predictive(normal_model, x, statistics={"bad": lambda data: data.sum() * math.nan}, num_replicates=2)
    with pytest.raises(ValueError, match=r"statistic 'x' must be a number or a vector, got shape \(5, 3\)"):
        check_predictive(normal_model, x, statistics={"x": lambda data: data}, num_replicates=2)


def test_a_later_site_depends_on_the_drawn_value_of_an_earlier_one():
    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            x = pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(x, 0.001), obs=y)

    found = replicate(model, torch.randn(20), torch.randn(20), num_replicates=10)
    assert bool((found["x"] - found["y"]).abs().max() < 0.01)
    with pytest.raises(ValueError, match="observed sites 'x', 'y'; choose one by site="):
        check_predictive(model, torch.randn(20), torch.randn(20))


def test_correlations_of_columns_without_names_say_which_columns():
    found = default_statistics(["real"] * 3)["correlation"]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert found.names == tuple(f"correlation of column {a} and column {b}" for a, b in pairs)
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [float(torch.corrcoef(x[:, [a, b]].T)[0, 1]) for a, b in pairs]
    assert found(x).tolist() == pytest.approx(expected)
