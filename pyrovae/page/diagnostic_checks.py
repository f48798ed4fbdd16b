"""Checks of a fit by its diagnostics: fit to data, use of the latents, calibration of the guide and of the weights."""

import math

import torch

from pyrovae.diagnostics import ACTIVE_FROM, Uniformity, check_uniform, holm
from pyrovae.page.check import P_VALUE, Check
from pyrovae.page.digits import in_digits
from pyrovae.page.fit import LEVEL, Fit

_ERRORS = 2.0  # standard errors beyond which a difference counts
_SMALLEST_P = 1 - LEVEL
_AGGREGATE = 0.1  # nats, such as a shift of 0.45 standard deviations
_MOST_COLUMNS = 100  # whose PIT is tested
_CLEAR = 0.02  # of the mean rank, from which it says the direction

_P_LIMIT = f"at least {_SMALLEST_P:.2g}"


def predictive_checks(fit: Fit) -> Check:
    """Check that data sets drawn from the model have the statistics of the data."""
    found = fit.predictive
    worst = found.z.abs().nan_to_num(torch.inf).argsort(descending=True, stable=True)[:3].tolist()
    said = "; ".join(
        f"{found.names[m]} is {in_digits(found.observed[m], 3)}, in replicates "
        f"{in_digits(found.replicated[:, m].mean(), 3)} ± {in_digits(found.replicated[:, m].std(), 2)}"
        for m in worst
    )
    passed = found.joint_p_value >= _SMALLEST_P
    start = "data sets drawn from the model look like the data" if passed else "the model does not make such data"
    return Check(
        "predictive checks",
        "data unlike the model's (predictive checks)",
        "model",
        found.joint_p_value,
        None,
        P_VALUE,
        _P_LIMIT,
        passed,
        f"{start} in {len(found.names)} statistics; of those farthest apart, {said}",
        "another likelihood: see which statistic is off, such as zeros, dispersion or tails; else train longer",
    )


def pit_tests(fit: Fit) -> list[tuple[str, Uniformity, float]]:
    """Test the PIT of at most 100 columns: name, test, and p-value adjusted for their number, the smallest first."""
    value = fit.pit.value
    places = torch.linspace(0, value.shape[1] - 1, min(_MOST_COLUMNS, value.shape[1])).round().long().tolist()
    names = fit.columns.names
    tests = []
    for d in places:
        seen = value[:, d][~value[:, d].isnan()]
        if len(seen):
            tests.append((names[d], check_uniform(seen, level=LEVEL)))
    if not tests:
        raise ValueError("the PIT needs observed entries, but there are none")
    adjusted = holm(torch.tensor([test.p_value for _, test in tests], dtype=torch.float64)).tolist()
    return sorted(
        [(name, test, p) for (name, test), p in zip(tests, adjusted, strict=True)], key=lambda row: (row[2], row[0])
    )


def randomised_pit(fit: Fit) -> Check:
    """Check that each column follows its predictive distribution."""
    name, fault = "distribution of columns (PIT)", "wrong distribution of columns (PIT)"
    try:
        tests = pit_tests(fit)
    except ValueError as error:  # says for which data there is no such test
        return Check(name, fault, "model", None, None, P_VALUE, _P_LIMIT, None, str(error), "")
    off = [(column, test) for column, test, p in tests if p < _SMALLEST_P]
    sentence = f"each of {len(tests)} columns follows its predictive distribution, as far as the PIT can see"
    if off:
        listed = ", ".join(f"{column} ({_SHAPES[test.shape]})" for column, test in off[:3])
        more = f" and {len(off) - 3} more" if len(off) > 3 else ""
        sentence = (
            f"{len(off)} of {len(tests)} columns do not follow the model's predictive distribution: {listed}{more}"
        )
    return Check(
        name,
        fault,
        "model",
        tests[0][2],
        None,
        P_VALUE,
        _P_LIMIT,
        not off,
        sentence,
        "another likelihood, such as one with its own dispersion for counts or heavier tails for real columns",
    )


_SHAPES = {
    "none": "unclear",
    "other": "another shape",
    "too wide": "predicted too wide",
    "too narrow": "predicted too narrow",
    "shifted up": "predicted too high",
    "shifted down": "predicted too low",
}


def typical_data(fit: Fit) -> Check:
    """Check that log p(x) of the data is as that of the model's own draws."""
    found = fit.typicality
    mean = float(found.value[~found.value.isnan()].mean())
    passed = found.p_value >= _SMALLEST_P
    side = "spreads otherwise than"
    if abs(mean - 0.5) > _CLEAR:
        side = "is mostly below" if mean < 0.5 else "is mostly above"
    sentence = (
        f"log p(x) of the {fit.split} data {side} that of the model's own draws (mean rank {mean:.2f} in place of 0.5)"
    )
    if passed:
        sentence = f"log p(x) of the {fit.split} data ranks as that of the model's own draws (mean rank {mean:.2f})"
    return Check(
        "typicality",
        "data atypical of the model",
        "model",
        found.p_value,
        None,
        P_VALUE,
        _P_LIMIT,
        passed,
        sentence,
        "look at samples beside data; train longer, a richer decoder or prior, or another likelihood",
    )


