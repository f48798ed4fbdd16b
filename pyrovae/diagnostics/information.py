"""Information of the latents about the data, and the distance of the aggregate posterior from the prior."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import ParticleTrace, Program, entry, matched_latents
from pyrovae.diagnostics.active_units import depends_on_datum
from pyrovae.diagnostics.draws import DRAWS_AT_ONCE, Pair, RealLatents, by_dimension, evaluation, flat, make_pair
from pyrovae.diagnostics.kl import mean_and_error

MAX_DATA = 3000

_NEAR_CAP = 1.0  # nats below log N, from which the lower end says little
_NUMBERS_AT_ONCE = 2**20  # log densities of pairs held at once
_ROUNDING = 1e-4  # of log densities, relative
_COMPARED = 200  # data at which densities are compared


class Ends(NamedTuple):
    """Lower and upper end of a quantity in nats, each scalar or with shape (J,), float64.

    In expectation the quantity lies between the two, for a new sample of N data.

    Attributes:
        lower: Lower end.
        upper: Upper end.
        lower_error: Standard error of lower over data and draws.
        upper_error: Standard error of upper.
    """

    lower: Tensor
    upper: Tensor
    lower_error: Tensor
    upper_error: Tensor


class Information(NamedTuple):
    """Information of the latents in nats, float64 on the CPU; q(z) is the mean of q(z|x) over the population of data.

    The three means over draws with the own datum in the mixture add up exactly:
    kl = information.lower + within[0] + sum_j within[1][j] + prior_dependence.

    Attributes:
        num_data: Number of data N in the mixtures.
        labels: Name of each real latent dimension, such as "z[0]".
        kl: Mean of KL(q(z|x), p(z)) from these draws.
        kl_error: Standard error of kl.
        information: Mutual information I_q(x; z), scalar ends. The lower end is at most log N.
        aggregate_kl: KL(q(z), p(z)), scalar ends; NaN if the prior depends on covariates.
        total_correlation: KL(q(z), prod_j q(z_j)), scalar ends; NaN if a density by dimension is unknown.
        dimension_kl: KL(q(z_j), p(z_j)), the main number, with shape (J,): the middle of its two ends.
        dimension_kl_error: Standard error of dimension_kl, with shape (J,).
        dimension_kl_ends: Ends of KL(q(z_j), p(z_j)), with shape (J,).
        dimension_information: Ends of I_q(x; z_j), with shape (J,).
        within: Total correlation, and KL(q(z_j), p(z_j)) with shape (J,), both with the own datum in all mixtures.
        prior_dependence: E_q[sum_j log p(z_j) - log p(z)]; 0 for a prior independent by dimension.
        measurable: Whether information.lower is at least 1 nat below log N.
        words: One sentence on what the ends say.
        skipped: One sentence for each latent site that is not real, and each prior or guide without densities.
    """

    num_data: int
    labels: tuple[str, ...]
    kl: Tensor
    kl_error: Tensor
    information: Ends
    aggregate_kl: Ends
    total_correlation: Ends
    dimension_kl: Tensor
    dimension_kl_error: Tensor
    dimension_kl_ends: Ends
    dimension_information: Ends
    within: tuple[Tensor, Tensor]
    prior_dependence: Tensor
    measurable: bool
    words: str
    skipped: tuple[str, ...]


@entry()
def information(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    max_data: int = MAX_DATA,
    seed: int = 0,
    **kwargs: Any,
) -> Information:
    r"""Bracket I_q(x; z), KL(q(z), p(z)) and the total correlation, and measure KL(q(z_j), p(z_j)) by dimension.

        E_x KL(q(z|x), p(z)) = I_q(x; z) + KL(q(z), p(z)),
        KL(q(z), p(z)) = KL(q(z), prod_j q(z_j)) + sum_j KL(q(z_j), p(z_j))  for independent priors

    (Hoffman and Johnson, "ELBO surgery", 2016; Chen, Li, Grosse, Duvenaud, "Isolating sources of disentanglement in
    variational autoencoders", NeurIPS 2018, https://arxiv.org/abs/1802.04942). With draws z_n ~ q(z|x_n), the aggregate
    posterior at z_n has two estimates,

        in:  1/N sum_m q(z_n|x_m),    out:  1/(N-1) sum_{m != n} q(z_n|x_m).

    "out" is unbiased for q(z_n), so its logarithm is too low on average. "in" has the own datum, and gives a logarithm
    that is too high on average (Poole et al., "On variational bounds of mutual information", 2019,
    https://arxiv.org/abs/1905.06922). So I_q lies, in expectation, between the two, for the population of data. For the
    finite sample itself, "in" is exact. The lower end is at most log N, and the upper end grows as far as the mean log
    ratio of densities at data that do not overlap. The other ends follow: KL(q(z), p(z)) = KL - I_q, and the total
    correlation with one estimate for q(z) and the other for the q(z_j). By dimension data overlap, so both ends nearly
    agree. Nothing is clipped at 0.

    Standard errors are those of a mean of N independent terms. The influence of a datum on q(z) adds nothing to them to
    first order.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws per datum. Time grows with this number times N^2.
        max_data: Largest number of data; of more, a random subset is used.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If there are fewer than two data, num_particles is below 1, there is no real latent, or a program
            breaks the contract of `log_weights`.
    """
    pair = make_pair(model, guide, args, kwargs)
    if pair.size < 2 or max_data < 2 or num_particles < 1:
        raise ValueError(
            "information needs at least two data, max_data of at least 2 and num_particles of at least 1, got "
            f"{pair.size}, {max_data} and {num_particles}"
        )
    with evaluation(pair, seed):
        if pair.size > max_data and pair.divisible:
            pair = pair.at(torch.randperm(pair.size)[:max_data].sort().values)
        own = _own_densities(pair, num_particles)
        conditional = depends_on_datum(pair, own.latents)
        mixed = _mixtures(pair, own)
    return _result(own, mixed, conditional)


class _Own(NamedTuple):
    """Densities of S draws for each of N data under their own guide and the prior.

    Attributes:
        latents: Real latents.
        draws: Draws of all latent sites, each with shape (S, N, ...).
        log_q: Log q(z|x), with shape (S, N).
        log_p: Log p(z), with shape (S, N).
        log_q_j: Log q(z_j|x), with shape (S, N, J); NaN if unknown.
        log_p_j: Log p(z_j), with shape (S, N, J); NaN if unknown.
        all_real: Whether all latents are real.
        skipped: One sentence for each latent or density that is left out.
    """

    latents: RealLatents
    draws: dict[str, Tensor]
    log_q: Tensor
    log_p: Tensor
    log_q_j: Tensor
    log_p_j: Tensor
    all_real: bool
    skipped: tuple[str, ...]


def _own_densities(pair: Pair, num_particles: int) -> _Own:
    found, draws = [], []
    for _, block in pair.blocks(DRAWS_AT_ONCE // num_particles):
        guide_trace = block.posterior(num_particles)
        drawn = {name: site.value for name, site in guide_trace.latents.items()}
        model_trace = block.joint(num_particles, drawn)
        matched_latents(model_trace, guide_trace)
        latents = RealLatents.find(model_trace, guide_trace)
        log_joint, log_lik = model_trace.log_densities()
        sums = guide_trace.log_densities()[0], log_joint - log_lik
        both = (flat(_log_dimensions(trace, latents)) for trace in (guide_trace, model_trace))
        found.append((*(part.double().cpu() for part in sums), *both))
        draws.append(drawn)
        sites = list(model_trace.latents)
    log_q, log_p, log_q_j, log_p_j = (torch.cat(part, 1) for part in zip(*found, strict=True))
    joined = {name: torch.cat([each[name] for each in draws], 1) for name in draws[0]}
    skipped = list(latents.skipped)
    for name in latents.names:
        dependent = [program for program in ("guide", "model") if _depends_on_latents(pair, joined, name, program)]
        for program, log_density in (("guide", log_q_j), ("model", log_p_j)):
            if program in dependent:
                log_density[..., latents.index(name)] = math.nan
            if bool(log_density[..., latents.index(name)].isnan().any()):
                skipped.append(f"site {name!r} of the {program} has no known densities by dimension")
    return _Own(latents, joined, log_q, log_p, log_q_j, log_p_j, len(sites) == len(latents.names), tuple(skipped))


def _log_dimensions(trace: ParticleTrace, latents: RealLatents) -> Tensor:
    """Compute the log density of each real dimension by its marginal given x, with shape (K, N, J); NaN if unknown."""
    parts = []
    for name in latents.names:
        site = trace.sites[name]
        found = by_dimension(site)
        if found.log_prob is None or found.split == "chain rule":
            shape = (*trace.shape, latents.shapes[name].numel())
            parts.append(trace.sites[name].value.new_full(shape, math.nan))
        else:
            parts.append(found.log_prob)
    return torch.cat(parts, -1)


def _depends_on_latents(pair: Pair, draws: dict[str, Tensor], name: str, program: str) -> bool:
    """Return whether the density of a site changes if the other latents are replaced by those of other data."""
    if len(draws) == 1:
        return False
    rows = torch.randperm(pair.size)[:_COMPARED] if pair.divisible else torch.arange(pair.size)
    block, one = pair.at(rows), {key: value[:1, rows] for key, value in draws.items()}
    other = {key: value if key == name else value.roll(1, 1) for key, value in one.items()}
    run = block.model if program == "model" else block.guide
    before, after = (
        run.trace(1, block.args, block.kwargs, values).sites[name].log_density().double() for values in (one, other)
    )
    return bool(((before - after).abs() > _ROUNDING * (1 + before.abs())).any())


class _Mixed(NamedTuple):
    """Log mixtures over the data at all draws, with the own datum in and out.

    Attributes:
        joint_in: Log q(z), with shape (S, N).
        joint_out: Log q(z), with shape (S, N).
        by_dimension_in: Log q(z_j), with shape (S, N, J).
        by_dimension_out: Log q(z_j), with shape (S, N, J).
    """

    joint_in: Tensor
    joint_out: Tensor
    by_dimension_in: Tensor
    by_dimension_out: Tensor


def _mixtures(pair: Pair, own: _Own) -> _Mixed:
    """Compute the mixtures, for blocks of draws and data that bound memory."""
    num_draws, size = own.log_q.shape
    known = ~own.log_q_j.isnan().any(1).any(0)
    width = 1 + len(known)
    data_at_once = min(size, max(1, _NUMBERS_AT_ONCE // width))
    at_once = max(1, _NUMBERS_AT_ONCE // (width * data_at_once))
    flat_draws = {name: value.flatten(0, 1).unsqueeze(1) for name, value in own.draws.items()}
    owner = torch.arange(size).repeat(num_draws)
    factorised = bool(((own.log_q - own.log_q_j.sum(-1)).abs() <= _ROUNDING * (1 + own.log_q.abs())).all())
    others = torch.empty(num_draws * size, width, dtype=torch.float64)
    for start in range(0, len(owner), at_once):
        some = slice(start, start + at_once)
        values = {name: value[some] for name, value in flat_draws.items()}
        total = torch.full((len(owner[some]), width), -math.inf, dtype=torch.float64)
        for rows, block in pair.blocks(data_at_once):
            count = rows.stop - rows.start
            given = {name: value.expand(-1, count, *value.shape[2:]) for name, value in values.items()}
            trace = block.guide.trace(len(total), block.args, block.kwargs, given)
            log_q_j = _log_dimensions(trace, own.latents)
            log_q = log_q_j.sum(-1) if factorised else trace.log_densities()[0].to(log_q_j)
            log_q = torch.cat([log_q.unsqueeze(0), log_q_j.permute(2, 0, 1)])  # (1 + J, draws, data)
            own_datum = owner[some, None] == torch.arange(rows.start, rows.stop)
            log_q.masked_fill_(own_datum.to(log_q.device), -math.inf)
            total = torch.logaddexp(total, log_q.logsumexp(-1).T.double().cpu())
        others[some] = total
    others = others.reshape(num_draws, size, width)
    others[..., 1:] = torch.where(known, others[..., 1:], math.nan)
    out = others - math.log(size - 1)
    inside = torch.logaddexp(others, torch.cat([own.log_q.unsqueeze(-1), own.log_q_j], -1)) - math.log(size)
    return _Mixed(inside[..., 0], out[..., 0], inside[..., 1:], out[..., 1:])


def _result(own: _Own, mixed: _Mixed, conditional: bool) -> Information:
    log_q, log_p, log_q_j = own.log_q, own.log_p, own.log_q_j
    log_p_j = torch.full_like(own.log_p_j, math.nan) if conditional else own.log_p_j
    inside, out, inside_j, out_j = mixed
    kl, kl_error = _summarised(log_q - log_p)
    bracket = _ends(log_q - inside, log_q - out)
    below, above = out - log_p, inside - log_p
    correlation = out - inside_j.sum(-1), inside - out_j.sum(-1)
    nothing = torch.full_like(log_p, math.nan)
    if conditional:
        below, above = nothing, nothing
    if not own.all_real:
        correlation = nothing, nothing
    middle, middle_error = _summarised((inside_j + out_j) / 2 - log_p_j)
    within = (inside - inside_j.sum(-1)).mean(), (inside_j - log_p_j).mean((0, 1))
    size = log_q.shape[1]
    measurable = bracket.lower.item() <= math.log(size) - _NEAR_CAP
    skipped = own.skipped
    if conditional:
        skipped += ("the prior depends on the datum, so KL(q(z), p(z)) has no one p(z)",)
    return Information(
        size,
        own.latents.labels,
        kl,
        kl_error,
        bracket,
        _ends(below, above),
        _ends(*correlation),
        middle,
        middle_error,
        _ends(out_j - log_p_j, inside_j - log_p_j),
        _ends(log_q_j - inside_j, log_q_j - out_j),
        within,
        (log_p_j.sum(-1) - log_p).mean(),
        measurable,
        _words(bracket, size, measurable),
        skipped,
    )


def _words(bracket: Ends, size: int, measurable: bool) -> str:
    lower, upper = bracket.lower.item(), bracket.upper.item()
    if measurable:
        return f"the latents hold from {lower:.2f} to {upper:.2f} nats about the data"
    return (
        f"not measurable with {size:,} data: it lies between {lower:.2f} and {upper:.2f} nats, and the lower end is "
        f"within 1 nat of log N = {math.log(size):.2f}, its largest value"
    )


def _ends(lower: Tensor, upper: Tensor) -> Ends:
    """Summarise both ends by draw, each with shape (S, N) or (S, N, J)."""
    (low, low_error), (high, high_error) = _summarised(lower), _summarised(upper)
    return Ends(low, high, low_error, high_error)


def _summarised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean over draws and data, and its standard error over data, of shape (S, N) or (S, N, J)."""
    return mean_and_error(values.mean(0))
