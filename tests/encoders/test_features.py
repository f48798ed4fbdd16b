"""Features of mixed columns with missing cells."""

import math

import pyro
import pytest
import torch

from pyrovae.columns import Column, Columns
from pyrovae.encoders import Features

NUMBERS = {"centre": 4.0, "spread": 2.0, "low": 0.0, "high": 9.0, "resolution": 1.0, "missing": 0.0}
COLUMNS = Columns(
    (
        Column("a", "real", **NUMBERS),
        Column("b", "binary", levels=("F", "M"), missing=0.0),
        Column("c", "category", levels=("N", "S", "W"), missing=0.0),
        Column("d", "ordered", levels=("low", "mid", "high"), missing=0.0),
        Column("e", "positive", log_centre=math.log(3.0), log_spread=0.5, **NUMBERS),
        Column("f", "count", **NUMBERS),
    )
)


def test_each_kind_has_its_features():
    features = Features(COLUMNS)
    x = torch.tensor([[6.0, 1.0, 2.0, 1.0, 3.0, 4.0], [4.0, 0.0, 0.0, 2.0, 9.0, 6.0]])
    found = features(x)
    expected = torch.tensor([[1.0, 1, 0, 0, 1, 1, 0, 0, 0], [0.0, -1, 1, 0, 0, 1, 1, 2 * math.log(2), 1]])
    torch.testing.assert_close(found[:, :9], expected)
    assert bool((found[:, 9:] == 1).all())
    assert found.shape == (2, features.out_features)


def test_missing_cells_have_learned_features_and_finite_gradients():
    features = Features(COLUMNS)
    x = torch.full((3, 6), torch.nan)
    x[0] = torch.tensor([6.0, 1.0, 2.0, 1.0, 3.0, 4.0])
    with torch.no_grad():
        features.fill.copy_(torch.arange(9.0))
    x.requires_grad_()
    found = features(x)
    assert torch.equal(found[1], torch.cat([torch.arange(9.0), torch.zeros(6)]))
    found.sum().backward()
    assert bool(features.fill.grad.eq(2).all())
    assert bool(x.grad[0].isfinite().all())
    assert bool((x.grad[1:] == 0).all())


def test_cells_are_hidden_in_training_alone():
    pyro.set_rng_seed(0)
    features = Features(COLUMNS, mask_extra=0.3)
    x = torch.ones(2000, 6)
    assert abs(features(x)[:, 9:].mean().item() - 0.7) < 0.02
    assert bool((features.eval()(x)[:, 9:] == 1).all())


def test_an_impossible_share_of_hidden_cells_is_refused():
    with pytest.raises(ValueError, match=r"mask_extra must be in \[0, 1\), got 1"):
        Features(COLUMNS, mask_extra=1)
