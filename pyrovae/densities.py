"""Per-datum log densities of Pyro programs, ours or the reader's own.

A program signs a contract: every sample site lies inside one plate over the data at dim -1. Particles take dim -2.
Everything here follows from the traces alone; nothing asks what a prior or a likelihood is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import unwrap
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

Program = Callable[..., Any]

_PARTICLES = "_pyrovae_particles"
_STRANGE_DRAWS = 100  # to look for sites without a density
_WRAPPERS = (dist.Independent, dist.MaskedDistribution, ExpandedDistribution)


def log_joint(model: Program, latents: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
    r"""Evaluate log p(x_n, z_kn) at given latents.

    Args:
        model: Pyro program p(z) p(x|z).
        latents: A value for each latent site, with shape (K, N, ...).
        *args: Arguments of the model, the data first, with shape (N, ...).
        **kwargs: Its keyword arguments.

    Returns:
        Log densities in nats, with shape (K, N).

    Raises:
        ValueError: If a latent site has no value or a value no site, or the program breaks the contract.
    """
    if not latents:
        raise ValueError("latents is empty; give a value of shape (K, N, ...) for each latent site")
    num_particles = next(iter(latents.values())).shape[0]
    for name, value in latents.items():
        if value.dim() < 2 or value.shape[0] != num_particles:
            raise ValueError(
                f"latent {name!r} has shape {tuple(value.shape)}; expected ({num_particles}, N, ...), one K for all"
            )
    conditioned = poutine.condition(model, data=dict(latents))
    trace = trace_with_particles(conditioned, num_particles, *args, **kwargs)
    sites = sample_sites(trace)
    for name in latents:
        if name not in sites:
            raise ValueError(f"the model has no site {name!r}; its sites are {list(sites)}")
    for name, site in sites.items():
        if not site["is_observed"]:
            raise ValueError(f"latents gives no value for site {name!r}; give one of shape (K, N, ...)")
    return trace_log_density(trace, num_particles, "model")[0]


def log_weights(model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any) -> Tensor:
    r"""Draw latents from the guide and return their log importance weights, per datum.

    log w_kn = log p(x_n, z_kn) - log q(z_kn | x_n),   z_kn ~ q(z | x_n).

    The mean over k estimates the ELBO of datum n, the log-mean-exp over k bounds log p(x_n) from below (Burda, Grosse,
    Salakhutdinov 2016, https://arxiv.org/abs/1509.00519). Differentiable by the pathwise gradient.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        num_particles: K, the draws per datum.
        **kwargs: Keyword arguments of both.

    Returns:
        Log weights in nats, with shape (K, N).

    Raises:
        ValueError: If num_particles is below 1, the sites do not lie inside one plate over the data, one carries a
            scale other than one, or the guide's sites are not the model's latents, each under the same mask.
    """
    return log_weights_and_latents(model, guide, *args, num_particles=num_particles, **kwargs)[0]


def log_weights_and_latents(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Do as `log_weights`, and return the draws and the likelihood too.

    Returns:
        Log weights, with shape (K, N); the latents by site, with shape (K, N, ...); and log p(x|z), the log density of
        the observed sites, with shape (K, N). All in nats.

    Raises:
        ValueError: As `log_weights`.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")
    guide_trace = trace_with_particles(guide, num_particles, *args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = trace_with_particles(replayed, num_particles, *args, **kwargs)
    drawn = matched_latents(model_trace, guide_trace)
    log_p, log_lik = trace_log_density(model_trace, num_particles, "model")
    log_q, _ = trace_log_density(guide_trace, num_particles, "guide")
    if log_p.shape != log_q.shape:
        raise ValueError(f"the model has {log_p.shape[1]} data, the guide {log_q.shape[1]}; give both the same data")
    latents = {name: site["value"] for name, site in drawn.items()}
    latents = {name: value.expand(num_particles, log_p.shape[1], *value.shape[2:]) for name, value in latents.items()}
    return log_p - log_q, latents, log_lik


def trace_log_density(trace: poutine.Trace, num_particles: int, program: str) -> tuple[Tensor, Tensor]:
    """Sum the log densities of a trace's sites, per particle and datum.

    Args:
        trace: Trace of a program run inside the plate of particles.
        num_particles: K.
        program: "model" or "guide", for messages.

    Returns:
        Log densities of all sites, and of the observed sites alone, in nats, each with shape (K, N).

    Raises:
        ValueError: If the sites do not lie inside one plate at dim -1, or one carries a scale other than one.
    """
    total: dict[bool, Tensor | float] = {True: 0.0, False: 0.0}
    plate = None
    for name, site in sample_sites(trace).items():
        frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
        if -1 not in frames:
            raise ValueError(
                f"site {name!r} of the {program} lies outside a plate over the data at dim -1, so log p(x_n) of one "
                "datum is not defined; move it inside, or make it a parameter"
            )
        plate = plate or frames[-1]
        if (frames[-1].name, frames[-1].size) != (plate.name, plate.size):
            raise ValueError(
                f"site {name!r} of the {program} lies in plate {frames[-1].name!r} of size {frames[-1].size}, others "
                f"in {plate.name!r} of size {plate.size}; put every site into one plate over the data"
            )
        if not _is_one(site["scale"]):
            raise ValueError(
                f"site {name!r} of the {program} carries scale {site['scale']} (poutine.scale or a subsampling plate), "
                "which is no density; remove it here, and weight the objective instead"
            )
        log_p = site_log_density(site)
        if log_p.dim() > 2:
            raise ValueError(
                f"site {name!r} of the {program} has log density of shape {tuple(log_p.shape)}; expected (K, N) = "
                f"({num_particles}, {plate.size}). Call .to_event on what belongs to one datum"
            )
        total[site["is_observed"]] = total[site["is_observed"]] + log_p
    if plate is None:
        raise ValueError(f"the {program} has no sample site; write pyro.sample inside a plate at dim -1")
    shape = (num_particles, plate.size)
    return torch.as_tensor(total[True] + total[False]).expand(shape), torch.as_tensor(total[True]).expand(shape)


def site_log_density(site: Mapping[str, Any]) -> Tensor:
    """The log density of one site of a trace, in nats, its mask heeded, its scale not."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def take_kl_weight(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> float | Tensor | None:
    """Take the weight of the KL divergence (`temper`) off the latent sites of both programs' traces.

    Returns:
        The one scale that all latents carry in both programs; None where it is the number 1.

    Raises:
        ValueError: If they carry different ones.
    """
    latents = [
        (program, name, site)
        for program, trace in (("model", model_trace), ("guide", guide_trace))
        for name, site in sample_sites(trace).items()
        if not site["is_observed"]
    ]
    if not latents:
        return None
    weight = latents[0][2]["scale"]
    for program, name, site in latents:
        scale = site["scale"]
        # The very same tensor needs no look at its value, so that this can be recorded.
        if scale is not weight and not bool(torch.as_tensor(scale == weight).all()):
            raise ValueError(
                f"site {name!r} of the {program} carries scale {scale}, site {latents[0][1]!r} of the model {weight}; "
                "a weight of the KL divergence is one and the same for all latents of both programs (`temper`)"
            )
        site["scale"] = 1.0
    return None if not isinstance(weight, Tensor) and weight == 1 else weight


def matched_latents(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[str, Any]:
    """The guide's sites, after seeing that they are the model's latents, each under the same mask."""
    drawn = sample_sites(guide_trace)
    wanted = {name: site for name, site in sample_sites(model_trace).items() if not site["is_observed"]}
    for name in wanted:
        if name not in drawn:
            raise ValueError(
                f"the guide does not draw site {name!r} of the model; it draws {sorted(drawn)}. Give both the same "
                "latent sites"
            )
    for name, site in drawn.items():
        if site["is_observed"] or name not in wanted:
            raise ValueError(
                f"site {name!r} of the guide is no latent of the model, which has {sorted(wanted)}; weights over "
                "auxiliary or observed sites of a guide are not those of log p(x). Take it out of the guide"
            )
        ours, theirs = tuple(site["fn"].event_shape), tuple(wanted[name]["fn"].event_shape)
        if ours != theirs:
            raise ValueError(
                f"site {name!r} has an event {_of(ours)} in the guide and {_of(theirs)} in the model; make the "
                "encoder's latent as large as the prior's"
            )
        if not _same_mask(site["mask"], wanted[name]["mask"]):
            raise ValueError(
                f"site {name!r} carries one mask in the model and another in the guide, so their densities are not of "
                "the same latents; mask it alike in both"
            )
    return drawn


def _brief(support: Any) -> str:
    """A constraint's name, with its bounds where it has some; they are equal for all data."""
    bounds = [v.flatten()[0].item() if isinstance(v, Tensor) else v for v in vars(support).values()]
    numbers = [f"{bound:g}" for bound in bounds if isinstance(bound, int | float) and not isinstance(bound, bool)]
    name = type(support).__name__.strip("_")
    return f"{name}({', '.join(numbers)})"


def _of(shape: tuple[int, ...]) -> str:
    return f"of {shape[0]}" if len(shape) == 1 else f"{shape}"


def _same_mask(one: Any, other: Any) -> bool:
    one, other = (True if mask is None else mask for mask in (one, other))
    if isinstance(one, bool) and isinstance(other, bool):
        return one == other
    return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())


class SupportError(ValueError):
    """A datum lies outside the support.

    Attributes:
        datum: Its number.
    """

    def __init__(self, message: str, datum: int) -> None:
        super().__init__(message)
        self.datum = datum


def check_support(model: Program, *args: Any, guide: Program | None = None, first: int = 0, **kwargs: Any) -> None:
    """See that the observed values lie in the support of the distributions that the model gives them.

    A support that differs from datum to datum, since it depends on latents, is left to the density.

    Args:
        model: Pyro program p(z) p(x|z); it is run once, and the random state is restored.
        *args: Its arguments, the data first, with shape (N, ...).
        guide: Program to draw the latents from; None for the model itself.
        first: The number that the first of these data has for the reader.
        **kwargs: Keyword arguments of both.

    Raises:
        SupportError: Naming the site, the first datum outside, and what to do.
    """
    programs = (model,) if guide is None else (model, guide)
    with evaluating(*programs), isolated_rng(), pyro.validation_enabled(False):
        if guide is not None:
            model = poutine.replay(model, trace=poutine.trace(guide).get_trace(*args, **kwargs))
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    for name, site in sample_sites(trace).items():
        if site["is_observed"] and site["mask"] is not False:
            _check_site(name, site["fn"], site["value"], site["mask"], first)


def _check_site(name: str, fn: Any, value: Tensor, mask: Any, number: int) -> None:
    entry, masks = fn, [mask]
    while isinstance(entry, _WRAPPERS):  # down to single entries, so that the message can name one
        masks.append(getattr(entry, "_mask", None))
        entry = entry.base_dist
    support = entry.support
    bounds = [bound for bound in vars(support).values() if isinstance(bound, Tensor) and bound.numel() > 1]
    if any(bool((bound != bound.flatten()[0]).any()) for bound in bounds) or any(m is False for m in masks):
        return
    inside = support.check(value)
    if value.is_floating_point():
        finite = torch.isfinite(value)
        inside = inside & (finite.flatten(inside.dim()).all(-1) if finite.dim() > inside.dim() else finite)
    for observed in masks:
        if isinstance(observed, Tensor):
            spread = observed.reshape(observed.shape + (1,) * (inside.dim() - observed.dim()))
            inside = inside | ~spread
    if bool(inside.all()):
        return
    outside = (~inside).nonzero()
    first = outside[0].tolist()
    worst = value[tuple(first)]
    where = f"datum {number + first[0]}" + (f", entry {first[1]}" if len(first) == 2 else "")
    shown = f"{worst.item():g}" if worst.dim() == 0 else f"{worst.tolist()}"
    hint = "give data in the support, or another likelihood"
    if support is constraints.boolean and bool(((value >= 0) & (value <= 1)).all()):
        hint = (
            "these are grey values: binarise them (--binarize dynamic or static), or take a density for them, "
            "ContinuousBernoulliLikelihood"
        )
    raise SupportError(
        f"site {name!r}: {len(outside):,} of {inside.numel():,} values lie outside the support of "
        f"{type(entry).__name__}, {_brief(support)}; the first is {shown} at {where}; {hint}",
        number + first[0],
    )


def check_weights(
    log_w: Tensor, model: Program, guide: Program | None, *args: Any, first: int = 0, **kwargs: Any
) -> None:
    """See that no log weight is NaN or +inf.

    Args:
        log_w: With shape (K, N).
        model: Pyro program whose weights they are.
        guide: Pyro program; None where it has no part in them.
        *args: Arguments of both.
        first: The number that the first of these data has for the reader.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: Naming the first such datum, and the sites whose density shows it at a draw.
    """
    largest = log_w.detach().amax(0)  # nan if one weight is
    bad = largest.isnan() | (largest == torch.inf)
    if not bool(bad.any()):
        return
    datum = int(bad.nonzero()[0])
    sites = strange_sites(model, guide, args, kwargs, datum)
    where = f"the density of {' and '.join(sites)} is not finite there" if sites else "draws of now do not show where"
    raise ValueError(
        f"the log weights of datum {first + datum} are {'NaN' if bool(largest[datum].isnan()) else 'unbounded'} "
        f"({int(bad.sum()):,} of {len(bad):,} data); {where}; look for data or parameters that are NaN, or a scale "
        "that went to zero"
    )


def strange_sites(
    model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], datum: int | None = None
) -> list[str]:
    """The sites whose log density is NaN or +inf at draws of now, the guide's first; else those where it is -inf.

    Args:
        model: Pyro program.
        guide: Pyro program; None for the model alone.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        datum: The datum to look at; None for all.
    """
    undefined, impossible = [], []
    programs = (model,) if guide is None else (model, guide)
    with suppress(Exception), evaluating(*programs), isolated_rng(), pyro.validation_enabled(False):
        drawn = trace_with_particles(model if guide is None else guide, _STRANGE_DRAWS, *args, **kwargs)
        scored = trace_with_particles(poutine.replay(model, trace=drawn), _STRANGE_DRAWS, *args, **kwargs)
        for program, trace in (("guide", None if guide is None else drawn), ("model", scored)):
            for name, site in ({} if trace is None else sample_sites(trace)).items():
                log_p = site["fn"].log_prob(site["value"])
                log_p = log_p if datum is None or not log_p.dim() else log_p[..., datum]
                if bool((log_p.isnan() | (log_p == torch.inf)).any()):
                    undefined.append(f"site {name!r} of the {program}")
                elif not bool(log_p.isfinite().all()):
                    impossible.append(f"site {name!r} of the {program}")
    return undefined or impossible


