"""Data-parallel processes. Each takes a share of the data; random draws equal those of a single process."""

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
    """One process's share of the data.

    Attributes:
        size: Number of data of all processes.
        start: First row of the share.
        stop: Row after the last row of the share.
    """

    size: int
    start: int
    stop: int

    @property
    def empty(self) -> bool:
        """Whether the share has no rows. The process still makes all draws, but adds nothing to sums."""
        return self.stop == self.start

    @property
    def rows(self) -> slice:
        """Rows that the process runs its programs on: its share, or row 0 if the share is empty."""
        return slice(0, 1) if self.empty else slice(self.start, self.stop)


@dataclass(frozen=True)
class Workers:
    """The processes that share the data.

    Attributes:
        rank: Rank of this process, from 0. Only rank 0 writes files.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Workers":
        """Return the processes of torch.distributed if it is initialised, else this process alone."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()

    def share(self, size: int) -> Share:
        """Return the share of this process. Shares are consecutive, and their sizes differ by at most one.

        Args:
            size: Number of data of all processes.
        """
        return Share(size, size * self.rank // self.size, size * (self.rank + 1) // self.size)

    @contextmanager
    def drawing(self, share: Share) -> Iterator[None]:
        """Make programs on a share draw the random numbers that one process would draw for all data.

        Every process draws for all data and keeps its rows. Each datum has the same noise for any number of processes,
        and the generators of all processes stay in the same state.
        """
        if self.size == 1:
            yield
            return
        with _Sites() as sites, _SharedDraws(self, share, sites):
            yield

    def add(self, tensors: Sequence[Tensor | None]) -> None:
        """Replace each tensor by its sum over the processes, in one message per type."""
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
        """Whether the flag is true in any process."""
        if self.size == 1:
            return flag
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        raised = torch.tensor([float(flag)], device=device)
        torch.distributed.all_reduce(raised)
        return bool(raised.item())

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all processes, ordered by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Call a function in rank 0 and return its result in every process."""
        if self.size == 1:
            return make()
        made = [make() if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(made)
        return made[0]


@contextmanager
def joined() -> Iterator[Workers]:
    """Join the processes of torchrun, if it started this process: gloo on CPU, NCCL on CUDA.

    If the machine has at least as many GPUs as processes, each process uses the GPU of its local rank as "cuda".
    Ranks above 0 print nothing.

    Yields:
        The processes.
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
    torch.distributed.destroy_process_group()  # not after an error, when the process ends without waiting


class _Sites(Messenger):
    """Handler that notes the dimension of the data plate, the last of the batch, while a sample site draws."""

    def __init__(self) -> None:
        super().__init__()
        self.dim: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.dim = len(msg["fn"].batch_shape) - 1 if hasattr(msg["fn"], "batch_shape") else None

    def _pyro_post_sample(self, msg: Any) -> None:
        self.dim = None


class _SharedDraws(TorchDispatchMode):
    """Mode that runs each random operation for the rows of all processes and keeps the rows of this process.

    The dimension of the data is that of the plate, or else the first one of the size of the share. A draw without such
    a dimension is the same in all processes. If a draw has parameters (a gamma's, a categorical's), the number of
    random bits that it uses can depend on them, so the processes exchange their parameters.
    """

    def __init__(self, workers: Workers, share: Share, sites: _Sites) -> None:
        super().__init__()
        self.workers, self.share, self.sites = workers, share, sites
        self.num_rows = share.rows.stop - share.rows.start

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name
        if name.endswith("_like"):
            dim = self._data_dim(args[0].shape)
            if dim is None:
                return func(*args, **kwargs)
            whole = args[0].new_empty(self._full_shape(args[0].shape, dim))
            return self._own_rows(func(whole, *args[1:], **kwargs), dim)
        if name.endswith("_"):
            value, *others = args
            dim = self._data_dim(value.shape)
            if dim is None:
                return func(*args, **kwargs)
            whole = value.new_empty(self._full_shape(value.shape, dim))
            return value.copy_(self._own_rows(func(whole, *map(self._gather_rows, others), **kwargs), dim))
        if func is torch.ops.aten.native_dropout.default:
            return self._dropout(*args, **kwargs)
        if any(isinstance(value, Tensor) for value in args):
            return self._draw_with_parameters(func, args, kwargs)
        where = next((i for i, value in enumerate(args) if isinstance(value, list | tuple)), None)
        dim = None if where is None else self._data_dim(args[where])
        if where is None or dim is None:
            return func(*args, **kwargs)
        sized = [self._full_shape(value, dim) if i == where else value for i, value in enumerate(args)]
        return self._own_rows(func(*sized, **kwargs), dim)

    def _dropout(self, value: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
        """Run CUDA's dropout: one operation that also returns its mask, which does not depend on the values."""
        dim = self._data_dim(value.shape)
        if dim is None:
            return torch.native_dropout(value, *how)
        factor, mask = torch.native_dropout(value.new_ones(self._full_shape(value.shape, dim)), *how)
        return value * self._own_rows(factor, dim), self._own_rows(mask, dim)

    def _draw_with_parameters(self, func: Any, args: Any, kwargs: Any) -> Any:
        first = args[0]
        # The particles and the data of a categorical share one dimension, particles first.
        flat = func is torch.ops.aten.multinomial.default and first.dim() == 2 and first.shape[0] % self.num_rows == 0
        if flat:
            whole = self._gather_rows(first.unflatten(0, (-1, self.num_rows)), 1).flatten(0, 1)
            drawn = func(whole, *args[1:], **kwargs).unflatten(0, (-1, self.share.size))
            return self._own_rows(drawn, 1).flatten(0, 1)
        dim = self._data_dim(first.shape)
        if dim is None:
            return func(*args, **kwargs)
        return self._own_rows(func(*map(self._gather_rows, args), **kwargs), dim)

    def _data_dim(self, shape: Sequence[int]) -> int | None:
        dim = self.sites.dim
        if dim is not None and 0 <= dim < len(shape) and shape[dim] == self.num_rows:
            return dim
        return next((dim for dim, size in enumerate(shape) if size == self.num_rows), None)

    def _full_shape(self, shape: Sequence[int], dim: int) -> list[int]:
        return [*shape[:dim], self.share.size, *shape[dim + 1 :]]

    def _own_rows(self, value: Tensor, dim: int) -> Tensor:
        return value.narrow(dim, self.share.rows.start, self.num_rows).clone()

    def _gather_rows(self, value: Any, dim: int | None = None) -> Any:
        dim = self._data_dim(value.shape) if isinstance(value, Tensor) and dim is None else dim
        if dim is None:
            return value
        from torch.fx.experimental.proxy_tensor import get_proxy_mode  # takes seconds to import, so only if needed

        if get_proxy_mode() is not None:
            raise RuntimeError("several processes cannot record a draw with parameters, such as a gamma's")
        shares = [Workers(rank, self.workers.size).share(self.share.size) for rank in range(self.workers.size)]
        counts = [share.stop - share.start for share in shares]
        padded = value.new_zeros(max(counts), *value.movedim(dim, 0).shape[1:])
        padded[: counts[self.workers.rank]] = value.movedim(dim, 0)[: counts[self.workers.rank]]
        everyone = [torch.empty_like(padded) for _ in shares]
        torch.distributed.all_gather(everyone, padded)
        whole = torch.cat([each[:count] for each, count in zip(everyone, counts, strict=True)])
        return whole.movedim(0, dim).contiguous()
