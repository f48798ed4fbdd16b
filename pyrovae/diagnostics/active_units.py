"""Active units: the latent dimensions that a guide uses."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, entry
from pyrovae.diagnostics.draws import DRAWS_AT_ONCE, Pair, RealLatents, evaluation, flat, make_pair, site_entries
from pyrovae.stats import pareto_khat

ACTIVE_FROM = 0.01

Spread = Literal["variance", "quantile range", "unknown"]

_PRIOR_DRAWS = 10_000  # over all data
_NO_VARIANCE_FROM = 0.5  # k-hat of |z|, from which z has no variance
_BOOTSTRAPS = 100
_ROUNDING = 1e-4  # of log densities, relative
_COMPARED = 2000  # data at which priors are compared


class UnitActivity(NamedTuple):
    """Activity of each real latent dimension; J dimensions in the order of the model, float64 on the CPU.

    Attributes:
        labels: Name of each dimension, such as "z[0]".
        activity: Activity relative to the prior, a pure number, with shape (J,). It can be negative.
        std_error: Standard error of activity over data and draws, with shape (J,).
        variance: Var_x(E_q[z_j|x]) in the square of the latent's unit, without division, with shape (J,).
        relative_to: "variance" of the prior; "quantile range" if the prior has no variance; "unknown" if neither is
            known, and the activity is NaN.
        conditional: Whether the prior depends on the datum, by covariates.
        skipped: One sentence for each latent site that is left out.
    """

    labels: tuple[str, ...]
    activity: Tensor
    std_error: Tensor
    variance: Tensor
    relative_to: tuple[Spread, ...]
    conditional: bool
    skipped: tuple[str, ...]

    @property
    def active(self) -> Tensor:
        """Whether the activity of each dimension is above 0.01, with shape (J,)."""
        return self.activity > ACTIVE_FROM

    @property
    def num_active(self) -> int:
        """Number of active units."""
        return int(self.active.sum())


@entry()
def unit_activity(
    model: Program, guide: Program, *args: Any, num_particles: int = 64, seed: int = 0, **kwargs: Any
) -> UnitActivity:
    """Estimate the activity A_j of each real latent dimension. Units above 0.01 are active.

        A_j = Var_x(E_q[z_j|x]) / Var_p(z_j)

    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (ICLR 2016, https://arxiv.org/abs/1509.00519),
    section 5.2, have priors N(0, I), so they do not divide. With the division, A_j is the same for z and c z. The
    numerator is the variance over data of the mean of K draws, minus the mean variance of these means. It is unbiased
    for every guide, and can be negative. The variance of the prior comes from about 10,000 draws of the model, and is
    exact if the prior is one distribution with a variance in closed form.

    If the prior depends on covariates c, A_j is Var_x(E_q[z_j|x, c] - E_p[z_j|c]) / E_c Var_p(z_j|c). A guide equal to
    the prior then has activity 0.

    If the prior has no variance (Cauchy), A_j is (R_x / R_p)^2, with the interquartile range R_x of the median of
    q(z_j|x) over data and R_p of the prior. The same ratio is the ratio of variances for normals. The noise of medians
    from K draws is removed as for normals, so a bias of order 1/K remains. A prior without a variance in closed form
    counts as having none if k-hat of its draws is above 0.5.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If there are fewer than two data or draws, or no real latent.
    """
    pair = make_pair(model, guide, args, kwargs)
    size = pair.size
    if size < 2 or num_particles < 2:
        raise ValueError(f"a variance needs at least two data and two draws, got {size} and {num_particles}; give more")
    with evaluation(pair, seed):
        drawn = _Posterior(pair, num_particles)
        prior = _Prior(pair, drawn.latents)
        moments = _by_variance(drawn, prior)
        ranges = _by_quantiles(drawn, prior)
    has_variance = prior.has_variance
    unknown = ~has_variance & prior.conditional
    value, error, numerator = (torch.where(has_variance, one, two) for one, two in zip(moments, ranges, strict=True))
    words: tuple[Spread, ...] = tuple(
        "variance" if yes else "unknown" if unclear else "quantile range"
        for yes, unclear in zip(has_variance.tolist(), unknown.tolist(), strict=True)
    )
    return UnitActivity(
        drawn.latents.labels,
        torch.where(unknown, math.nan, value),
        torch.where(unknown, math.nan, error),
        torch.where(unknown, math.nan, numerator),
        words,
        prior.conditional,
        drawn.latents.skipped,
    )


class _Posterior:
    """Means, variances and medians of K draws of the guide for each datum, each with shape (N, J)."""

    def __init__(self, pair: Pair, num_particles: int) -> None:
        self.num_particles = num_particles
        found: list[tuple[Tensor, ...]] = []
        half = num_particles // 2
        for _, block in pair.blocks(DRAWS_AT_ONCE // num_particles):
            trace = block.posterior(num_particles)
            if not found:
                model = block.joint(1, {name: site.value[:1] for name, site in trace.latents.items()})
                self.latents = RealLatents.find(model, trace)
            z = self.latents.of(trace)
            found.append((z.mean(0), z.var(0), z[:half].median(0).values, z[half:].median(0).values))
        self.mean, self.variance, self.first_median, self.second_median = map(torch.cat, zip(*found, strict=True))


class _Prior:
    """Moments of the prior: of each datum's if it depends on the datum, else of one prior for all.

    Attributes:
        conditional: Whether the prior depends on the datum.
        mean: Means given the parents of the site, or draws, with shape (M, J); means by datum, (N, J), if conditional.
        variance: Variances given the parents, or 0, with shape (M, J); variances by datum, (N, J), if conditional.
        noise: Variance of mean by the draws, with shape (N, J), if conditional.
        draws: Draws, with shape (M, J); None if conditional.
        has_variance: Whether the prior has a variance, with shape (J,).
    """

    def __init__(self, pair: Pair, latents: RealLatents) -> None:
        self.conditional = depends_on_datum(pair, latents)
        if not self.conditional and pair.divisible and pair.size > _PRIOR_DRAWS // 2:
            pair = pair.at(torch.randperm(pair.size)[: _PRIOR_DRAWS // 2].sort().values)
        count = max(2, math.ceil(_PRIOR_DRAWS / pair.size))
        found, draws = [], []
        for _, block in pair.blocks(DRAWS_AT_ONCE // count):
            trace = block.joint(count)
            moments = [_moments(trace.sites[name]) for name in latents.names]
            mean, variance = (torch.cat(part, -1) for part in zip(*moments, strict=True))  # (K, n, J)
            drawn = latents.of(trace)
            draws.append(drawn[:, :: max(1, len(drawn[0]) * count // _PRIOR_DRAWS)].flatten(0, 1))
            if self.conditional:
                found.append((mean.mean(0), variance.mean(0) + mean.var(0), mean.var(0) / count, (variance > 0).all(0)))
            else:
                found.append((mean.flatten(0, 1), variance.flatten(0, 1), mean.flatten(0, 1), (variance > 0).all(0)))
        self.mean, self.variance, self.noise, closed = map(torch.cat, zip(*found, strict=True))
        self.draws = torch.cat(draws)
        finite = self.variance.isfinite().all(0) & self.mean.isfinite().all(0)
        self.has_variance = finite
        guessed = finite & ~closed.all(0)  # from draws, which are finite in any case
        if bool(guessed.any()):
            away = (self.draws[:, guessed] - self.draws[:, guessed].median(0).values).abs().clamp_min(1e-300)
            self.has_variance[guessed] = pareto_khat(away.log()) < _NO_VARIANCE_FROM


def _moments(site: Site) -> tuple[Tensor, Tensor]:
    """Return mean and variance given the site's parents, with shape (K, N, J); the draws and 0 if they are unknown."""
    try:
        if site.depends_on_sums:
            raise NotImplementedError
        mean, variance = (flat(site_entries(site, part)) for part in (site.fn.mean, site.fn.variance))
    except (NotImplementedError, AttributeError):
        draws = flat(site.value)
        return draws, torch.zeros_like(draws)
    return mean, variance


def depends_on_datum(pair: Pair, latents: RealLatents) -> bool:
    """Return whether the prior density of draws changes if the data are replaced by others.

    Args:
        pair: Model and guide with their arguments.
        latents: Real latents whose densities count.
    """
    rows = torch.arange(pair.size)
    if pair.divisible:
        rows = torch.randperm(pair.size)[:_COMPARED]
    block, others = pair.at(rows), pair.at(torch.randperm(pair.size)[: len(rows)])
    drawn = {name: site.value for name, site in block.joint(1).latents.items()}
    densities = []
    for each in (block, others):
        trace = each.joint(1, drawn)
        densities.append(torch.stack([trace.sites[name].log_density().double() for name in latents.names]))
    one, other = densities
    return bool(((one - other).abs() > _ROUNDING * (1 + one.abs())).any())


def _by_variance(drawn: _Posterior, prior: _Prior) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate activity by variances, its standard error, and the numerator, each with shape (J,)."""
    place, noise, spread = drawn.mean, drawn.variance / drawn.num_particles, prior.variance
    if prior.conditional:
        place, noise = place - prior.mean, noise + prior.noise
    else:
        spread = spread + _squares(prior.mean)
    value, error = _mean_and_error(_squares(place) - noise)
    below, below_error = _mean_and_error(spread)
    ratio = value / below
    return ratio, torch.hypot(error, ratio * below_error) / below, value


def _squares(values: Tensor) -> Tensor:
    """Return squared deviations whose mean is the unbiased variance over dim 0."""
    return (values - values.mean(0)).square() * (len(values) / (len(values) - 1))


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def _by_quantiles(drawn: _Posterior, prior: _Prior) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate activity by interquartile ranges, its standard error by a bootstrap, and NaN for the numerator."""
    nothing = torch.full_like(drawn.mean[0], math.nan)
    value, error = nothing.clone(), nothing.clone()
    for j in (~prior.has_variance).nonzero().flatten().tolist() if not prior.conditional else []:
        medians = torch.stack([drawn.first_median[:, j], drawn.second_median[:, j]], -1)
        draws = prior.draws[:, j]

        def ratio(medians: Tensor, draws: Tensor) -> Tensor:
            centre, noise = _squared_range(medians.mean(-1)), _squared_range(medians.diff().squeeze(-1)) / 4
            return (centre - noise) / _squared_range(draws)

        value[j] = ratio(medians, draws)
        again = [ratio(_resampled(medians), _resampled(draws)) for _ in range(_BOOTSTRAPS)]
        error[j] = torch.stack(again).std()
    return value, error, nothing


def _squared_range(values: Tensor) -> Tensor:
    """Compute the squared interquartile range."""
    low, high = (values.kthvalue(1 + round(share * (len(values) - 1))).values for share in (0.25, 0.75))
    return (high - low).square()


def _resampled(values: Tensor) -> Tensor:
    return values[torch.randint(len(values), (len(values),))]
