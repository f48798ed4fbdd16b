"""Programs that look innocent: plates without a size, a changed attribute, two rows, latents by the longest row."""

import warnings
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from zoo.integrals import interval, line, log_integral
from zoo.parts import log_normal, noise, standard_normal

from pyrovae import GuideProposal, PriorProposal, log_marginal, log_weights
from pyrovae.densities import TiledWarning

X = noise(70, 6, 3)
W = noise(71, 2, 3)
PLANE = (line(), line())


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def guide(x, *args):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.2).to_event(1))


def vae(decode):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Normal(decode(z, x), 0.7).to_event(1), obs=x)

    return model


def log_p(decode, x=X):
    def joint(x, z1, z2):
        found = log_normal(x, decode(torch.stack([z1, z2], -1)), 0.7).sum(-1)
        return log_normal(z1, 0, 1) + log_normal(z2, 0, 1) + found

    return log_integral(joint, PLANE, x)


def estimate(model, guide, *args, **options):
    pyro.set_rng_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TiledWarning)
        return log_marginal(model, guide, *args, num_particles=3000, **options)


def check(found, expected):
    assert ((found.value - expected).abs() < 4.5 * found.std_error + 1e-6).all(), (found.value, expected)


def test_a_plate_without_size_draws_for_each_row_if_a_distribution_does_not_fill_it():
    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Uniform(-1.0, 1.5))
            h = torch.stack([z + torch.zeros(len(x)), torch.zeros(len(x))], -1)
            pyro.sample("x", dist.Normal(h.sum(1).unsqueeze(-1) * W[0], 0.7).to_event(1), obs=x)

    def uniform_guide(x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Uniform(-1.0, 1.5))

    expected = log_integral(
        lambda x, z: log_normal(x, z.unsqueeze(-1) * W[0], 0.7).sum(-1) - torch.tensor(2.5).log(),
        (interval(-1.0, 1.5),),
        X,
    )
    check(estimate(model, uniform_guide, X), expected)


class Switched:
    """A program that a switch turns to an operation by position."""

    by_position = False

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            shares = torch.softmax(z, 1 if self.by_position else -1)
            pyro.sample("x", dist.Normal(shares @ W, 0.7).to_event(1), obs=x)


def test_a_program_whose_attribute_changes_is_looked_at_again():
    program = Switched()
    expected = log_p(lambda z: torch.softmax(z, -1) @ W)
    check(estimate(program.model, guide, X), expected)
    program.by_position = True
    check(estimate(program.model, guide, X), expected)


def test_boolean_indexing_of_two_rows_is_tiled():
    x = torch.tensor([[1.0, 0.2, -0.3], [0.5, -0.7, 0.1]])

    def decode(z, x):
        loc = z @ W
        return loc.index_put((x[:, 0] > 0,), torch.tanh(loc[x[:, 0] > 0]))

    check(estimate(vae(decode), guide, x), log_p(lambda z: torch.tanh(z @ W), x))


def test_densities_that_depend_on_the_number_of_the_row_are_refused():
    model = vae(lambda z, x: z @ W * (torch.arange(len(x)) % 2).unsqueeze(-1))
    with pytest.raises(ValueError, match="depend"):
        estimate(model, guide, X)


def test_a_latent_that_is_used_where_it_is_masked_out_is_refused():
    # The joint density is improper there, so that each proposal gives another number.
    mask = torch.tensor([True, True, False, True, False, False])

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2).mask(mask))
            pyro.sample("x", dist.Normal(z @ W, 0.7).to_event(1), obs=x)

    def masked_guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.2).to_event(1).mask(mask))

    for proposal in (GuideProposal(), PriorProposal(), None):
        with pytest.raises(ValueError, match="mask"):
            estimate(model, masked_guide, X, mask, proposal=proposal)


def chain(observe):
    """Make a ragged chain of latents up to the longest of the batch."""

    def model(x, lengths):
        with pyro.plate("data", len(x)):
            z, x = torch.zeros(len(x)), observe(x)
            for t in range(int(lengths.max())):
                z = pyro.sample(f"z_{t}", dist.Normal(0.5 * z, 1.0).mask(t < lengths))
                pyro.sample(f"x_{t}", dist.Normal(z, 0.7).mask(t < lengths), obs=x[:, t])

    def chain_guide(x, lengths):
        with pyro.plate("data", len(x)):
            z, x = torch.zeros(len(x)), observe(x)
            for t in range(int(lengths.max())):
                z = pyro.sample(f"z_{t}", dist.Normal(0.2 * z + 0.5 * x[:, t], 1.0).mask(t < lengths))

    return model, chain_guide


@pytest.mark.parametrize("lengths", [[1, 2, 3, 2, 1, 3], [1, 3, 2, 2, 1, 2], [3, 3, 3, 1, 1, 1], [1, 1, 1, 1, 1, 3]])
def test_a_chain_to_the_longest_of_the_batch_has_densities_per_datum(lengths):
    lengths = torch.tensor(lengths)
    model, chain_guide = chain(lambda x: x)
    step = torch.tensor([[1.0, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]])
    covariance = step @ step.T + 0.49 * torch.eye(3)
    expected = torch.stack(
        [
            torch.distributions.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(x[:n])
            for x, n in zip(X, lengths.tolist(), strict=True)
        ]
    )
    check(estimate(model, chain_guide, X, lengths), expected)
    check(estimate(model, chain_guide, X, lengths, chunk_size=6000), expected)


@pytest.mark.parametrize("lengths", [[1, 2, 3, 2, 1, 3], [1, 3, 2, 2, 1, 2]])
def test_a_chain_to_the_longest_of_the_batch_that_looks_across_data_is_refused(lengths):
    model, chain_guide = chain(lambda x: x - x.mean(0))
    with pytest.raises(ValueError, match="depends on which other data"):
        estimate(model, chain_guide, X, torch.tensor(lengths))


def test_log_weights_of_a_recurrent_decoder_are_tiled():
    torch.manual_seed(1)
    cell, out = torch.nn.GRU(2, 4, batch_first=True), torch.nn.Linear(4, 1)

    def decode(z, x=None):
        return out(cell(z.unsqueeze(1).expand(-1, 3, -1))[0]).squeeze(-1)

    with torch.no_grad(), pytest.warns(TiledWarning):
        log_weights(vae(decode), guide, X)
    with torch.no_grad():
        check(estimate(vae(decode), guide, X), log_p(decode))


def test_the_check_of_a_program_is_remembered():
    def model(x):
        return vae(lambda z, x: torch.softmax(z, 1) @ W)(x)

    # A list of runs would be state of the program, whose changes repeat the check.
    with mock.patch.object(torch, "softmax", wraps=torch.softmax) as softmax:
        with pytest.warns(TiledWarning):
            log_weights(model, guide, X)
        assert softmax.call_count > 1
        softmax.reset_mock()
        log_weights(model, guide, X, num_particles=4)
        assert [len(call.args[0]) for call in softmax.call_args_list] == [4 * len(X)]
