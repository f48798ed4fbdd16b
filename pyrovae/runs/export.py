"""Conversion to ArviZ: the draws of a guide, their weights, and log p(x) with its error.

The draws come from q(z | x) and not from MCMC: with log_weight = log p(x, z) - log q(z | x),

    E[f(z) | x] is estimated by sum_k exp(log_weight_k) f(z_k) / sum_k exp(log_weight_k),

separately for each datum. ArviZ itself averages with equal weights.

`arviz.loo` of this averages the conditional log p(x | z), which rises with the freedom of z (Merkle, Furr and
Rabe-Hesketh 2019, "Bayesian comparison of latent variable models: conditional versus marginal likelihoods",
https://doi.org/10.1007/s11336-019-09679-0). `comparison.marginal_to_arviz` gives it the marginal log p(x).
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.runs.files import write_whole
from pyrovae.runs.versions import installed_version

if TYPE_CHECKING:
    from arviz import ELPDData
    from xarray import Dataset, DataTree

    from pyrovae.stats import LogMarginal

_COORDINATES = {
    "chain": "the one chain, as draws of a guide are independent",
    "draw": "draw from the guide",
    "datum": "row of the datum in its data set",
}
_ABOUT = {
    "comment": "Draws come from the guide q(z|x), not from MCMC, to be weighted by the softmax of "
    "log_weight over the draws of each datum, with log_weight = log p(x,z) - log q(z|x).",
    "inference_library": "pyrovae",
}


class _Variable(NamedTuple):
    where: str
    value: Tensor
    dims: tuple[str, ...]
    long_name: str
    units: str = "1"


def to_arviz(
    posterior: Mapping[str, Tensor],
    *,
    observed: Mapping[str, Tensor],
    log_likelihood: Mapping[str, Tensor] | None = None,
    log_weights: Tensor | None = None,
    stats: "LogMarginal | None" = None,
    prior: Mapping[str, Tensor] | None = None,
    posterior_predictive: Mapping[str, Tensor] | None = None,
    prior_predictive: Mapping[str, Tensor] | None = None,
    data_index: Tensor | None = None,
    event_dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, str | int | float] | None = None,
) -> "DataTree":
    """Build ArviZ data from K draws of the guide for each of N data.

    Groups and dims: ``posterior``, ``prior``, ``posterior_predictive``, ``prior_predictive`` and ``log_likelihood``
    (chain, draw, datum, ...), with a chain of length 1; ``observed_data`` (datum, ...); ``sample_stats`` with
    ``log_weight`` (chain, draw, datum) and ``log_marginal``, ``log_marginal_std_error``, ``ess`` and ``khat`` (datum).
    Groups without data are omitted. The number of draws may differ between prior, predictive groups and posterior. Half
    precision becomes float32; other dtypes are kept. Tensors on the CPU share their memory with the result.

    ``arviz.loo`` of the result estimates the conditional log p(x | z); for the marginal log p(x) give ArviZ
    ``pyrovae.runs.comparison.marginal_to_arviz(log_p, x)``.

    Args:
        posterior: Draws of each latent site, with shape (K, N, *event).
        observed: Data of each observed site, with shape (N, *event).
        log_likelihood: log p(x | z) in nats of each observed site, summed over the event, with
            shape (K, N).
        log_weights: log p(x, z) - log q(z | x) in nats, with shape (K, N).
        stats: log p(x) per datum with its diagnostics, each field of shape (N,).
        prior: Draws of each latent site from p(z), with shape (S, N, *event).
        posterior_predictive: Draws of each observed site from p(x | z) at draws z from the guide, with shape
            (S, N, *event).
        prior_predictive: Draws of each observed site from p(x | z) at draws z from p(z), with shape (S, N, *event).
        data_index: Row of each datum in its data set, with shape (N,); None counts from zero.
        event_dims: Names of the event dims of a site; by default ``z_dim`` for site "z", or
            ``z_dim_0``, ``z_dim_1``, ... if it has several.
        attrs: Further attributes of the root.

    Returns:
        An ``xarray.DataTree``; an ``arviz.InferenceData`` on ArviZ 0.23, which does not support trees.

    Raises:
        ValueError: If shapes disagree on K or N, or a name is reserved or unknown.

    Example:
        >>> tree = to_arviz({"z": torch.zeros(3, 2, 4)}, observed={"x": torch.zeros(2, 5)})
        >>> tree.posterior["z"].dims
        ('chain', 'draw', 'datum', 'z_dim')
    """
    import xarray as xr

    event_dims = event_dims or {}
    if unknown := event_dims.keys() - posterior.keys() - observed.keys():
        raise ValueError(f"event_dims has the names {sorted(unknown)}, which no site has; use the names of sites")
    sizes = _sizes(posterior)
    index = torch.arange(sizes["datum"]) if data_index is None else data_index
    _check_shape("data_index", index, (sizes["datum"],))
    z, x = ", ".join(posterior), ", ".join(observed)
    each, per_datum = ("chain", "draw", "datum"), ("datum",)
    densities, numbers, data = {}, {}, {}
    for name, value in (log_likelihood or {}).items():
        where = f"log_likelihood[{name!r}]"
        densities[name] = _Variable(where, value, each, f"log p({name} | {z})", "nats")
    for name, value in observed.items():
        dims = per_datum + _event_names(name, value.shape[1:], event_dims)
        data[name] = _Variable(f"observed[{name!r}]", value, dims, f"datum {name}")
    if log_weights is not None:
        ratio = f"log p({x}, {z}) - log q({z} | {x})"
        numbers["log_weight"] = _Variable("log_weights", log_weights, each, ratio, "nats")
    if stats is not None:
        for name, field, long_name, units in (
            ("log_marginal", "value", f"log p({x})", "nats"),
            ("log_marginal_std_error", "std_error", f"standard error of log p({x})", "nats"),
            ("ess", "ess", "effective sample size of the importance weights", "draws"),
            ("khat", "khat", "Pareto shape of the importance weights", "1"),
        ):
            value = getattr(stats, field)
            numbers[name] = _Variable(f"stats.{field}", value, per_datum, long_name, units)
    tree = xr.DataTree(xr.Dataset(attrs=_root_attrs(attrs or {})))
    drawn = {
        "posterior": (posterior, "latent"),
        "prior": (prior, "latent"),
        "posterior_predictive": (posterior_predictive, "datum"),
        "prior_predictive": (prior_predictive, "datum"),
    }
    groups = {name: _draws(name, values or {}, what, event_dims) for name, (values, what) in drawn.items()}
    groups |= {"log_likelihood": densities, "sample_stats": numbers, "observed_data": data}
    for name, group in groups.items():
        if group:
            own = {**sizes, "draw": _num_draws(name, group)} if name in drawn else sizes
            tree[name] = xr.DataTree(_group(group, own, index))
    return _for_installed_arviz(tree)


def kfold_to_arviz(log_p: Tensor, folds: Tensor, *, data_index: Tensor | None = None) -> "ELPDData":
    """Give the log p(x) of a cross-validation to ArviZ, whose ``compare`` takes such results by model.

    ``elpd`` is the sum over data, ``se`` its standard error over data, sqrt(N) sd(log p), as ArviZ computes the errors
    of differences too. They do not include the spread over folds (see ``comparison.compare``), and data have no case
    weights. The effective number of parameters is unknown, NaN. ArviZ 1.x says the kind "loo_kfold". ArviZ 0.23 knows
    no K-fold results: there they have the names of `loo`, as ``elpd_loo`` and ``loo_i``.

    Args:
        log_p: Held-out log p(x) of each datum in nats, with shape (N,), such as ``Evaluated.value``.
        folds: Fold that holds out each datum, with shape (N,), such as ``Evaluated.folds``.
        data_index: Row of each datum in its data set, with shape (N,); None counts from zero.

    Raises:
        ValueError: If the shapes differ, or there are fewer than two data.

    Example:
        >>> result = kfold_to_arviz(torch.tensor([-1.0, -3.0]), torch.tensor([1, 2]))
        >>> round(float(result.se), 6)
        2.0
    """
    import xarray as xr

    if log_p.dim() != 1 or log_p.shape != folds.shape or len(log_p) < 2:
        raise ValueError(
            f"log_p and folds must have one shape (N,), with two data or more, got {tuple(log_p.shape)} and "
            f"{tuple(folds.shape)}"
        )
    index = torch.arange(len(log_p)) if data_index is None else data_index
    _check_shape("data_index", index, tuple(log_p.shape))
    values = log_p.detach().cpu().double()
    pointwise = xr.DataArray(values.numpy(), dims=["datum"], coords={"datum": index.cpu().numpy()})
    size, spread = len(values), values.std().item()
    elpd, error, unknown = values.sum().item(), size**0.5 * spread, float("nan")
    sizes = {"n_samples": 1, "n_data_points": size, "warning": False, "scale": "log"}
    _import_arviz()
    if int(installed_version("arviz").split(".")[0]) < 1:
        from arviz.stats import ELPDData

        # ArviZ reads the kind from the first name, and prints by the order.
        return ELPDData({"elpd_loo": elpd, "se": error, "p_loo": unknown, **sizes, "loo_i": pointwise})
    from arviz_stats import utils

    given: dict[str, Any] = {"elpd": elpd, "se": error, "p": unknown, **sizes, "good_k": None, "elpd_i": pointwise}
    if hasattr(utils, "ELPDDataLOOKFold"):
        return utils.ELPDDataLOOKFold(**given, n_folds=len(folds.unique()))
    return utils.ELPDData(kind="loo_kfold", **given, n_folds=len(folds.unique()))


def write_netcdf(tree: "DataTree", path: str | os.PathLike[str]) -> None:
    """Write ArviZ data atomically as netCDF4, for ``arviz.from_netcdf``.

    Arrays are compressed without loss. The same data give the same bytes.

    Args:
        tree: Result of ``to_arviz``, an ``xarray.DataTree`` or an ``arviz.InferenceData``.
        path: File to write or to replace.

    Raises:
        OSError: If the file cannot be written, for example on a full disk; an old file stays intact.
    """
    import xarray as xr

    path = Path(path)
    root = tree if isinstance(tree, xr.DataTree) else tree.to_datatree()
    encoding = {
        node.path: {
            name: {"zlib": True, "shuffle": True}
            for name, variable in node.data_vars.items()
            if variable.dtype.kind in "biuf" and variable.ndim
        }
        for node in root.subtree
    }
    # HDF5 crashes the interpreter when the disk fills up under an open file
    # (https://github.com/h5py/h5py/issues/914), so it writes to memory and Python to the disk.
    with memoryview(root.to_netcdf(engine="h5netcdf", encoding=encoding)) as view:
        content = bytes(view)
    write_whole(path, content)


def _draws(
    group: str, values: Mapping[str, Tensor], what: str, event_dims: Mapping[str, Sequence[str]]
) -> dict[str, _Variable]:
    """Describe the variables of a group of draws, each with shape (S, N, *event)."""
    found = {}
    for name, value in values.items():
        dims = ("chain", "draw", "datum", *_event_names(name, value.shape[2:], event_dims))
        found[name] = _Variable(f"{group}[{name!r}]", value, dims, f"{what} {name}")
    return found


def _num_draws(group: str, variables: Mapping[str, _Variable]) -> int:
    """Return the number of draws of the first variable of a group; all others must have the same."""
    first = next(iter(variables.values()))
    if first.value.dim() < 2:
        raise ValueError(f"{first.where} must have shape (S, N, *event), got {tuple(first.value.shape)}")
    return first.value.shape[0]


def _sizes(posterior: Mapping[str, Tensor]) -> dict[str, int]:
    """Read K and N from the first latent; all other shapes must agree with them."""
    for name, first in posterior.items():
        if len(got := tuple(first.shape)) < 2:
            raise ValueError(f"posterior[{name!r}] must have shape (K, N, *event), got {got}")
        return {"draw": first.shape[0], "datum": first.shape[1]}
    raise ValueError("posterior must hold at least one latent site, got none")


def _check_shape(where: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if (got := tuple(value.shape)) != shape:
        raise ValueError(f"{where} must have shape {shape}, with K and N of the first latent, got {got}")


def _event_names(site: str, event_shape: Sequence[int], event_dims: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    size = len(event_shape)
    default = [f"{site}_dim"] if size == 1 else [f"{site}_dim_{i}" for i in range(size)]
    names = tuple(event_dims.get(site, default))
    if len(names) != size or len({*names, *_COORDINATES}) < size + len(_COORDINATES):
        raise ValueError(
            f"event_dims[{site!r}] must give {size} names for event shape {tuple(event_shape)}, "
            f"different from each other and from {', '.join(_COORDINATES)}; got {names}"
        )
    return names


def _group(variables: dict[str, _Variable], sizes: dict[str, int], index: Tensor) -> "Dataset":
    import xarray as xr

    used: dict[str, int] = {}
    arrays = {}
    for name, (where, value, dims, long_name, units) in variables.items():
        lead = tuple(sizes[dim] for dim in dims if dim in sizes)
        event = value.shape[len(lead) :] if dims[-1] != "datum" else ()
        _check_shape(where, value, (*lead, *event))
        # netCDF has no half precision.
        half = value.dtype in (torch.float16, torch.bfloat16)
        value = value[None] if dims[0] == "chain" else value
        array = (value.float() if half else value).detach().cpu().numpy()
        used |= dict(zip(dims, array.shape, strict=True))
        arrays[name] = (dims, array, {"long_name": long_name, "units": units})
    for name in variables.keys() & {*used, *_COORDINATES}:
        raise ValueError(
            f"{variables[name].where} has the name of a dim; rename the site, or the dim in "
            f"event_dims ({', '.join(_COORDINATES)} are fixed)"
        )
    coords = {}
    for dim, size in used.items():
        about = {"long_name": _COORDINATES.get(dim, f"index along {dim}"), "units": "1"}
        coords[dim] = (dim, index.cpu().numpy() if dim == "datum" else np.arange(size), about)
    return xr.Dataset(arrays, coords)


def _root_attrs(attrs: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    ours = {**_ABOUT, "inference_library_version": installed_version("pyrovae")}
    for name, value in attrs.items():
        if name in ours:
            raise ValueError(f"attrs[{name!r}] is reserved for to_arviz; choose another name")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"attrs[{name!r}] must be a str, int or float, got {value!r}")
    return {**ours, **attrs}


def _for_installed_arviz(tree: "DataTree") -> "DataTree":
    if int(installed_version("arviz").split(".")[0]) >= 1:
        return tree
    return _import_arviz().InferenceData.from_datatree(tree)


def _import_arviz() -> Any:
    with warnings.catch_warnings():
        # Once a day, ArviZ 0.23 recommends ArviZ 1.x on import, which Python 3.11 cannot install.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    return arviz
