"""Data-parallel processes. Each takes a share of the data; random draws equal those of a single process."""

import io
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
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
    def drawing(
        self, share: Share, plates: Collection[str] | None = None, rows: Collection[str] = ()
    ) -> Iterator[None]:
        """Make programs on a share draw the random numbers that one process would draw for all data.

        Every process draws for all data and keeps its rows. Each datum has the same noise for any number of processes,
        and the generators of all processes stay in the same state. What lies outside the plates over the data has the
        same draw in all processes.

        Args:
            share: Share of this process.
            plates: Names of the plates over the data; None for all plates of their number, or without a size.
            rows: Names of sites without such a plate whose first dim of the size of the share is that of the data.
        """
        if self.size == 1:
            yield
            return
        num_rows = share.rows.stop - share.rows.start
        with _Sites(num_rows, plates, rows) as sites, _SharedDraws(self, share, sites):
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

    def differing(self, tensors: Mapping[str, Sequence[Tensor]]) -> list[str]:
        """Return the names of those lists of tensors whose values differ between the processes."""
        own = {name: _digest(values) for name, values in tensors.items()}
        everyone = self.gathered(own)
        return [name for name in own if any(each[name] != own[name] for each in everyone)]

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

    Raises:
        ValueError: If a variable of torchrun is no whole number.
    """
    if _variable("WORLD_SIZE", 1) == 1:
        yield Workers.current()
        return
    on_cuda = torch.cuda.device_count() >= _variable("LOCAL_WORLD_SIZE", 1) > 0
    if on_cuda:
        torch.cuda.set_device(_variable("LOCAL_RANK", 0))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    workers = Workers.current()
    silent = redirect_stdout(io.StringIO()) if workers.rank else nullcontext()
    with silent:
        yield workers
    torch.distributed.destroy_process_group()  # not after an error, when the process ends without waiting


def _variable(name: str, default: int) -> int:
    """Read a whole number from the environment."""
    text = os.environ.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(
            f"the environment variable {name} is {text[:40]!r}; it must be a whole number, as torchrun sets it"
        )
    return int(text)


def _digest(tensors: Sequence[Tensor]) -> str:
    """Compute a hash of the values of tensors."""
    found = sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class _Sites(Messenger):
    """Handler that notes where the data lie in the batch of a sample site while the site draws.

    Args:
        num_rows: Number of data of the share.
        plates: Names of the plates over the data; None for all plates of their number, or without a size.
        rows: Names of sites without such a plate that have a row per datum.

    Attributes:
        batch_shape: Batch shape of the site; None outside sites, and in a site of `rows`.
        dim: Index of the data in the batch shape; None if the site has no data plate.
    """

    def __init__(self, num_rows: int, plates: Collection[str] | None, rows: Collection[str]) -> None:
        super().__init__()
        self.num_rows, self.plates, self.rows = num_rows, plates, rows
        self.batch_shape: torch.Size | None = None
        self.dim: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.rows or not hasattr(msg["fn"], "batch_shape"):
            return
        shape = msg["fn"].batch_shape
        dims = [f.dim for f in msg["cond_indep_stack"] if f.vectorized and self._over_data(f) and -f.dim <= len(shape)]
        dims = [len(shape) + dim for dim in dims if shape[dim] % self.num_rows == 0]
        self.batch_shape, self.dim = shape, max(dims, default=None)

    def _pyro_post_sample(self, msg: Any) -> None:
        self.batch_shape, self.dim = None, None

    def _over_data(self, frame: Any) -> bool:
        return frame.size in (-1, self.num_rows) if self.plates is None else frame.name in self.plates


class _SharedDraws(TorchDispatchMode):
    """Mode that runs each random operation for the rows of all processes and keeps the rows of this process.

    The dimension of the data is that of the plate, and outside sites the first one of the size of the share. A draw
    without such a dimension is the same in all processes. If the rows are repeated for K draws, the dimension has K
    times that size. If a draw has parameters (a gamma's, a categorical's), the number of
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
        first, batch = args[0], self.sites.batch_shape
        # All dims of a categorical's batch share one dimension; outside sites, the data are the last of them.
        dims, dim = ((-1, self.num_rows), 1) if batch is None else ((*batch, -1), self.sites.dim)
        flat = func is torch.ops.aten.multinomial.default and first.dim() == 2
        if flat and dim is not None and first.shape[0] % abs(math.prod(dims)) == 0:
            whole = self._gather_rows(first.unflatten(0, dims), dim).flatten(0, len(dims) - 1)
            drawn = func(whole, *args[1:], **kwargs).unflatten(0, self._full_shape(dims, dim))
            return self._own_rows(drawn, dim).flatten(0, len(dims) - 1)
        dim = self._data_dim(first.shape)
        if dim is None:
            return func(*args, **kwargs)
        return self._own_rows(func(*map(self._gather_rows, args), **kwargs), dim)

    def _data_dim(self, shape: Sequence[int]) -> int | None:
        dim, batch = self.sites.dim, self.sites.batch_shape
        if batch is not None:
            if dim is None:
                return None
            if dim < len(shape) and shape[dim] == batch[dim]:
                return dim
        return next((dim for dim, size in enumerate(shape) if size == self.num_rows), None)

    def _full_shape(self, shape: Sequence[int], dim: int) -> list[int]:
        size = shape[dim] if shape[dim] < 0 else shape[dim] // self.num_rows * self.share.size
        return [*shape[:dim], size, *shape[dim + 1 :]]

    def _own_rows(self, value: Tensor, dim: int) -> Tensor:
        copies = value.unflatten(dim, (-1, self.share.size))
        return copies.narrow(dim + 1, self.share.rows.start, self.num_rows).flatten(dim, dim + 1).clone()

    def _gather_rows(self, value: Any, dim: int | None = None) -> Any:
        dim = self._data_dim(value.shape) if isinstance(value, Tensor) and dim is None else dim
        if dim is None:
            return value
        from torch.fx.experimental.proxy_tensor import get_proxy_mode  # takes seconds to import, so only if needed

        if get_proxy_mode() is not None:
            raise RuntimeError("several processes cannot record a draw with parameters, such as a gamma's")
        shares = [Workers(rank, self.workers.size).share(self.share.size) for rank in range(self.workers.size)]
        counts = [share.stop - share.start for share in shares]
        by_row = value.unflatten(dim, (-1, self.num_rows)).movedim(dim + 1, 0)  # (rows, ..., copies, ...)
        padded = value.new_zeros(max(counts), *by_row.shape[1:])
        padded[: counts[self.workers.rank]] = by_row[: counts[self.workers.rank]]
        everyone = [torch.empty_like(padded) for _ in shares]
        torch.distributed.all_gather(everyone, padded)
        whole = torch.cat([each[:count] for each, count in zip(everyone, counts, strict=True)])
        return whole.movedim(0, dim + 1).flatten(dim, dim + 1).contiguous()
