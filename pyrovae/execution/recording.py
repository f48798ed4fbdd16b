"""Recording: a function of tensors is run once, and from then on its tensor operations are replayed without Python.

What Pyro's handlers do costs as much as the arithmetic of a small model. They do the same at every step, so the
operations they end in are recorded with `torch.fx.experimental.proxy_tensor.make_fx`, derivatives and draws among them:
a replay draws anew from torch's generator, and under the same seed gives the numbers of the program itself. Inductor
can compile the record (`options={"fallback_random": True}` keeps its draws those of the generator).

A record holds what is the same at every call: shapes, Python numbers, control flow. Parameters, buffers and other
tensors that the function finds by itself stay inputs, by reference. Every record is compared with the function itself
at its first two calls, the second time with other data and moved parameters, and refused where they differ.
"""

import pickle
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from operator import getitem
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, fx

from pyrovae.densities import isolated_rng
from pyrovae.execution.graphs import CapturedReplay, Outputs, on_gpu, reason_of

Execution = Literal["auto", "eager", "recorded", "compiled"]

CHECKED_CALLS = 2

_ATEN = torch.ops.aten
_PRODUCTS = tuple(
    getattr(_ATEN, name).default for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "convolution")
)
_LIBRARIES = (*torch.__path__, *pyro.__path__)


class NotRecordedError(Exception):
    """A function cannot be replayed; says why in one line."""


class NotRecordedWarning(UserWarning):
    """What could have been replayed runs eagerly, or was not compiled; says why."""


def choose_execution(execution: Execution, calls: int, *, recorded_from: int, compiled_from: int) -> Execution:
    """Resolve "auto" from the number of calls alone, never from a clock, so that a run can be reproduced.

    Raises:
        ValueError: If execution is another word.
    """
    if execution not in ("auto", "eager", "recorded", "compiled"):
        raise ValueError(f'execution must be "auto", "eager", "recorded" or "compiled", got {execution!r}')
    if execution != "auto":
        return execution
    return "compiled" if calls >= compiled_from else "recorded" if calls >= recorded_from else "eager"


