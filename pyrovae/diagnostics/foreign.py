"""Foreign data: how well log p(x) tells them from test data, and generators of foreign data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry, isolated_rng
from pyrovae.evidence import Proposal, log_marginal


class AUC(NamedTuple):
    """Area under the ROC curve, P(X > Y) + P(X = Y) / 2.

    Attributes:
        value: Area, between 0 and 1; 0.5 for equal distributions.
        std_error: Standard error of DeLong, at least 1/min(N, M), since it is 0 where the samples do not overlap.
    """

    value: float
    std_error: float


class ForeignData(NamedTuple):
    """Comparison of foreign data with test data.

    Attributes:
        auc: P(log p(x) > log p(x')) of a test datum x and a foreign datum x'. Near 1 foreign data are told apart; 0.5
            is no better than chance; below 0.5 the model finds foreign data more probable than its own, as deep models
            of images may (Nalisnick et al. 2019, "Do deep generative models know what they don't know?",
            https://arxiv.org/abs/1810.09136).
        atypical_auc: The same of the distance |2 u - 1|, u the rank of log p among the model's own draws: 0.5 plus as
            far as foreign data are the more atypical ones in either direction; None without `reference`.
        log_p: Log p(x) of the test data in nats, with shape (N,).
        foreign_log_p: Log p(x) of the foreign data in nats, with shape (M,).
    """

    auc: AUC
    atypical_auc: AUC | None
    log_p: Tensor
    foreign_log_p: Tensor


@entry()
def foreign_data(
    model: Program,
    guide: Program,
    *args: Any,
    foreign: Tensor,
    foreign_arguments: Mapping[str, Any] | None = None,
    reference: Tensor | None = None,
    num_particles: int = 500,
    proposal: Proposal | Program | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> ForeignData:
    """Tell foreign data from test data by log p(x), estimated alike for both.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the test data first, with shape (N, ...).
        foreign: Foreign data in place of the first argument, with shape (M, ...), such as `noise_like`,
            `shuffled_columns` or `shuffled_entries` of the test data, or another array.
        foreign_arguments: Keyword arguments of the programs at the foreign data; None for those of the test data, which
            then need M = N if they have a row per datum.
        reference: Log p(x) of draws of the model, such as `Typicality.reference`, for `atypical_auc`; None for none.
        num_particles: Number of draws K per datum.
        proposal: `Proposal` to draw the latents from, or a Pyro program; None for the default.
        seed: Random seed; the global random state is restored at the end.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs, such as mask and covariates.

    Raises:
        ValueError: As `log_marginal`, or if the foreign data have another shape.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> x = torch.randn(20, 3)
        >>> found = foreign_data(vae.model, vae.guide, x, foreign=noise_like(10 * x), num_particles=20)
        >>> found.auc.value > 0.9
        True
    """
    x = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
    if not args or x is None or x is not args[0]:
        raise ValueError("foreign_data needs the data as first argument; write foreign_data(model, guide, x)")
    if foreign.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"foreign data must have shape (M, {', '.join(map(str, x.shape[1:]))}) like the data, got "
            f"{tuple(foreign.shape)}; reshape or resize them"
        )
    others = dict(kwargs) if foreign_arguments is None else dict(foreign_arguments)
    per_datum = [key for key, one in others.items() if isinstance(one, Tensor) and one.dim() and len(one) == len(x)]
    if foreign_arguments is None and per_datum and len(foreign) != len(x):
        raise ValueError(
            f"{len(foreign)} foreign data cannot have the {per_datum[0]} of {len(x)} test data; give "
            "foreign_arguments, or as many foreign data"
        )
    options: dict[str, Any] = {
        "num_particles": num_particles,
        "proposal": proposal,
        "chunk_size": chunk_size,
        "plate": plate,
    }
    with isolated_rng(seed):
        log_p = log_marginal(model, guide, *args, **options, **kwargs).value.cpu()
        other = log_marginal(model, guide, foreign.to(x), *args[1:], **options, **others).value.cpu()
    atypical = None
    if reference is not None:
        atypical = roc_auc(_distance(other, reference), _distance(log_p, reference))
    return ForeignData(roc_auc(log_p, other), atypical, log_p, other)


def roc_auc(x: Tensor, y: Tensor) -> AUC:
    """Estimate P(X > Y) + P(X = Y) / 2 from two samples, with the standard error of DeLong.

        auc = mean_n v_n,  v_n = P^(Y < x_n),  w_m = P^(X > y_m)  (ties count half),
        error^2 = var(v) / N + var(w) / M

    DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44, https://doi.org/10.2307/2531595. The estimate is unbiased (it is Mann and
    Whitney's). Values that are NaN are left out.

    Args:
        x: Sample of X, with shape (N,).
        y: Sample of Y, with shape (M,).

    Raises:
        ValueError: If a sample has fewer than two values.

    Example:
        >>> roc_auc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0]))
        AUC(value=0.75, std_error=0.5)
    """
    x, y = x[~x.isnan()].double().cpu(), y[~y.isnan()].double().cpu()
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"an AUC needs at least two data of each kind, got {len(x)} and {len(y)}")
    v = _share_below(x, y)
    w = 1 - _share_below(y, x)
    error = float((v.var() / len(x) + w.var() / len(y)).sqrt())
    return AUC(float(v.mean()), max(error, 1 / min(len(x), len(y))))


def _share_below(x: Tensor, y: Tensor) -> Tensor:
    """Compute the share of y below each x, ties half, with the shape of x."""
    known = y.sort().values
    return (torch.searchsorted(known, x) + torch.searchsorted(known, x, right=True)).double() / (2 * len(y))


def _distance(log_p: Tensor, reference: Tensor) -> Tensor:
    """Compute |2 u - 1| of the ranks u of log p among draws, NaN where log p is."""
    drawn = reference.flatten()
    u = _share_below(log_p.double().nan_to_num(0.0), drawn[~drawn.isnan()].double())
    return torch.where(log_p.isnan(), torch.nan, (2 * u - 1).abs())


def noise_like(x: Tensor, *, seed: int = 0) -> Tensor:
    """Draw noise: each entry uniform between the smallest and the largest value of its column.

    If all values of x are whole numbers, so is the noise. Missing entries (NaN) stay missing, and constant columns
    constant.

    Args:
        x: Data, with shape (N, ...).
        seed: Random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    low = x.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0)
    high = x.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0)
    u = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    whole = bool((x.nan_to_num(0.0) % 1 == 0).all())
    found = (low + (u * (high - low + 1)).floor()).minimum(high) if whole else low + u * (high - low)
    return torch.where(x.isnan(), torch.nan, found).to(x)


def shuffled_columns(x: Tensor, *, seed: int = 0) -> Tensor:
    """Permute each column over the data by itself, which keeps its distribution and breaks all dependence.

    Missing entries (NaN) stay where they are.

    Args:
        x: Data, with shape (N, ...).
        seed: Random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    found = x.flatten(1).clone() if x.dim() > 1 else x[:, None].clone()
    for column in found.T:
        seen = (~column.isnan()).nonzero().squeeze(1)
        column[seen] = column[seen[torch.randperm(len(seen), generator=generator).to(seen.device)]]
    return found.reshape(x.shape)


def shuffled_entries(x: Tensor, *, seed: int = 0) -> Tensor:
    """Permute the entries of each datum, such as pixels, by a permutation of its own.

    For data whose entries have one unit. Missing entries (NaN) move too, so give complete data if they have a mask.

    Args:
        x: Data, with shape (N, ...).
        seed: Random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = x.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(1).to(x.device)
    return flat.gather(1, order).reshape(x.shape)
