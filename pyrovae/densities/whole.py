"""Programs whose whole data set counts as one datum, with particles left of all plates."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.densities.arguments import plain
from pyrovae.densities.auxiliary import auxiliary_sites, check_spread, set_up_auto_guides
from pyrovae.densities.handlers import check_unchanged
from pyrovae.densities.layout import Layout
from pyrovae.densities.modules import evaluating
from pyrovae.densities.rng import isolated_rng
from pyrovae.densities.sum_checks import difference_of_sums, reason_against_sums, summable_latents
from pyrovae.densities.traces import ParticleTrace, Program, sample_sites
from pyrovae.densities.vectorized import VectorizedProgram, stack_latents
from pyrovae.densities.ways import relative_difference, rounding_of

_DRAWS = 2
_SUM_ROUNDING = 1e-3  # relative


def vectorize_whole(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[VectorizedProgram, VectorizedProgram]:
    """Make a model and a guide run on K draws for the whole data set, as one datum.

    Both programs run a few times, in evaluation mode, and the random state is restored. Their log densities on draws
    at once are compared with those of single runs.

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
        single = [_single_run(raw, args, kwargs) for _ in range(_DRAWS)]
        depth = max([1, *(-dim for traces in single for trace in traces.values() for dim in _dims(trace))])
        pair = (
            VectorizedProgram(raw["model"], "model", "whole", depth, None, False),
            VectorizedProgram(raw["guide"], "guide", "whole", depth, None, False, auxiliaries=auxiliaries),
        )
        latents = _check(pair, single, args, kwargs)
        return _with_sums(pair[0], single[0], latents, args, kwargs), pair[1]


def _with_sums(
    model: VectorizedProgram,
    traces: Mapping[str, poutine.Trace],
    latents: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> VectorizedProgram:
    """Sum out the discrete latents that the guide does not draw."""
    summed = summable_latents(traces["model"], traces["guide"])
    if not summed:
        return model
    if difference_of_sums(model, summed, latents, args, kwargs) > _SUM_ROUNDING:
        raise ValueError(reason_against_sums(summed))
    return replace(model, summed=summed, discrete=summed)


def _raw(program: Program) -> Program:
    return program.program if isinstance(program, VectorizedProgram) else program


def _single_run(
    programs: Mapping[str, Program], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, poutine.Trace]:
    """Run the guide, and the model on its draws, without particles."""
    with check_unchanged():
        guide = poutine.trace(programs["guide"]).get_trace(*args, **kwargs)
        model = poutine.trace(poutine.replay(programs["model"], trace=guide)).get_trace(*args, **kwargs)
    return {"model": model, "guide": guide}


def _dims(trace: poutine.Trace) -> list[int]:
    return [f.dim for site in sample_sites(trace).values() for f in site["cond_indep_stack"] if f.vectorized]


def _check(
    pair: tuple[VectorizedProgram, VectorizedProgram],
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
            ParticleTrace(each[program.name], layout, program.name, determined_by=determined) for each in single
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
                f"the {program.name} {reason}; count its dims from the right, as in z.sum(-1), since draws lie left of "
                "all plates, and draw all random numbers by pyro.sample"
            )
    return latents


def _reason_against_draws(
    program: VectorizedProgram,
    latents: Mapping[str, Tensor],
    singles: list[ParticleTrace],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | None:
    """Say how a run on draws at once departs from the single runs; None if their log densities agree."""
    expected = torch.cat([trace.unscaled_log_density() for trace in singles])
    try:
        trace = program.trace(_DRAWS, args, kwargs, latents)
        found = trace.unscaled_log_density()
    except Exception as error:
        said = " ".join(str(error).partition("\n")[0].split())
        return f"fails on several draws at once ({type(error).__name__}: {said})"
    if relative_difference(found.double(), expected.double()) <= rounding_of(expected):
        return None
    for name, site in trace.sites.items():
        densities = [each.sites[name].log_density() for each in singles if name in each.sites]
        alone = torch.cat(densities) if len(densities) == _DRAWS else torch.full_like(found, torch.nan)
        if relative_difference(site.log_density().double(), alone.double()) > rounding_of(alone):
            return f"gives site {name!r} another log density on several draws at once than on single draws"
    return "gives other log densities on several draws at once than on single draws"
