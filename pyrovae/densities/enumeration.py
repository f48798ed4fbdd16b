"""Discrete sites that are summed out: runs on all their values at once, and sums of the log densities."""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from opt_einsum import get_symbol
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

_HINTS = {"enumerate", "num_samples", "expand", "tmc"}  # of a program, to Pyro's enumeration

MAX_COMBINATIONS = 1_000_000  # of the values of discrete sites that are summed together


class SumOut(EnumMessenger):
    """Handler that gives sites all their values, along dims left of all plates.

    Args:
        names: Names of the sites. Other sites are not enumerated, whatever the hints of the program.
        first_dim: First dim left of all plates.
    """

    def __init__(self, names: frozenset[str], first_dim: int) -> None:
        super().__init__(first_dim)
        self.names, self.plate_dims = names, -1 - first_dim

    def _pyro_sample(self, msg: Any) -> None:
        hints = {key: value for key, value in (msg["infer"] or {}).items() if key not in _HINTS}
        msg["infer"] = hints | ({"enumerate": "parallel"} if msg["name"] in self.names else {})
        super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        batch = getattr(msg["fn"], "batch_shape", torch.Size())
        count = batch[: max(0, len(batch) - self.plate_dims)].numel()
        _check_combinations(count, f"the density of site {msg['name']!r}")


class Factor(NamedTuple):
    """Log densities of a site for all values of the summed sites.

    Attributes:
        log_p: Log densities, with dims of summed sites left of those of plates.
        symbols: Symbol of each plate around the site, and of each summed site that may matter, by dim.
        plates: Size of each plate around the site, by symbol.
    """

    log_p: Tensor
    symbols: Mapping[int, str]
    plates: Mapping[str, int]


def depends_on_sums(tensor: Tensor, plate_dims: int, event_dim: int = 0) -> bool:
    """Return whether a tensor has dims of summed sites.

    Args:
        tensor: Tensor with the batch shape of a site.
        plate_dims: Number of dims of all plates.
        event_dim: Number of dimensions of a single entry.
    """
    return tensor.shape[: max(0, tensor.dim() - plate_dims - event_dim)].numel() > 1


def plate_symbol(number: int) -> str:
    """Return the symbol of a plate."""
    return get_symbol(2 * number)


def sum_symbol(number: int) -> str:
    """Return the symbol of a summed site."""
    return get_symbol(2 * number + 1)


def log_sum(factors: Sequence[Factor], target: Mapping[str, int]) -> Tensor:
    """Sum the product of factors over all summed sites, and multiply over the plates outside the target.

    Args:
        factors: Log densities of the sites.
        target: Size of each plate to keep, by symbol.

    Returns:
        The log of the sum in nats, with the shape of the target.

    Raises:
        ValueError: If a factor depends on a summed site outside its plate, or plates do not form a tree.
    """
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for factor in factors:
        tree.setdefault(frozenset(factor.plates), []).append(_packed(factor))
    plates = {symbol for factor in factors for symbol in factor.plates}
    sums = {symbol for terms in tree.values() for term in terms for symbol in _dims(term)} - plates
    try:
        total = contract_to_tensor(tree, sums, frozenset(target), ring=_SumRing(plates, target))
    except NotImplementedError as error:
        raise ValueError(
            "discrete sites in plates that cross cannot be summed out exactly; let the guide draw those in one of the "
            "plates, or replace a plate by a loop"
        ) from error
    kept = _dims(total)
    return _aligned(total, "".join(target)) if kept != "".join(target) else total


class _SumRing(LogRing):
    """Sums and products of packed log densities.

    Pyro's ring multiplies exponentials, each scaled by its own maximum, so that sums underflow if two factors favour
    different values by more than about 100 nats in single precision. This ring adds logs first.

    Args:
        plates: Symbols of all plates.
        sizes: Size of each plate to keep, by symbol.
    """

    def __init__(self, plates: Collection[str], sizes: Mapping[str, int]) -> None:
        super().__init__(dim_to_size=dict(sizes))
        self.plates = plates

    def sumproduct(self, terms: Iterable[Tensor], dims: Iterable[str]) -> Tensor:
        remaining, left = set(dims), list(terms)
        while remaining:
            dim = min(sorted(remaining), key=lambda symbol: _size_of_join(left, symbol))
            _check_combinations(_size_of_join(left, dim, self.plates), "a sum over discrete sites")
            remaining.remove(dim)
            joined = _joined([term for term in left if dim in _dims(term)])
            left = [term for term in left if dim not in _dims(term)]
            left.append(_named(joined.logsumexp(_dims(joined).index(dim)), _dims(joined).replace(dim, "")))
        return _joined(left)

    def product(self, term: Tensor, ordinal: Iterable[str]) -> Tensor:
        dims = _dims(term)
        axes = [dims.index(symbol) for symbol in ordinal if symbol in dims]
        kept = "".join(symbol for symbol in dims if symbol not in ordinal)
        return _named(term.sum(axes), kept) if axes else term


def _packed(factor: Factor) -> Tensor:
    """Expand a factor to its plates, and drop dims of size 1."""
    rank = max([factor.log_p.dim(), *(-dim for dim in factor.symbols)])
    sizes = [1] * (rank - factor.log_p.dim()) + list(factor.log_p.shape)
    names = [factor.symbols.get(dim, "") for dim in range(-rank, 0)]
    if any(size > 1 and not name for size, name in zip(sizes, names, strict=True)):
        raise ValueError(f"expected a batch shape of the plates {list(factor.plates.values())}, got {sizes}")
    full = [factor.plates.get(name, size) for size, name in zip(sizes, names, strict=True)]
    kept = [axis for axis, size in enumerate(full) if size > 1]
    packed = factor.log_p.expand(full).reshape([full[axis] for axis in kept])
    return _named(packed[...], "".join(names[axis] for axis in kept))


def _joined(terms: Sequence[Tensor]) -> Tensor:
    """Add log densities."""
    if len(terms) == 1:
        return terms[0]
    dims = "".join(sorted({symbol for term in terms for symbol in _dims(term)}))
    total = _aligned(terms[0], dims)
    for term in terms[1:]:
        total = total + _aligned(term, dims)
    return _named(total, dims)


def _aligned(term: Tensor, dims: str) -> Tensor:
    """Order the dims of a tensor, with size 1 for those it lacks."""
    own = _dims(term)
    ordered = term.permute([own.index(symbol) for symbol in dims if symbol in own])
    return ordered[tuple(slice(None) if symbol in own else None for symbol in dims)]


def _size_of_join(terms: Sequence[Tensor], symbol: str, ignored: Collection[str] = ()) -> int:
    """Compute the size of the product of all terms with a symbol, without some dims."""
    sizes: dict[str, int] = {}
    for term in terms:
        if symbol in _dims(term):
            sizes.update(zip(_dims(term), term.shape, strict=True))
    return math.prod(size for name, size in sizes.items() if name not in ignored)


def _check_combinations(count: int, what: str) -> None:
    if count > MAX_COMBINATIONS:
        raise ValueError(
            f"{what} depends on {count:,} combinations of the sites to sum out, but at most a million are possible; "
            "let the guide draw some sites, or use pyro.markov in chains"
        )


def _named(tensor: Tensor, dims: str) -> Tensor:
    tensor._pyro_dims = dims  # type: ignore[attr-defined]  # Pyro's name for the dims of a packed tensor
    return tensor


def _dims(tensor: Tensor) -> str:
    return tensor._pyro_dims  # type: ignore[attr-defined]  # as `_named` sets it
