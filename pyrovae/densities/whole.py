"""Programs whose whole data set counts as one datum, with particles left of all plates."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.arguments import plain
from pyrovae.densities.auxiliary import auxiliary_sites, check_spread, set_up_auto_guides
from pyrovae.densities.coverage import missed_mass
from pyrovae.densities.data_plate import plates_of, run_once, unused_sites
from pyrovae.densities.layout import Layout
from pyrovae.densities.modules import evaluating
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.sum_checks import difference_of_sums, reason_against_sums, summable_latents
from pyrovae.densities.traces import ParticleTrace, Program, sample_sites
from pyrovae.densities.vectorized import VectorizedProgram, stack_latents
from pyrovae.densities.ways import relative_difference, rounding_of

_DRAWS = 2
_SUM_ROUNDING = 1e-3  # relative

Pair = tuple[VectorizedProgram, VectorizedProgram]


class LoopedWarning(UserWarning):
    """A program uses dimensions by their position, so that it runs once per draw of the whole data set."""


def vectorize_whole(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[VectorizedProgram, VectorizedProgram]:
    """Make a model and a guide run on K draws for the whole data set, as one datum.

    Both programs run a few times, in evaluation mode, and the random state is restored. Their log densities on draws
    at once are compared with those of single runs. If they differ, the programs run once per draw instead.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        args: Positional arguments of both programs.
        kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If the log densities differ from those of single runs, or the guide is a point mass.
    """
    raw = {"model": _raw(model), "guide": _raw(guide)}
    args, kwargs = plain(args, kwargs)
    with evaluating(*raw.values()), isolated_rng(), pyro.validation_enabled(False), poutine.block():
        set_up_auto_guides(raw["guide"], args, kwargs)
        auxiliaries = auxiliary_sites(raw["guide"])
        check_spread(auxiliaries)
        single = [run_once(raw, args, kwargs) for _ in range(_DRAWS)]
        _check_plates(single[0])
        depth = max([1, *(-dim for traces in single for trace in traces.values() for dim in _dims(trace))])
        left_out = unused_sites(single[0])
        pair = (
            VectorizedProgram(raw["model"], "model", "whole", depth, None, False, left_out=left_out["model"]),
            VectorizedProgram(
                raw["guide"],
                "guide",
                "whole",
                depth,
                None,
                False,
                auxiliaries=auxiliaries,
                left_out=left_out["guide"],
            ),
        )
        try:
            model, guide = _checked(pair, single, args, kwargs)
        except Exception:
            looped = replace(pair[0], how="looped"), replace(pair[1], how="looped")
            model, guide = _checked(looped, single, args, kwargs)
            _warn_of_loop()
        return model, replace(guide, missed=missed_mass(model, guide, args, kwargs))


def _checked(
    pair: Pair, single: list[dict[str, poutine.Trace]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Pair:
    """Check a pair on draws, and sum out the discrete latents that the guide does not draw."""
    model, guide = pair
    latents = _check(pair, single, args, kwargs)
    summed = summable_latents(single[0]["model"], single[0]["guide"]) - model.left_out
    if not summed:
        return pair
    try:
        difference = difference_of_sums(model, summed, latents, args, kwargs)
    except Exception as error:
        raise ValueError(reason_against_sums(summed, error)) from error
    if difference > _SUM_ROUNDING:
        raise ValueError(reason_against_sums(summed))
    return replace(model, summed=summed, discrete=summed), guide


def _warn_of_loop() -> None:
    warnings.warn(
        "the programs use dimensions by their position (such as softmax(dim=1) or topics[k]), so a plate of particles "
        "would change their densities; they run once per draw instead, which gives the right densities but takes more "
        "time; count dims from the right, and index tensors by Vindex(tensor)[..., site, :], for speed",
        LoopedWarning,
        stacklevel=2,
    )


def _raw(program: Program) -> Program:
    return program.program if isinstance(program, VectorizedProgram) else program


def _check_plates(traces: Mapping[str, poutine.Trace]) -> None:
    """Raise a ValueError if a plate draws some of its rows."""
    for (program, site), found in plates_of(traces).items():
        for plate in found.values():
            if plate.size != -1 and plate.size < plate.full_size:
                raise ValueError(
                    f"site {site!r} of the {program} lies in plate {plate.name!r}, which draws {plate.size} of "
                    f"{plate.full_size} rows, so its scaled value is no log density; remove subsample_size"
                )


def _dims(trace: poutine.Trace) -> list[int]:
    return [f.dim for site in sample_sites(trace).values() for f in site["cond_indep_stack"] if f.vectorized]


def _check(
    pair: Pair,
    single: list[dict[str, poutine.Trace]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Compare the log densities of a run on draws at once with those of single runs, and return their latents."""
    guide = pair[1]
    determined = {latent: name for name, site in guide.auxiliaries.items() for latent in site.prototypes}
    layout = Layout(1, 1, -1 - guide.depth, None)
    singles = {
        program.name: [
            ParticleTrace(each[program.name], layout, program.name, determined_by=determined, left_out=program.left_out)
            for each in single
        ]
        for program in pair
    }
    latents = stack_latents(
        *({n: site.value for n, site in {**m.draws, **g.draws}.items()} for m, g in zip(*singles.values(), strict=True))
    )
    for program in pair:
        reason = _reason_against_draws(program, latents, singles[program.name], args, kwargs)
        if reason is not None:
            raise ValueError(
                f"the {program.name} {reason}, so it draws random numbers outside its sample sites; draw them by "
                "pyro.sample, or compute them once outside the program"
            )
    return latents


def _reason_against_draws(
    program: VectorizedProgram,
    latents: Mapping[str, Tensor],
    singles: list[ParticleTrace],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | None:
    """Say how a run on the same draws departs from the single runs; None if their log densities agree."""
    expected = torch.cat([trace.unscaled_log_density() for trace in singles])
    trace = program.trace(_DRAWS, args, kwargs, latents)
    found = trace.unscaled_log_density()
    if relative_difference(found.double(), expected.double()) <= rounding_of(expected):
        return None
    for name, site in trace.sites.items():
        densities = [each.sites[name].log_density() for each in singles if name in each.sites]
        alone = torch.cat(densities) if len(densities) == _DRAWS else torch.full_like(found, torch.nan)
        if relative_difference(site.log_density().double(), alone.double()) > rounding_of(alone):
            return f"gives site {name!r} another log density in a second run at the same latents"
    return "gives other log densities in a second run at the same latents"
