"""Every number of the files about a table is in its row and column, and no flag about them is without effect."""

import csv
import re
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from script_helpers import TINY, assert_refused, call, run
from test_table_scripts import COUNT, N, read, survey, write

import pyrovae
from pyrovae.columns import Column, Columns
from pyrovae.data import read_columns, read_raw, read_table
from pyrovae.encoders import Features
from pyrovae.evidence import Imputation, Score
from pyrovae.runs import table_imputations
from pyrovae.runs.table_files import NewRows
from pyrovae.runs.table_imputations import Draws, write_imputations
from pyrovae.runs.table_scores import CELL_NAMES, SCORE_NAMES, RowScores
from pyrovae.stats import LogMarginal

HOLES = [(1, "a"), (4, "a"), (4, "c"), (7, "c"), (8, "a")]


def own_numbers(size, start):
    """Numbers of which none is twice in a test."""
    return torch.arange(size, dtype=torch.float64) + start


def csv_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_imputed_number_is_in_the_row_and_the_column_of_its_cell(tmp_path):
    rng = np.random.default_rng(0)
    cells = {name: [f"{value:.3f}" for value in rng.normal(5, 1, 10)] for name in "ac"} | {"b": list("xyzxyzxyzx")}
    for row, name in HOLES:
        cells[name][row] = None
    kinds = {"a": "real", "b": "category", "c": "real"}
    columns = Columns(tuple(Column(name, kind, levels=("x", "y", "z") * (name == "b")) for name, kind in kinds.items()))
    table = read_table(cells, columns=columns, split_seed=0)
    names = [column.name for column in table.columns.data]
    shape = (10, len(names))

    def numbers(start):
        return own_numbers(10 * len(names), start).reshape(shape).float()

    marginal = LogMarginal(*(own_numbers(10, start) for start in (-900, 100, 200, 300)))
    served, draws = torch.arange(10) % 3, torch.stack([numbers(4000), numbers(5000)])
    imputed = Imputation(
        *(numbers(1000), ("mean", "mode", "mean"), numbers(2000), numbers(3000), draws, marginal, served),
        ("guide", "laplace", "prior"),
    )
    origin = {column.name: column.origin for column in table.columns.data}
    new = NewRows(table, read_raw(cells).columns)
    trained = torch.arange(10) < 4
    write_imputations(tmp_path, new, imputed, [Draws(draws[:1], 1), Draws(draws[1:], 2)], trained)

    filled, long = csv_rows(tmp_path / "imputed.csv"), csv_rows(tmp_path / "draws.csv")
    for row in range(10):
        for name in names:
            place = names.index(name)
            found = [filled[row][name], long[row][name], long[10 + row][name]]
            if (row, name) in HOLES:
                expected = [float(value[row, place]) + origin[name] for value in (imputed.value, *draws)]
                assert [float(value) for value in found] == pytest.approx(expected)
            else:
                assert found == [cells[name][row]] * 3
    assert [row[".refit"] for row in long] == ["1"] * 10 + ["2"] * 10

    about = csv_rows(tmp_path / "imputation.csv")
    holed = sorted({row for row, _ in HOLES})
    for n, row in zip(holed, about, strict=True):  # no line of complete rows
        assert int(row["row"]) == n + 1
        assert row["proposal"] == imputed.components[n % 3]
        assert [float(row[key]) for key in ("log_marginal", "std_error", "ess", "khat")] == [
            float(value[n]) for value in marginal
        ]
        assert int(row["missing"]) == sum(place == n for place, _ in HOLES)
        assert row["trained_on"] == ("yes" if n < 4 else "no")

    of_cells = {(int(row["row"]) - 1, row["column"]): row for row in csv_rows(tmp_path / "imputed_cells.csv")}
    assert set(of_cells) == set(HOLES)
    for (row, name), cell in of_cells.items():
        place = names.index(name)
        assert float(cell["value"]) == pytest.approx(float(imputed.value[row, place]) + origin[name])
        assert float(cell["mc_std_error"]) == float(imputed.std_error[row, place])
        assert float(cell["probability"]) == float(imputed.probability[row, place])
        assert cell["centre"] == imputed.centre[place]


