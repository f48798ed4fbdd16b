"""The gamma functions and Bernoulli densities of compiled graphs."""

import pytest
import scipy.special
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from pyrovae.execution.compile import compile_graph
from pyrovae.execution.special import bernoulli_log_prob, digamma, log_gamma, with_fast_functions

CASES = [(log_gamma, torch.lgamma, scipy.special.gammaln), (digamma, torch.digamma, scipy.special.digamma)]
NUMBERS = torch.cat(
    [
        torch.logspace(-300, 300, 6001, dtype=torch.float64),
        torch.linspace(1e-3, 40, 4001, dtype=torch.float64),
        -torch.linspace(1e-3, 60.0001, 4001, dtype=torch.float64),  # none a whole number
    ]
)


@pytest.mark.parametrize(("plain", "of_torch", "of_scipy"), CASES)
def test_gamma_functions(plain, of_torch, of_scipy):
    expected = torch.from_numpy(of_scipy(NUMBERS.numpy()))
    # Near a pole, a rounding of x itself is larger than a rounding of the function.
    rounding = (NUMBERS.abs() * 2.3e-16 / (NUMBERS - NUMBERS.round()).abs().clamp(min=1e-300)).where(NUMBERS < 0, 0.0)
    error = (plain(NUMBERS) - expected).abs()
    assert (error <= (2e-14 + 4 * rounding) * expected.abs().clamp(min=1)).all()


@pytest.mark.parametrize(("plain", "of_torch", "of_scipy"), CASES)
def test_gamma_functions_at_edges(plain, of_torch, of_scipy):
    edges = torch.tensor([0.0, torch.inf, torch.nan], dtype=torch.float64)
    torch.testing.assert_close(plain(edges), of_torch(edges), equal_nan=True)
    assert not plain(torch.tensor([-1.0, -7.0], dtype=torch.float64)).isfinite().any()
    single = torch.tensor([0.3, 2.5])
    assert torch.equal(plain(single), of_torch(single))


@pytest.mark.parametrize(("plain", "of_torch", "of_scipy"), CASES)
def test_compiled_graphs_use_them(plain, of_torch, of_scipy):
    graph = make_fx(lambda x: [of_torch(x)])(NUMBERS)
    assert [node.target for node in with_fast_functions(graph).graph.find_nodes(op="call_function", target=plain)]
    assert not graph.graph.find_nodes(op="call_function", target=plain)
    (found,) = compile_graph(graph, [NUMBERS])(NUMBERS)
    torch.testing.assert_close(found, plain(NUMBERS), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 6e-8), (torch.float64, 1.2e-16)])
@pytest.mark.parametrize("size", [16, 33, 784])
def test_the_log_density_of_bernoulli_variables(dtype, rounding, size):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn((50, size), generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 50)[:, None]
    logits = logits.to(dtype)
    bits = torch.randint(0, 2, (50, size), generator=generator).to(dtype)
    exact = torch.from_numpy(scipy.special.log_expit(logits.double().numpy() * (2 * bits.numpy() - 1)).sum(-1))
    # A rounding of each factor, of which the largest sums are of seven hundred, and of the sum.
    error = (bernoulli_log_prob(logits, bits).double() - exact).abs()
    assert (error <= rounding * (2 * size**0.5 + 40 * exact.abs())).all()


def test_the_log_density_of_bernoulli_variables_at_edges():
    logits = torch.tensor([0.0, 200.0, -200.0, torch.inf, -torch.inf, torch.nan]).unsqueeze(-1).expand(-1, 16)
    for bit in (0.0, 1.0):
        bits = torch.full_like(logits, bit)
        expected = -functional.binary_cross_entropy_with_logits(logits, bits, reduction="none").sum(-1)
        torch.testing.assert_close(bernoulli_log_prob(logits, bits), expected, equal_nan=True)


def _loss(logits, bits):
    return functional.binary_cross_entropy_with_logits(logits, bits, reduction="none")


def _entries(logits, bits):
    return -_loss(logits, bits)


@pytest.mark.parametrize(
    ("function", "joined"),
    [
        (lambda logits, bits: [_entries(logits, bits).sum(-1)], 1),
        (lambda logits, bits: [_entries(logits, bits).sum(-1), _entries(logits, bits).sum(-1)], 2),
        (lambda logits, bits: [_entries(logits, bits).sum(0)], 0),
        (lambda logits, bits: [(entries := _entries(logits, bits)).sum(-1), entries], 0),
        (lambda logits, bits: [-(loss := _loss(logits, bits)).sum(-1), (-loss).sum(-1)], 0),
        (lambda logits, bits: [(_entries(logits, bits) * bits).sum(-1)], 0),
        (lambda logits, bits: [_entries(logits[:, :15], bits[:, :15]).sum(-1)], 0),
    ],
)
def test_compiled_graphs_join_the_logarithms_of_sums_alone(function, joined):
    generator = torch.Generator().manual_seed(0)
    logits, bits = torch.randn((6, 40), generator=generator), torch.randint(0, 2, (6, 40), generator=generator).float()
    graph = make_fx(function, tracing_mode="fake")(logits, bits)
    fast = with_fast_functions(graph).graph.find_nodes(op="call_function", target=bernoulli_log_prob)
    assert len(fast) == joined
    for found, expected in zip(compile_graph(graph, [logits, bits])(logits, bits), function(logits, bits), strict=True):
        torch.testing.assert_close(found, expected)
