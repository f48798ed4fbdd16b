"""Record the tensor operations of a function as a graph.

Pyro's handlers cost as much as the arithmetic of a small model, and do the same work at every step. The resulting
tensor operations, including derivatives and random draws, are recorded with
`torch.fx.experimental.proxy_tensor.make_fx`. A replay draws new numbers from torch's generator: under the same seed,
it draws the numbers that the function would draw.

Shapes, Python numbers and control flow are constants of a record. Parameters, buffers and other tensors that the
function captures become inputs by reference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyrovae.execution.messages import NotRecordedError
from pyrovae.execution.simplify import simplify
from pyrovae.execution.tensors import Outputs

_ATEN = torch.ops.aten


def record(function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """Record the tensor operations of a function as a graph.

    Runs the function once, with all its effects: the caller restores generators and buffers.

    Args:
        function: Function of the inputs that returns tensors, or None in the place of a tensor.
        inputs: Tensors.

    Returns:
        The graph as a module of (*lifted, *inputs), and lifted: the tensors that the function captures, such as
        parameters, by reference and without gradient.

    Raises:
        NotRecordedError: If the shape of an operation's output depends on the values of tensors.
        RuntimeError: If Python asks for the value of a tensor, as raised by make_fx.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import, so only if needed

    with torch.autograd.set_multithreading_enabled(False):  # make_fx does not see the other threads of CUDA gradients
        traced = make_fx(lambda *tensors: function(*tensors))  # make_fx counts the self of a method as an input
        graph = traced(*(value.detach() for value in inputs))
    for node in graph.graph.nodes:
        _check_static(node)
    lifted = _lift(graph)
    simplify(graph.graph)
    for node in graph.graph.find_nodes(op="placeholder")[: len(lifted)]:
        if not node.users:
            lifted.pop(node)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph, [value.detach() for value in lifted.values()]


def _check_static(node: fx.Node) -> None:
    """Raise an error if the shape of the node's output depends on the values of tensors."""
    tags = getattr(node.target, "tags", ())
    if torch.Tag.dynamic_output_shape not in tags:
        return
    if node.target in (_ATEN.index.Tensor, _ATEN._unsafe_index.Tensor):  # dynamic only if an index is a mask
        indices: Any = node.args[1]
        values = [_value(index) for index in indices if index is not None]
        if all(value is not None and value.dtype not in (torch.bool, torch.uint8) for value in values):
            return
    raise NotRecordedError(f"the output shape of {node.target} depends on the values of tensors")


def _value(node: Any) -> Tensor | None:
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, node.target)
    found = node.meta.get("val", node.meta.get("tensor_meta"))
    return found if hasattr(found, "dtype") else None


def _lift(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Turn captured tensors into the first inputs of the graph. Literals stay in the graph."""
    lifted: dict[fx.Node, Tensor] = {}
    places: dict[int, fx.Node] = {}
    first = next(iter(graph.graph.nodes))
    for node in list(graph.graph.nodes):
        if node.op != "get_attr" or not isinstance(value := getattr(graph, node.target, None), Tensor):
            continue
        if node.users and all(user.target is _ATEN.lift_fresh_copy.default for user in node.users):
            continue
        if id(value) not in places:
            with graph.graph.inserting_before(first):
                places[id(value)] = graph.graph.placeholder(f"lifted_{len(places)}")
            lifted[places[id(value)]] = value
        node.replace_all_uses_with(places[id(value)])
        graph.graph.erase_node(node)
    return lifted