def test_each_score_is_in_the_column_of_its_name():
    marginal = LogMarginal(*(own_numbers(4, start) for start in (-900, 100, 200, 300)))
    of_cells = [own_numbers(8, start).reshape(4, 2) for start in (-1000, 2000, 3000)]
    below, shares = torch.tensor([0.0, 5, 10, 20]).double(), torch.rand(4, 2, generator=torch.manual_seed(0)).double()
    scores = RowScores(
        *(("a", "b"), Score(marginal, *of_cells), below, torch.full((4,), 20), shares),
        *(torch.ones(4, 2, dtype=torch.bool), torch.tensor([True, False, True, False]), {2: "odd"}),
    )
    for n, values in enumerate(scores.rows()):
        row = dict(zip(SCORE_NAMES, values, strict=True))
        place = int(shares[n].argmin())
        assert (row["log_marginal"], row["std_error"], row["khat"]) == (-900 + n, 100 + n, 300 + n)
        assert (row["rank"], row["references"], row["share_below"]) == (below[n] + 1, 20, below[n] / 20)
        worst = [row[f"worst_{key}"] for key in ("column", "log_p", "std_error", "khat", "share_below")]
        assert worst == ["ab"[place], *(float(part[n, place]) for part in of_cells), float(shares[n, place])]
        assert (row["trained_on"], row["reason"]) == (("no", "yes")[n % 2 == 0], "odd" if n == 2 else None)
    for number, values in enumerate(scores.cells()):
        n, place = divmod(number, 2)
        row = dict(zip(CELL_NAMES, values, strict=True))
        found = [row[key] for key in ("log_p", "std_error", "khat", "share_below")]
        assert (row["row"], row["column"]) == (n + 1, "ab"[place])
        assert found == [*(float(part[n, place]) for part in of_cells), float(shares[n, place])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with survey.csv and a run on it whose features hide cells, and what train.py printed."""
    folder = tmp_path_factory.mktemp("outputs")
    write(folder / "survey.csv", survey())
    flags = ("--data", "survey.csv", "--mask_extra", 0.4, "--epochs", 2, *TINY, "--out", "run")
    return folder, run("train", *COUNT, *flags, cwd=folder).stdout


def test_the_encoder_hides_the_share_of_cells_of_the_flag(trained):
    folder, _ = trained
    (features,) = [part for part in pyrovae.load(folder / "run").guide.modules() if isinstance(part, Features)]
    assert features.mask_extra == 0.4


def test_training_ends_with_the_baselines_and_what_their_differences_say(trained):
    _, printed = trained
    model = re.search(r"^VAE +\S+ +(\S+)", printed, flags=re.M)
    baseline = re.search(r"^independent columns +- +(\S+)", printed, flags=re.M)
    below = re.search(r"(\S+) nats per datum BELOW \"independent columns\"", printed)
    above = re.search(r"above the best of them, \"independent columns\", by (\S+)", printed)
    alike = re.search(r"does not differ from its baseline \"independent columns\": (\S+)", printed)
    difference = float(model[1]) - float(baseline[1])
    said = -float(below[1]) if below else float((above or alike)[1])
    assert said == pytest.approx(difference, abs=0.02)


def test_refits_impute_rows_with_missing_cells_by_their_own_networks(trained, monkeypatch, capsys):
    folder, _ = trained
    used, masks, original = [], [], table_imputations.impute

    def impute(model, guide, **kwargs):
        used.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        masks.append(kwargs["mask"])
        return original(model, guide, **kwargs)

    monkeypatch.setattr(table_imputations, "impute", impute)
    monkeypatch.chdir(folder)
    flags = ("--draws", 2, "--refits", 2, "--num_particles", 10, "--out", "refits")
    assert call(capsys, monkeypatch, "impute", "run", "survey.csv", *flags)[0] == 0
    first, *refits = used
    assert len(refits) == 2
    for one, other in ((first, refits[0]), (first, refits[1]), refits):
        assert (one - other).abs().max() > 0.01
    holed = sum("" in row.values() for row in csv_rows(folder / "survey.csv"))
    for mask in masks:
        assert bool((~mask).any(1).all())
        assert len(mask) == holed < N


def test_a_column_without_means_is_named(trained, monkeypatch, capsys):
    folder, _ = trained
    monkeypatch.chdir(folder)
    original = table_imputations.impute

    def impute(*args, **kwargs):
        return original(*args, **kwargs)._replace(without_mean=(2,))

    monkeypatch.setattr(table_imputations, "impute", impute)
    flags = ("--draws", 1, "--num_particles", 10, "--out", "medians")
    with redirect_stdout(StringIO()) as printed:
        assert call(capsys, monkeypatch, "impute", "run", "survey.csv", *flags)[0] == 0
    assert "the conditional mean of visits does not exist" in printed.getvalue()


def test_a_cell_with_an_unknown_level_is_filled_and_its_text_kept(trained):
    folder, _ = trained
    rows = survey(1)
    rows["region"][5], rows["extra"] = "West", ["1"] * N
    write(folder / "unseen.csv", rows)
    flags = ("--draws", 1, "--num_particles", 10, "--unseen", "missing", "--out", "unseen")
    printed = run("impute", "run", "unseen.csv", *flags, cwd=folder).stdout
    cells = {(row["row"], row["column"]): row for row in csv_rows(folder / "unseen/imputed_cells.csv")}
    assert cells["6", "region"]["text"] == "West"
    assert [row["text"] for row in cells.values()].count("") == len(cells) - 1
    assert csv_rows(folder / "unseen/imputed.csv")[5]["region"] in ("r0", "r1", "r2")
    assert "levels that the columns do not name are treated as missing: West (1)" in printed
    assert "the columns do not name extra, which unseen.csv has" in printed
    assert "k-hat, which judges the weights, needs at least 21 draws per row, got 10" in printed


def test_rows_that_all_have_weight_zero_have_no_mean(trained):
    folder, _ = trained
    write(folder / "weighted.csv", {**survey(), "w": ["1"] * N})
    run("train", *COUNT, "--data", "weighted.csv", "--weights", "w", "--epochs", 1, *TINY, "--out", "w", cwd=folder)
    few = {name: cells[:3] for name, cells in survey(2).items()}
    write(folder / "zeros.csv", {**few, "w": ["0"] * 3, "extra": ["1"] * 3})
    printed = run("score", "w", "zeros.csv", "--num_particles", 30, "--references", 20, cwd=folder).stdout
    assert "no row has a case weight above 0 and a log p(x), so there is no mean" in printed
    assert "mean log p(x)" not in printed
    assert "the columns do not name extra" in printed
    assert re.search(r"k-hat is above 0.7 in \d of 3 rows", printed)


def test_an_unknown_level_of_a_covariate_cannot_be_missing(trained, monkeypatch, capsys):
    folder, _ = trained
    rows = {**survey(), "site": [f"s{i % 3}" for i in range(N)]}
    write(folder / "sites.csv", rows)
    flags = ("--data", "sites.csv", "--covariates", "[site]", "--epochs", 1, *TINY, "--out", "sites")
    run("train", *COUNT, *flags, cwd=folder)
    rows["site"][7] = "q"
    write(folder / "new-site.csv", rows)
    monkeypatch.chdir(folder)
    code, err = call(capsys, monkeypatch, "impute", "sites", "new-site.csv", "--unseen", "missing")
    assert_refused(
        "impute", code, err, "column 'site', row 8: the level 'q' is unknown to the columns, and a covariate"
    )


def test_amounts_in_cents_far_from_zero_train_a_rounded_likelihood(tmp_path):
    rng = np.random.default_rng(0)
    cents, others = 1e9 + 3000 * rng.normal(size=60), rng.normal(size=60)
    write(tmp_path / "a.csv", {"amount": [f"{v:.2f}" for v in cents], "b": [f"{v:.3f}" for v in others]})
    rounded = ("--columns.amount.likelihood", "RoundedNormalLikelihood")
    run("train", "--data", "a.csv", *rounded, "--epochs", 1, *TINY, "--out", "run", cwd=tmp_path)
    assert read_columns(tmp_path / "run/columns.yaml")["amount"].grid == 0.01
    result = run("train", "--data", "a.csv", *rounded, "--columns.amount.grid", 0.7, *TINY, cwd=tmp_path, check=False)
    assert "column 'amount', row " in result.stderr
    assert "in numbers from the origin 1,000," in result.stderr or "from the origin 999," in result.stderr
    assert "multiples of 0.7" in result.stderr
    assert "--columns.NAME.grid 0.01" in result.stderr


def test_a_table_without_missing_cells_is_written_as_it_is(trained, capsys, monkeypatch):
    folder, _ = trained
    rows = [row for row in csv_rows(folder / "survey.csv") if "" not in row.values()]
    write(folder / "complete.csv", {name: [row[name] for row in rows] for name in rows[0]})
    monkeypatch.chdir(folder)
    flags = ("--draws", 2, "--num_particles", 10, "--out", "complete")
    assert call(capsys, monkeypatch, "impute", "run", "complete.csv", *flags)[0] == 0
    assert csv_rows(folder / "complete/imputed.csv") == rows
    drawn = csv_rows(folder / "complete/draws.csv")
    assert [{name: row[name] for name in rows[0]} for row in drawn] == rows * 2
    assert csv_rows(folder / "complete/imputation.csv") == csv_rows(folder / "complete/imputed_cells.csv") == []


def test_texts_of_missing_cells_and_the_centre_are_those_of_the_flags(trained):
    folder, _ = trained
    rows = survey(1)
    rows["height"][3] = "no answer"
    write(folder / "new.csv", rows)
    common = ("run", "new.csv", "--na_values", "[no answer]", "--num_particles", 20, "--out", "flags")
    run("impute", *common, "--draws", 1, "--centre", "median", cwd=folder)
    found = {(int(row["row"]), row["column"]): row["centre"] for row in read(folder / "flags/imputed_cells.csv")}
    assert found[4, "height"] == "median"
    assert {centre for (_, name), centre in found.items() if name in ("height", "income")} == {"median"}
    run("score", *common, cwd=folder)
    observed = [int(row["observed"]) for row in read(folder / "flags/scores.csv")]
    table = read_table(
        folder / "new.csv",
        columns=read_columns(folder / "run/columns.yaml"),
        new_data=True,
        na_values=["", "no answer"],
    )
    assert observed == table.mask.sum(1).tolist()
    assert len(observed) == N
