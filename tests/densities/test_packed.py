"""Deep Markov models whose guides pack sequences by length agree with the Kalman filter."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pyrovae import fit, log_marginal
from pyrovae.densities import TiledWarning, take, vectorize
from pyrovae.densities.arguments import tile

T = 4
LENGTHS = torch.tensor([4, 4, 3, 3, 2, 2, 1, 1])


@pytest.fixture
def x():
    pyro.clear_param_store()
    pyro.set_rng_seed(8)
    return torch.randn(8, T)


def model(x, lengths, *packed):
    with pyro.plate("data", len(x)):
        z = torch.zeros(len(x))
        for t in range(T):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Normal(0.8 * z, 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])


def kalman_filter(x, lengths):
    """Compute log p(x) of z_t = 0.8 z_{t-1} + N(0, 1) and x_t = z_t + N(0, 1), from z = 0."""
    found = []
    for row, length in zip(x.double().tolist(), lengths.tolist(), strict=True):
        mean, variance, total = 0.0, 0.0, 0.0
        for value in row[:length]:
            mean, variance = 0.8 * mean, 0.64 * variance + 1.0
            total -= 0.5 * ((value - mean) ** 2 / (variance + 1.0) + math.log(2 * math.pi * (variance + 1.0)))
            gain = variance / (variance + 1.0)
            mean, variance = mean + gain * (value - mean), (1 - gain) * variance
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


class Guide(nn.Module):
    """Guide of a recurrent network; `torch.cat` with the latents fails under a plate of particles."""

    def __init__(self, pack):
        super().__init__()
        self.rnn, self.pack, self.linear = nn.GRU(1, 3, batch_first=True), pack, nn.Linear(4, 1)
        self.start = nn.Parameter(torch.randn(1, 1, 3))

    def __call__(self, x, lengths, *packed):
        sequences = self.pack(x.unsqueeze(-1), lengths, *packed)
        hidden, _ = self.rnn(sequences, self.start.expand(1, len(x), 3).contiguous())
        outputs, _ = pad_packed_sequence(hidden, batch_first=True, total_length=T)
        with pyro.plate("data", len(x)):
            z = torch.zeros(len(x))
            for t in range(T):
                loc = self.linear(torch.cat([outputs[:, t], z.unsqueeze(-1)], -1)).squeeze(-1)
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z{t}", dist.Normal(loc, 1.0))


def by_length(x, lengths):
    return pack_padded_sequence(x, lengths, batch_first=True)


def in_any_order(x, lengths):
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def given(x, lengths, packed):
    return packed


def of(pack, x):
    packed = (by_length(x.unsqueeze(-1), LENGTHS),) if pack is given else ()
    return Guide(pack), (x, LENGTHS, *packed)


@pytest.mark.parametrize("pack", [by_length, in_any_order, given])
def test_a_guide_that_packs_sequences_gives_the_log_p_of_the_kalman_filter(x, pack):
    guide, args = of(pack, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TiledWarning)
        assert vectorize(model, guide, args, {})[0].how == "tiled"
        for chunk_size in (None, 2000):
            found = log_marginal(model, guide, *args, num_particles=1000, chunk_size=chunk_size)
            assert ((found.value - kalman_filter(x, LENGTHS)).abs() < 4.5 * found.std_error + 1e-3).all()


def test_rows_out_of_order_are_told_what_to_write(x):
    guide, order = Guide(by_length), torch.tensor([3, 0, 7, 1, 2, 4, 6, 5])
    with pytest.raises(RuntimeError, match=r"sorted by length; write .*enforce_sorted=False.*or sort the rows"):
        log_marginal(model, guide, x[order], LENGTHS[order], num_particles=10)
    with pytest.raises(RuntimeError, match=r"sorted by length; write .*enforce_sorted=False.*or sort the rows"):
        fit(model, guide, (x, LENGTHS), elbo=Trace_ELBO(), epochs=1, batch_size=4)


@pytest.mark.parametrize("pack", [in_any_order, given])
def test_packed_sequences_train_in_shuffled_batches(x, pack):
    guide, args = of(pack, x)
    assert fit(model, guide, args, elbo=Trace_ELBO(), epochs=2, batch_size=3).rows[-1]["train_elbo"] is not None


def test_rows_of_a_packed_sequence_are_those_of_its_sequences(x):
    packed = by_length(x.unsqueeze(-1), LENGTHS)
    order = torch.tensor([5, 0, 6])
    (_, few), _ = take((x, packed), {}, order)
    padded, lengths = pad_packed_sequence(few, batch_first=True)
    assert isinstance(few, PackedSequence)
    assert lengths.tolist() == [2, 4, 1]
    for row, index, length in zip(padded, order, lengths, strict=True):
        assert torch.equal(row[:length, 0], x[index, :length])
    (twice, repeated), _ = tile((x, packed), {}, 2)
    assert torch.equal(twice, x.repeat_interleave(2, 0))
    assert pad_packed_sequence(repeated, batch_first=True)[1].tolist() == LENGTHS.repeat_interleave(2).tolist()
