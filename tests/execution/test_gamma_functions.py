"""The gamma functions of compiled graphs."""

import pytest
import scipy.special
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae.execution.compile import compile_graph
from pyrovae.execution.fast_functions import with_fast_functions
from pyrovae.execution.gamma_functions import digamma, log_gamma

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
    edges = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1.0, -7.0, -1e300]
    edges = torch.tensor(edges, dtype=torch.float64)
    torch.testing.assert_close(plain(edges), of_torch(edges), equal_nan=True)
    single = torch.tensor([0.3, 2.5])
    assert torch.equal(plain(single), of_torch(single))


@pytest.mark.parametrize(("plain", "of_torch", "of_scipy"), CASES)
def test_compiled_graphs_use_them(plain, of_torch, of_scipy):
    graph = make_fx(lambda x: [of_torch(x)])(NUMBERS)
    assert [node.target for node in with_fast_functions(graph).graph.find_nodes(op="call_function", target=plain)]
    assert not graph.graph.find_nodes(op="call_function", target=plain)
    (found,) = compile_graph(graph, [NUMBERS])(NUMBERS)
    torch.testing.assert_close(found, plain(NUMBERS), rtol=1e-13, atol=1e-13)
