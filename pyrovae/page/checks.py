"""Checks of a fit: what was found, its limit, what it means, and what to try.

To add a check, write a function from a `Fit` to a `Check`, and add it to `CHECKS`, or to `TRAINING_CHECKS` if it needs
no more than the numbers of training and evaluation: then `train.py` prints it as well. Checks by diagnostics are in
diagnostic_checks.py.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.evidence import KHAT_LIMIT
from pyrovae.likelihoods import Positive
from pyrovae.page.check import Check, CheckFunction
from pyrovae.page.diagnostic_checks import (
    aggregate_posterior,
    calibration_of_the_guide,
    calibration_of_weights,
    collapsed_latents,
    foreign_data_above,
    predictive_checks,
    randomised_pit,
    typical_data,
)
from pyrovae.page.fit import Fit
from pyrovae.plots import reconstructions
from pyrovae.runs import KHAT_DRAWS, describe, out_of_memory
from pyrovae.stats import mean_and_std_error

_ERRORS = 2.0  # standard errors beyond which a difference counts
_KHAT_SHARE = 0.01  # of the data that may have a k-hat above the limit
_RISE = 0.1  # nats that the last fifth of the epochs may still gain
_FEW_EPOCHS = 5  # below which no rise can be measured
_FEW_DATA = 100
_FLOOR = 1.5  # times its lower bound, below which a scale lies at it
_GAP = 1.0  # nats
_BELOW, _MANY = 0.1, 3.0  # nats and standard errors, by which an ELBO may lie above log p(x)
_MORE_DRAWS = "evaluate again with more draws: scripts/evaluate.py RUN --num_particles 20000"


@dataclass(frozen=True)
class Diagnosis:
    """Ordered checks of a fit.

    Attributes:
        checks: Checks, in the order of the page.
    """

    checks: tuple[Check, ...]

    @classmethod
    def of(cls, fit: Fit, functions: Iterable[CheckFunction] | None = None) -> "Diagnosis":
        """Run checks on a fit; None for all. A check that raises is listed as not measured."""
        return cls(tuple(_run(function, fit) for function in (CHECKS if functions is None else functions)))

    @property
    def warnings(self) -> list[Check]:
        """Checks that failed."""
        return [check for check in self.checks if check.passed is False]

    @property
    def headline(self) -> str:
        """Verdict in one sentence."""
        measured = sum(check.passed is not None for check in self.checks)
        failed: dict[str, list[str]] = {check.subject: [] for check in self.warnings}
        for check in self.warnings:
            failed[check.subject].append(check.fault)
        if not failed:
            return f"None of {measured} checks found a problem. This is no proof: a check sees what it measures alone."
        said = {
            "model": "Do not believe this model yet",
            "guide": "Do not use this guide as the posterior yet",
            "number": "Do not publish these numbers yet",
        }
        return " ".join(f"{said[subject]}: {', '.join(names)}." for subject, names in failed.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the content of diagnosis.json."""
        return {"headline": self.headline, "checks": [{**asdict(check), "state": check.state} for check in self.checks]}


def _run(function: CheckFunction, fit: Fit) -> Check:
    try:
        return function(fit)
    except Exception as error:  # programs of the user may raise anything
        if out_of_memory(error):
            raise
        name = function.__name__.replace("_", " ")
        return Check(name, name, "model", None, None, "", "", None, f"it could not be measured: {describe(error)}", "")


