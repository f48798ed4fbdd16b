"""Graphs with other forms of the functions that Inductor computes slowly on a processor."""

from typing import Any

import torch
from torch import Tensor, fx

from pyrovae.execution.gamma_functions import digamma, log_gamma
from pyrovae.execution.logistic import (
    JOINED,
    bernoulli_log_prob,
    binary_cross_entropy_with_logits,
    is_slow,
    log_sigmoid,
    logaddexp,
    softplus,
)

_ATEN = torch.ops.aten
_FAST = {
    _ATEN.lgamma.default: log_gamma,
    _ATEN.digamma.default: digamma,
    _ATEN.softplus.default: softplus,
    _ATEN.log_sigmoid_forward.default: log_sigmoid,
    _ATEN.logaddexp.default: logaddexp,
    _ATEN.binary_cross_entropy_with_logits.default: binary_cross_entropy_with_logits,
}


def with_fast_functions(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph that computes by `gamma_functions` and `logistic`.

    Args:
        graph: Graph of ATen operations, as recorded by make_fx.
    """
    return _WithFastFunctions(graph).transform()


class _WithFastFunctions(fx.Transformer):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.garbage_collect_values = False  # a sum is computed from the arguments of its terms

    def run_node(self, n: fx.Node) -> Any:
        of_bernoulli = _logits_and_bits(n)
        if of_bernoulli is None:
            return super().run_node(n)
        return super().call_function(bernoulli_log_prob, tuple(self.env[node] for node in of_bernoulli), {})

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(_FAST.get(target, target), args, kwargs)


def _logits_and_bits(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Find logits and bits if a node sums log densities of Bernoulli variables over the last dimension."""
    if node.target is not _ATEN.sum.dim_IntList or list(node.args[1:]) != [[-1]] or node.kwargs:
        return None
    negative: Any = node.args[0]
    if negative.target is not _ATEN.neg.default or len(negative.users) > 1:
        return None
    entries = negative.args[0]
    if entries.target is not _ATEN.binary_cross_entropy_with_logits.default or len(entries.users) > 1:
        return None
    logits, bits, *options = entries.args
    value, of_bits = logits.meta.get("val"), bits.meta.get("val")
    if options != [None, None, 0] or entries.kwargs or not (isinstance(value, Tensor) and isinstance(of_bits, Tensor)):
        return None
    fits = is_slow(value) and value.dtype == of_bits.dtype and value.dim() and value.shape[-1] >= JOINED
    return (logits, bits) if fits else None