class Recorded:
    """A function of tensors, recorded at the first call with inputs of a shape, and replayed at all others.

    On a card a replay is a CUDA graph from the third call on.

    Args:
        function: Takes tensors, returns tensors (or None in the place of one). It may find parameters and buffers by
            itself, and change buffers in place.
        reference: What must give the same; None for the function itself.
        buffers: Tensors that the function may change, kept as they were where it is run for a comparison.
        varying: How many inputs, the first ones, change from call to call: what follows from the others, and from what
            the function finds by itself, is worked out anew only after `forget`. None where all change.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        *,
        reference: Callable[..., Outputs] | None = None,
        buffers: Iterable[Tensor] = (),
        varying: int | None = None,
    ) -> None:
        self.function, self.reference, self.buffers = function, reference or function, list(buffers)
        self.varying = varying
        self._replays: dict[Hashable, Replay] = {}
        self._calls: dict[Hashable, int] = {}

    def __call__(self, *inputs: Tensor, compiled: bool = False) -> Outputs:
        """Replay.

        Args:
            *inputs: The function's.
            compiled: Compile the record of this shape, if this is its first call.

        Raises:
            NotRecordedError: If the function cannot be recorded or its record does not give the same. Generators and
                buffers are as they were before the call.
        """
        key = signature(inputs)
        calls = self._calls.get(key, 0)
        if calls >= CHECKED_CALLS:
            return self._replays[key].launched(*inputs)
        before = State(self.buffers)
        expected = [None if value is None else value.detach().clone() for value in self.reference(*inputs)]
        after = State()
        before.restore()
        try:
            if key not in self._replays:
                self._replays[key] = self._recorded(inputs, compiled)
                before.restore()
            outputs = self._replays[key](*inputs)
            _compare(expected, outputs)
            if not after.same_generators():
                raise NotRecordedError("its record draws other random numbers")
        except Exception as error:
            before.restore()
            raise error if isinstance(error, NotRecordedError) else NotRecordedError(_reason(error)) from error
        self._calls[key] = calls + 1
        return outputs

    def verified_replay(self, *inputs: Tensor) -> "Replay | None":
        """The replay of inputs of this shape, once it has been found to give the same; None before."""
        key = signature(inputs)
        return self._replays[key] if self._calls.get(key, 0) >= CHECKED_CALLS else None

    def forget(self) -> None:
        """Work out anew what does not vary, at the next call."""
        for replay in self._replays.values():
            replay.constants = None

    def _recorded(self, inputs: Sequence[Tensor], compiled: bool) -> "Replay":
        graph, held = record(self.function, inputs)
        constant: Callable[..., list[Tensor]] = _nothing
        if self.varying is not None:
            constant, graph = hoist(graph, range(len(held), len(held) + self.varying))
        run: Callable[..., Outputs] = graph
        if compiled:
            try:
                with torch.no_grad():
                    run = compile_graph(graph, [*held, *inputs, *constant(*held, *inputs)])
            except Exception as error:
                warn(f"replayed as recorded, since Inductor cannot compile it: {_first_line(error)}")

        return Replay(run, constant, held)


class Replay:
    """A record, with what it needs besides its inputs.

    Args:
        run: The record, a function of what is held, the inputs and the constants.
        constant: From what is held and the inputs, to what is the same from call to call.
        held: Tensors that the recorded function found by itself.

    Attributes:
        constants: What constant gave; None to ask it at the next call.
    """

    def __init__(
        self, run: Callable[..., Outputs], constant: Callable[..., list[Tensor]], held: Sequence[Tensor]
    ) -> None:
        self.run, self.constant, self.held = run, constant, held
        self.constants: list[Tensor] | None = None
        self._captured: CapturedReplay | None = None
        self._kernel_by_kernel = False

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Replay, one operation after another."""
        with torch.no_grad():
            return self.run(*self.held, *inputs, *self._with_constants(inputs))

    def launched(self, *inputs: Tensor) -> Outputs:
        """Replay, on a card as one CUDA graph."""
        if self._kernel_by_kernel or not on_gpu((*self.held, *inputs)):
            return self(*inputs)
        with torch.no_grad():
            given = [*inputs, *self._with_constants(inputs)]
            if self._captured is None:
                before = State()
                try:
                    device = max((*self.held, *given), key=lambda value: value.is_cuda).device
                    self._captured = CapturedReplay(self.run, self.held, given, device)
                except (RuntimeError, AssertionError) as error:
                    self._kernel_by_kernel = True
                    warn(f"replayed kernel by kernel, since CUDA cannot capture it: {reason_of(error)}")
                before.restore()
            return self(*inputs) if self._captured is None else self._captured(*given)

    def _with_constants(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self.constants is None:
            self.constants = self.constant(*self.held, *inputs)
        return self.constants


def signature(values: Iterable[Any]) -> Hashable:
    """What a record holds fast: layout, type and device of tensors, other values themselves."""

    def of(value: Any) -> Hashable:
        if isinstance(value, Tensor):
            return tuple(value.shape), value.stride(), value.dtype, value.device
        return value if isinstance(value, Hashable) else id(value)

    return tuple(map(of, values))


def record(function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """Record the tensor operations of a function as a graph.

    The function is run once, with all its effects: keep generators and buffers that should stay as they are.

    Args:
        function: Takes the inputs, returns tensors, or None in the place of one.
        inputs: Tensors.

    Returns:
        The graph as a module of (*held, *inputs), and held: the tensors that the function found by itself, such as
        parameters, without gradient and by reference.

    Raises:
        NotRecordedError: If an operation's shape depends on the values of tensors.
        RuntimeError: As make_fx raises where Python asks for a tensor's value, and what the function raises.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # seconds of import, for those alone who record

    with torch.autograd.set_multithreading_enabled(False):  # gradients on CUDA are taken by other threads else
        traced = make_fx(lambda *tensors: function(*tensors))  # methods count self
        graph = traced(*(value.detach() for value in inputs))
    for node in graph.graph.nodes:
        _check_static(node)
    held = _lift(graph)
    _shorten(graph.graph)
    for node in graph.graph.find_nodes(op="placeholder")[: len(held)]:
        if not node.users:
            held.pop(node)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph, [value.detach() for value in held.values()]


def hoist(graph: fx.GraphModule, varying: Iterable[int]) -> tuple[Callable[..., list[Tensor]], fx.GraphModule]:
    """Split a record in what must be done at every call, and the matrix products that do not vary: an encoder's, say.

    Args:
        graph: What `record` gave.
        varying: The inputs that vary, by number. Draws vary too.

    Returns:
        A function of all inputs that gives some tensors, and the rest, a module of all inputs and these tensors.
    """
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    fixed = set(nodes) - {inputs[i] for i in varying}
    changed = _changed_in_place(nodes)
    for node in nodes:
        seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if seeded or node.op == "output" or node in changed or not fixed.issuperset(node.all_input_nodes):
            fixed.discard(node)
    moved: set[fx.Node] = set()
    above = [node for node in nodes if node in fixed and node.target in _PRODUCTS]
    while above:
        node = above.pop()
        if node not in moved:
            moved.add(node)
            above += node.all_input_nodes
    moved = {node for node in moved if node.op == "call_function"}
    # Of an operation that gives several tensors, each for itself.
    moved |= {user for node in moved for user in node.users if user.target is getitem}
    kept = [node for node in moved if not moved.issuperset(node.users)]
    if not kept:
        return _nothing, graph
    kept.sort(key=nodes.index)

    first, rest = fx.Graph(), fx.Graph()
    early: dict[fx.Node, fx.Node] = {}
    late: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op != "output" and (node in moved or node.op != "call_function"):
            early[node] = first.node_copy(node, early.__getitem__)
    first.output([early[node] for node in kept])
    for node in inputs:
        late[node] = rest.node_copy(node)
    late |= {node: rest.placeholder(f"constant_{i}") for i, node in enumerate(kept)}
    for node in nodes:
        if node not in moved and node not in late:
            late[node] = rest.node_copy(node, late.__getitem__)
    first.eliminate_dead_code()
    rest.eliminate_dead_code()
    return fx.GraphModule(graph, first), fx.GraphModule(graph, rest)


def _changed_in_place(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What a record writes to, and what that is a view of."""
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
        for argument in schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                fx.map_arg(given.get(argument.name), found.add)
        if node in found and any(value.alias_info is not None for value in schema.returns):
            found.update(node.all_input_nodes)
    return found


def _nothing(*inputs: Tensor) -> list[Tensor]:
    return []


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Outputs]:
    """Compile a recorded graph with Inductor; its draws stay those of torch's generator."""
    import torch._inductor

    with torch.no_grad(), isolated_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        compiled: Any = torch._inductor.compile(graph, list(inputs), options={"fallback_random": True})
    return compiled


def warn(message: str) -> None:
    """Say that something runs slower than it was asked to, and why."""
    warnings.warn(message, NotRecordedWarning, stacklevel=2)


def refuse(what: str, reason: object) -> None:
    """Say that something runs eagerly, and why."""
    warn(f"{what} runs eagerly, since it cannot be recorded: {reason}")


class State:
    """The generators, torch's and others, and some buffers, as they are now."""

    def __init__(self, buffers: Iterable[Tensor] = ()) -> None:
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
        self.generators, self.cuda = pyro.util.get_rng_state(), _cuda_generators()

    def restore(self) -> None:
        """Put them back."""
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
                vars(buffer).pop("proxy", None)  # left there by make_fx
        pyro.util.set_rng_state(self.generators)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)

    def same_generators(self) -> bool:
        """Whether the generators are in the same state again; what Python and NumPy draw, a record holds fast."""
        now = pyro.util.get_rng_state()
        mine, theirs = ([*self.cuda, self.generators["torch"]], [*_cuda_generators(), now["torch"]])
        others = [pickle.dumps((states["random"], states.get("numpy"))) for states in (self.generators, now)]
        return others[0] == others[1] and all(map(torch.equal, mine, theirs))


