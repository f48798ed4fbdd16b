"""Split log p(x) - ELBO into approximation gap and amortisation gap."""

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal as Normal

from pyrovae.densities import Program, entry, num_data, vectorize_pair
from pyrovae.evidence.blocks import (
    UndefinedGradients,
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_at_once,
    data_blocks,
    evaluation_mode,
    split_count,
)
from pyrovae.evidence.laplace import laplace_fit
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.stats import LogMarginal, summarize_lower_bound

Family = Literal["diagonal", "full"]
Start = tuple[Tensor, Tensor]  # mean, with shape (N, U), and scale_tril, with shape (N, U, U)

_MOMENT_DRAWS = 400  # of the guide, for the normal from which the optimisation starts
_LAPLACE_STARTS = 4  # of climbs to the mode, for the other normal
_ELBO_DRAWS = 100  # to choose between the two
_ROUNDS = 3  # of Adam, each in the coordinates of the normal that the last one found
_GAIN = 0.05  # nats that a step to the optimum may still gain


class Refinement(NamedTuple):
    """Optimised normal posterior in u of each datum, and the guide's gaps; values in nats, float64.

    Errors are Monte Carlo standard errors. Those of gaps from log p(x) include the error of log p(x). If the
    optimisation of a datum has not converged, `elbo`, both gaps that it determines, and their errors are NaN.

    Attributes:
        mean: Means, with shape (N, U).
        scale_tril: Cholesky factors of the covariances, with shape (N, U, U).
        elbo: ELBO of these normals, with shape (N,).
        elbo_error: Error of elbo.
        guide_elbo: ELBO of the guide, with shape (N,).
        guide_elbo_error: Error of guide_elbo.
        approximation_gap: log p(x) - elbo, the gap of the best member of the family, with shape (N,).
        approximation_error: Error of approximation_gap.
        amortisation_gap: elbo - guide_elbo, the cost of one guide for all data, with shape (N,). Negative if the
            guide's family is richer than these normals.
        amortisation_error: Error of amortisation_gap.
        total_gap: log p(x) - guide_elbo = KL(q(z|x), p(z|x)), with shape (N,).
        total_error: Error of total_gap.
        shortfall: Estimated nats that elbo lacks from its optimum, with shape (N,): half the squared natural gradient.
            Above 0.05 the optimisation has not converged.
    """

    mean: Tensor
    scale_tril: Tensor
    elbo: Tensor
    elbo_error: Tensor
    guide_elbo: Tensor
    guide_elbo_error: Tensor
    approximation_gap: Tensor
    approximation_error: Tensor
    amortisation_gap: Tensor
    amortisation_error: Tensor
    total_gap: Tensor
    total_error: Tensor
    shortfall: Tensor


