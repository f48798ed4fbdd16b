"""The ArviZ export: dims, coordinates, a round trip, a full disk, and what is refused."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from script_helpers import largest_file
from torch import Tensor

from pyrovae.runs import to_arviz
from pyrovae.runs.export import write_netcdf

K, N = 400, 3
REPOSITORY = Path(__file__).parents[2]


class Stats(NamedTuple):
    value: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor


def parts(**changes: Any) -> dict[str, Any]:
    """Arguments of to_arviz: two latents, an image, and everything that is optional."""
    rng = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    return {
        "posterior": {"z": randn(K, N, 2), "s": randn(K, N)},
        "observed": {"x": randn(N, 2, 4)},
        "log_likelihood": {"x": 0.1 * randn(K, N)},
        "log_weights": randn(K, N).double(),
        "stats": Stats(randn(N), randn(N), randn(N), torch.full((N,), torch.nan)),
        "data_index": torch.tensor([7, 2, 5]),
        "event_dims": {"x": ["row", "column"]},
        "attrs": {"run": "digits", "seed": 0},
        **changes,
    }


def export(**changes: Any) -> Any:
    arguments = parts(**changes)
    return to_arviz(arguments.pop("posterior"), **arguments)


def import_arviz() -> Any:
    with warnings.catch_warnings():  # 0.23 advises once a day to move to 1.x
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    return arviz


def as_tree(data: Any) -> xr.DataTree:
    """The one place that knows two lines of ArviZ: 1.x gives trees, 0.23 InferenceData."""
    if import_arviz().__version__.startswith("0."):
        assert type(data).__name__ == "InferenceData"
        return data.to_datatree()
    assert type(data) is xr.DataTree
    return data


def read(path: Path) -> xr.DataTree:
    tree = as_tree(import_arviz().from_netcdf(path))
    loaded = tree.load().copy(deep=True)
    for node in tree.subtree:
        node.close()
    return loaded


def test_to_arviz_puts_each_variable_into_the_group_that_arviz_reads() -> None:
    tree, given = as_tree(export()), parts()
    draws = ("chain", "draw", "datum")
    expected = {
        "posterior/z": ((*draws, "z_dim"), given["posterior"]["z"][None], "1"),
        "posterior/s": (draws, given["posterior"]["s"][None], "1"),
        "log_likelihood/x": (draws, given["log_likelihood"]["x"][None], "nats"),
        "sample_stats/log_weight": (draws, given["log_weights"][None], "nats"),
        "sample_stats/log_marginal": (("datum",), given["stats"].value, "nats"),
        "sample_stats/log_marginal_std_error": (("datum",), given["stats"].std_error, "nats"),
        "sample_stats/ess": (("datum",), given["stats"].ess, "draws"),
        "sample_stats/khat": (("datum",), given["stats"].khat, "1"),
        "observed_data/x": (("datum", "row", "column"), given["observed"]["x"], "1"),
    }
    found = {f"{group.name}/{name}" for group in tree.leaves for name in group.data_vars}
    assert found == set(expected)
    for name, (dims, values, units) in expected.items():
        assert tree[name].dims == dims
        np.testing.assert_array_equal(tree[name].values, values.numpy(), strict=True)
        assert tree[name].attrs["units"] == units
    long_name = tree["sample_stats/log_weight"].attrs["long_name"]
    assert long_name == "log p(x, z, s) - log q(z, s | x)"


def test_to_arviz_labels_data_by_their_rows_and_describes_every_variable() -> None:
    tree = as_tree(export())
    for group in tree.leaves:
        assert group["datum"].values.tolist() == [7, 2, 5]
        assert set(group.coords) == set(group.dims)
        assert all({"units", "long_name"} <= set(v.attrs) for v in group.variables.values())
    assert tree["posterior"]["chain"].values.tolist() == [0]
    assert tree["posterior"]["draw"].values.tolist() == list(range(K))
    assert tree["observed_data"]["column"].values.tolist() == [0, 1, 2, 3]
    counted = as_tree(export(data_index=None))
    assert counted["posterior"]["datum"].values.tolist() == [0, 1, 2]


def test_to_arviz_records_library_run_and_seed_in_the_root() -> None:
    attrs = as_tree(export()).attrs
    assert attrs["inference_library"] == "pyrovae"
    assert attrs["inference_library_version"]
    assert "created_at" not in attrs
    assert "guide q(z|x), not from MCMC" in attrs["comment"]
    assert "softmax of log_weight" in attrs["comment"]
    assert (attrs["run"], attrs["seed"]) == ("digits", 0)


def test_to_arviz_keeps_prior_and_predictive_draws_in_groups_of_their_own_length() -> None:
    drawn = {
        "prior": {"z": torch.randn(7, N, 2)},
        "posterior_predictive": {"x": torch.randn(5, N, 2, 4)},
        "prior_predictive": {"x": torch.randn(6, N, 2, 4)},
    }
    tree = as_tree(export(**drawn))
    for group, values in drawn.items():
        for name, value in values.items():
            found = tree[group][name]
            assert found.dims[:3] == ("chain", "draw", "datum")
            assert found.attrs["long_name"] == ("latent z" if name == "z" else "datum x")
            np.testing.assert_array_equal(found.values, value[None].numpy(), strict=True)
    assert tree["prior_predictive/x"].dims[3:] == ("row", "column")
    assert tree["prior/z"].sizes["draw"] == 7
    assert tree["posterior/z"].sizes["draw"] == K


def test_arviz_summarises_and_plots_all_groups() -> None:
    arviz = import_arviz()
    data = export(
        prior={"z": torch.randn(50, N, 2)},
        posterior_predictive={"x": torch.randn(20, N, 2, 4)},
        prior_predictive={"x": torch.randn(20, N, 2, 4)},
    )
    assert len(arviz.summary(data, var_names=["z"], kind="stats")) == 2 * N
    with matplotlib.rc_context({"backend": "agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ and matplotlib, about each other
        chosen = {"datum": as_tree(data)["posterior"]["datum"].values[:2], "z_dim": [0]}
        drawn = [arviz.plot_forest(data, var_names=["z"], coords=chosen, combined=True)]
        if hasattr(arviz, "plot_ppc_dist"):  # 1.x
            drawn += [arviz.plot_ppc_dist(data), arviz.plot_forest(data, var_names=["s"])]
        else:
            drawn += [
                arviz.plot_ppc(data, num_pp_samples=10),
                arviz.plot_ppc(data, group="prior", num_pp_samples=10, observed=True),
                arviz.plot_forest(data, var_names=["s"]),
                arviz.plot_dist_comparison(data, var_names=["z"], coords={"datum": [7]}),
            ]
        assert all(one is not None for one in drawn)
        plt.close("all")


def test_to_arviz_leaves_out_groups_that_are_not_given() -> None:
    tree = as_tree(to_arviz({"z": torch.zeros(2, 1, 3, 4)}, observed={"x": torch.zeros(1)}))
    assert set(tree.children) == {"posterior", "observed_data"}
    assert tree["posterior/z"].dims == ("chain", "draw", "datum", "z_dim_0", "z_dim_1")
    assert tree["observed_data/x"].dims == ("datum",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_to_arviz_converts_half_precision_tensors_with_gradients_to_float32(dtype: torch.dtype) -> None:
    z = torch.ones(K, N, dtype=dtype, requires_grad=True)
    assert as_tree(export(posterior={"z": z}))["posterior/z"].dtype == np.float32


def test_to_arviz_keeps_draws_that_are_not_finite() -> None:
    tree = as_tree(export(posterior={"z": torch.full((K, N), torch.inf)}))
    assert np.isinf(tree["posterior/z"]).all()


def test_importing_arviz_through_to_arviz_emits_no_warning(tmp_path: Path) -> None:
    code = "import torch; from pyrovae.runs.export import to_arviz;to_arviz({'z': torch.zeros(1, 1)}, observed={})"
    command = [sys.executable, "-W", "error:::arviz", "-c", code]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}  # where 0.23 keeps the day
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_netcdf_file_is_read_back_unchanged(tmp_path: Path) -> None:
    written, path = export(), tmp_path / "run.nc"
    write_netcdf(written, path)
    found = read(path)
    xr.testing.assert_identical(found, as_tree(written))
    assert found["posterior/z"].dtype == np.float32
    assert found["posterior/z"].encoding["zlib"]
    assert os.listdir(tmp_path) == ["run.nc"]

    content = path.read_bytes()
    write_netcdf(import_arviz().from_netcdf(path), path)  # read lazily from where it is written
    assert path.read_bytes() == content
    write_netcdf(as_tree(written), path)
    assert path.read_bytes() == content


def test_arviz_summarises_and_computes_loo(tmp_path: Path) -> None:
    arviz, path = import_arviz(), tmp_path / "run.nc"
    write_netcdf(export(), path)
    data = arviz.from_netcdf(path)
    summary = arviz.summary(data, var_names=["s"], kind="stats")
    assert len(summary) == N
    loo = arviz.loo(data)
    assert loo.n_data_points == N
    elpd = loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo
    log_p = parts()["log_likelihood"]["x"].double()
    # Plain importance sampling: 1 / mean(1 / p); its weights here are too even to need smoothing.
    plain = (np.log(K) - (-log_p).logsumexp(0)).sum().item()
    assert elpd == pytest.approx(plain, abs=0.01)


def test_write_netcdf_leaves_the_old_file_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "run.nc"
    path.write_text("old")
    data = to_arviz({"z": torch.randn(1000, 10)}, observed={"x": torch.zeros(10)})
    for limit in 20_000, 1:
        with largest_file(limit), pytest.raises(OSError, match="File too large") as refused:
            write_netcdf(data, path)
        remedy = "free space on the disk, or choose another folder"
        assert str(refused.value) == f"[Errno 27] cannot write {path}: File too large; {remedy}"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.nc"]


def test_write_netcdf_names_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "run.nc"
    with pytest.raises(FileNotFoundError, match=f"cannot write {path}"):
        write_netcdf(export(), path)


Z = torch.zeros(K, N)
REFUSED = {
    "no latent": ({"posterior": {}}, "at least one latent site, got none"),
    "no K": (
        {"posterior": {"z": torch.zeros(3)}},
        r"posterior\['z'\] must have shape \(K, N, \*event\), got \(3,\)",
    ),
    "other K": (
        {"posterior": {"z": Z, "y": torch.zeros(5, N, 2)}},
        r"posterior\['y'\] must have shape \(400, 3, 2\), .* first latent, got \(5, 3, 2\)",
    ),
    "other N": (
        {"observed": {"x": torch.zeros(4, 2, 2)}},
        r"observed\['x'\] must have shape \(3, 2, 2\), .* got \(4, 2, 2\)",
    ),
    "log-likelihood of each pixel": (
        {"log_likelihood": {"x": torch.zeros(K, N, 4)}},
        r"log_likelihood\['x'\] must have shape \(400, 3\), .* got \(400, 3, 4\)",
    ),
    "prior of other N": ({"prior": {"z": torch.zeros(5, 4, 2)}}, r"prior\['z'\] .* \(5, 3, 2\), .* got \(5, 4, 2\)"),
    "predictive draws without K": ({"prior_predictive": {"y": Z[0]}}, r"\['y'\] must have shape \(S, N, \*event\)"),
    "weights": ({"log_weights": Z.T}, r"log_weights must have .* got \(3, 400\)"),
    "stats": ({"stats": Stats(Z[0], Z[0], Z[0], Z)}, r"stats\.khat .* got \(400, 3\)"),
    "index": ({"data_index": torch.arange(2)}, r"data_index .* \(3,\), .* got \(2,\)"),
    "latent like a dim": ({"posterior": {"draw": Z}}, r"posterior\['draw'\] has the name of a dim"),
    "latent like an event dim": (
        {"posterior": {"z": Z[..., None], "z_dim": Z}},
        r"posterior\['z_dim'\] has the name of a dim",
    ),
    "too few names": (
        {"event_dims": {"x": ["row"]}},
        r"event_dims\['x'\] must give 2 names for event shape \(2, 4\), .* got \('row',\)",
    ),
    "too many names": ({"event_dims": {"z": ["a", "b"]}}, r"\['z'\] must give 1 names"),
    "a name twice": ({"event_dims": {"x": ["row", "row"]}}, "different from each other"),
    "a fixed name": ({"event_dims": {"x": ["row", "datum"]}}, "and from chain, draw, datum"),
    "names of no site": ({"event_dims": {"w": ["row"]}}, r"\['w'\], which no site has"),
    "two sizes of a dim": (
        {"posterior": {"z": torch.zeros(K, N, 2), "y": torch.zeros(K, N, 4)}}
        | {"event_dims": {"z": ["feature"], "y": ["feature"]}},
        "conflicting sizes for dimension 'feature'",
    ),
    "our attribute": ({"attrs": {"comment": "mine"}}, r"attrs\['comment'\] is reserved for to_arviz"),
    "an attribute": ({"attrs": {"run": None}}, r"attrs\['run'\] must be a str, .* got None"),
    "a truth value": ({"attrs": {"run": True}}, r"attrs\['run'\] must be a str, .* got True"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_to_arviz_refuses_invalid_arguments(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(**changes)
