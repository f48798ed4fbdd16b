"""Softplus and its relatives, and the Bernoulli densities, of compiled graphs."""

import pytest
import scipy.special
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from pyrovae.execution import logistic
from pyrovae.execution.compile import compile_graph
from pyrovae.execution.fast_functions import with_fast_functions
from pyrovae.execution.logistic import bernoulli_log_prob

ROUNDINGS = [(torch.float32, 6e-8), (torch.float64, 1.2e-16)]
NUMBERS = torch.cat(
    [
        torch.linspace(-40, 40, 40_001, dtype=torch.float64),
        torch.logspace(-30, 2, 2_001, dtype=torch.float64),
        -torch.logspace(-30, 2, 2_001, dtype=torch.float64),
    ]
)
EDGES = torch.tensor([0.0, 200.0, -200.0, 3e38, torch.inf, -torch.inf, torch.nan])


@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
def test_each_function_is_exact_to_a_few_roundings(dtype, rounding):
    x = NUMBERS.to(dtype)
    x = x[x.abs() < 80]  # beyond, exp(-|x|) leaves the normal numbers of single precision

    def check(found, expected, scale=0.0):
        expected = torch.from_numpy(expected)
        assert found.dtype == dtype
        assert (
            (found.double() - expected).abs() <= 6 * rounding * torch.maximum(expected.abs(), scale * x.abs())
        ).all()

    values = x.double().numpy()
    check(logistic.softplus(x), -scipy.special.log_expit(-values))
    check(logistic.log_sigmoid(x)[0], scipy.special.log_expit(values))
    for bit in (0.0, 1.0):
        loss = logistic.binary_cross_entropy_with_logits(x, torch.full_like(x, bit), None, None, 0)
        check(loss, -scipy.special.log_expit(values * (2 * bit - 1)))
    check(logistic.logaddexp(x, -2 * x), scipy.special.logsumexp([values, -2 * values], axis=0), scale=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_torch(dtype):
    x = torch.linspace(-5, 5, 64).to(dtype)
    assert torch.equal(logistic.softplus(x), functional.softplus(x))
    assert torch.equal(logistic.log_sigmoid(x)[0], functional.logsigmoid(x))
    assert torch.equal(logistic.logaddexp(x, 1 - x), torch.logaddexp(x, 1 - x))
    assert torch.equal(logistic.binary_cross_entropy_with_logits(x, x, None, None, 0), _losses(x, x))


def _softplus(x):
    return functional.softplus(x)


def _sharp_softplus(x):
    return functional.softplus(x, beta=3.0)


def _early_softplus(x):
    return functional.softplus(x, threshold=1.0)


def _log_sigmoid(x):
    return functional.logsigmoid(x)


def _logaddexp(x):
    return torch.logaddexp(x, 1 - x)


def _loss(x):
    return functional.binary_cross_entropy_with_logits(x, (x > 0.3).to(x.dtype), reduction="none")


def _loss_of_shares(x):
    return functional.binary_cross_entropy_with_logits(x, x.detach().sigmoid(), reduction="none")


def _broadcast_logaddexp(x):
    return torch.logaddexp(x, x.detach().flip(0)[:, None])


def _mean_loss(x):
    return functional.binary_cross_entropy_with_logits(x, (x > 0.3).to(x.dtype))


def _weighted_loss(x):
    return functional.binary_cross_entropy_with_logits(
        x, (x > 0.3).to(x.dtype), pos_weight=x.new_tensor(3.0), reduction="none"
    )


FUNCTIONS = [
    *(_softplus, _sharp_softplus, _early_softplus, _log_sigmoid, _logaddexp, _broadcast_logaddexp),
    *(_loss, _loss_of_shares, _mean_loss, _weighted_loss),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_graphs_have_the_values_and_gradients_of_torch(function, dtype):
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)

    def with_gradient(x):
        x = x.detach().requires_grad_()
        value = function(x)
        return [value.detach(), *torch.autograd.grad(value.double().square().sum(), x)]

    graph = make_fx(with_gradient)(x)
    used = {node.target for node in with_fast_functions(graph).graph.nodes if node.op == "call_function"}
    assert any(getattr(target, "__module__", "") == logistic.__name__ for target in used)
    for found, expected in zip(compile_graph(graph, [x])(x), with_gradient(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", [_softplus, _log_sigmoid, _logaddexp, _loss])
def test_functions_at_edges(function):
    plain = {_softplus: logistic.softplus, _log_sigmoid: lambda x: logistic.log_sigmoid(x)[0]}
    plain |= {_logaddexp: lambda x: logistic.logaddexp(x, 1 - x)}
    plain |= {_loss: lambda x: logistic.binary_cross_entropy_with_logits(x, (x > 0.3).to(x.dtype), None, None, 0)}
    torch.testing.assert_close(plain[function](EDGES), function(EDGES), equal_nan=True)


def test_equal_infinities_add_to_themselves():
    infinities = torch.tensor([torch.inf, -torch.inf])
    assert torch.equal(logistic.logaddexp(infinities, infinities), infinities)


@pytest.mark.parametrize(("dtype", "rounding"), ROUNDINGS)
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


def _losses(logits, bits):
    return functional.binary_cross_entropy_with_logits(logits, bits, reduction="none")


def _entries(logits, bits):
    return -_losses(logits, bits)


@pytest.mark.parametrize(
    ("function", "joined"),
    [
        (lambda logits, bits: [_entries(logits, bits).sum(-1)], 1),
        (lambda logits, bits: [_entries(logits, bits).sum(-1), _entries(logits, bits).sum(-1)], 2),
        (lambda logits, bits: [_entries(logits, bits).sum(0)], 0),
        (lambda logits, bits: [(entries := _entries(logits, bits)).sum(-1), entries], 0),
        (lambda logits, bits: [-(loss := _losses(logits, bits)).sum(-1), (-loss).sum(-1)], 0),
        (lambda logits, bits: [(_entries(logits, bits) * bits).sum(-1)], 0),
        (lambda logits, bits: [(-functional.binary_cross_entropy_with_logits(logits, bits)).sum(-1)], 0),
        (lambda logits, bits: [_entries(logits, logits.sigmoid()).sum(-1)], 1),
        (lambda logits, bits: [_entries(logits, bits).sum(-1, dtype=torch.float64)], 0),
        (lambda logits, bits: [_entries(logits, bits.double()).sum(-1)], 0),
        (lambda logits, bits: [_entries(logits[0, 0], bits[0, 0]).sum(-1)], 0),
        (lambda logits, bits: [(-_weighted_loss(logits)).sum(-1)], 0),
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