def below_a_baseline(fit: Fit) -> Check:
    """Check that log p(x) is not below that of a density without latents."""
    name, fault, unit, threshold = (
        "baselines",
        "below a baseline",
        "nats per datum",
        f"at least -{_ERRORS:g} standard errors",
    )
    advice = (
        "train longer, use more latents or a larger network, --output_bias data, or the likelihood family of the "
        "baseline"
    )
    found = {key: value for key, value in fit.baselines.differences.items() if not math.isnan(value[0])}
    if not found:
        reason = fit.baselines.words or "there are no baselines"
        return Check(name, fault, "model", None, None, unit, threshold, None, reason, advice)
    best = min(found, key=lambda key: found[key][0])
    mean, error = found[best]
    passed = mean >= 0 or (not math.isnan(error) and mean >= -_ERRORS * error)
    below = [f'"{key}"' for key, (value, spread) in found.items() if value < 0 and not value >= -_ERRORS * spread]
    if passed:
        side = "above" if mean > 0 else "not clearly below"
        sentence = f'log p(x) is {side} the best baseline, "{best}", which has no latents'
    else:
        sentence = (
            f"log p(x) is {abs(mean):.2f} nats per datum BELOW {' and '.join(below)}: a density without latents "
            "describes these data better"
        )
    return Check(name, fault, "model", mean, error, unit, threshold, passed, sentence, advice)


