"""Find the plate over the data among the plates of programs."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pyro import poutine

from pyrovae.densities.arguments import plain
from pyrovae.densities.handlers import check_unchanged
from pyrovae.densities.traces import Program, replay_draws, sample_sites


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
            program = replay_draws(programs[name], traces["guide"]) if traces else programs[name]
            with check_unchanged():
                traces[name] = poutine.trace(program).get_trace(*args, **kwargs)
    return traces


def given_sites(traces: Mapping[str, poutine.Trace]) -> frozenset[tuple[str, str]]:
    """List the observed sites, by program and name."""
    return frozenset(
        (program, name)
        for program, trace in traces.items()
        for name, site in sample_sites(trace).items()
        if site["is_observed"]
    )


def replaced_latents(trace: poutine.Trace) -> frozenset[str]:
    """List the latents of a model that `poutine.do` replaces.

    Such a site draws a value that nothing uses, so its density integrates to 1.
    """
    sites = sample_sites(trace).items()
    return frozenset(name for name, site in sites if site.get("_intervener_id") is not None and not site["is_observed"])


def unused_sites(traces: Mapping[str, poutine.Trace]) -> dict[str, frozenset[str]]:
    """List the latents that `poutine.do` replaces, and the guide's sites whose values are given in both programs.

    Args:
        traces: Traces of the model and the guide.
    """
    model, guide = (sample_sites(traces[name]) for name in ("model", "guide"))
    replaced = replaced_latents(traces["model"])
    given = {name for name, site in model.items() if site["is_observed"]} | replaced
    observed = {name for name, site in guide.items() if site["is_observed"]}
    return {"model": replaced - (guide.keys() - observed), "guide": frozenset(observed & given)}


def plates_of(traces: Mapping[str, poutine.Trace]) -> Plates:
    """List the plates around each sample site."""
    return {
        (program, name): {f.dim: Plate(f.name, f.size, f.full_size) for f in site["cond_indep_stack"] if f.vectorized}
        for program, trace in reversed(list(traces.items()))  # the model first, so that messages name its sites
        for name, site in sample_sites(trace).items()
    }


class DataPlate(NamedTuple):
    """The plate over the data.

    Attributes:
        dim: Dim of the plate.
        size: Number of its rows in this run.
        outside: Given sites outside the plate, by program and name.
    """

    dim: int
    size: int
    outside: frozenset[tuple[str, str]] = frozenset()


def find_data_plate(
    plates: Plates,
    num_data: int | None,
    name: str | None = None,
    given: Collection[tuple[str, str]] = (),
    replaced: Collection[str] = (),
) -> DataPlate:
    """Find the data plate: the plate with this name, or the one around all sites with the size of the data.

    Args:
        plates: Plates around each site.
        num_data: Number of data N of the run; None if the programs hold their data themselves.
        name: Name of the plate; None to find it by its size.
        given: Sites that may lie outside the plate, by program and name: those with a given value.
        replaced: Names of latents that `poutine.do` replaces in the model, for error messages.

    Raises:
        ValueError: If no plate or more than one fits. The message names the first site outside.
    """
    if not plates:
        raise ValueError("the model needs a sample site, but has none; call pyro.sample inside a plate over the data")
    dims, common, outside = _fitting_dims(plates, num_data, name, given)
    if len(common) == 1:
        dim = common.pop()
        names = {(program, plates[program, site][dim].name) for program, site in plates.keys() - set(given)}
        others = {(program, site) for program, site in given if (program, site) not in outside}
        if any(program == "model" for program, _ in names):
            outside |= {key for key in others if (key[0], plates[key][dim].name) not in names}
        inside = next(key for key in plates if key not in outside)
        return DataPlate(dim, num_data or plates[inside][dim].size, outside)
    names_of_all = sorted({plates[key][dim].name for key in plates.keys() - outside for dim in common})
    if names_of_all:
        raise ValueError(
            f"plates {names_of_all} all may be over the data{'' if num_data is None else f', {num_data}'}; name the "
            f"one over the data, as in plate={names_of_all[0]!r}"
        )
    for program, site in sorted(plates, key=lambda key: key in given):  # a stable order: given sites last
        found = plates[program, site]
        if not dims[program, site]:
            _refuse_subsampling(site, program, found, num_data)
            others_around = ", ".join(f"{plate.name!r} of size {plate.size}" for plate in found.values())
            data = "data" if num_data is None else f"{num_data} data"
            inside_of = f", only in {others_around}" if others_around else ""
            known = site in replaced or (program == "guide" and ("model", site) in given)
            remedy = (
                f"the model is given its value, so write poutine.block(guide, hide=[{site!r}]) in place of the guide, "
                f"or poutine.condition(guide, data={{{site!r}: ...}}) if other sites of the guide depend on it"
                if known
                else "move it inside, make it a parameter, give its value by poutine.condition, or use log_evidence "
                "for all data"
            )
            raise ValueError(
                f"site {site!r} of the {'guide' if known else program} lies outside a plate over the "
                f"{data}{inside_of}, so log p(x_n) is not defined per datum; {remedy}"
            )
    one = next(iter(plates))
    other = next(key for key in plates if not dims[key] & dims[one])
    raise ValueError(
        f"site {other[1]!r} of the {other[0]} lies in plate {_names(plates[other])}, site {one[1]!r} of the {one[0]} "
        f"in {_names(plates[one])}; put every site into one plate over the data, at the same dim"
    )


def is_ambiguous(
    plates: Plates, num_data: int, name: str | None = None, given: Collection[tuple[str, str]] = ()
) -> bool:
    """Return whether several plates may be the one over N data, as `find_data_plate` finds it."""
    return bool(plates) and len(_fitting_dims(plates, num_data, name, given)[1]) > 1


def _fitting_dims(
    plates: Plates, num_data: int | None, name: str | None, given: Collection[tuple[str, str]]
) -> tuple[dict[tuple[str, str], set[int]], set[int], frozenset[tuple[str, str]]]:
    """Find the dims of each site's plates that may be over the data.

    Returns:
        The dims by site, those that are common to all sites inside the plate, and the given sites outside it.
    """
    dims = {key: {dim for dim, plate in found.items() if _fits(plate, num_data, name)} for key, found in plates.items()}
    drawn = [dims[key] for key in plates if key not in given]
    core = set.intersection(*drawn) if drawn else set.union(*dims.values())
    outside = frozenset(key for key in given if not dims[key] & core) if core else frozenset()
    return dims, set.intersection(*(found for key, found in dims.items() if key not in outside)), outside


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
