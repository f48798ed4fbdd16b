"""Move constant matrix products, such as an encoder's, out of a recorded graph."""

from collections.abc import Callable, Iterable, Sequence
from operator import getitem

import torch
from torch import Tensor, fx

from pyrovae.execution.simplify import changed_in_place

_PRODUCTS = tuple(
    getattr(torch.ops.aten, name).default
    for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "convolution")
)


def hoist(graph: fx.GraphModule, varying: Iterable[int]) -> tuple[Callable[..., list[Tensor]], fx.GraphModule]:
    """Split a graph into the matrix products that do not vary between calls and the rest.

    Args:
        graph: Graph of `record`.
        varying: Indices of the inputs that vary. Random draws vary as well.

    Returns:
        constants: Function of all inputs that returns the tensors which the rest needs.
        rest: Module of all inputs and these tensors, with the outputs of the graph.
    """
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    hoisted = _hoistable(nodes, {inputs[i] for i in varying})
    needed = [node for node in nodes if node in hoisted and not hoisted.issuperset(node.users)]
    if not needed:
        return no_constants, graph

    constants, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in hoisted or node.op in ("placeholder", "get_attr"):
            copies[node] = constants.node_copy(node, copies.__getitem__)
    constants.output([copies[node] for node in needed])
    copies = {node: rest.node_copy(node) for node in inputs}
    copies |= {node: rest.placeholder(f"constant_{i}") for i, node in enumerate(needed)}
    for node in nodes:
        if node not in hoisted and node not in copies:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    constants.eliminate_dead_code()
    rest.eliminate_dead_code()
    return fx.GraphModule(graph, constants), fx.GraphModule(graph, rest)


def no_constants(*inputs: Tensor) -> list[Tensor]:
    """Return no tensors: the constants of a graph in which nothing is hoisted."""
    return []


def _hoistable(nodes: Sequence[fx.Node], varying: set[fx.Node]) -> set[fx.Node]:
    """Find the matrix products that depend on no varying input, and the operations that they depend on."""
    fixed = _fixed(nodes, varying)
    hoisted: set[fx.Node] = set()
    pending = [node for node in nodes if node in fixed and node.target in _PRODUCTS]
    while pending:
        node = pending.pop()
        if node not in hoisted:
            hoisted.add(node)
            pending += node.all_input_nodes
    hoisted = {node for node in hoisted if node.op == "call_function"}
    # An operation with several outputs is no tensor; its outputs are.
    return hoisted | {user for node in hoisted for user in node.users if user.target is getitem}


def _fixed(nodes: Sequence[fx.Node], varying: set[fx.Node]) -> set[fx.Node]:
    """Find the nodes that depend on no varying input, random draw or change in place."""
    fixed = set(nodes) - varying
    changed = changed_in_place(nodes)
    for node in nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if random or node.op == "output" or node in changed or not fixed.issuperset(node.all_input_nodes):
            fixed.discard(node)
    return fixed
