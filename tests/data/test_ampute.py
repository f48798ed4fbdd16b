"""Deleted cells: their share, and what their probability depends on."""

import pytest
import torch

from pyrovae.data import ampute


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20_000, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 10


@pytest.mark.parametrize("mechanism", ["MCAR", "MAR", "MNAR"])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_share_of_deleted_cells_is_as_given(x, mechanism, share):
    mask = ampute(x, share, mechanism)
    assert 1 - mask.double().mean().item() == pytest.approx(share, abs=0.005)
    assert torch.equal(mask, ampute(x, share, mechanism))
    assert not torch.equal(mask, ampute(x, share, mechanism, seed=1))


def test_an_array_has_the_mask_of_its_tensor(x):
    assert torch.equal(ampute(x[:50].numpy(), 0.3, "MAR"), ampute(x[:50], 0.3, "MAR"))


def correlation(one, other):
    return torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1].item()


def test_cells_are_deleted_completely_at_random(x):
    mask = ampute(x, 0.3, "MCAR")
    assert all(abs(correlation(mask[:, j], x[:, i])) < 0.03 for i in range(4) for j in range(4))


def test_cells_deleted_at_random_depend_on_complete_columns_alone(x):
    mask = ampute(x, 0.3, "MAR")
    assert bool(mask[:, 1::2].all())
    cause = ((x - x.mean(0)) / x.std(0))[:, 1::2].mean(1)
    near = (cause - cause.median()).abs() < 0.05
    for j in (0, 2):
        assert correlation(mask[:, j], cause) < -0.3
        assert abs(correlation(mask[near, j], x[near, j])) < 0.1


def test_cells_deleted_not_at_random_depend_on_their_own_value(x):
    mask = ampute(x, 0.3, "MNAR")
    assert all(correlation(mask[:, j], x[:, j]) < -0.3 for j in range(4))


@pytest.mark.parametrize(
    ("x", "share", "mechanism", "words"),
    [
        (torch.full((3, 2), torch.nan), 0.5, "MCAR", "complete data"),
        (torch.zeros(3, 2), 0.5, "MAR", "between 0 and 0.5 for MAR"),
        (torch.zeros(3, 2), 1.0, "MCAR", "between 0 and 1 for MCAR"),
        (torch.zeros(3, 1), 0.2, "MAR", "two columns"),
        (torch.zeros(3, 2), 0.2, "mar", "MCAR, MAR or MNAR"),
    ],
)
def test_impossible_deletions_are_refused(x, share, mechanism, words):
    with pytest.raises(ValueError, match=words):
        ampute(x, share, mechanism)
