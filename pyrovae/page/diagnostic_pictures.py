"""Pictures of diagnostics, which stand beside the tables of the same diagnostic (tables.py)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pyrovae.diagnostics import COLLAPSED_BELOW, Codes, CodesPCA, KhatMap, Uniformity
from pyrovae.page.blocks import Block, Picture, Pictures
from pyrovae.page.diagnostic_checks import pit_tests
from pyrovae.page.fit import LEVEL, Fit
from pyrovae.plots import (
    is_image,
    plot_calibration,
    plot_collapse,
    plot_entropies,
    plot_foreign,
    plot_information,
    plot_khat,
    plot_khat_plane,
    plot_kl,
    plot_pit,
    plot_predictive,
    plot_typicality,
)

MOST_PIXELS = 100  # of an image, whose PIT is not shown beyond
_PIT_CURVES = 12
_BARS = 20  # of the ranks of log p(x)


def predictive_picture(fit: Fit) -> Iterator[Block]:
    """Picture of the predictive checks."""
    found = fit.predictive
    if not found.names:
        return
    limit = found.limit
    size = found.z.abs().nan_to_num(torch.inf)
    worst = int(size.argmax())
    side = "above" if float(found.z[worst]) > 0 else "below"
    alt = (
        f"{int((size > limit).sum())} of {len(size)} statistics of the data lie beyond the limit of {limit:.1f}. The "
        f"farthest is {found.names[worst]}, {float(size[worst]):.1f} standard deviations {side} the replicates."
    )
    caption = (
        f"Each statistic of the data, a dot, in standard deviations of those of {len(found.replicated)} data sets of "
        "the model, a bar for 95 % of them. The dashed lines hold all statistics of 95 % of these data sets at once."
    )
    yield Pictures([Picture("Predictive checks", plot_predictive(found), caption, alt)])


def transform_picture(fit: Fit) -> Iterator[Block]:
    """Picture of the PIT."""
    if is_image(fit.data.shape) and fit.x.shape[1] > MOST_PIXELS:
        return
    tests = pit_tests(fit)
    alt = _farthest({name: test for name, test, _ in tests}, {name: p for name, _, p in tests})
    caption = (
        "Cumulative shares of the PIT values of the data less those of a uniform distribution. Inside the grey band a "
        "column is as the model predicts it, as far as these data can tell. Columns outside are named with their "
        "fault."
    )
    names = fit.columns.names
    picture = plot_pit(fit.pit, names=names, level=LEVEL, num_curves=_PIT_CURVES)
    yield Pictures([Picture("PIT of columns", picture, caption, alt)])


def typical_pictures(fit: Fit) -> Iterator[Block]:
    """Pictures of typicality and foreign data."""
    found = fit.typicality
    u = found.value[~found.value.isnan()]
    shares = torch.histc(u, _BARS, 0, 1) / len(u)
    worst = int((shares - 1 / _BARS).abs().argmax())
    alt = (
        f"The bar farthest from {100 / _BARS:.0f} % holds {100 * float(shares[worst]):.0f} % of the data, at ranks "
        f"from {worst / _BARS:.2f} to {(worst + 1) / _BARS:.2f}; the mean rank is {float(u.mean()):.2f}."
    )
    caption = (
        f"Ranks of log p(x) of {len(u)} {fit.split} data among the model's own draws. Flat within the grey band if the "
        "data are typical of the model. High bars on the left are improbable data, on the right too probable ones."
    )
    pictures = [Picture("Typicality", plot_typicality(found, bins=_BARS), caption, alt)]
    for name, one in fit.foreign.items():
        ours, other = (float(values.nanmean()) for values in (one.log_p, one.foreign_log_p))
        alt = (
            f"log p(x) is {ours:.1f} nats on average for {fit.split} data and {other:.1f} for {name}; of the foreign "
            f"data {100 * _share_above(one.foreign_log_p, one.log_p):.0f} % lie above the median of the {fit.split} "
            "data."
        )
        caption = f"Shares of log p(x) of {fit.split} data and of {name}, both by as many draws of the guide. "
        caption += "The AUC is the probability that the datum has the larger one."
        pictures.append(Picture(f"Foreign data: {name}", plot_foreign(one, name=name), caption, alt))
    yield Pictures(pictures)


def latent_pictures(fit: Fit) -> Iterator[Block]:
    """Pictures of latent dimensions."""
    found, pictures = fit.kl_by_dimension, []
    known = found.mean.isfinite().nonzero().squeeze(1).tolist()
    if known:
        order = sorted(known, key=lambda j: -float(found.mean[j]))
        first, last = order[0], order[-1]
        alt = f"The largest is {float(found.mean[first]):.2f} nats, of {found.labels[first]}"
        alt += f"; the smallest {float(found.mean[last]):.3g}, of {found.labels[last]}." if first != last else "."
        caption = f"Mean of KL(q(z_j|x), p(z_j)) over {len(found.kl)} {fit.split} data, with its standard error."
        pictures.append(Picture("KL by dimension", plot_kl(found), caption, alt))
    collapse = fit.collapse
    known = (~collapse.share.isnan().any(0)).nonzero().squeeze(1).tolist()
    if known:
        share = collapse.share[int((collapse.epsilon - COLLAPSED_BELOW).abs().argmin())]
        most, least = max(known, key=lambda j: float(share[j])), min(known, key=lambda j: float(share[j]))
        alt = (
            f"At {COLLAPSED_BELOW:g} nats the shares run from {100 * float(share[least]):.0f} % "
            f"({collapse.labels[least]}) to {100 * float(share[most]):.0f} % ({collapse.labels[most]})."
        )
        caption = (
            "Share of data whose KL divergence in a dimension is below epsilon. A dimension has collapsed if its curve "
            "is above the crossing of the dashed lines, 99 % at 0.01 nats."
        )
        pictures.append(Picture("Collapse", plot_collapse(collapse), caption, alt))
    if pictures:
        yield Pictures(pictures)


def aggregate_picture(fit: Fit) -> Iterator[Block]:
    """Pictures of the aggregate posterior and of entropies."""
    found, pictures = fit.information, []
    ends = found.information
    if bool(ends.lower.isfinite()):
        alt = f"I(x; z) lies between {float(ends.lower):.2f} and {float(ends.upper):.2f} nats"
        size = found.dimension_kl.abs().nan_to_num(-1.0)
        worst = int(size.argmax())
        if float(size[worst]) >= 0:
            alt += f"; the dimension farthest from the prior is {found.labels[worst]}, {found.dimension_kl[worst]:.2f}"
        caption = (
            "What the codes hold about the data, how far all codes together are from the prior, and how far their "
            "dimensions depend on each other: a line joins the two ends between which each number lies. Below, KL of "
            "single dimensions. More information than log N cannot be seen with N data."
        )
        pictures.append(Picture("Information", plot_information(found), caption, f"{alt}."))
    entropies = fit.entropies.in_bits()
    known = entropies.kl.isfinite().nonzero().squeeze(1).tolist()
    if known:
        low, high = (pick(known, key=lambda j: float(entropies.entropy[j])) for pick in (min, max))
        alt = (
            f"The entropy runs from {float(entropies.entropy[low]):.2f} bits ({entropies.labels[low]}) to "
            f"{float(entropies.entropy[high]):.2f} ({entropies.labels[high]}); the KL divergences sum to "
            f"{float(entropies.kl[known].sum()):.2f} bits."
        )
        caption = (
            "A line for each dimension, from the entropy H(q) of a datum's code to its cross-entropy H(q, p) with the "
            "prior. Its length is what the code costs."
        )
        pictures.append(Picture("Bits of the code", plot_entropies(fit.entropies), caption, alt))
    if pictures:
        yield Pictures(pictures)


def calibration_pictures(fit: Fit) -> Iterator[Block]:
    """Pictures of the calibration."""
    guide, weights = fit.calibration, fit.weighted_calibration
    how = (
        "Cumulative shares less those of a uniform distribution, a curve for each latent and for log p(x|z) and "
        "log p(z). Inside the grey band all is well. "
    )
    yield Pictures(
        [
            Picture(
                "Calibration of the guide (SBC)",
                plot_calibration(guide),
                f"{how}Above 0 the guide lies too high, below 0 too low; first below and then above, it is too wide, "
                "the other way round too narrow.",
                _farthest(guide.uniformity, guide.adjusted),
            ),
            Picture(
                "Calibration of the weights",
                plot_calibration(weights),
                f"{how}No curve should leave it, whatever the guide is.",
                _farthest(weights.uniformity, weights.adjusted),
            ),
        ]
    )


def khat_pictures(fit: Fit) -> Iterator[Block]:
    """Pictures of k-hat."""
    found = fit.khat_map
    khat = found.khat
    seen = khat[khat.isfinite()]
    if not len(seen):
        return
    alt = (
        f"k-hat goes from {float(seen.max()):.2f} over a median of {float(khat.nanmedian()):.2f} to "
        f"{float(seen.min()):.2f}; {found.num_unreliable} of {len(khat)} are above {found.limit:.2f}."
    )
    caption = "k-hat of each datum, the largest first. Above the dashed line the guide's own draws do not suffice."
    pictures = [Picture("k-hat", plot_khat(found), caption, alt)]
    if fit.has_codes:
        pictures.append(_khat_plane(fit, found))
    yield Pictures(pictures)


def _khat_plane(fit: Fit, found: KhatMap) -> Picture:
    khat = found.khat
    codes, several = fit.khat_codes, len(fit.khat_codes.names)
    plane: Codes | CodesPCA = codes
    where = "of the latents"
    if several > 2 and float(fit.codes.mean.var(0).sum()) > 0:
        pca = fit.pca
        plane = pca._replace(mean=(codes.mean - pca.centre) @ pca.components.T)
        where = "by principal components"
    z = plane.mean
    bad = khat > found.limit
    place = ", ".join(f"{float(value):.2f}" for value in z[int(found.worst[0])][:2])
    alt = f"The largest k-hat, {float(khat[found.worst[0]]):.2f}, is at {place}."
    if 0 < int(bad.sum()) < len(bad):
        spread = z.std(0).clamp_min(1e-300)
        shift = (z[bad].mean(0) - z[~bad].mean(0)) / spread
        alt += (
            f" Data above the limit lie {float(shift[0]):+.1f} standard deviations along {plane.names[0]} from others."
        )
    caption = f"k-hat over the plane {where}. Triangles are above the limit." if several > 1 else "k-hat over z."
    return Picture("k-hat over latent space", plot_khat_plane(found, plane), caption, alt)


def _share_above(values: Tensor, others: Tensor) -> float:
    seen = values[~values.isnan()]
    return float((seen > others.nanmedian()).double().mean())


def _farthest(tests: Mapping[str, Uniformity], adjusted: Mapping[str, float]) -> str:
    """Say which curve is farthest from 0 and where, and how many leave their band."""
    name = max(tests, key=lambda each: float(tests[each].difference.abs().max()))
    test = tests[name]
    place = int(test.difference.abs().argmax())
    off = sum(adjusted[each] <= 1 - tests[each].level for each in tests)
    return (
        f"{off} of {len(tests)} curves are not uniform. The farthest from 0 is {name}, "
        f"{float(test.difference[place]):+.3f} at {float(test.points[place]):.2f}, where the band goes from "
        f"{float(test.lower[place]):+.3f} to {float(test.upper[place]):+.3f}."
    )
