"""The pictures by epoch on the page: numbers in alt texts, hostile labels, and runs without snapshots."""

import dataclasses
import re

import pytest
import torch
from page_helpers import make_fit

from pyrovae.diagnostics import take_snapshot
from pyrovae.page.epoch_pictures import by_epoch
from pyrovae.runs import Snapshots


@pytest.fixture(scope="module")
def made():
    fit = make_fit()
    rows = torch.arange(0, 20, 2)
    one = take_snapshot(fit.vae.model, fit.vae.guide, fit.data.validation[rows])
    before = one._replace(mean=one.mean / 4, samples=one.samples * 0 + 0.25)
    fit.__dict__["kl"] = torch.ones(2)
    found = dataclasses.replace(fit, snapshots=Snapshots("validation", rows, {0: before, 6: one}))
    found.__dict__.update({name: fit.__dict__[name] for name in ("label_names", "kl")})
    return found


def test_three_pictures_have_their_numbers_in_words(made):
    blocks = list(by_epoch(made))
    text = "\n".join(block.html() for block in blocks)
    assert text.count("<figure") == 3
    assert "<img src=x" not in text
    alts = re.findall(r'alt="([^"]*)"', text)
    one = made.snapshots.by_epoch[6]
    spread = (one.mean.double().std(0) / one.prior.double().std(0)).tolist()
    assert f"{spread[0] / 4:.2g} and {spread[1] / 4:.2g} times as far as the prior before training" in alts[0]
    assert f"{spread[0]:.2g} and {spread[1]:.2g} times in epoch 6" in alts[0]
    assert f"from 0.25 before training to {float(one.samples.mean()):.3g} in epoch 6" in alts[1]
    x = made.data.validation[made.snapshots.rows][:6]
    error = float((one.reconstructions - x).square().mean().sqrt())
    assert alts[2].endswith(f"to {error:.3g} in epoch 6.")
    assert len(text) < 45_000


def test_runs_without_snapshots_say_so_in_one_line(made):
    assert list(by_epoch(dataclasses.replace(made, snapshots=None))) == []
    few = made.snapshots
    for snapshots, words in (
        ("epochs.safetensors is missing", "No pictures by epoch: epochs.safetensors is missing."),
        (few._replace(by_epoch={}, reason="ValueError: no"), "No pictures by epoch: ValueError: no."),
        (few._replace(rows=few.rows + 10), "No pictures by epoch: the snapshots are of other data."),
    ):
        (block,) = by_epoch(dataclasses.replace(made, snapshots=snapshots))
        assert block.html() == f"<p>{words}</p>"
    found = dataclasses.replace(made, snapshots=few._replace(reason="later ones failed"))
    found.__dict__.update({name: made.__dict__[name] for name in ("label_names", "kl")})
    first, *rest = by_epoch(found)
    assert first.html() == "<p>No further pictures by epoch: later ones failed.</p>"
    assert rest
