"""Missing entries of data given the observed ones: means, medians or modes, and draws of p(x_mis | x_obs)."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, entry, vectorize_pair
from pyrovae.evidence.blocks import (
    DataBlock,
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_blocks,
    decoded_data_at_once,
    evaluation_mode,
)
from pyrovae.evidence.entries import CENTRES, EntryMixtures
from pyrovae.evidence.posterior import WeightedPoints, per_datum, sites_at, weighted_points, with_weights
from pyrovae.evidence.proposals import Proposal
from pyrovae.evidence.weight_blocks import tell_faults
from pyrovae.stats import LogMarginal

_PURPOSE = "imputations"


class Imputation(NamedTuple):
    """Completed data. Observed entries are as given. All is NaN for data without weights.

    Attributes:
        value: Data whose missing entries are the means, medians or modes of p(x_d | x_obs), with shape (N, D).
        centre: What value is in each of the D columns: "mean", "median" or "mode".
        std_error: Monte Carlo standard error of imputed means and of medians with a density, with shape (N, D); 0 for
            observed entries, NaN elsewhere and for the medians of distributions without a distribution function.
        probability: Probability P(x_d = value | x_obs) of imputed modes, and of medians that have one, such as levels
            and counts, with shape (N, D); NaN elsewhere.
        draws: Draws of p(x_mis | x_obs), with shape (M, N, D).
        log_marginal: Estimates of log p(x_obs), with their errors, effective sample sizes and k-hats, in nats, each
            with shape (N,).
        served: Index of the proposal's component with the largest share of each datum's weight, with shape (N,).
        components: Names of the components.
        without_mean: Columns that have medians in place of means, since some of these do not exist or overflow.
    """

    value: Tensor
    centre: tuple[str, ...]
    std_error: Tensor
    probability: Tensor
    draws: Tensor
    log_marginal: LogMarginal
    served: Tensor
    components: tuple[str, ...]
    without_mean: tuple[int, ...] = ()


@entry("num_particles", "num_draws", "centre", "proposal", "chunk_size", "site", "plate", "on_progress")
def impute(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_particles: int = 1000,
    num_draws: int = 20,
    centre: str | Sequence[str] = "auto",
    proposal: Proposal | None = None,
    chunk_size: int | None = None,
    site: str = "x",
    plate: str | None = None,
    on_progress: Callable[[int], Any] | None = None,
    **kwargs: Any,
) -> Imputation:
    """Impute missing entries by self-normalised importance sampling.

        p(x_d | x_obs) ~ sum_k w_k p(x_d | z_k),  w_k = p(x_obs, z_k)/q(z_k) / sum_j p(x_obs, z_j)/q(z_j),  z_k ~ q

    (Mattei and Frellsen, "MIWAE", ICML 2019, https://arxiv.org/abs/1812.02633, section 4, with the default proposal in
    place of the guide.) The mean of this mixture has the least squared error, its median the least absolute error, and
    its mode is the level most often right. A draw chooses k with probability w_k, then draws p(x | z_k): never an
    average of draws. The weights are those of `log_marginal`; a k-hat above 0.7 says that few draws carry them. The
    draws hold model and parameters fixed.

    A mean may not exist, as that of a Student-t with one degree of freedom, or overflow. Then the whole column has
    medians, as `Imputation.centre` says, and a warning names it. A row without an observed entry has log p = 0 and the
    prior as its posterior.

    Args:
        model: Pyro program p(z) p(x|z), with an argument `mask`.
        guide: Pyro program q(z|x), with the model's arguments.
        x: Data, with shape (N, D); missing entries may be NaN.
        num_particles: Number of draws K of the latents per datum.
        num_draws: Number of draws M of the missing entries per datum; 0 for none.
        centre: Centre of the imputed entries. "auto" is the mode of binary and category columns, the median of ordered
            ones, and the mean of numbers. "mean", "median" or "mode" apply to the columns that have one; the others
            keep that of "auto". A sequence has one of these words for each column. A distribution of your own may state
            its choice for "auto" by an attribute `natural_centre`.
        proposal: `Proposal` to draw the latents from; None for the default, which needs no guide trained on such masks.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
            Numbers for K times n times D entries are held, for n data with K n of at most chunk_size, or one datum. By
            default 4 K n D is at most 6.5 million.
        site: Name of the model's site of x.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        on_progress: Function that is called with the number of further data that are done.
        **kwargs: Keyword arguments of both programs: mask, whether each entry of x is observed, with shape (N, D), and
            further ones, such as covariates.

    Raises:
        ValueError: If mask is not given or does not have the shape of x, the model has no such site or does not apply
            the mask to it, p(x|z) is no product over entries, a column lacks the centre that it is given, or as
            `log_marginal`.
    """
    check_counts(num_particles=num_particles)
    mask = check_mask("mask", kwargs.get("mask"), x)
    pair = vectorize_pair(model, guide, (x,), kwargs, plate=plate)
    at_once = decoded_data_at_once(num_particles, chunk_size, (x,), kwargs)
    chunk_size = chunk_size_or_default(chunk_size, (x,), kwargs)
    centres, reported = _Centres(centre), 0
    while not centres.settled:
        centres.settled = True
        found = []
        for block in data_blocks(*pair, (x,), kwargs, at_once):
            with evaluation_mode(*pair):
                drawn = weighted_points(block, num_particles, proposal, chunk_size)
                filled = _centre_of_block(block, mask[block.rows], drawn, centres, chunk_size, site)
                draws = draws_given(block, mask[block.rows], drawn, num_draws, chunk_size, site)
            found.append((filled, draws, drawn.weights))
            if on_progress is not None and len(found) > reported:  # a second pass, for medians, counts nothing
                reported += 1
                on_progress(len(filled[0]))
    centres.warn()
    weights = [one for _, _, one in found]
    log_marginal = LogMarginal(*concatenate([one.summary() for one in weights]))
    tell_faults([one.fault for one in weights], log_marginal.value)
    value, error, probability = concatenate([one for one, _, _ in found])
    return Imputation(
        value,
        tuple(centres.words),
        error,
        probability,
        torch.cat([draws for _, draws, _ in found], 1),
        log_marginal,
        *served_by(weights),
        tuple(sorted(centres.replaced)),
    )


class _Centres:
    """Centre of each column, in the course of an imputation.

    Args:
        wanted: The centres that were asked for.

    Attributes:
        words: Centre of each column; empty before the first block of data.
        settled: Whether all blocks so far have the same centres.
    """

    def __init__(self, wanted: str | Sequence[str]) -> None:
        self.wanted, self.words = wanted, list[str]()
        self.replaced: set[int] = set()
        self.settled = False

    def replace(self, columns: list[int], *, settled: bool) -> None:
        """Replace the means of some columns by medians; unless it is settled, blocks before have to be redone."""
        self.replaced |= set(columns)
        self.settled &= settled or not columns
        for column in columns:
            self.words[column] = "median"

    def warn(self) -> None:
        """Warn of columns without means."""
        if self.replaced:
            named = sorted(self.replaced)
            warnings.warn(
                f"the conditional mean of column{'s' if len(named) > 1 else ''} {', '.join(map(str, named[:10]))}"
                f"{', ...' if len(named) > 10 else ''} does not exist or overflows for some data, so medians take its "
                'place there; ask for centre="median", or use a likelihood with lighter tails',
                stacklevel=4,
            )


def _centre_of_block(
    block: DataBlock, mask: Tensor, drawn: WeightedPoints, centres: _Centres, chunk_size: int, site: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Impute a block of data: the completed data, their errors and their probabilities, each with shape (n, D)."""
    x, missing = block.args[0], ~mask.flatten(1)
    value = torch.where(missing, torch.nan, x.flatten(1).double())
    error, probability = torch.where(missing, torch.nan, 0.0).to(value), torch.full_like(value, torch.nan)
    some, drawn, rows = with_weights(block, drawn)
    if not len(rows):
        return value.to(x).view(x.shape), error.view(x.shape), probability.view(x.shape)
    sites = list(sites_at(some, drawn.latents, site, chunk_size, _PURPOSE))
    _check_masked(sites[0], mask[rows])
    mixtures = EntryMixtures(sites, drawn.weight)
    if not centres.words:
        centres.words = mixtures.centres(centres.wanted)
    lacking = missing[rows]
    centre, spread, share = (torch.full_like(value[rows], torch.nan) for _ in range(3))
    for group in mixtures.groups:
        places = group.places.tolist()
        for word in CENTRES:  # means first, which medians may replace
            own = [i for i, d in enumerate(places) if centres.words[d] == word and bool(lacking[:, d].any())]
            columns = [places[i] for i in own]
            if own and word == "mean":
                centre[:, columns], spread[:, columns] = (part[:, own] for part in group.mean())
                undefined = (~centre[:, columns].isfinite() & lacking[:, columns]).any(0)
                replaced = [column for column, bad in zip(columns, undefined.tolist(), strict=True) if bad]
                spread[:, replaced] = torch.nan
                centres.replace(replaced, settled=block.rows.start == 0)
            elif own and word == "median":
                centre[:, columns], spread[:, columns], share[:, columns] = (part[:, own] for part in group.median())
            elif own:
                centre[:, columns], share[:, columns] = (part[:, own] for part in group.mode())
    value[rows] = torch.where(lacking, centre, value[rows])
    error[rows] = torch.where(lacking, spread, 0.0)
    probability[rows] = torch.where(lacking, share, torch.nan)
    return value.to(x).view(x.shape), error.view(x.shape), probability.view(x.shape)