@entry()
def refine(
    model: Program,
    guide: Program,
    *args: Any,
    log_p: LogMarginal | Tensor,
    family: Family = "diagonal",
    steps: int = 500,
    lr: float = 0.03,
    draws_per_step: int = 8,
    num_particles: int = 1000,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> Refinement:
    r"""Optimise a normal posterior for each datum, and split the guide's gap into two parts.

    log p(x) - ELBO(guide) = [log p(x) - max_q ELBO(q)] + [max_q ELBO(q) - ELBO(guide)],

    the approximation gap and the amortisation gap (Cremer, Li, Duvenaud 2018, "Inference suboptimality in variational
    autoencoders", https://arxiv.org/abs/1801.03558). The maximum is over normals q in the unconstrained coordinates u,
    u = m + L (a + B e) with e ~ N(0, I). m and L are those of the Laplace approximation (`laplace_fit`) or the moments
    of draws from the guide. The optimisation starts from the one with the higher ELBO, and also from the other where
    the two lie apart. Adam, with a rate that falls to 0 by a cosine, optimises a and B by the pathwise gradient of
    log p(x, z(u)) |dz/du| - log q(u) (Roeder, Wu, Duvenaud 2017, https://arxiv.org/abs/1703.09194), which has no noise
    where q is the posterior. All ELBOs use fresh draws.

    Convergence is tested by fresh draws too. With h = L' grad log p(x, z(u)) |dz/du| + e, the step to the optimum gains

        |E h|^2 / 2 + sum_i (E h_i e_i)^2 / 4 + sum_{i>j} (E h_i e_j)^2 / 2   nats

    to second order, if Fisher's information of q is the curvature (Amari 1998, "Natural gradient works efficiently in
    learning", https://doi.org/10.1162/089976698300017746). While this is above 0.05 for a datum, Adam starts anew from
    the normal that it found, three times at most. Data that do not converge have NaN gaps, with a warning. On
    linear-Gaussian models with collapsed, far and very wide guides the gap is within 0.02 nats of the closed form
    (`test_gaps_of_collapsed_and_far_guides_agree_with_the_closed_form`). The normal is a local maximum: for a posterior
    with several modes a better one may exist.

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        log_p: Estimates of log p(x) for these data, such as those of `ais`, or exact values, with shape (N,).
        family: "diagonal" or "full" covariance in u.
        steps: Number of steps of Adam in each round.
        lr: Initial learning rate, in standard deviations of the start.
        draws_per_step: Number of draws per datum and gradient, in antithetic pairs.
        num_particles: Number of draws K per datum.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If latents are discrete, a count is below 1, the family is unknown, log_p is not of these data,
            data lie outside the support, or a density is NaN.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior, ais, linear_schedule
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> x = torch.randn(4, 3)
        >>> log_p = ais(vae.model, x, num_particles=10, betas=linear_schedule(5), num_leapfrog=2, num_tuning=10)
        >>> refine(vae.model, vae.guide, x, log_p=log_p, steps=5).amortisation_gap.shape
        torch.Size([4])
    """
    check_counts(steps=steps, draws_per_step=draws_per_step, num_particles=num_particles)
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if family not in ("diagonal", "full"):
        raise ValueError(f'family must be "diagonal" or "full", got {family!r}')
    value = log_p if isinstance(log_p, Tensor) else log_p.value
    log_p_error = torch.zeros_like(log_p) if isinstance(log_p, Tensor) else log_p.std_error
    size = num_data(args, kwargs)
    if value.shape != (size,):
        raise ValueError(f"log_p has shape {tuple(value.shape)}; expected one value for each of {size} data")
    found, chunk = [], chunk_size_or_default(chunk_size, args, kwargs)
    pair = vectorize_pair(model, guide, args, kwargs, plate=plate)
    with evaluation_mode(*pair):
        for block in data_blocks(*pair, args, kwargs, data_at_once(max(draws_per_step, 64), chunk)):
            space = block.space
            space.require_continuous()
            if space.masked:
                raise ValueError("refine needs a posterior of all latents, but a mask leaves some out; remove them")
            undefined = UndefinedGradients()
            counts = split_count(num_particles, chunk // space.num_data)
            normal, shortfall = _best_normal(
                space, family, counts, chunk, steps=steps, lr=lr, draws_per_step=draws_per_step, undefined=undefined
            )
            undefined.warn(block.first, "their normals are not the best ones, and approximation_gap is too large")
            drawn = [torch.cat([_log_weights(space, q, count) for count in counts]) for q in (normal, None)]
            for log_w in drawn:
                block.check(log_w)
            best, ours = map(summarize_lower_bound, drawn)
            found.append((normal.loc, normal.scale_tril, *best, *ours, shortfall))
    mean, scale_tril, elbo, elbo_error, guide_elbo, guide_error, shortfall = concatenate(found)
    stuck = ~(shortfall <= _GAIN)
    if bool(stuck.any()):
        warnings.warn(
            f"the optimisation has not converged for {int(stuck.sum()):,} of {len(stuck):,} data, the first of them "
            f"datum {int(stuck.nonzero()[0])}: their ELBO may rise by {shortfall[stuck].max().item():.2g} nats or "
            "more, so their gaps are NaN; increase steps or draws_per_step",
            stacklevel=4,
        )
        elbo, elbo_error = (torch.where(stuck, torch.nan, part) for part in (elbo, elbo_error))
    value, log_p_error = value.to(elbo), log_p_error.to(elbo)
    return Refinement(
        mean,
        scale_tril,
        elbo,
        elbo_error,
        guide_elbo,
        guide_error,
        value - elbo,
        torch.hypot(log_p_error, elbo_error),
        elbo - guide_elbo,
        torch.hypot(elbo_error, guide_error),
        value - guide_elbo,
        torch.hypot(log_p_error, guide_error),
        shortfall,
    )


def _best_normal(
    space: LatentSpace, family: Family, counts: list[int], chunk_size: int, **settings: Any
) -> tuple[Normal, Tensor]:
    """Optimise from the Laplace approximation or the guide's moments; return the best normal and its shortfall, (N,).

    Args:
        space: Continuous latents of a model and a guide at N data.
        family: "diagonal" or "full" covariance in u.
        counts: Numbers of draws to run at once for the test of convergence.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
        **settings: steps, lr, draws_per_step and undefined of `_optimise`.
    """
    starts = [_laplace(space, family, chunk_size), _guide_moments(space, family)]
    elbos = torch.stack([_elbo(space, start) for start in starts])
    better = elbos[1] > elbos[0]
    first, second = _choose(better, *starts), _choose(~better, *starts)
    away = torch.linalg.solve_triangular(first[1], (second[0] - first[0]).unsqueeze(-1), upper=False)
    best = _converge(space, family, first, counts, **settings)
    # The other start is worth a climb where it is another place, and not hopeless: at another mode, perhaps.
    near = (elbos.amax(0) - elbos.amin(0)) < 50 + 5 * space.size
    if bool(((away.square().sum((-1, -2)) > 4 * space.size) & near).any()):
        other = _converge(space, family, second, counts, **settings)
        gains = _elbo(space, (other[0].loc, other[0].scale_tril)) - _elbo(space, (best[0].loc, best[0].scale_tril))
        swap = (gains > 0) & (other[1] <= _GAIN) | ~(best[1] <= _GAIN) & (other[1] <= _GAIN)
        one, two = ((normal.loc, normal.scale_tril) for normal, _ in (best, other))
        best = _normal(*_choose(swap, one, two)), torch.where(swap, other[1], best[1])
    return best


def _normal(mean: Tensor, scale_tril: Tensor) -> Normal:
    return Normal(mean, scale_tril=scale_tril, validate_args=False)


def _choose(second: Tensor, one: Start, two: Start) -> Start:
    """Take the second of two normals, mean and scale_tril, where second, with shape (N,), is true."""
    return torch.where(second[:, None], two[0], one[0]), torch.where(second[:, None, None], two[1], one[1])


def _converge(
    space: LatentSpace, family: Family, start: Start, counts: list[int], **settings: Any
) -> tuple[Normal, Tensor]:
    """Optimise until the shortfall of all data is small, in a few rounds; return the normal and its shortfall."""
    best, shortfall = _normal(*start), torch.full_like(start[0][:, 0], torch.inf).double()
    for _ in range(_ROUNDS):
        found = _optimise(space, family, (best.loc, best.scale_tril), **settings)
        lacking = _shortfall(space, found, family, counts)
        done = shortfall <= _GAIN  # keep those of an earlier round
        kept = _choose(done, (found.loc, found.scale_tril), (best.loc, best.scale_tril))
        best, shortfall = _normal(*kept), torch.where(done, shortfall, lacking)
        if bool((shortfall <= _GAIN).all()):
            break
    return best, shortfall


def _shortfall(space: LatentSpace, normal: Normal, family: Family, counts: list[int]) -> Tensor:
    """Estimate the gain of a natural gradient step to the optimum in nats, with shape (N,), less the gain by noise.

    If the noise is larger than the gain, the gain is unknown up to the noise, which is then returned.
    """
    moments: list[Tensor] = []
    for count in counts:
        noise = torch.randn(count, *normal.loc.shape, dtype=normal.loc.dtype, device=normal.loc.device)
        with torch.enable_grad():
            u = (normal.loc + (normal.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)).requires_grad_()
            (gradient,) = torch.autograd.grad(space.log_joint(u).sum(), u)
        h = ((normal.scale_tril.mT @ gradient.unsqueeze(-1)).squeeze(-1) + noise).double()
        e = noise.double()
        if family == "full":
            products = [torch.einsum("kni,knj->nij", h**power, e**power) for power in (1, 2)]
        else:
            products = [(h * e).pow(power).sum(0).diag_embed() for power in (1, 2)]
        firsts = [h.pow(power).sum(0).unsqueeze(-1) for power in (1, 2)]
        sums = torch.stack([torch.cat(both, -1) for both in zip(firsts, products, strict=True)])
        moments = [sums if not moments else moments[0] + sums]
    draws, eye = sum(counts), torch.eye(space.size, dtype=torch.float64, device=normal.loc.device)
    mean, square = moments[0] / draws
    weight = torch.cat([torch.ones_like(eye[:, :1]), eye / 2 + torch.ones_like(eye).tril(-1)], 1) / 2
    gain = (weight * mean.square()).sum((-1, -2))
    by_noise = (weight * (square - mean.square())).sum((-1, -2)) / max(1, draws - 1)
    return torch.where(gain > 2 * by_noise, gain - by_noise, torch.minimum(by_noise, gain)).nan_to_num(torch.inf)


def _elbo(space: LatentSpace, start: Start) -> Tensor:
    """Estimate the ELBO of normals from few draws, with shape (N,); -inf if it is not finite."""
    log_w = _log_weights(space, _normal(*start), _ELBO_DRAWS)
    return log_w.mean(0).nan_to_num(-torch.inf, -torch.inf)


def _laplace(space: LatentSpace, family: Family, chunk_size: int) -> Start:
    """Find the mode, and the normal's scale_tril or the best diagonal one, with deviations Lambda_ii^-1/2."""
    fit = laplace_fit(space, starts=_LAPLACE_STARTS, chunk_size=chunk_size)
    scale_tril = fit.scale_tril
    if family == "diagonal":
        inverse = torch.linalg.solve_triangular(scale_tril, torch.eye(space.size).to(scale_tril), upper=False)
        scale_tril = inverse.square().sum(-2).rsqrt().diag_embed()
    return fit.mode, scale_tril.to(fit.mode)


def _optimise(
    space: LatentSpace,
    family: Family,
    start_at: Start,
    *,
    steps: int,
    lr: float,
    draws_per_step: int,
    undefined: UndefinedGradients,
) -> Normal:
    """Optimise a normal in u per datum, in the coordinates of the normal start_at, mean and scale_tril."""
    centre, start = start_at
    shift = torch.zeros_like(centre, requires_grad=True)
    log_width = torch.zeros_like(centre, requires_grad=True)
    below = torch.zeros_like(start, requires_grad=True)
    moving = [shift, log_width] + ([below] if family == "full" else [])
    optimizer = torch.optim.Adam(moving, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    half = (draws_per_step + 1) // 2
    with torch.enable_grad():
        for _ in range(steps):
            factor = below.tril(-1) + log_width.exp().diag_embed()
            noise = torch.randn(half, *centre.shape, dtype=centre.dtype, device=centre.device)
            noise = torch.cat([noise, -noise])
            v = shift + (factor @ noise.unsqueeze(-1)).squeeze(-1)
            # The density of q has constant parameters, so that only the path of the draws has a gradient.
            back = torch.linalg.solve_triangular(factor.detach(), (v - shift.detach()).unsqueeze(-1), upper=False)
            log_q = -back.squeeze(-1).square().sum(-1) / 2
            log_ratio = space.log_joint(centre + (start @ v.unsqueeze(-1)).squeeze(-1)) - log_q
            gradients = torch.autograd.grad(log_ratio.mean(0).sum(), moving)
            failed = torch.stack([gradient.flatten(1).isnan().any(-1) for gradient in gradients]).any(0)
            undefined.add((failed & log_ratio.isfinite().all(0)).unsqueeze(0))
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            schedule.step()
    factor = (below.tril(-1) + log_width.exp().diag_embed()).detach()
    mean = centre + (start @ shift.detach().unsqueeze(-1)).squeeze(-1)
    return _normal(mean, start @ factor)


def _guide_moments(space: LatentSpace, family: Family) -> tuple[Tensor, Tensor]:
    """Estimate the guide's mean, with shape (N, U), and a Cholesky factor of its covariance, (N, U, U), in u."""
    drawn = space.pack(space.from_guide(max(_MOMENT_DRAWS, 10 * space.size)))
    centre = drawn.mean(0)
    if family == "diagonal":
        return centre, drawn.std(0).diag_embed()
    residual = (drawn - centre).movedim(0, 1) / len(drawn) ** 0.5  # (N, M, U)
    start = torch.linalg.qr(residual, mode="r").R.mT
    return centre, start * start.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _log_weights(space: LatentSpace, normal: Normal | None, num_particles: int) -> Tensor:
    """Draw log weights under a normal in u, or under the guide, with shape (K, N)."""
    if normal is None:
        latents = space.from_guide(num_particles)
        log_prior, log_lik = space.log_model(latents)
        return (log_prior + log_lik - space.log_guide(latents)).double()
    u = normal.sample((num_particles,))
    return (space.log_joint(u) - normal.log_prob(u)).double()
