"""Pictures of the page that depend on the kind of data and of model, and what their alt texts say."""

import dataclasses
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from page_helpers import small_network
from scipy.stats import ks_2samp, spearmanr
from sklearn.decomposition import PCA

from pyrovae import BernoulliLikelihood, Blueprint, Column, Columns, NormalLikelihood, PoissonLikelihood, read_table
from pyrovae.baselines import Comparison
from pyrovae.data import Data
from pyrovae.diagnostics import take_snapshot
from pyrovae.page import Fit
from pyrovae.page import column_pictures as columns
from pyrovae.page import diagnostic_pictures as diagnostics
from pyrovae.page import latent_pictures as latents
from pyrovae.page.epoch_pictures import by_epoch
from pyrovae.runs import Snapshots
from pyrovae.training import History


def fit_of(vae, data):
    nothing = torch.zeros(len(data.test), dtype=torch.float64)
    return Fit("made", vae, data, History([], 0), {"split": "test"}, nothing, nothing, Comparison({}, "", {}))


def data_of(x, shape, **options):
    parts = dict(zip(("train", "validation", "test"), x.split([len(x) // 2, len(x) // 4, len(x) // 4]), strict=True))
    index = {f"{split}_index": torch.arange(len(part)) for split, part in parts.items()}
    return Data("made", **parts, shape=shape, binarize="none", sha256="0", **index, **options)


def by_split(values):
    sizes = [len(values) // 2, len(values) // 4, len(values) // 4]
    return dict(zip(("train", "validation", "test"), values.split(sizes), strict=True))


def images(*, latent_dim=2, labels=None, covariates=None):
    pyro.set_rng_seed(0)
    x = torch.bernoulli(torch.rand(160, 12))
    options = {} if covariates is None else {"num_covariates": covariates.shape[1]}
    vae = Blueprint(12, latent_dim, likelihood=BernoulliLikelihood, x=x, network=small_network, **options).vae()
    given = {"labels": labels, "covariates": covariates}
    return fit_of(vae, data_of(x, (3, 4), **{name: by_split(v) for name, v in given.items() if v is not None}))


def counts():
    pyro.set_rng_seed(0)
    x = torch.poisson(torch.tensor([0.5, 2.0, 40.0, 3.0]).repeat(200, 1))
    return fit_of(Blueprint(4, 2, likelihood=PoissonLikelihood, x=x, network=small_network).vae(), data_of(x, (4,)))


def table():
    rng = np.random.default_rng(0)
    z = rng.normal(size=200)
    rows = {f"a{k}": (z + rng.normal(size=200)).round(3).tolist() for k in range(5)}
    rows |= {"visits": rng.poisson(np.exp(1 + 0.4 * z)).tolist(), "sex": ["FM"[int(value > 0)] for value in z]}
    rows["a1"][3] = None
    kinds = [Column(name, "real") for name in rows][:5]
    found = read_table(rows, columns=Columns((*kinds, Column("visits", "count"), Column("sex", "binary"))))
    pyro.set_rng_seed(0)
    return fit_of(Blueprint.of(found, latent_dim=2).vae(), Data.of(found))


def shown(*functions, fit):
    """Return the pictures by title, also folded ones, all with numbers in their alt text."""
    found = {}
    blocks = [block for function in functions for block in function(fit)]
    while blocks:
        block = blocks.pop(0)
        if hasattr(block, "blocks"):
            blocks = [*block.blocks, *blocks]
        elif hasattr(block, "alt"):
            assert re.search(r"\d", block.alt)
            found.setdefault(block.title, []).append(block)
    return found


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_one_hot_labels_as_covariates_give_a_grid_for_each_label():
    labels = torch.arange(160) % 3
    made = images(labels=labels, covariates=torch.nn.functional.one_hot(labels).float())
    assert made.label_covariates == ("0", "1", "2")
    (picture,) = shown(latents.grids_by_label, fit=made)["Decoded grid of each label"]
    means = torch.stack([grid.means for grid in made.label_grids.grids])
    assert len(means) == 3
    assert f"{float(means.mean((1, 2, 3)).max()):.3g}" in picture.alt
    first, second = made.ends
    assert first != second
    assert made.labels[first] == made.labels[second]  # decoded given one label
    assert "halfway between 0, row " in shown(latents.interpolation, fit=made)["Interpolation"][0].caption


@pytest.mark.parametrize("covariates", [None, torch.randn(160, 2), torch.ones(160, 2), torch.ones(160, 1)])
def test_other_covariates_give_no_grids_by_label(covariates):
    made = images(covariates=covariates)
    assert made.label_covariates == ()
    assert not shown(latents.grids_by_label, fit=made)


def test_labels_name_the_ends_of_an_interpolation():
    made = images(labels=torch.arange(160) % 4)
    assert [int(made.labels[row]) for row in made.ends] == [0, 1]
    assert [int(made.labels[row]) for row in made.chosen] == [0, 1, 2, 3]
    assert "halfway between 0 and 1" in shown(latents.interpolation, fit=made)["Interpolation"][0].caption


def test_more_than_two_latents_are_shown_by_principal_components():
    made = images(latent_dim=3)
    found = shown(latents.components, latents.neighbours, fit=made)
    assert list(found) == ["Codes by principal components", "Codes by t-SNE"]
    method = PCA(2).fit(made.codes.mean.numpy())
    share = 100 * method.explained_variance_ratio_.sum()
    assert numbers(found["Codes by principal components"][0].alt)[0] == round(share)
    khat = torch.linspace(-0.2, 1.3, len(made.khat_codes.mean)).double()
    made.__dict__["khat_map"] = SimpleNamespace(
        khat=khat,
        worst=khat.argsort(descending=True),
        limit=0.7,
        num_unreliable=int((khat > 0.7).sum()),
        num_particles=9,
    )
    (plane,) = shown(diagnostics.khat_pictures, fit=made)["k-hat over latent space"]
    expected = method.transform(made.khat_codes.mean.numpy())[-1]
    said = numbers(plane.alt)
    np.testing.assert_allclose(said[0], 1.3)
    np.testing.assert_allclose(np.abs(said[1:3]), np.abs(expected), atol=0.0051)


def test_two_latents_need_no_components():
    assert not shown(latents.components, latents.neighbours, fit=images())


def test_counts_have_rootograms_with_the_shares_of_zeros():
    made = counts()
    found = shown(*columns.COLUMN_PICTURES, fit=made)
    assert {title: len(each) for title, each in found.items()} == {"Columns": 1, "Rootogram": 3, "Pairs of columns": 1}
    for picture in found["Rootogram"]:
        d = int(re.search(r"column (\d)", picture.caption)[1])
        zeros = 100 * float((made.x[:, d] == 0).double().mean())
        assert f"Zeros: {zeros:.1f} % of the data" in picture.alt


def test_real_columns_of_arrays_are_named_and_standardised_if_their_units_differ():
    labels = {}
    for unit in (1.0, 1000.0):
        pyro.set_rng_seed(0)
        x = torch.randn(200, 3) * torch.tensor([1.0, 2.0, unit])
        vae = Blueprint(3, 2, likelihood=NormalLikelihood, x=x, network=small_network).vae()
        made = shown(columns.columns, columns.marginals, fit=fit_of(vae, data_of(x, (3,))))
        labels[unit] = made["Columns"][0].image.get_xlabel()
        titles = {picture.image.get_title(loc="left") for picture in made["Distribution of a column"]}
        assert titles == {"column 0", "column 1", "column 2"}
    assert labels == {1.0: "column", 1000.0: "(x - median) / sd of the data"}


def test_decoded_lines_over_columns_of_several_units_do_not_depend_on_the_units():
    alts = []
    for units in (1.0, torch.tensor([1024.0, 1 / 128, 2.0, 8.0])):
        pyro.set_rng_seed(0)
        x = torch.randn(200, 4) * torch.tensor([1.0, 2.0, 40.0, 0.5]) * units
        fit = fit_of(Blueprint(4, 2, likelihood=NormalLikelihood, x=x, network=small_network).vae(), data_of(x, (4,)))
        rows = torch.arange(0, 20, 2)
        snapshot = take_snapshot(fit.vae.model, fit.vae.guide, fit.data.validation[rows])
        fit = dataclasses.replace(fit, snapshots=Snapshots("validation", rows, {0: snapshot, 6: snapshot}))
        functions = (latents.decoded, latents.traversals, latents.interpolation, latents.redraws, by_epoch)
        found = shown(*functions, fit=fit)
        assert found.pop("Codes by epoch")
        assert len(found) == 6
        assert all("in standard deviations of the data" in picture.caption for (picture,) in found.values())
        alts.append({title: numbers(picture.alt) for title, (picture,) in found.items()})
    assert alts[0].keys() == alts[1].keys()
    for title, expected in alts[0].items():
        assert alts[1][title] == pytest.approx(expected, rel=1e-3), title


def test_tables_have_distributions_pairs_and_a_folded_picture_of_all_columns():
    made = table()
    found = shown(*columns.COLUMN_PICTURES, fit=made)
    assert {title: len(each) for title, each in found.items()} == {
        "Columns": 1,
        "Rootogram": 1,
        "Distribution of a column": 6,
        "Pairs of columns": 1,
        "Samples": 1,
    }
    assert found["Pairs of columns"][0].wide
    j, k = (
        made.columns.names.index(name)
        for name in re.search(r"between (\w+) and (\w+):", found["Pairs of columns"][0].alt).groups()
    )
    pair = made.x[:, [j, k]].double().numpy()
    expected = spearmanr(pair[~np.isnan(pair).any(1)]).statistic
    np.testing.assert_allclose(numbers(found["Pairs of columns"][0].alt.partition(":")[2])[0], expected, atol=0.0051)
    gaps = {}
    for pair in itertools.combinations(range(7), 2):  # two levels have an order too
        parts = (part[:, list(pair)].double().numpy() for part in (made.x, made.samples))
        ranks = [spearmanr(part[~np.isnan(part).any(1)]).statistic for part in parts]
        gaps[pair] = abs(ranks[0] - ranks[1])
    assert max(gaps, key=gaps.get) == (j, k)
    assert not shown(latents.traversals, latents.interpolation, latents.redraws, latents.decoded, fit=made)


def test_the_distance_of_columns_is_that_of_kolmogorov_and_smirnov():
    generator = torch.Generator().manual_seed(0)
    x, drawn = torch.randn(70, generator=generator), 0.4 + torch.randn(300, generator=generator)
    gap = columns._gap(x, drawn)
    exact = ks_2samp(x.double().numpy(), drawn.double().numpy())
    np.testing.assert_allclose(gap.size, exact.statistic, rtol=1e-12)
    assert gap.size == abs(gap.data - gap.draws)
    assert gap.data == float((x <= gap.value).double().mean())


def test_images_have_no_pictures_of_columns():
    assert not shown(*columns.COLUMN_PICTURES, fit=images())


def test_models_without_real_latents_have_no_pictures_of_latents():
    made = images()
    made.__dict__["has_codes"] = False
    assert not shown(*latents.LATENT_PICTURES[1:], fit=made)