def draws_given(
    block: DataBlock, mask: Tensor, drawn: WeightedPoints, num_draws: int, chunk_size: int, site: str
) -> Tensor:
    """Draw the entries where a mask is false given the others, with shape (M, n, D); NaN for data without weights.

    Args:
        block: Block of n data.
        mask: Whether each entry is given, with shape (n, D).
        drawn: Weighted draws of the latents given these entries.
        num_draws: Number of draws M.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory.
        site: Name of the model's site of x.
    """
    x = block.args[0]
    if not num_draws:
        return x.new_empty(0, *x.shape)
    draws = torch.where(mask, x, torch.nan).repeat(num_draws, *[1] * x.dim())
    some, drawn, rows = with_weights(block, drawn)
    if not len(rows):
        return draws
    chosen = torch.multinomial(drawn.weight.T, num_draws, replacement=True).T
    data = torch.arange(len(rows), device=rows.device)
    latents = {name: value[chosen, data] for name, value in drawn.latents.items()}
    parts = []
    for p in sites_at(some, latents, site, chunk_size, _PURPOSE):
        _check_masked(p, mask[rows])
        parts.append(per_datum(p, p.fn.sample()).view(-1, len(rows), *x.shape[1:]))
    draws[:, rows] = torch.where(mask[rows], draws[:, rows], torch.cat(parts).to(x))
    return draws


