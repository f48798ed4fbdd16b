"""report.py on a finished run, and the lines that train.py prints about the fit."""

import json
import re

import numpy as np
import pytest
from script_helpers import TINY, call, run

from pyrovae.page import fit


def page_of(place):
    return (place / "short run" / "report.html").read_text()


def test_train_ends_with_checks_and_the_command_that_makes_the_page(place, capsys, monkeypatch):
    out = run("train", "--data", "bits.npy", *TINY, "--epochs", 2, "--out", "short run", cwd=place).stdout
    assert re.search(r"\d of \d checks of training and evaluation failed:", out)
    assert "  still rising: the training took 2 epochs, too few to see whether the ELBO still rises\n" in out
    assert "  few test data: the numbers are means over 12 test data: " in out
    assert out.endswith("wrote short run; see it as one page: python scripts/report.py 'short run'\n")
    monkeypatch.chdir(place)
    monkeypatch.setattr(fit, "_REFINE_STEPS", 5)
    monkeypatch.setattr(fit, "_REFINED", 3)
    np.save("shifted.npy", np.load("bits.npy") + 0.5)
    code, err = call(capsys, monkeypatch, "report", "short run", "--foreign", "shifted.npy")
    assert code == 1
    assert "1,440 of 1,440 values lie outside the support of Bernoulli" in err
    for flags, words in (
        (("--foreign", "nowhere.npy"), "nowhere.npy: no such file; check the path given to --foreign"),
        (("--covariates", "bits.npy"), "are of the data of --foreign; give it, or omit them"),
    ):
        code, err = call(capsys, monkeypatch, "report", "short run", *flags)
        assert code == 1
        assert words in err
    assert not (place / "short run" / "report.html").exists()
    flags = "--figures", "some/figures", "--foreign", "bits.npy"
    assert call(capsys, monkeypatch, "report", "short run", *flags)[0] == 0
    figures = sorted((place / "some" / "figures").iterdir())
    assert [path.name[:3] for path in figures] == [f"{number:02d}-" for number in range(1, len(figures) + 1)]
    assert len(figures) == page_of(place).count("<figure")
    assert all(path.suffix == ".png" and path.read_bytes()[1:4] == b"PNG" for path in figures)
    page = page_of(place)
    assert "Not shown" not in page
    assert len(page) < 500_000
    diagnosis = json.loads((place / "short run" / "diagnosis.json").read_text())
    states = {check["name"]: check["state"] for check in diagnosis["checks"]}
    assert states["convergence"] == states["test data"] == "warning"
    assert diagnosis["headline"].startswith("Do not believe this model yet")
    ((auc, error, _),) = [row[1:] for table in diagnosis["tables"] for row in table["rows"] if row[0] == "bits.npy"]
    assert abs(auc - 0.5) < 3 * error < 0.5  # the data themselves
    assert diagnosis["command"] == "python scripts/train.py --config 'short run/config.yaml'"
    assert call(capsys, monkeypatch, "report", "short run", "--out", "pages/one")[0] == 0
    assert {path.name for path in (place / "pages" / "one").iterdir()} == {"report.html", "diagnosis.json"}
    (place / "short run" / "evaluation.csv").write_text("changed")
    code, err = call(capsys, monkeypatch, "report", "short run")
    assert code == 1
    assert "evaluation.csv" in err


@pytest.mark.slow
def test_the_page_of_digits_by_default_is_below_half_a_megabyte_and_the_same_in_another_process(place):
    run("train", "--out", "digits", cwd=place)
    pages = []
    for _ in range(2):
        run("report", "digits", cwd=place)
        pages.append((place / "digits" / "report.html").read_bytes())
    assert len(pages[0]) < 500_000
    assert pages[0] == pages[1]
