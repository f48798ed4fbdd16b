"""Simplify a recorded graph without changing a bit of its numbers: each operation of a replay costs microseconds."""

from collections.abc import Hashable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten
_ALIASES = (_ATEN.alias.default, _ATEN.detach.default)
_VIEWS = (_ATEN.expand.default, _ATEN.view.default, _ATEN._unsafe_view.default)
# Operations that return their first argument if the second is 1.
_NEUTRAL_ONE = (_ATEN.div.Tensor, _ATEN.mul.Tensor, _ATEN.pow.Tensor_Scalar)


def simplify(graph: fx.Graph) -> None:
    """Remove aliases, operations that return their argument, those that repeat an earlier one, and unused ones.

    Draws, and operations on memory that is written to, stay as they are. Outputs share no memory that they did not
    share before.

    Args:
        graph: Graph of ATen operations, as recorded by make_fx.
    """
    if not any(torch.Tag.inplace_view in getattr(node.target, "tags", ()) for node in graph.nodes):
        for node in list(graph.nodes):
            if (known := _alias_of(node)) is not None:
                node.replace_all_uses_with(known)
                graph.erase_node(node)
        _merge(graph)
    graph.eliminate_dead_code()


def changed_in_place(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Find the nodes whose memory an operation writes to, including the bases of views.

    Args:
        nodes: Nodes of a graph, in its order.
    """
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        if (schema := getattr(node.target, "_schema", None)) is not None:
            given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
            for argument in schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    fx.map_arg(given.get(argument.name), found.add)
        if node in found and _is_view(node):
            found.update(node.all_input_nodes)
    return found


def _alias_of(node: fx.Node) -> fx.Node | None:
    """Return the earlier node that is the same tensor in the same memory, if there is one."""
    first: Any = node.args[0] if node.args else None
    if node.target in _ALIASES:
        return first
    if node.target is _ATEN.t.default and first.target is _ATEN.t.default:
        return first.args[0]
    return first if node.target in _VIEWS and _form(first) == _form(node) is not None else None


def _merge(graph: fx.Graph) -> None:
    """Replace operations by earlier nodes with the same numbers."""
    nodes = list(graph.nodes)
    (output,) = graph.find_nodes(op="output")
    kept = _with_views(changed_in_place(nodes), nodes)
    returned = set(output.all_input_nodes)
    for node in reversed(nodes):
        if node in returned and _is_view(node):
            returned.update(node.all_input_nodes)
    known: dict[Hashable, fx.Node] = {}
    for node in nodes:
        if node.op != "call_function" or node in returned or not kept.isdisjoint([node, *node.all_input_nodes]):
            continue
        earlier = _unchanged_by(node)
        if earlier is None and (key := _key(node)) is not None:
            earlier = known.setdefault(key, node)
        if earlier is not None and earlier is not node:
            node.replace_all_uses_with(earlier)


def _with_views(found: set[fx.Node], nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Add the views of nodes, in their order."""
    found = set(found)
    for node in nodes:
        if _is_view(node) and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_view(node: fx.Node) -> bool:
    """Whether an operation may return memory of an argument; items of a list of tensors count as views of it."""
    if node.target is getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def _unchanged_by(node: fx.Node) -> fx.Node | None:
    """Return the first argument of x/1, x*1 and x^1."""
    if node.target not in _NEUTRAL_ONE or node.args[1:] != (1,):
        return None
    first: Any = node.args[0]
    return first if _form(first) == _form(node) is not None else None


def _form(node: fx.Node) -> Hashable:
    """Return shape, dtype and strides of a tensor; None if they are unknown."""
    found = node.meta.get("tensor_meta")
    return None if found is None else (found.shape, found.dtype, found.stride)


def _key(node: fx.Node) -> Hashable:
    """Return what an operation computes; None for draws, and for operations that are no ATen operation."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    if torch.Tag.nondeterministic_seeded in node.target.tags or not node.all_input_nodes:
        return None
    return node.target, _hashable(node.args), _hashable(tuple(sorted(node.kwargs.items())))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(_hashable(one) for one in value)
    return type(value).__name__, value  # 1, 1.0 and True are equal, but not the same argument
