"""Several processes at one task: each takes its share of the data, and draws as one process alone would."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Share(NamedTuple):
    """One process' part of some data.

    Attributes:
        size: How many data all processes share.
        start: The first row of this process' own.
        stop: The row behind its last.
    """

    size: int
    start: int
    stop: int

    @property
    def empty(self) -> bool:
        """Fewer data than processes: this one draws along, and adds nothing."""
        return self.stop == self.start

    @property
    def rows(self) -> slice:
        """What the process runs its programs on: its own rows, or any one where it has none."""
        return slice(0, 1) if self.empty else slice(self.start, self.stop)


@dataclass(frozen=True)
class Workers:
    """The processes that share the work.

    Attributes:
        rank: Of this process, from 0; rank 0 alone writes.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Workers":
        """Those of torch.distributed where it was initialised, else this process alone."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()

    def share(self, size: int) -> Share:
        """This process' part of so many data: shares are consecutive and differ by one at most."""
        return Share(size, size * self.rank // self.size, size * (self.rank + 1) // self.size)

    @contextmanager
    def drawing(self, share: Share) -> Iterator[None]:
        """Make the draws of programs about a share those that one process would make for all the data.

        Every process draws for all the data, and keeps its rows. Thereby noise belongs to the datum, whatever the
        number of processes, and all generators stay in step.
        """
        if self.size == 1:
            yield
            return
        with _Sites() as sites, _SharedDraws(self, share, sites):
            yield

    def add(self, tensors: Sequence[Tensor | None]) -> None:
        """Put the sum over the processes in the place of each tensor; those of one type travel together."""
        given = [value for value in tensors if value is not None]
        if self.size == 1:
            return
        for dtype in {value.dtype for value in given}:
            own = [value for value in given if value.dtype == dtype]
            flat = torch.cat([value.detach().reshape(-1) for value in own])
            torch.distributed.all_reduce(flat)
            for value, total in zip(own, flat.split([value.numel() for value in own]), strict=True):
                value.detach().copy_(total.view_as(value))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any of the processes."""
        if self.size == 1:
            return flag
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        raised = torch.tensor([float(flag)], device=device)
        torch.distributed.all_reduce(raised)
        return bool(raised.item())

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, in every process."""
        if self.size == 1:
            return make()
        made = [make() if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(made)
        return made[0]


@contextmanager
def joined() -> Iterator[Workers]:
    """Join the processes that torchrun started, if it started this one: gloo on CPU, NCCL on CUDA.

    Where there are as many cards, a process takes the card of its local rank, and "cuda" means that one from here on.
    What ranks above 0 print goes nowhere.

    Yields:
        The processes, this one alone where there are no others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers.current()
        return
    on_cuda = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 0
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    workers = Workers.current()
    silent = redirect_stdout(io.StringIO()) if workers.rank else nullcontext()
    with silent:
        yield workers
    torch.distributed.destroy_process_group()  # after an error the end of the process does that, without waiting


class _Sites(Messenger):
    """Knows, while a sample site draws, where the plate over the data stands: the last dimension of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.dim: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.dim = len(msg["fn"].batch_shape) - 1 if hasattr(msg["fn"], "batch_shape") else None

    def _pyro_post_sample(self, msg: Any) -> None:
        self.dim = None


class _SharedDraws(TorchDispatchMode):
    """Every random operation on this process' rows, done for the rows of all processes.

    The dimension of the data is where the plate puts it, or else the first of the right size; a draw that has none is
    the same in all processes. Where a draw takes parameters (a gamma's, a categorical's), the random bits that it uses
    may depend on them, and the processes show each other theirs.
    """

    def __init__(self, workers: Workers, share: Share, sites: _Sites) -> None:
        super().__init__()
        self.workers, self.share, self.sites = workers, share, sites
        self.own = share.rows.stop - share.rows.start

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name
        if name.endswith("_like"):
            dim = self._dim(args[0].shape)
            if dim is None:
                return func(*args, **kwargs)
            return self._mine(func(args[0].new_empty(self._for_all(args[0].shape, dim)), *args[1:], **kwargs), dim)
        if name.endswith("_"):
            value, *others = args
            dim = self._dim(value.shape)
            if dim is None:
                return func(*args, **kwargs)
            whole = value.new_empty(self._for_all(value.shape, dim))
            return value.copy_(self._mine(func(whole, *map(self._gathered, others), **kwargs), dim))
        if func is torch.ops.aten.native_dropout.default:
            return self._dropped(*args, **kwargs)
        if any(isinstance(value, Tensor) for value in args):
            return self._of_parameters(func, args, kwargs)
        where = next((i for i, value in enumerate(args) if isinstance(value, list | tuple)), None)
        dim = None if where is None else self._dim(args[where])
        if where is None or dim is None:
            return func(*args, **kwargs)
        sized = [self._for_all(value, dim) if i == where else value for i, value in enumerate(args)]
        return self._mine(func(*sized, **kwargs), dim)

    def _dropped(self, value: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
        """Dropout as CUDA has it, in one operation with its mask, which does not depend on the values."""
        dim = self._dim(value.shape)
        if dim is None:
            return torch.native_dropout(value, *how)
        factor, mask = torch.native_dropout(value.new_ones(self._for_all(value.shape, dim)), *how)
        return value * self._mine(factor, dim), self._mine(mask, dim)

    def _of_parameters(self, func: Any, args: Any, kwargs: Any) -> Any:
        first = args[0]
        # A categorical's particles and data come in one dimension, particles first.
        flat = func is torch.ops.aten.multinomial.default and first.dim() == 2 and first.shape[0] % self.own == 0
        if flat:
            whole = self._gathered(first.unflatten(0, (-1, self.own)), 1).flatten(0, 1)
            drawn = func(whole, *args[1:], **kwargs).unflatten(0, (-1, self.share.size))
            return self._mine(drawn, 1).flatten(0, 1)
        dim = self._dim(first.shape)
        if dim is None:
            return func(*args, **kwargs)
        return self._mine(func(*map(self._gathered, args), **kwargs), dim)

    def _dim(self, shape: Sequence[int]) -> int | None:
        dim = self.sites.dim
        if dim is not None and 0 <= dim < len(shape) and shape[dim] == self.own:
            return dim
        return next((dim for dim, size in enumerate(shape) if size == self.own), None)

    def _for_all(self, shape: Sequence[int], dim: int) -> list[int]:
        return [*shape[:dim], self.share.size, *shape[dim + 1 :]]

    def _mine(self, value: Tensor, dim: int) -> Tensor:
        return value.narrow(dim, self.share.rows.start, self.own).clone()

    def _gathered(self, value: Any, dim: int | None = None) -> Any:
        dim = self._dim(value.shape) if isinstance(value, Tensor) and dim is None else dim
        if dim is None:
            return value
        from torch.fx.experimental.proxy_tensor import get_proxy_mode  # seconds of import, for those alone who ask

        if get_proxy_mode() is not None:
            raise RuntimeError("a draw of several processes takes parameters (a gamma's or a categorical's, say)")
        shares = [Workers(rank, self.workers.size).share(self.share.size) for rank in range(self.workers.size)]
        counts = [share.stop - share.start for share in shares]
        padded = value.new_zeros(max(counts), *value.movedim(dim, 0).shape[1:])
        padded[: counts[self.workers.rank]] = value.movedim(dim, 0)[: counts[self.workers.rank]]
        everyone = [torch.empty_like(padded) for _ in shares]
        torch.distributed.all_gather(everyone, padded)
        whole = torch.cat([each[:count] for each, count in zip(everyone, counts, strict=True)])
        return whole.movedim(0, dim).contiguous()
