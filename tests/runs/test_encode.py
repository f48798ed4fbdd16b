"""encode.py from runs to files: means, weights, draws, labels, the projector's files, and what is refused."""

import csv

import numpy as np
import pytest
import torch
from script_helpers import assert_refused, call, run

import pyrovae
from pyrovae.columns import Columns
from pyrovae.runs import write_projector
from pyrovae.runs.encodings import _levels, flat_latents, latent_names


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return torch.tensor([float(row[name]) for row in rows])


def test_encode_writes_the_guides_means_and_sds_of_an_array_with_labels(place, straight, tmp_path):
    bits = np.load(place / "bits.npy")[:5]
    np.savez(tmp_path / "new.npz", x=bits, labels=np.array(["a", "b", "a", "=b", "c"]))
    flags = ("--draws", 3, "--projector", "true", "--out", "codes")
    result = run("encode", straight, "new.npz:x", *flags, cwd=tmp_path)
    assert "codes of 5 rows of new.npz:x, from the guide q(z|x)" in result.stdout
    rows = read(tmp_path / "codes/encoding.csv")
    assert list(rows[0]) == ["row", "label", "z[0]", "z[1]", "z[0] sd", "z[1] sd"]
    assert [row["row"] for row in rows] == list("01234")
    assert [row["label"] for row in rows] == ["a", "b", "a", "'=b", "c"]
    vae = pyrovae.load(straight)
    with torch.no_grad():
        code = vae.guide.encoder(torch.from_numpy(bits.reshape(5, -1)).float())
    for j in range(2):
        torch.testing.assert_close(column(rows, f"z[{j}]"), code.mean[:, j], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(column(rows, f"z[{j}] sd"), code.stddev[:, j], rtol=1e-4, atol=1e-5)
    draws = read(tmp_path / "codes/encoding_draws.csv")
    assert [(row[".draw"], row["row"]) for row in draws[:6]] == [("1", str(n)) for n in range(5)] + [("2", "0")]
    assert len(draws) == 15
    tensors = np.loadtxt(tmp_path / "codes/tensors.tsv")
    np.testing.assert_allclose(tensors, code.mean.numpy(), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "codes/metadata.tsv").read_text().splitlines() == ["a", "b", "a", "=b", "c"]


def test_encode_weighs_a_split_of_the_run(straight, place, tmp_path):
    run("encode", straight, "test", "--weighted", "true", "--num_particles", 300, "--out", tmp_path, cwd=place)
    rows = read(tmp_path / "encoding.csv")
    assert list(rows[0])[-4:] == ["log_marginal", "std_error", "ess", "khat"]
    assert len(rows) == 12
    evaluation = read(straight / "evaluation.csv")
    assert [row["row"] for row in rows] == [row["row"] for row in evaluation]
    difference = column(rows, "log_marginal") - column(evaluation, "log_marginal")
    assert bool((difference.abs() < 0.5).all())
    assert bool((column(rows, "ess") > 20).all())
    # The posterior means by quadrature on a grid
    vae = pyrovae.load(straight)
    line = torch.linspace(-6, 6, 241)
    z = torch.cartesian_prod(line, line)
    x = torch.from_numpy(np.load(place / "bits.npy").reshape(120, -1)).float()[[int(row["row"]) for row in rows]]
    with torch.no_grad():
        log_p = torch.stack([vae.model.likelihood(z).log_prob(one) for one in x]) + vae.model.prior().log_prob(z)
    means = log_p.softmax(1) @ z
    for j in range(2):
        assert bool(((column(rows, f"z[{j}]") - means[:, j]).abs() < 0.3).all())


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        (lambda path: np.save(path, np.zeros((3, 5))), [], "has 5 numbers per row, but"),
        (lambda path: np.save(path, np.zeros((3, 12))), ["--covariates", "new.npy"], "omit --covariates"),
        (lambda path: None, [], "new.npy: no such file"),
    ],
)
def test_encode_refuses_files_that_do_not_fit(make, flags, words, straight, tmp_path, capsys, monkeypatch):
    make(tmp_path / "new.npy")
    monkeypatch.chdir(tmp_path)
    code, err = call(capsys, monkeypatch, "encode", straight, "new.npy", *flags, "--out", "out")
    assert_refused("encode", code, err, words)
    assert not (tmp_path / "out").exists()


def test_labels_of_tables_are_their_levels():
    columns = Columns.from_dict(
        {"x": {"kind": "real"}, "kind": {"kind": "category", "role": "label", "levels": ["p", "q", "r"]}}
    )
    assert _levels(columns, torch.tensor([2, -1, 0])) == ["r", "", "p"]
    assert _levels(None, torch.tensor([7])) == ["7"]
    assert _levels(None, None) is None


def test_latent_dimensions_are_named_over_all_sites():
    values = {"z": torch.zeros(4, 2), "s": torch.zeros(4), "w": torch.ones(4, 2, 2)}
    assert latent_names(values, 1) == ["z[0]", "z[1]", "s", "w[0,0]", "w[0,1]", "w[1,0]", "w[1,1]"]
    assert flat_latents(values, 1)[0].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_the_projectors_files_have_a_line_per_code(tmp_path):
    codes = torch.tensor([[0.1, 2.0], [-3.0, 4.5]])
    labels = {"kind": ["a\tb", ""], "number": [1, 2]}
    paths = write_projector(tmp_path / "new", codes, labels)
    assert [path.name for path in paths] == ["tensors.tsv", "metadata.tsv"]
    np.testing.assert_allclose(np.loadtxt(paths[0]), codes.numpy(), rtol=1e-6)
    assert paths[1].read_text() == "kind\tnumber\na b\t1\n-\t2\n"
    assert len(write_projector(tmp_path, codes)) == 1
    with pytest.raises(ValueError, match="labels '' have 1 rows, but there are 2 codes"):
        write_projector(tmp_path, codes, ["a"])
    with pytest.raises(ValueError, match=r"codes must have shape \(N, Z\), got \(2,\)"):
        write_projector(tmp_path, codes[0])
