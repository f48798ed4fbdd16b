"""The check of programs that hold their data themselves sees numbers of draws that differ from that of the data."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.densities import vectorize

Y = torch.tensor([0.5, -1.0, 0.3])


def pair(size, divisor):
    def model():
        with pyro.plate("data", size, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z / divisor(z), 1.0), obs=Y[:size])

    def guide():
        with pyro.plate("data", size, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))

    return model, guide


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_dim_counted_from_the_left_is_refused_for_any_number_of_data(size):
    with pytest.raises(ValueError, match=r"depends on|differ"):
        vectorize(*pair(size, lambda z: z.shape[0]), (), {})


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_dim_counted_from_the_right_has_the_density_of_each_datum(size):
    model, _ = vectorize(*pair(size, lambda z: z.shape[-1]), (), {})
    z = torch.randn(4, size)
    found = model.trace(4, (), {}, {"z": z}).log_densities()[0]
    normal = torch.distributions.Normal
    torch.testing.assert_close(found, normal(0.0, 1.0).log_prob(z) + normal(z / size, 1.0).log_prob(Y[:size]))
