"""Simplified records: fewer operations, the same numbers, and no memory shared that was not shared before."""

from collections import Counter

import pytest
import torch

from pyrovae.execution.trace import record


def operations(graph):
    return Counter(str(node.target).removeprefix("aten.") for node in graph.graph.nodes if node.op == "call_function")


def replay(function, *inputs):
    """The graph's operations and outputs; both ways start from copies of the inputs and from one seed."""
    torch.manual_seed(1)
    expected = function(*(value.clone() for value in inputs))
    graph, lifted = record(function, [value.clone() for value in inputs])
    torch.manual_seed(1)
    found = graph(*lifted, *(value.clone() for value in inputs))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    return operations(graph), found


@pytest.fixture
def x():
    return torch.linspace(0.1, 2.0, 6).view(2, 3)


def test_a_repeated_operation_runs_once(x):
    found, _ = replay(lambda x: [x.double() * x.double().exp() + x.double().exp()], x)
    assert found == {"_to_copy.default": 1, "exp.default": 1, "mul.Tensor": 1, "add.Tensor": 1}


def test_operations_that_return_their_argument_are_left_out(x):
    found, _ = replay(lambda x: [(x.exp().t().t().expand(2, 3).view(2, 3) / 1).pow(1.0) * 1 + x], x)
    assert found == {"exp.default": 1, "add.Tensor": 1}
    found, _ = replay(lambda x: [(x.long() / 1) + 0.5, (x.long() * 1.0) + 0.5], x)  # which changes the dtype
    assert found["div.Tensor"] == found["mul.Tensor"] == 1


def test_derivatives_of_layers_have_one_transpose_for_each_product(x):
    weight = torch.linspace(-1.0, 1.0, 12).view(4, 3).requires_grad_()

    def slope(x):
        return torch.autograd.grad(torch.nn.functional.linear(x, weight).exp().sum(), [weight])

    found, _ = replay(slope, x)
    assert found["t.default"] == 2  # of the weight, and of the derivative by the outputs
    assert found["expand.default"] == 1  # of the derivative by the sum


def test_numbers_that_differ_in_type_alone_are_not_one(x):
    found, _ = replay(lambda x: [torch.clamp(x, 1) + torch.clamp(x, 1.0), x.long() * 2 + 0.5, x.long() * 2.0 + 0.5], x)
    assert found["clamp.default"] == 2


def test_each_draw_is_drawn(x):
    found, outputs = replay(lambda x: [torch.normal(x, 1.0) - torch.normal(x, 1.0), torch.rand_like(x)], x)
    assert bool((outputs[0] != 0).all())
    assert sum(count for name, count in found.items() if "normal" in name) == 2


def test_operations_before_and_after_a_change_in_place_are_two(x):
    def direct(x):
        y = x * 2
        before = y.exp()
        y.add_(1)
        return [before + y.exp()]

    def by_view(x):
        y = x * 2
        whole = y.view(-1)
        before = whole.exp()
        y[0].add_(1)
        return [before + whole.exp()]

    def by_part(x):
        first, _ = (x * 2).split(1)
        y = x * 2
        first.zero_()
        return [first + y[:1]]

    for function in (direct, by_view, by_part):
        replay(function, x)
    assert replay(direct, x)[0]["exp.default"] == replay(by_view, x)[0]["exp.default"] == 2


def test_outputs_and_inputs_keep_memory_of_their_own(x):
    _, outputs = replay(lambda x: [x.exp(), x.exp(), (x + 1).t(), (x + 1).t(), x / 1], x)
    places = [value.data_ptr() for value in outputs]
    assert len(set(places)) == 5
    graph, _ = record(lambda x: [x / 1], [x])
    (same,) = graph(x)
    assert same.data_ptr() != x.data_ptr()
