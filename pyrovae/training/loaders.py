"""Batches of a `torch.utils.data.DataLoader`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, SubsetRandomSampler

from pyrovae.densities import Program, isolated_rng, module_of, num_data, prepare_arguments, take
from pyrovae.execution import Workers
from pyrovae.training.batches import ProgramArguments, as_arguments, transformed


class LoaderBatches:
    """Batches of the training data in the order of a loader.

    Args:
        loader: Loader of batches: tensors, or sequences or mappings of them.
        programs: The model and the guide.
        transform: Transform of x, the first argument, applied to each batch anew; None for no transform.

    Attributes:
        size: Number of data N: the length of the loader's data set, or of its `SubsetRandomSampler`. If the entries of
            the data set are chunks of several rows, N is the number of their rows, which one pass over them counts.
        steps: Number of batches per epoch.
        device: Device of the batches.
        streamed: True, since batches are not in memory.
        weights: None, since the loader chooses the order of the data.

    Raises:
        ValueError: If the loader has no length, or splits the data among processes.
    """

    streamed = True
    weights = None

    def __init__(
        self,
        loader: DataLoader[Any],
        programs: Sequence[Program],
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.loader, self.programs, self.transform = loader, programs, transform
        self.size, self.steps = _lengths(loader)
        with isolated_rng():
            self._first = next(iter(self.chunks()))
            if _holds_chunks(loader, num_data(*self._first)):
                self.size = sum(map(_rows, loader)) * self.size // _num_entries(loader)
        self._last = self._first
        self._sizes: list[int] = []
        self._unchecked = True
        self._iterator: Iterator[Any] = iter(())
        self.batch_size = num_data(*self._first)
        self.device = next(v.device for v in (*self._first[0], *self._first[1].values()) if isinstance(v, Tensor))

    @property
    def sizes(self) -> Tensor:
        """Number of data of each batch of the epoch so far, with shape (steps,).

        Without the last batch, or with a sampler, their sum is not N.
        """
        return torch.tensor(self._sizes)

    def calls(self, epochs: int) -> dict[int, int]:
        """Return the number of steps in a number of epochs, by batch size."""
        return {_num_entries(self.loader) % self.batch_size: epochs, self.batch_size: epochs * self.steps}

    def first(self, size: int | None = None) -> ProgramArguments:
        """Return the arguments of a first batch: its first `size` rows, from the start again beyond its end, or all."""
        if size is None:
            return self._first
        return take(*self._first, slice(0, size) if size <= self.batch_size else torch.arange(size) % self.batch_size)

    def keep_order(self) -> None:
        """Refuse programs that hold one row of parameters for each datum, since the loader chooses the order."""
        raise ValueError(
            "the programs hold one row of parameters for each datum, so they need the data in one order, but a "
            "DataLoader chooses its own; give the data as tensors, with batch_size equal to their number"
        )

    def taken(self, step: int) -> ProgramArguments:
        """Return the arguments of the last batch, since those of earlier steps are gone."""
        return self._last

    def chunks(self) -> Iterator[ProgramArguments]:
        """Iterate over the batches of an epoch, transformed."""
        for batch in self.loader:
            yield self._prepared(batch)

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Start an epoch, whose next step is `step`. The loader chooses its order.

        Batches before this step are read and left out. They stand for those of the stopped run, so their sizes count.
        """
        self._iterator, self._unchecked = iter(self.loader), True
        self._sizes = list(map(_rows, islice(self._iterator, step)))

    def batch(self, step: int) -> ProgramArguments:
        """Return the arguments of the next step of the epoch, transformed."""
        found = next(self._iterator, None)
        if found is None:
            raise ValueError(
                f"the DataLoader gave {step} batches, but its length is {self.steps}; give one whose length is right"
            )
        self._last = self._prepared(found)
        if self._unchecked:
            self._check_alike(Workers.current())
            self._unchecked = False
        self._sizes.append(num_data(*self._last))
        return self._last

    def _check_alike(self, workers: Workers) -> None:
        """Check that the first batch after `start_epoch` is that of all processes, which share it."""
        values = [value for value in (*self._last[0], *self._last[1].values()) if isinstance(value, Tensor)]
        if workers.size > 1 and workers.differing({"data": values}):
            raise ValueError(
                "each process has a share of every batch, but the DataLoader gives other batches in other processes; "
                "give it generator=torch.Generator().manual_seed(0) in all of them, and draw by torch alone"
            )

    def _prepared(self, batch: Any) -> ProgramArguments:
        device = _device_of(self.programs)
        args, kwargs = _moved(*transformed(*arguments_of_batch(batch), self.transform), device)
        return prepare_arguments("fit", self.programs, args, kwargs, warn=False)


