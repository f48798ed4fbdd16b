"""Published results: the closed forms that they are held against, and what the script prints."""

import json

import numpy as np
import published as study
import pytest
import torch
from script_helpers import call, run
from sklearn.decomposition import PCA


def test_probabilistic_pca_has_the_density_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 6)) + rng.normal(size=(400, 6)) * 0.3
    expected = PCA(2).fit(x)  # whose covariance divides by N - 1
    scaled = x.mean(0) + (x - x.mean(0)) * np.sqrt(400 / 399)
    found = study.probabilistic_pca(torch.from_numpy(scaled), 2)
    assert found.log_prob(torch.from_numpy(x)).numpy() == pytest.approx(expected.score_samples(x), abs=1e-9)


@pytest.mark.parametrize(("steps", "most"), [(20, 12.0), pytest.param(1000, 0.02, marks=pytest.mark.slow)])
def test_a_linear_vae_nears_probabilistic_pca(tmp_path, steps, most):
    flags = ("--latent_dims", "[1]", "--steps", steps, "--num_particles", 50, "--out", "ppca.json")
    result = run("published", "ppca", *flags, cwd=tmp_path)
    header, row = result.stdout.splitlines()[-3:-1]
    assert header.split()[:2] == ["Z", "probabilistic"]
    assert row.split()[0] == "1"
    (found,) = json.loads((tmp_path / "ppca.json").read_text())["rows"]
    assert abs(found["difference"]) < most  # nats
    assert found["vae"] - found["ppca"] == pytest.approx(found["difference"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("pca",), "NAME pca: expected ppca or k-fold; did you mean ppca?"),
        (("ppca", "--latent_dims", "[3,64]"), "--latent_dims: probabilistic PCA of 64 pixels needs fewer latents"),
    ],
)
def test_wrong_names_and_numbers_are_refused_in_one_line(capsys, monkeypatch, flags, message):
    code, err = call(capsys, monkeypatch, "published", *flags)
    assert code == 1
    assert message in err
