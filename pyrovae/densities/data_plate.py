"""Find the plate over the data among the plates of programs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyro import poutine

from pyrovae.densities.arguments import plain
from pyrovae.densities.handlers import check_unchanged
from pyrovae.densities.traces import Program, sample_sites


class Plate(NamedTuple):
    """Plate around a site.

    Attributes:
        name: Name of the plate.
        size: Number of rows in this run; -1 if it has no size.
        full_size: Number of rows that it subsamples from.
    """

    name: str
    size: int
    full_size: int


# By program and site, the plates around the site by dim.
Plates = Mapping[tuple[str, str], Mapping[int, Plate]]


def run_once(
    programs: Mapping[str, Program], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, poutine.Trace]:
    """Run the programs once, the model on the guide's latents, and return their traces.

    Args:
        programs: The programs "model" and, if any, "guide".
        args: Positional arguments of the programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of the programs.
    """
    args, kwargs = plain(args, kwargs)
    traces: dict[str, poutine.Trace] = {}
    for name in ("guide", "model"):
        if name in programs:
            program = poutine.replay(programs[name], trace=traces["guide"]) if traces else programs[name]
            with check_unchanged():
                traces[name] = poutine.trace(program).get_trace(*args, **kwargs)
    return traces


def plates_of(traces: Mapping[str, poutine.Trace]) -> Plates:
    """List the plates around each sample site."""
    return {
        (program, name): {f.dim: Plate(f.name, f.size, f.full_size) for f in site["cond_indep_stack"] if f.vectorized}
        for program, trace in reversed(list(traces.items()))  # the model first, so that messages name its sites
        for name, site in sample_sites(trace).items()
    }


def find_data_plate(plates: Plates, num_data: int | None, name: str | None = None) -> tuple[int, int]:
    """Find the data plate: the plate with this name, or the one around all sites with the size of the data.

    Args:
        plates: Plates around each site.
        num_data: Number of data N of the run; None if the programs hold their data themselves.
        name: Name of the plate; None to find it by its size.

    Returns:
        The dim of the plate, and its size.

    Raises:
        ValueError: If no plate or more than one fits. The message names the first site outside.
    """
    if not plates:
        raise ValueError("the model needs a sample site, but has none; call pyro.sample inside a plate over the data")
    dims = {key: {dim for dim, plate in found.items() if _fits(plate, num_data, name)} for key, found in plates.items()}
    common = set.intersection(*dims.values())
    if len(common) == 1:
        dim = common.pop()
        return dim, num_data or next(iter(plates.values()))[dim].size
    names = sorted({plates[key][dim].name for key in plates for dim in common})
    if names:
        raise ValueError(
            f"plates {names} all may be over the data{'' if num_data is None else f', {num_data}'}; name the one over "
            f"the data, as in plate={names[0]!r}"
        )
    for (program, site), found in plates.items():
        if not dims[program, site]:
            _refuse_subsampling(site, program, found, num_data)
            others = ", ".join(f"{plate.name!r} of size {plate.size}" for plate in found.values())
            data = "data" if num_data is None else f"{num_data} data"
            inside = f", only in {others}" if others else ""
            raise ValueError(
                f"site {site!r} of the {program} lies outside a plate over the {data}{inside}, so log p(x_n) "
                "is not defined per datum; move it inside, make it a parameter, or use log_evidence for all data"
            )
    one = next(iter(plates))
    other = next(key for key in plates if not dims[key] & dims[one])
    raise ValueError(
        f"site {other[1]!r} of the {other[0]} lies in plate {_names(plates[other])}, site {one[1]!r} of the {one[0]} "
        f"in {_names(plates[one])}; put every site into one plate over the data, at the same dim"
    )


def _refuse_subsampling(site: str, program: str, found: Mapping[int, Plate], num_data: int | None) -> None:
    for plate in found.values():
        if plate.size < plate.full_size == num_data:
            raise ValueError(
                f"site {site!r} of the {program} carries scale {plate.full_size / plate.size:g} by the subsampling "
                f"plate {plate.name!r}, so its value is no log density; give the plate all data, and let fit make the "
                "batches"
            )


def _fits(plate: Plate, num_data: int | None, name: str | None) -> bool:
    right_size = plate.size > 0 if num_data is None else plate.size in (-1, num_data)
    return right_size and (name is None or plate.name == name)


def _names(found: Mapping[int, Plate]) -> str:
    return " and ".join(f"{plate.name!r} at dim {dim}" for dim, plate in sorted(found.items()))