def foreign_data_above(fit: Fit) -> Check:
    """Check that noise and shuffled data do not have a larger log p(x) than the data."""
    found = {name: one.auc for name, one in fit.foreign.items()}
    worst = min(found, key=lambda name: found[name].value + _ERRORS * found[name].std_error)
    auc = found[worst]
    above = [name for name, one in found.items() if one.value < 0.5 - _ERRORS * one.std_error]
    listed = ", ".join(f"{name} {one.value:.2f}" for name, one in found.items())
    sentence = f"a datum has a larger log p(x) than a foreign one with probability (AUC): {listed}"
    if above:
        sentence = (
            f"the model gives a larger log p(x) to {' and '.join(above)} than to {fit.split} data: "
            f"AUC {listed}, where 0.5 is chance"
        )
    return Check(
        "foreign data",
        "foreign data above test data",
        "model",
        auc.value,
        auc.std_error,
        "AUC",
        f"at least 0.5 less {_ERRORS:g} standard errors",
        not above,
        sentence,
        "do not use log p(x) to find foreign data; train longer, or use the rank among the model's own draws",
    )


def collapsed_latents(fit: Fit) -> Check:
    """Check that every latent dimension depends on the data, and say whose fault it is if not."""
    found = fit.collapse
    unknown = found.kl.isnan()
    by_decoder = _named(found.labels, found.collapsed & found.ignored)
    by_guide = _named(found.labels, found.collapsed & ~found.ignored)
    wasted = _named(found.labels, ~found.collapsed & found.ignored & ~unknown)
    activity = dict(zip(fit.codes.names, fit.codes.activity, strict=True))
    inactive = [
        name
        for name, missing in zip(found.labels, unknown.tolist(), strict=True)
        if missing and not activity.get(name, math.inf) > ACTIVE_FROM
    ]
    count, dead = len(found.labels), len(by_decoder) + len(by_guide) + len(inactive)
    parts = [
        f"{len(names)} of {count} latent dimensions {what}: {_listed(names)}"
        for names, what in (
            (by_decoder, "have collapsed, since the decoder ignores them"),
            (by_guide, "have collapsed by the guide's fault, since the decoder uses them"),
            (inactive, "do not depend on the data"),
            (wasted, "are ignored by the decoder, although the guide codes something in them"),
        )
        if names
    ]
    return Check(
        "use of latents",
        "all latents collapsed" if dead == count else "collapsed latents" if dead else "ignored latents",
        "guide" if (by_guide or wasted) and not by_decoder and dead < count else "model",
        float(dead),
        None,
        f"of {count}",
        "none with KL below 0.01 nats for 99 % of the data, or ignored by the decoder",
        not parts,
        "; ".join(parts) or f"all {count} latent dimensions are in use",
        "a smaller KL weight, --kl_weight LinearWarmup or FreeBits, fewer latents, or a weaker decoder",
    )


def aggregate_posterior(fit: Fit) -> Check:
    """Check that the codes of all data together lie where the prior does."""
    found = fit.information
    kl, error = found.dimension_kl, found.dimension_kl_error
    name, fault = "aggregate posterior", "codes outside the prior"
    limit = f"at most {_AGGREGATE:g} in each dimension, {_ERRORS:g} standard errors subtracted"
    known = kl.isfinite().nonzero().squeeze(1).tolist()
    if not known:
        reason = "; ".join(found.skipped) or "the prior depends on covariates, or a density is unknown"
        return Check(name, fault, "model", None, None, "nats", limit, None, reason, "")
    low = kl - _ERRORS * error.nan_to_num(0.0)
    worst = max(known, key=lambda j: float(low[j]))
    off = [found.labels[j] for j in known if low[j] > _AGGREGATE]
    sentence = f"the codes of all data together follow the prior in each of {len(known)} dimensions"
    if off:
        sentence = (
            f"the codes of all data together leave the prior in {_listed(off)}, by up to {kl[worst]:.2f} nats "
            f"({found.labels[worst]}): draws from the prior come from places that no datum has"
        )
    return Check(
        name,
        fault,
        "model",
        float(kl[worst]),
        float(error[worst]),
        "nats",
        limit,
        not off,
        sentence,
        "train longer, a richer prior such as --prior MixturePrior or FlowPrior, or a KL weight of at least 1",
    )


def calibration_of_the_guide(fit: Fit) -> Check:
    """Check that the guide is the posterior of its model for the model's own data (SBC)."""
    found = fit.calibration
    return Check(
        "calibration of the guide (SBC)",
        _short(found.words),
        "guide",
        found.p_value,
        None,
        P_VALUE,
        _P_LIMIT,
        found.p_value >= _SMALLEST_P,
        "; ".join(found.words),
        "a richer guide such as --encoder FullCovarianceNormalEncoder or FlowEncoder, or a larger encoder network; "
        "log p(x) itself needs no change",
    )


def calibration_of_weights(fit: Fit) -> Check:
    """Check that the log weights are right, on data simulated from the model (weighted SBC)."""
    found = fit.weighted_calibration
    passed = found.p_value >= _SMALLEST_P and not found.num_outside
    return Check(
        "log weights (weighted SBC)",
        "wrong log weights (weighted SBC)" if found.p_value < _SMALLEST_P else "latents that the guide never draws",
        "number",
        found.p_value,
        None,
        P_VALUE,
        _P_LIMIT,
        passed,
        "; ".join(found.words),
        "compare the draws of each distribution with its density, and the support of the guide with that of the prior",
    )


def _short(words: tuple[str, ...]) -> str:
    """Name the fault of a guide in a few words, such as "guide too narrow"."""
    text = " ".join(words)
    found = [what for what in ("ignores x", "too narrow", "too wide") if what in text]
    if not found and "lies too" in text:
        found = ["shifted"]
    return f"guide {' and '.join(found)} (SBC)" if found else "guide unlike the posterior (SBC)"


def _named(labels: tuple[str, ...], chosen: torch.Tensor) -> list[str]:
    return [label for label, yes in zip(labels, chosen.tolist(), strict=True) if yes]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