@contextmanager
def evaluating(*programs: Program) -> Iterator[None]:
    """Switch the modules among the programs to evaluation mode (no dropout) without gradients, and back at the end."""
    modules = [module for program in programs for module in modules_of(program)]
    was_training = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in was_training:
            module.training = mode


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore torch's random states at the end; start from a seed where one is given."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def module_of(program: Program) -> list[nn.Module]:
    """List the torch modules a program is: itself, or the object whose bound method it is, under any handlers."""
    program = unwrap(program)
    while isinstance(program, partial):
        program = unwrap(program.func)
    owner = getattr(program, "__self__", program)
    return [owner] if isinstance(owner, nn.Module) else []


def modules_of(program: Program) -> list[nn.Module]:
    """List the torch modules a program can reach: what it is, closes over, is bound to, or names among its globals."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def visit(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif isinstance(thing, partial):
            for part in (unwrap(thing), thing.func, *thing.args, *thing.keywords.values()):
                visit(part)
        elif isinstance(thing, MethodType):
            owner = thing.__self__
            visit(owner)
            if not isinstance(owner, nn.Module):
                for value in getattr(owner, "__dict__", {}).values():
                    visit(value)
            visit(thing.__func__)
        elif isinstance(thing, FunctionType) and not thing.__module__.startswith(("torch", "pyro.")):
            for cell in thing.__closure__ or ():
                visit(cell.cell_contents)
            for name in thing.__code__.co_names:
                visit(thing.__globals__.get(name))
        elif isinstance(thing, list | tuple):
            for part in thing:
                visit(part)
        elif isinstance(thing, dict):
            for part in thing.values():
                visit(part)

    visit(program)
    return list(found.values())


def trace_with_particles(program: Program, num_particles: int, *args: Any, **kwargs: Any) -> poutine.Trace:
    """Run a program inside a plate of K particles at dim -2, and trace it."""
    with pyro.plate(_PARTICLES, num_particles, dim=-2):
        return poutine.trace(program).get_trace(*args, **kwargs)


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites of a trace by name, in order, without those of plates and of pyro.deterministic."""
    return {
        name: site
        for name, site in dict[str, Any](trace.nodes).items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _is_one(scale: Any) -> bool:
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1
