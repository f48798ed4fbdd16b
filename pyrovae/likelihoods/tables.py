"""Likelihood of the rows of a table with mixed columns."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

import pyrovae.likelihoods as room
from pyrovae.columns import Column, Columns
from pyrovae.distributions import ByColumn, ColumnGroups
from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.units import Moments, without_holes

Maker = Callable[..., Likelihood]


class MixedLikelihood(Likelihood):
    """Independent entries given z, each column with the likelihood of its kind.

        p(x|z) = prod_d p_d(x_d | network(z))

    A scale depends on z, and other learned parameters, such as degrees of freedom, are those of their column, where a
    part by itself would learn one for all columns. The columns of equal kind and arguments share a part, an ordinary
    likelihood, which receives its share of the network's outputs. Parts with units have the centre and the spread of
    the columns, and learned scales of at least their resolution. The design is that of HI-VAE (Nazabal et al.,
    "Handling incomplete heterogeneous data using VAEs", Pattern Recognition 2020,
    https://doi.org/10.1016/j.patcog.2020.107501), with moments of the training data.

    Args:
        network: Module from the latent (and covariates) to the parameters of all parts.
        columns: Columns of the table; those of role "data" are the D columns of x. Each must be complete.
        parts: Makers of parts by kind or by name of a column, which comes first. The default is the likelihood of the
            column, else that of its kind.

    Raises:
        ValueError: If a column is not complete, or names no likelihood.
    """

    starts_at_means: ClassVar[bool] = True

    def __init__(self, network: nn.Module, columns: Columns, parts: Mapping[str, Maker] | None = None) -> None:
        super().__init__(network)
        self.groups = _groups(columns, parts or {})
        self.placing = ColumnGroups([torch.tensor(group.places) for group in self.groups])
        self.parts = nn.ModuleList()
        for group in self.groups:
            part = group.make(_Passed(group.num_outputs))
            part.set_units(_moments(group.columns))
            self.parts.append(part)

    @classmethod
    def num_outputs(cls, num_dims: int, **arguments: Any) -> int:
        """Return the sum of the outputs of all parts.

        Args:
            num_dims: Number D of columns.
            **arguments: Constructor arguments of the likelihood.
        """
        return sum(group.num_outputs for group in _groups(arguments["columns"], arguments.get("parts") or {}))

    @staticmethod
    def defaults_for(part: Maker) -> dict[str, str]:
        """Return the arguments of a part that are learned: by default, scales depend on z, others on the column.

        Args:
            part: Class of a likelihood.
        """
        takes = inspect.signature(part).parameters
        learned = (name for name, given in takes.items() if given.default == "global")
        return {name: "network" if name == "scale" else "dimension" for name in learned}

    def output_bias(self, x: Tensor) -> Tensor:
        """Return an initial bias of the network's last layer: those of the parts.

        Args:
            x: Training data, with shape (N, D); NaN where missing.
        """
        x = without_holes(x)
        return torch.cat(
            [_start(part, group, x[:, group.places]) for part, group in zip(self.parts, self.groups, strict=True)]
        )

    def start_at(self, x: Tensor) -> None:
        """Start the learned parameters of the parts at the data's moments.

        Args:
            x: Training data, with shape (N, D); NaN where missing.
        """
        x = without_holes(x)
        for part, group in zip(self.parts, self.groups, strict=True):
            cast(Likelihood, part).start_at(x[:, group.places])

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        outputs = self.outputs(z, covariates).split([group.num_outputs for group in self.groups], -1)
        entries = [part(each).base_dist for part, each in zip(self.parts, outputs, strict=True)]
        return ByColumn(entries, self.placing).to_event(1)


class _Group(NamedTuple):
    """Columns that share a part: their places among the D columns, the maker of the part, and its outputs."""

    columns: list[Column]
    places: list[int]
    maker: Maker
    arguments: dict[str, Any]

    @property
    def num_outputs(self) -> int:
        part, given = _class_and_arguments(self.maker)
        outputs: int = part.num_outputs(len(self.columns), **{**given, **self.arguments})
        return outputs

    def make(self, network: nn.Module) -> Likelihood:
        return self.maker(network, **self.arguments)


class _Passed(nn.Module):
    """Network of a part: passes its share of the outputs on."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = out_features

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs


def _groups(columns: Columns, parts: Mapping[str, Maker]) -> list[_Group]:
    """Group the columns of the data by likelihood and arguments, in the order of their first column."""
    found: dict[Any, _Group] = {}
    for place, column in enumerate(columns.data):
        if not column.is_complete:
            raise ValueError(f"column {column.name!r} is not complete; read its table with read_table first")
        maker, arguments = _part_of(column, parts)
        key = maker, tuple(sorted((name, repr(value)) for name, value in arguments.items()))
        group = found.setdefault(key, _Group([], [], maker, arguments))
        group.columns.append(column)
        group.places.append(place)
    if not found:
        raise ValueError("a likelihood needs a column of role 'data', got none; change the role of a column")
    return list(found.values())


def _part_of(column: Column, parts: Mapping[str, Maker]) -> tuple[Maker, dict[str, Any]]:
    """Find the maker of a column's part, and the arguments that follow from the column or are written there."""
    given = parts.get(column.name)
    if given is None and column.likelihood is None:
        given = parts.get(column.kind)
    maker = given if given is not None else getattr(room, column.likelihood_name, None)
    if maker is None or (given is None and column.likelihood_name not in room.__all__):
        raise ValueError(
            f"column {column.name!r}: there is no likelihood {column.likelihood_name!r}; name one of pyrovae, or give "
            f"parts={{{column.name!r}: YourLikelihood}}"
        )
    part, known = _class_and_arguments(maker)
    takes = inspect.signature(part).parameters
    suggested: dict[str, Any] = {**MixedLikelihood.defaults_for(part)}
    suggested |= {"num_classes": len(column.levels), "num_levels": len(column.levels)}
    suggested["resolution"] = column.grid or column.resolution
    return maker, {
        **{name: value for name, value in suggested.items() if name in takes and name not in known},
        **column.arguments,
    }


def _class_and_arguments(maker: Maker) -> tuple[Any, dict[str, Any]]:
    """Return the class that a maker instantiates, and the keyword arguments that it adds."""
    return (maker.func, dict(maker.keywords)) if isinstance(maker, functools.partial) else (maker, {})


def _moments(columns: list[Column]) -> Moments:
    """Collect the moments of columns; levels have mean 0 and deviation 1."""

    def of(name: str, default: float) -> Tensor:
        found = [getattr(column, name) for column in columns]
        return torch.tensor([default if value is None else value for value in found], dtype=torch.get_default_dtype())

    return Moments(
        of("centre", 0.0), of("spread", 1.0), of("log_centre", 0.0), of("log_spread", 1.0), of("resolution", 0.0)
    )


def _start(part: Any, group: _Group, x: Tensor) -> Tensor:
    """Return the initial bias of a part; 0 if it has no intercept."""
    if type(part).intercept is Likelihood.intercept:
        return x.new_zeros(group.num_outputs)
    bias: Tensor = part.output_bias(x)
    return bias