def tensors_of(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among arguments."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def with_tensors(
    args: Iterable[Any], kwargs: Mapping[str, Any], tensors: Iterable[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other tensors in their places."""
    given = iter(tensors)

    def put(value: Any) -> Any:
        return next(given) if isinstance(value, Tensor) else value

    return tuple(map(put, args)), {key: put(value) for key, value in kwargs.items()}


def _cuda_generators() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []


def _check_static(node: fx.Node) -> None:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.dynamic_output_shape not in tags:
        return
    if node.target in (_ATEN.index.Tensor, _ATEN._unsafe_index.Tensor):  # dynamic for masks alone
        indices: Any = node.args[1]
        values = [_value(index) for index in indices if index is not None]
        if all(value is not None and value.dtype not in (torch.bool, torch.uint8) for value in values):
            return
    raise NotRecordedError(f"the shape of what {node.target} gives depends on the values of tensors")


def _value(node: Any) -> Tensor | None:
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, node.target)
    found = node.meta.get("val", node.meta.get("tensor_meta"))
    return found if hasattr(found, "dtype") else None


def _lift(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Make the tensors that the function found by itself inputs, the first ones; literals stay in the graph."""
    held: dict[fx.Node, Tensor] = {}
    places: dict[int, fx.Node] = {}
    first = next(iter(graph.graph.nodes))
    for node in list(graph.graph.nodes):
        if node.op != "get_attr" or not isinstance(value := getattr(graph, node.target, None), Tensor):
            continue
        if node.users and all(user.target is _ATEN.lift_fresh_copy.default for user in node.users):
            continue
        if id(value) not in places:
            with graph.graph.inserting_before(first):
                places[id(value)] = graph.graph.placeholder(f"held_{len(places)}")
            held[places[id(value)]] = value
        node.replace_all_uses_with(places[id(value)])
        graph.graph.erase_node(node)
    return held


def _shorten(graph: fx.Graph) -> None:
    """Drop what a replay without derivatives does not need: aliases, and what nobody reads."""
    if not any(torch.Tag.inplace_view in getattr(node.target, "tags", ()) for node in graph.nodes):
        for node in list(graph.nodes):
            if node.target in (_ATEN.alias.default, _ATEN.detach.default):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
    graph.eliminate_dead_code()


def _compare(expected: Outputs, found: Outputs) -> None:
    """Refuse outputs that differ by more than rounding: by more than sqrt(eps) of the norm of each."""
    total = sum(float(value.double().nan_to_num().norm()) for value in expected if value is not None)
    for index, (one, other) in enumerate(zip_longest(expected, found)):
        some = other if one is None else one
        if some is None:
            continue
        one, other = (torch.zeros_like(some) if value is None else value.detach() for value in (one, other))
        one, other = one.double(), other.double()
        if one.shape != other.shape:
            raise NotRecordedError(f"its record gives shape {tuple(other.shape)} where it gives {tuple(one.shape)}")
        if bool((one == other).all()):
            continue
        tolerance = torch.finfo(some.dtype).eps ** 0.5 if some.is_floating_point() else 0.0
        strange = ~(one.isfinite() & other.isfinite())
        same = bool(torch.equal(one[strange].nan_to_num(), other[strange].nan_to_num()))
        away = float((one - other)[~strange].norm())
        if not same or away > tolerance * float(one[~strange].norm()) + tolerance**2 * total:
            raise NotRecordedError(f"its record gives other numbers (output {index} is {away:.2g} away)")


def _reason(error: Exception) -> str:
    if "value out of a tracing tensor" not in str(error):
        return _first_line(error)
    reason = "Python asks for the value of a tensor (.item(), bool(), an if)"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES) and frame.filename != __file__]
    with suppress(IndexError):
        reason += f", in {Path(own[-1].filename).name}, line {own[-1].lineno}"
    return reason


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
