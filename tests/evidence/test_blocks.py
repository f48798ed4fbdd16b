"""Numbers of data and of draws per block: the memory bound of what is decoded, and chunks of one size."""

import pytest
import torch

from pyrovae.evidence.blocks import decoded_data_at_once
from pyrovae.evidence.importance import chunks_of


@pytest.mark.parametrize(
    ("num_columns", "num_particles", "chunk_size", "expected"),
    [
        (20, 1000, None, 81),  # 6,500,000 / (4 * 20 * 1,000)
        (1, 1000, None, 131),  # 131,072 / 1,000: the latents of a narrow table take memory, too
        (20, 1000, 8192, 8),  # a given bound holds
        (784, 1000, None, 8),  # 8,192 / 1,000: images have the blocks of other estimators
        (10, 10**7, None, 1),
    ],
)
def test_blocks_are_as_large_as_the_numbers_of_their_columns_allow(num_columns, num_particles, chunk_size, expected):
    x = torch.zeros(500, num_columns)
    assert decoded_data_at_once(num_particles, chunk_size, (x,), {}) == expected


@pytest.mark.parametrize(
    ("num_data", "num_particles", "chunk_size", "expected"),
    [
        (256, 1000, 8192, (125, 64)),  # 128 fit
        (256, 5000, 8192, (125, 64)),
        (256, 1100, 8192, (110, 64)),  # 10 equal chunks in place of 9
        (50, 200, 8192, (100, 50)),  # 163 fit
        (50, 100, 8192, (100, 50)),
        (64, 251, 8192, (126, 64)),  # a prime number: 126 and 125
        (1000, 10, 8192, (10, 819)),
        (1, 3, 1, (1, 1)),
        (64, 10**15, 8192, (8192, 1)),  # beyond all use, but no search without end
    ],
)
def test_chunks_of_draws_are_equal_or_nearly_so(num_data, num_particles, chunk_size, expected):
    assert chunks_of(num_data, num_data, num_particles, chunk_size, "eager").shape == expected
