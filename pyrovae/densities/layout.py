"""Where the K draws and the N data lie among the batch dimensions of sample sites."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Plates = Mapping[int, int]  # size of each plate of a site, by its dim


@dataclass(frozen=True)
class Layout:
    """Dims of draws and data in the batch shape of sample sites, counted from the right.

    A layout has a plate of particles and a data plate; or a data plate alone, whose K N rows are K copies of each of
    the N data, side by side (tiled); or a plate of particles alone, if the whole data set counts as one datum.

    Attributes:
        num_particles: Number of draws K per datum.
        num_data: Number of data N; 1 if the whole data set counts as one datum.
        particle_dim: Dim of the plate of particles; None if the rows are tiled.
        data_dim: Dim of the data plate; None if the whole data set counts as one datum.
    """

    num_particles: int
    num_data: int
    particle_dim: int | None
    data_dim: int | None

    @cached_property
    def leading(self) -> dict[int, int]:
        """Sizes of the plates of draws and data, by dim, draws first."""
        if self.data_dim is None:
            assert self.particle_dim is not None
            return {self.particle_dim: self.num_particles}
        if self.particle_dim is None:
            return {self.data_dim: self.num_particles * self.num_data}
        return {self.particle_dim: self.num_particles, self.data_dim: self.num_data}

    def other_dims(self, plates: Plates) -> list[int]:
        """List the dims of a site's further plates, from the left."""
        return sorted(set(plates) - set(self.leading))

    def per_datum(self, tensor: Tensor, plates: Plates, event_dim: int = 0) -> Tensor:
        """Move draws and data to the front of a tensor with the batch shape of a site.

        Args:
            tensor: Value of a site, or a quantity for each of its batch entries.
            plates: Sizes of the site's plates by dim.
            event_dim: Number of dimensions of a single entry.

        Returns:
            The tensor, expanded, with shape (K, N, *further plates, *event).

        Raises:
            ValueError: If the batch shape has dimensions outside the site's plates.
        """
        sizes = {**plates, **self.leading}
        rank = -min(sizes)
        batch = tensor.shape[: tensor.dim() - event_dim]
        event = tensor.shape[tensor.dim() - event_dim :]
        full = torch.Size(sizes.get(dim, 1) for dim in range(-rank, 0))
        if not _expands(batch, full):
            raise ValueError(f"expected a batch shape that expands to {tuple(full)}, got {tuple(batch)}")
        if tensor.shape != full + event:
            tensor = tensor.expand(full + event)
        order = [*self.leading, *self.other_dims(plates)]
        if order != list(range(-rank, 0)):
            axes = [dim + rank for dim in order]
            missing = [axis for axis in range(rank) if axis not in axes]
            tensor = tensor.permute(*missing, *axes, *range(rank, tensor.dim()))[(0,) * len(missing)]
        if self.data_dim is None:
            return tensor.unsqueeze(1)
        if self.particle_dim is not None:
            return tensor
        return tensor.unflatten(0, (self.num_data, self.num_particles)).transpose(0, 1)

    def to_site(self, value: Tensor, plates: Plates) -> Tensor:
        """Move draws and data from the front, with shape (K, N, *further plates, *event), to their dims in a site."""
        if self.data_dim is None:
            value = value.squeeze(1)
        elif self.particle_dim is None:
            value = value.transpose(0, 1).flatten(0, 1)
        order = [*self.leading, *self.other_dims(plates)]
        rank = -min(order)
        if order == list(range(-rank, 0)):
            return value
        kept = sorted(order)
        value = value.permute(*(order.index(dim) for dim in kept), *range(len(order), value.dim()))
        batch = iter(value.shape[: len(order)])
        shape = [next(batch) if dim in kept else 1 for dim in range(-rank, 0)]
        return value.reshape(*shape, *value.shape[len(order) :])


def _expands(shape: torch.Size, to: torch.Size) -> bool:
    """Return whether a tensor of one shape expands to the other."""
    return len(shape) <= len(to) and all(
        one in (1, other) for one, other in zip(reversed(shape), reversed(to), strict=False)
    )