def served_by(weights: Sequence[Any]) -> tuple[Tensor, tuple[str, ...]]:
    """Join the components that served the data of several blocks: their indices, with shape (N,), and their names."""
    names = tuple(dict.fromkeys(name for one in weights for name in one.names))
    places = [torch.tensor([names.index(name) for name in one.names])[one.served.cpu()] for one in weights]
    return torch.cat(places), names


def check_mask(name: str, mask: Any, x: Tensor) -> Tensor:
    """Return a mask; raise a ValueError unless it is a boolean tensor with the shape of x."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"{name} must be a tensor of the shape {tuple(x.shape)} of x, got {mask!r}; give {name}=...")
    if mask.shape != x.shape:
        raise ValueError(f"{name} must have the shape {tuple(x.shape)} of x, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean, got {mask.dtype}; give {name}.bool()")
    return mask


def _check_masked(site: Site, mask: Tensor) -> None:
    """Raise a ValueError if the entries of a site do not have the shape of the mask, or count where it is false."""
    if site.event_shape != mask.shape[1:]:
        raise ValueError(
            f"site {site.name!r} has entries of shape {tuple(site.event_shape)} for each datum, but x has "
            f"{tuple(mask.shape[1:])}; give the name of the site of x"
        )
    if bool((site.mask_per_datum()[0] & ~mask).any()):
        raise ValueError(
            f"site {site.name!r} counts entries where the mask is false; mask them in the model, for example by "
            "Normal(...).mask(mask).to_event(1)"
        )