def arguments_of_batch(batch: Any) -> ProgramArguments:
    """Split a batch of a loader into positional and keyword arguments of the programs."""
    if not isinstance(batch, Tensor | Mapping | list | tuple):
        raise ValueError(
            f"a DataLoader must give tensors, or tuples or dicts of tensors, got {type(batch).__name__}; make them by "
            "its collate_fn"
        )
    return as_arguments(batch)


def read_all(loader: DataLoader[Any]) -> ProgramArguments:
    """Read all batches of a loader of held-out data, and concatenate them.

    Raises:
        ValueError: If batches differ in shape, or hold other than tensors.
    """
    _lengths(loader)
    with isolated_rng():
        batches = [arguments_of_batch(batch) for batch in loader]
    columns = zip(*(args for args, _ in batches), strict=True)
    try:
        args = tuple(torch.cat(column) for column in columns)
        return args, {name: torch.cat([kwargs[name] for _, kwargs in batches]) for name in batches[0][1]}
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"validation needs batches of tensors that can be concatenated, got others ({error}); pad held-out data to "
            "one length in collate_fn, or give them as tensors"
        ) from None


def _lengths(loader: DataLoader[Any]) -> tuple[int, int]:
    """Return the number of data and of batches of a loader."""
    if isinstance(loader.sampler, DistributedSampler):
        raise ValueError(
            "fit splits each batch among the processes, but the DataLoader's DistributedSampler has split the data; "
            "leave it out"
        )
    try:
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        size = len(sampler if isinstance(sampler, SubsetRandomSampler) else loader.dataset)  # type: ignore[arg-type]
        steps = len(loader)
    except TypeError:
        raise ValueError(
            "fit needs a DataLoader with a length, got one of an iterable data set without __len__; give the data set "
            "__len__, or use a map-style data set"
        ) from None
    if not steps:
        raise ValueError("the DataLoader has no batches; give data, or leave out drop_last")
    return size, steps


def _num_entries(loader: DataLoader[Any]) -> int:
    """Return the number of entries of the data set that an epoch reads; one a batch if the loader has no batch size."""
    if loader.batch_size is None or loader.drop_last:
        return len(loader) * (loader.batch_size or 1)
    return len(loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.sampler)  # type: ignore[arg-type]


def _holds_chunks(loader: DataLoader[Any], rows: int) -> bool:
    """Return whether entries of the loader's data set are chunks of several data, as `batch_size=None` takes them.

    Args:
        loader: Loader of batches.
        rows: Number of data of its first batch.
    """
    if loader.batch_size is not None:
        return rows > loader.batch_size
    # A sampler of lists of rows picks several entries at once, so each entry is a datum.
    return loader.batch_sampler is None and not isinstance(
        next(iter(loader.sampler)), list | tuple | Tensor | np.ndarray
    )


def _rows(batch: Any) -> int:
    """Return the number of data of a batch of a loader."""
    args, kwargs = arguments_of_batch(batch)
    values = (*args, *kwargs.values())
    return num_data(tuple(torch.as_tensor(v) if isinstance(v, np.ndarray) else v for v in values), {})


def _device_of(programs: Sequence[Program]) -> torch.device | None:
    """Return the device of the programs' modules; None if they are functions."""
    parameters = (p for program in programs for module in module_of(program) for p in module.parameters())
    return next((parameter.device for parameter in parameters), None)


def _moved(args: tuple[Any, ...], kwargs: Mapping[str, Any], device: torch.device | None) -> ProgramArguments:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) and device is not None else value

    return tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}


def check_no_dataset(data: Any) -> None:
    """Refuse a data set without a loader."""
    if isinstance(data, Dataset):
        raise ValueError(
            f"data must be tensors or a DataLoader, got the data set {type(data).__name__}; give "
            "DataLoader(dataset, batch_size=128, shuffle=True)"
        )
