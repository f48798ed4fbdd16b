"""Pictures of a guide: k-hat of each datum, quantiles beside NUTS, and entropies of the latents."""

from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes

from pyrovae.diagnostics import ESS_LIMIT, RHAT_LIMIT, Entropies, KhatMap, NutsCheck
from pyrovae.plots.base import COLOURS, legend_above, new_axes, short_name

_LOWEST_KHAT = -0.5  # shown; smaller ones are as good
_MOST_DATA = 6  # in the legend of `plot_nuts`
_CLEAR = 3.0  # standard errors from which a quantile differs


def plot_khat(result: KhatMap, axes: Axes | None = None, *, against: Literal["rank", "log_p"] = "rank") -> Axes:
    """Plot k-hat of each datum, sorted or against log p(x), with the limit.

    How to read it: above the dashed line the guide is too far from the posterior of this datum for importance sampling
    with K draws, so that its log p(x) by the guide's draws is not reliable. Few high values on one side of log p(x) say
    which data are approximated badly. k-hat below -0.5 is drawn at -0.5; it does not see modes that the guide misses.

    Sources: Vehtari et al. 2024, "Pareto smoothed importance sampling", https://arxiv.org/abs/1507.02646; Yao et al.
    2018, https://arxiv.org/abs/1802.02538.

    Args:
        result: k-hat map of N data.
        axes: Axes to draw in; None for new ones.
        against: "rank", the largest first, or "log_p".

    Returns:
        The axes.

    Raises:
        ValueError: If against is neither.
    """
    if against not in ("rank", "log_p"):
        raise ValueError(f"against must be 'rank' or 'log_p', got {against!r}")
    axes = new_axes(3.0) if axes is None else axes
    order = result.worst if against == "rank" else torch.arange(len(result.khat))
    khat = result.khat[order].double()
    x = torch.arange(1, len(khat) + 1).double() if against == "rank" else result.log_p[order].double()
    high, seen = khat > result.limit, ~khat.isnan() & x.isfinite()
    y = khat.clamp(_LOWEST_KHAT)
    style: dict[str, Any] = {"s": 10, "linewidths": 0, "rasterized": True}
    low_label = f"{int((~high & ~khat.isnan()).sum()):,} data"
    axes.scatter(x[~high & seen], y[~high & seen], color=COLOURS[0], label=low_label, **style)
    axes.scatter(
        x[high & seen], y[high & seen], color=COLOURS[2], marker="D", label=f"{int(high.sum()):,} above", **style
    )
    limit_label = f"limit {result.limit:.2f} (K = {result.num_particles:,})"
    axes.axhline(result.limit, color="0.3", linestyle="--", linewidth=0.9, label=limit_label)
    axes.set(xlabel="datum, largest first" if against == "rank" else "log p(x) (nats)", ylabel="k-hat")
    legend_above(axes, columns=3)
    return axes


def plot_nuts(result: NutsCheck, axes: Axes | None = None, *, latent: int = 0) -> Axes:
    """Plot quantiles of the guide against those of NUTS for one latent dimension, a line for each datum.

    How to read it: on the diagonal the guide has the posterior of NUTS. A flatter line is a guide that is too narrow, a
    steeper one too wide, a parallel one shifted. Filled marks differ from NUTS by more than three standard errors of
    their probability; open ones do not. Crosses are the guide's draws with their importance weights, which mend it
    where k-hat is small. Dotted lines have R-hat above 1.05 or fewer than 100 effective draws: do not believe them.

    Source: Hoffman and Gelman 2014, https://arxiv.org/abs/1111.4246.

    Args:
        result: Check against NUTS of M data.
        axes: Axes to draw in; None for new ones.
        latent: Number of the latent dimension in `labels`.

    Returns:
        The axes.
    """
    axes = new_axes(4.0 + 0.2 * min(len(result.data), _MOST_DATA)) if axes is None else axes
    both = torch.cat([result.nuts[..., latent].flatten(), result.guide[..., latent].flatten()])
    ends = [float(both.min()), float(both.max())]
    axes.plot(ends, ends, color="0.6", linewidth=0.9)
    for place, index in enumerate(result.data.tolist()):
        nuts, guide = result.nuts[place, :, latent], result.guide[place, :, latent]
        off = (result.guide_below[place, :, latent] - result.probabilities).abs()
        clear = (off > _CLEAR * result.below_error[place, :, latent]).numpy()
        rhat, ess = float(result.rhat[place, latent]), float(result.ess[place, latent])
        good = rhat <= RHAT_LIMIT and ess >= ESS_LIMIT
        colour = COLOURS[(0, 2, 3, 5, 6, 7)[place % 6]]
        text = f"datum {index}: R-hat {rhat:.2f}, ESS {ess:.0f}{'' if good else ', not reliable'}"
        label = text if place < _MOST_DATA else None
        axes.plot(nuts, guide, color=colour, linewidth=1.2, linestyle="-" if good else ":", label=label)
        marker = "os^Dv<"[place % 6]
        axes.scatter(nuts[clear], guide[clear], color=colour, marker=marker, s=26, zorder=3)
        axes.scatter(nuts[~clear], guide[~clear], facecolor="white", edgecolor=colour, marker=marker, s=26, zorder=3)
        axes.scatter(nuts, result.weighted[place, :, latent], color=colour, marker="x", s=22, linewidths=1, zorder=2)
    name = short_name(result.labels[latent])
    axes.set(xlabel=f"quantiles of {name} by NUTS", ylabel=f"quantiles of {name} by the guide")
    legend_above(axes, columns=1)
    return axes


def plot_entropies(result: Entropies, axes: Axes | None = None) -> Axes:
    """Plot entropy, cross-entropy and KL divergence of each latent dimension in bits, the largest KL first.

    How to read it: the line from the entropy of q(z_j|x), a dot, to its cross-entropy with the prior, a bar, is the KL
    divergence: what the code of a datum costs in this dimension. A line of length 0 is a latent that carries nothing.
    Entropies depend on the latent's unit and may be negative; their difference does not. Grey whiskers at the end are
    two standard errors of the KL divergence.

    Source: Cover and Thomas 2006, "Elements of information theory", 2nd ed., theorem 5.4.3.

    Args:
        result: Entropies of J dimensions, in nats or bits.
        axes: Axes to draw in; None for new ones.

    Returns:
        The axes.
    """
    found = result.in_bits()
    order = found.kl.nan_to_num(-torch.inf).sort(descending=True, stable=True).indices
    axes = new_axes(1.3 + 0.24 * len(order)) if axes is None else axes
    rows = np.arange(len(order))
    start, end = found.entropy[order].numpy(), found.cross_entropy[order].numpy()
    kl, error = found.kl[order].tolist(), 2 * found.kl_error[order].nan_to_num(0.0).numpy()
    axes.hlines(rows, end - error, end + error, color="0.75", linewidth=5)
    axes.hlines(rows, start, end, color=COLOURS[0], linewidth=1.8, label="KL(q, p)")
    axes.plot(start, rows, "o", color=COLOURS[2], markersize=5, label="H(q)")
    axes.plot(end, rows, "|", color=COLOURS[0], markersize=9, markeredgewidth=2, label="H(q, p)")
    labels = [
        f"{short_name(found.labels[place])}   {value:.2f}".replace("nan", "unknown")
        for place, value in zip(order.tolist(), kl, strict=True)
    ]
    axes.set_yticks(rows, labels, fontsize=9)
    axes.set(xlabel="bits (at the names: KL)", ylim=(len(order) - 0.4, -0.6))
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    legend_above(axes, columns=3)
    return axes
