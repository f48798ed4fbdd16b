"""Rows of a file for a trained model: trained on or held out, without log p(x), and with missing labels."""

import csv
import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from pyrovae import (
    MLP,
    VAE,
    Blueprint,
    MixtureVAE,
    NormalEncoder,
    NormalLikelihood,
    PoissonLikelihood,
    StandardNormalPrior,
)
from pyrovae.data import read_raw, read_table
from pyrovae.evidence import Score, score
from pyrovae.runs import table_scores
from pyrovae.runs.report import describe_floors
from pyrovae.runs.table_files import NewRows, trained_line, trained_rows
from pyrovae.runs.table_imputations import Draws, classify_rows, impute_rows, with_labels, write_imputations
from pyrovae.runs.table_scores import RowScores, mean_lines, reason_lines, score_rows
from pyrovae.stats import LogMarginal

N, CPU = 60, torch.device("cpu")


def numbers(seed=0, size=N):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=size).round(3).tolist() for name in "ab"}


def test_rows_that_equal_a_training_row_are_told_apart():
    given = numbers()
    given["a"][7] = None
    table = read_table(given, split_seed=2)
    training = table.part("train")
    again = {name: [*reversed(given[name]), 9.5, None] for name in "ba"}  # other places of rows and columns
    again["b"][-1] = given["b"][7]
    new = read_table(again, columns=table.columns, new_data=True)
    expected = [*reversed((table.splits == 0).tolist()), False, bool(table.splits[7] == 0)]
    assert trained_rows(new, training).tolist() == expected
    line = trained_line(torch.tensor(expected), "log p(x)")
    assert line.startswith(f"log p(x) of {sum(expected)} of 62 rows is transductive")
    assert trained_line(torch.tensor([False] * 3), "log p(x)") == (
        "log p(x) of held-out rows: none of the 3 equals a training row"
    )


def test_train_says_which_columns_of_an_array_have_few_values():
    x = torch.stack([torch.arange(200.0) % 4, torch.linspace(0, 1, 200).sqrt()], 1)

    def words(likelihood):
        return describe_floors(Blueprint(2, 1, likelihood=likelihood, x=x).vae().model.likelihood)

    assert re.search(r"1 of 2 columns have few values.*smallest gap.*\(1 to 1\)", words(NormalLikelihood))
    assert words(partial(NormalLikelihood, scale=1.0)) == ""  # not learned
    assert words(PoissonLikelihood) == ""


def scores_of(value, trained, reasons=()):
    nothing = torch.full((len(value), 1), torch.nan, dtype=torch.float64)
    marginal = LogMarginal(*(torch.tensor(value).double() for _ in range(4)))
    score = Score(marginal, nothing, nothing, nothing)
    zeros = torch.zeros(len(value))
    return RowScores(("a",), score, zeros, zeros.long(), nothing, nothing.isnan(), torch.tensor(trained), dict(reasons))


def test_means_are_printed_with_and_without_the_training_rows_and_by_their_weights():
    scores = scores_of([-1.0, -3.0, -8.0, -12.0, math.nan], [True, True, False, False, False], {4: "it is odd"})
    head, *lines = mean_lines(scores, None)
    assert head == ["rows", "number", "mean log p(x)", "s.e. data"]
    assert lines == [
        ["trained on", "2", "-2.00", "1.00"],
        ["not trained on", "2", "-10.00", "2.00"],
        ["all", "4", "-6.00", f"{torch.tensor([-1.0, -3, -8, -12]).std() / 2:.2f}"],
    ]
    weights = torch.tensor([1.0, 3.0, 0.0, 1.0, 5.0])
    squares = 1 * 1.5**2 + 9 * 0.5**2  # around -2.5
    assert mean_lines(scores, weights)[1:3] == [
        ["trained on", "2", "-2.50", f"{math.sqrt(2 * squares) / 4:.2f}"],
        ["not trained on", "1", "-12.00", "-"],
    ]
    assert reason_lines(scores) == ["row 5 has no log p(x): it is odd"]
    assert [line[0] for line in mean_lines(scores_of([-1.0, -2.0], [False, False]), None)[1:]] == ["not trained on"]


class Broken(nn.Module):
    """Network of an encoder whose output is NaN for data far away."""

    def forward(self, x):
        out = torch.cat([x[..., :1], torch.zeros_like(x[..., :1])], -1)
        return torch.where((x.abs() > 50).any(-1, keepdim=True), torch.nan, out)