def still_rising(fit: Fit) -> Check:
    """Check that the ELBO of the validation data no longer rises when the training ends."""
    name, fault, unit, threshold = (
        "convergence",
        "still rising",
        "nats",
        f"at most {_RISE:g} in the last fifth of the epochs",
    )
    advice = "train longer: raise --epochs, or the learning rate"
    elbo = [value for value in fit.history["validation_elbo"] if value is not None]
    ended = len(fit.history) < fit.planned
    if len(elbo) < _FEW_EPOCHS:
        count = f"{len(elbo)} epoch{'s' * (len(elbo) != 1)}"
        if not elbo:
            return Check(name, fault, "model", None, None, unit, threshold, None, "there is no validation ELBO", advice)
        sentence = f"the training took {count}, too few to see whether the ELBO still rises"
        return Check(name, fault, "model", None, None, unit, f"at least {_FEW_EPOCHS} epochs", ended, sentence, advice)
    gain, error = _rise(elbo[-max(_FEW_EPOCHS, len(elbo) // 5) :])
    rises = gain > _RISE and gain > _ERRORS * error
    passed = not rises or ended
    if ended:
        sentence = "the training ended because the validation data no longer improved"
    elif rises:
        sentence = f"the validation ELBO still rose by {gain:.2f} nats in the last fifth of the epochs"
    else:
        sentence = "the validation ELBO no longer rises"
    return Check(name, fault, "model", gain, error, unit, threshold, passed, sentence, advice)


def _rise(values: Sequence[float]) -> tuple[float, float]:
    """Return the rise of a straight line through values, at equal steps, and its standard error."""
    y = torch.tensor(values, dtype=torch.float64)
    t = torch.arange(len(y), dtype=torch.float64) - (len(y) - 1) / 2
    slope = (t * y).sum() / t.square().sum()
    rest = y - y.mean() - slope * t
    error = (rest.square().sum() / (len(y) - 2) / t.square().sum()).sqrt()
    return float(slope * (len(y) - 1)), float(error * (len(y) - 1))


def overfit(fit: Fit) -> Check:
    """Check that the validation ELBO did not peak early while the training ELBO left that of the evaluation behind."""
    name, fault, unit = "generalisation", "overfit", "nats"
    threshold = f"peak in the second half of the epochs, or at most {_ERRORS:g} standard errors"
    advice = "use more data, fewer latents, a smaller network, weight decay, or a smaller --patience"
    elbo, train = fit.history["validation_elbo"], fit.history["train_elbo"]
    at = fit.history.best_epoch - 1
    known = [value if value is not None else -math.inf for value in elbo]
    if not known or max(known) == -math.inf or train[at] is None or fit.split == "train":
        reason = "the history has no ELBO of training and validation data to compare"
        return Check(name, fault, "model", None, None, unit, threshold, None, reason, advice)
    held_out = fit.summary["elbo"]
    gap, error = train[at] - held_out["mean"], held_out["std_error"]
    peak = max(range(len(known)), key=known.__getitem__)
    early = peak + 1 <= len(known) / 2 or known[peak] - known[at] > _ERRORS * (error or 0)
    passed = not (early and gap > _ERRORS * (error or 0) and len(known) >= _FEW_EPOCHS)
    sentence = f"the training ELBO is {gap:+.2f} nats from that of the {fit.split} data at the epoch that was kept"
    if not passed:
        sentence += f", and the validation ELBO was best in epoch {peak + 1} of {len(known)}"
    return Check(name, fault, "model", gap, error, unit, threshold, passed, sentence, advice)


def scales_at_their_floor(fit: Fit) -> Check:
    """Check that no learned scale of the likelihood has fallen to its lower bound."""
    name, fault, unit, threshold = (
        "scales",
        "scales at their floor",
        "of all scales",
        f"none below {_FLOOR:g} x its bound",
    )
    advice = "fix the scale, raise its lower bound, use a likelihood with a resolution, or look for repeated values"
    found = _learned_scales(fit)
    if not found:
        sentence = "the likelihood has no learned scale"
        return Check(name, fault, "model", None, None, unit, threshold, None, sentence, advice)
    share = float(torch.cat([(value <= _FLOOR * low).flatten().double() for value, low in found]).mean())
    sentence = "no learned scale of the likelihood lies at its lower bound"
    if share:
        sentence = f"{100 * share:.1f} % of the learned scales lie at their lower bound, where a density is unbounded"
    return Check(name, fault, "model", share, None, unit, threshold, share == 0, sentence, advice)


def _learned_scales(fit: Fit) -> list[tuple[Tensor, float]]:
    """Return the learned positive parameters of the model, and their lower bounds; outputs of a network at one pass."""
    parts = [part for part in fit.vae.model.modules() if isinstance(part, Positive) and isinstance(part.choice, str)]
    found = [(torch.as_tensor(part(iter(()))).detach().cpu(), part.low) for part in parts if part.choice != "network"]
    outputs = [part for part in parts if part.choice == "network"]
    if outputs:
        hooks = [
            part.register_forward_hook(lambda part, _, value: found.append((value.detach().cpu(), part.low)))
            for part in outputs
        ]
        try:
            (x,), kwargs = fit.arguments(slice(0, 200))
            _reconstruct(fit, x, kwargs)
        finally:
            for hook in hooks:
                hook.remove()
    return found


def _reconstruct(fit: Fit, x: Tensor, kwargs: dict[str, Tensor]) -> Tensor:
    return reconstructions(fit.vae.model, fit.vae.guide, x, seed=fit.seed, **kwargs)


def unreliable_weights(fit: Fit) -> Check:
    """Check that k-hat is above 0.7 for few data."""
    marginal = fit.summary["log_marginal"]
    share, draws = marginal["khat"]["share_above_0.7"], marginal["num_particles"]
    name, fault, unit, threshold = (
        "weights",
        "unreliable weights (k-hat)",
        "% of the data",
        f"at most {100 * _KHAT_SHARE:g} % above {KHAT_LIMIT}",
    )
    advice = _MORE_DRAWS
    if draws < KHAT_DRAWS:
        sentence = f"k-hat needs at least {KHAT_DRAWS} draws, got {draws:g}"
        return Check(name, fault, "number", None, None, unit, threshold, None, sentence, advice)
    sentence = (
        f"k-hat is above {KHAT_LIMIT} for {100 * share:.1f} % of the data: few draws carry most of their weight, so "
        "their Monte Carlo errors are unreliable and their log p(x) may be too low"
    )
    if not share:
        sentence = f"k-hat is below {KHAT_LIMIT} for all data, which is no proof of reliable errors"
    return Check(name, fault, "number", 100 * share, None, unit, threshold, share <= _KHAT_SHARE, sentence, advice)


def few_data(fit: Fit) -> Check:
    """Check that there are enough data for the standard error over data to mean something."""
    size = fit.summary.get("effective_num_data", fit.num_data)
    sentence = f"the numbers are means over {fit.num_data:,} {fit.split} data"
    if "effective_num_data" in fit.summary:
        sentence += f", by their case weights worth {size:,.0f} equal ones"
    if size < _FEW_DATA:
        sentence += ": their standard errors are themselves uncertain"
    advice = "hold out more data, or repeat with other --split_seed and report the spread"
    limit = f"at least {_FEW_DATA}"
    return Check(
        "test data", "few test data", "number", float(size), None, "data", limit, size >= _FEW_DATA, sentence, advice
    )


def approximation_gap(fit: Fit) -> Check:
    """Check that the guide's family can come near the posterior, and that no ELBO is above log p(x)."""
    sentence = "the best normal posterior of each datum lies {} nats from log p(x)"
    advice = "use a richer guide: --encoder FullCovarianceNormalEncoder or FlowEncoder; log p(x) itself needs no change"
    found = _gap(fit, "approximation gap", "wide approximation gap", fit.refined.approximation_gap, sentence, advice)
    if found.value is None or found.error is None or found.value >= -max(_BELOW, _MANY * found.error):
        return found
    return replace(
        found,
        fault="log p(x) below an ELBO",
        subject="number",
        threshold=f"at most {_GAP:g}, and at least -{_BELOW:g} or {_MANY:g} standard errors below 0",
        passed=False,
        sentence=f"the ELBO of the best normal posterior of each datum lies {-found.value:.2f} nats above log p(x), "
        "whose estimate is too low",
        advice=_MORE_DRAWS,
    )


def amortisation_gap(fit: Fit) -> Check:
    """Check that one guide for all data costs little."""
    sentence = "one network for all data costs {} nats against a normal posterior fitted to each datum"
    advice = "use a larger encoder network, more training data, or refine the posterior of each datum by refine()"
    return _gap(fit, "amortisation gap", "wide amortisation gap", fit.refined.amortisation_gap, sentence, advice)


def _gap(fit: Fit, name: str, fault: str, gaps: Tensor, sentence: str, advice: str) -> Check:
    threshold, known = f"at most {_GAP:g}", gaps[gaps.isfinite()]
    if len(known) < 2:
        reason = "the optimisation did not converge for the chosen data"
        return Check(name, fault, "guide", None, None, "nats", threshold, None, reason, advice)
    mean, error = mean_and_std_error(known)
    said = f"{sentence.format(f'{mean:.2f}')} (mean of {len(known)} {fit.split} data)"
    return Check(name, fault, "guide", mean, error, "nats", threshold, mean <= _GAP, said, advice)


TRAINING_CHECKS: tuple[CheckFunction, ...] = (
    below_a_baseline,
    still_rising,
    overfit,
    scales_at_their_floor,
    unreliable_weights,
    few_data,
)
"""Checks that need no more than training and evaluation, whose lines `train.py` prints."""

CHECKS: tuple[CheckFunction, ...] = (
    *TRAINING_CHECKS,
    predictive_checks,
    randomised_pit,
    typical_data,
    foreign_data_above,
    collapsed_latents,
    aggregate_posterior,
    calibration_of_the_guide,
    approximation_gap,
    amortisation_gap,
    calibration_of_weights,
)
"""All checks, in the order of the page."""


def training_lines(diagnosis: Diagnosis) -> str:
    """Say in lines for a terminal which checks failed and what to try."""
    measured = [check for check in diagnosis.checks if check.passed is not None]
    failed = diagnosis.warnings
    if not failed:
        return f"{len(measured)} checks of training and evaluation passed"
    lines = [f"{len(failed)} of {len(measured)} checks of training and evaluation failed:"]
    lines += [f"  {check.fault}: {check.sentence}\n    try: {check.advice}" for check in failed]
    return "\n".join(lines)