def broken_model(x, mask=None):
    """Program of the VAE below, whose scale is NaN for data far away."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        loc, scale = z @ WEIGHT.T, torch.where((x.abs() > 50).any(-1, keepdim=True), torch.nan, 1.0)
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def guide(x, mask=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))


WEIGHT = torch.tensor([[0.8], [-0.5]])


def exact(x):
    return MultivariateNormal(torch.zeros(2), WEIGHT @ WEIGHT.T + torch.eye(2)).log_prob(x)


def new_rows():
    table, given = read_table(numbers()), numbers(1, 6)
    given["b"][2] = 99.0
    return read_table(given, columns=table.columns, new_data=True), table.part("train")


def test_a_row_that_the_encoder_cannot_read_is_scored_by_the_other_proposals():
    new, _ = new_rows()
    decoder = nn.Linear(1, 2, bias=False)
    decoder.weight.data = WEIGHT
    vae = VAE(StandardNormalPrior(1), NormalLikelihood(decoder, scale=1.0), NormalEncoder(Broken()))
    found = score(vae.model, vae.guide, new.x, num_particles=200)
    torch.testing.assert_close(found.log_marginal.value, exact(new.x).double(), rtol=1e-5, atol=0.1)
    alone = torch.distributions.Normal(0.0, (1 + WEIGHT.square()).sqrt().flatten()).log_prob(new.x)
    conditional = (exact(new.x)[:, None] - alone.flip(1)).double()
    reliable = found.khat < 0.7
    assert reliable.sum() >= 9
    torch.testing.assert_close(found.conditional[reliable], conditional[reliable], rtol=1e-3, atol=0.2)


def test_a_row_without_log_p_has_a_reason_and_the_others_their_scores():
    new, training = new_rows()
    pair = SimpleNamespace(model=broken_model, guide=guide)
    scores = score_rows(pair, new, training, training, num_particles=40)
    rows = list(scores.rows())
    assert [row[1] is None for row in rows] == [False, False, True, False, False, False]
    assert rows[2][5] is None
    assert all(isinstance(row[5], int) and row[6] == len(training) for n, row in enumerate(rows) if n != 2)
    assert rows[2][-1] == "the density of site 'x' of the model is not finite there"
    assert reason_lines(scores) == ["row 3 has no log p(x): the density of site 'x' of the model is not finite there"]
    assert {row[0] for row in scores.cells()} == {1, 2, 4, 5, 6}
    others = [0, 1, 3, 4, 5]
    assert [rows[n][1] for n in others] == pytest.approx(exact(new.x)[others].tolist(), abs=0.3)
    rank = 1 + int((exact(training.x) < exact(new.x)[0]).sum())
    assert abs(rows[0][5] - rank) <= 4


@pytest.mark.parametrize("at_once", [1, 60, 10**6])
def test_rows_are_ranked_among_the_training_rows_that_have_their_cells(monkeypatch, at_once):
    monkeypatch.setattr(table_scores, "_REFERENCES_AT_ONCE", at_once)
    known, given = numbers(), numbers(1, 12)
    for n in range(12):
        known["a" if n % 3 else "b"][5 * n] = None
        if n % 4:  # patterns: both, a alone, b alone, none
            given["a"][n] = None if n % 4 > 1 else given["a"][n]
            given["b"][n] = None if n % 4 != 2 else given["b"][n]
    table = read_table(known)
    new, training = read_table(given, columns=table.columns, new_data=True), table.part("train")
    decoder = nn.Linear(1, 2, bias=False)
    decoder.weight.data = WEIGHT
    vae = VAE(StandardNormalPrior(1), NormalLikelihood(decoder, scale=1.0), NormalEncoder(nn.Linear(2, 2)))
    torch.manual_seed(0)
    done = []
    scores = score_rows(vae, new, training, training, num_particles=200, on_progress=done.append)
    assert sum(done) == 12
    for n, row in enumerate(scores.rows()):
        seen = new.mask[n]
        others = training.x[training.mask[:, seen].all(1)]
        if not seen.any():
            assert row[5:8] == (None, 0, None)
            continue
        if seen.all():
            log_p, own = exact(others), exact(new.x[n : n + 1])
        else:
            marginal = torch.distributions.Normal(0.0, (1 + WEIGHT.square()).sqrt().flatten()[seen])
            log_p, own = marginal.log_prob(others[:, seen]).squeeze(1), marginal.log_prob(new.x[n, seen])
        assert row[6] == len(others)
        assert int((log_p < own - 0.2).sum()) <= row[5] - 1 <= int((log_p < own + 0.2).sum())
    assert len({int(count) for count in scores.references}) == 4


@pytest.fixture(scope="module")
def labelled():
    """Rows without labels in part, and a mixture whose columns b, c depend on the label y: b = c = 10 y + noise."""
    rng = np.random.default_rng(3)
    y = rng.integers(2, size=40)
    cells = {"a": rng.normal(size=40), "b": 10 * y + rng.normal(size=40), "c": 10 * y + rng.normal(size=40)}
    rows = {name: values.round(3).tolist() for name, values in cells.items()}
    rows["kind"] = ["no" if value == 0 else "yes" for value in y]
    for n in range(12):
        rows["kind"][n] = None
        if n < 8:  # no cell tells the label
            rows["b"][n] = rows["c"][n] = None
    table = read_table(rows, label="kind")
    blueprint = Blueprint(3, 1, likelihood=partial(NormalLikelihood, scale=1.0), network=partial(MLP, hidden=[]))
    torch.manual_seed(0)
    vae = MixtureVAE(blueprint, 2)
    (layer,) = [one for one in vae.model.likelihood.network.modules() if isinstance(one, nn.Linear)]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[1:, 2] = 10.0  # of z, y = no, y = yes
        vae.model.logits.copy_(torch.tensor([0.3, 0.7]).log())
    return NewRows(table, read_raw(rows).columns), vae, y


def test_missing_labels_are_drawn_with_the_missing_cells_of_their_rows(labelled, tmp_path):
    new, vae, y = labelled
    options = {"num_particles": 60, "chunk_size": None}
    imputed = impute_rows(vae, new.table, CPU, labelled=True, seed=0, num_draws=300, **options)
    classes = classify_rows(vae, new, CPU, seed=0, num_particles=60)
    draws = with_labels(vae, new, CPU, Draws(imputed.draws, None), classes, seed=1, **options)
    assert bool((draws.labels[:, 12:] == -1).all())
    drawn = draws.labels[:, :8].double()  # p(yes) is 0.7 without a cell that tells it
    assert abs(drawn.mean() - 0.7) < 4.5 * (0.21 / drawn.numel()) ** 0.5
    assert bool((draws.labels[:, 8:12] == torch.from_numpy(y)[8:12]).all())
    away = draws.x[:, :8, 1:].double() - 10 * drawn.unsqueeze(-1)  # normal noise, if cells are drawn given the label
    assert abs(away.mean()) < 0.1
    assert abs(away.std() - 1) < 0.1
    assert draws.x[:, 12:].equal(imputed.draws[:, 12:])

    few = Draws(draws.x[:2], None, draws.labels[:2])
    classes[3] = torch.nan  # a row without an estimate
    write_imputations(tmp_path, new, imputed, [few], torch.tensor([True] + [False] * 39), classes)

    def read(name):
        with (tmp_path / name).open(newline="") as file:
            return list(csv.DictReader(file))

    filled, long, about = read("imputed.csv"), read("draws.csv"), read("imputation.csv")
    assert [row["kind"] for row in filled[:8]] == ["yes"] * 3 + [""] + ["yes"] * 4
    assert [row["kind"] for row in filled[12:]] == [["no", "yes"][code] for code in y[12:]]
    assert [row["kind"] for row in long[40:48]] == [["no", "yes"][code] for code in draws.labels[1, :8].tolist()]
    assert [row["kind"] for row in long[52:80]] == [row["kind"] for row in filled[12:]]
    assert [int(row["row"]) for row in about] == list(range(1, 13))
    assert [int(row["missing"]) for row in about[6:]] == [3, 3, 1, 1, 1, 1]
    assert [row["trained_on"] for row in about[:2]] == ["yes", "no"]
    cells = [row for row in read("imputed_cells.csv") if row["column"] == "kind"]
    assert [int(row["row"]) for row in cells] == [1, 2, 3, *range(5, 13)]
    assert float(cells[0]["probability"]) == pytest.approx(0.7, abs=0.1)
