"""Sections of the page, in its order.

To add a section, write a function from `Findings` to blocks, whose docstring begins with the section's title, and add
it to `SECTIONS`. A picture joins `PICTURES` in pictures.py, a diagnostic `DIAGNOSTICS` in tables.py.
"""

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pyrovae.page.blocks import Block, Command, Folded, Group, Interactive, Items, Pictures, Table, Words
from pyrovae.page.checks import Check, Diagnosis
from pyrovae.page.fit import Fit
from pyrovae.page.pictures import PICTURES
from pyrovae.page.plane import plane
from pyrovae.page.tables import DIAGNOSTICS
from pyrovae.runs import describe, ladder_lines, out_of_memory, table_lines


@dataclass(frozen=True)
class Findings:
    """Fit with its checks.

    Attributes:
        fit: Trained model.
        diagnosis: Its checks.
    """

    fit: Fit
    diagnosis: Diagnosis


@dataclass(frozen=True)
class _Checks:
    """List of checks, each with value, limit, sentence, and advice if it failed."""

    checks: Sequence[Check]

    def html(self) -> str:
        return f'<ul class="checks">{"".join(map(self._item, self.checks))}</ul>'

    def _item(self, check: Check) -> str:
        kind = {True: "passed", False: "warning", None: "unknown"}[check.passed]
        limit = f"; limit: {check.threshold}" if check.threshold else ""
        lines = [
            f'<p><span class="state">{html.escape(check.state.capitalize())}</span>: {html.escape(check.name)}</p>',
            f"<p>{html.escape(_sentence(check.sentence))}</p>",
            f'<p class="measured">Measured: {html.escape(check.measured)}{html.escape(limit)}.</p>',
        ]
        if check.passed is False:
            lines.append(f"<p>To try: {html.escape(check.advice)}.</p>")
        return f'<li class="{kind}">{"".join(lines)}</li>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def verdict(findings: Findings) -> Iterator[Block]:
    """Verdict."""
    fit, marginal = findings.fit, findings.fit.summary["log_marginal"]
    yield Words(findings.diagnosis.headline, "verdict")
    for check in findings.diagnosis.warnings:
        yield Words(_sentence(check.sentence))
    if marginal["mean"] is not None:
        yield Words(
            f"The model has log p(x) = {marginal['mean']:.2f} nats per datum, with a standard error of "
            f"{_number(marginal['std_error'])} over {fit.num_data:,} {fit.split} data and a Monte Carlo error of "
            f"{_number(marginal['mc_std_error'], 3)}."
        )


def what_was_run(findings: Findings) -> Iterator[Block]:
    """What was run."""
    fit = findings.fit
    yield Items(fit.about)
    if fit.command:
        yield Words("The same run again, into a new folder:")
        yield Command(fit.command)


def numbers(findings: Findings) -> Iterator[Block]:
    """Numbers."""
    fit = findings.fit
    header, *rows = table_lines({"VAE": fit.summary, **fit.baselines.rows})
    yield Table(f"Nats per datum, means over {fit.num_data:,} {fit.split} data.", header, rows)
    if fit.baselines.differences:
        yield Table(
            "Difference of the model's log p(x) from each baseline, over the same data. Above 0 the model is better.",
            ["", "nats per datum", "s.e."],
            [[name, f"{mean:+.2f}", _number(error)] for name, (mean, error) in fit.baselines.differences.items()],
        )
    elif fit.baselines.words:
        yield Words(_sentence(fit.baselines.words))
    lines = ladder_lines(fit.summary).splitlines()
    rows = [[part for part in line.split("  ") if part.strip()] for line in lines[1:]]
    yield Folded(
        "log p(x) from fewer of the same draws",
        [Table("Nats per datum, from the first K draws.", ["K", "lower bound", "bias corrected", "s.e. MC"], rows)],
    )


def warnings(findings: Findings) -> Iterator[Block]:
    """Warnings."""
    checks = findings.diagnosis.checks
    yield Words("Every check that was made, those that failed first, each with its limit.")
    yield _Checks(sorted(checks, key=lambda check: {False: 0, None: 1, True: 2}[check.passed]))


def pictures(findings: Findings) -> Iterator[Block]:
    """Pictures."""
    reasons: set[str] = set()
    yield Pictures([block for picture in PICTURES for block in _tried(picture, findings.fit, reasons)])


def explore(findings: Findings) -> Iterator[Block]:
    """Latent space, to explore."""
    yield from _tried(_explore, findings.fit, set())


def _explore(fit: Fit) -> Iterator[Block]:
    content = plane(fit)
    how = {
        True: "The decoder runs in this page. Its weights are rounded to 16 bits; its means agree to 0.1 %.",
        False: "The means were decoded before, at some places, and are blended between them.",
    }[content["live"] is not None]
    moving = "Move over the plane, or use the arrow keys or the sliders, to see the mean that the model decodes there. "
    if content["traversals"] is not None:
        moving = "Move one slider at a time from the code of a datum; the next slider starts from the code again. "
    given = " Covariates are those of the first datum." if fit.data.covariates is not None else ""
    yield Words(f"{moving}Click a point, the posterior mean of a datum, to see that datum. {how}{given}")
    yield Interactive("plane", content, "Latent space: places, and the data that the model decodes there.")


def diagnostics(findings: Findings) -> Iterator[Block]:
    """Diagnostics."""
    reasons: set[str] = set()
    for title, parts in DIAGNOSTICS:
        blocks = [block for part in parts for block in _tried(part, findings.fit, reasons)]
        if blocks:
            yield Group(title, blocks)


def definitions(findings: Findings) -> Iterator[Block]:
    """How each number is defined."""
    yield Items(DEFINITIONS)
    yield Words("More: python -m pyrovae.guide glossary, and python -m pyrovae.guide log-p-x.")


DEFINITIONS = (
    ("nats", "Natural logarithms; 1 nat is 1.44 bits. All values are per datum, averaged over the data."),
    ("log p(x)", "Log density or probability of a datum, by importance sampling. On average it is a lower bound."),
    ("ELBO", "Lower bound of log p(x) that the training maximises: E log p(x|z) - KL(q(z|x), p(z)), z from q(z|x)."),
    ("s.e. data", "Standard error of a mean over data: how much it would vary with other data."),
    ("s.e. MC", "Monte Carlo error of a mean: how much it would vary with other draws."),
    ("k-hat", "Shape of the largest weights of a datum. Above 0.7 few draws carry the estimate."),
    ("bits/dim", "-log p(x) / (D ln 2) for D columns of discrete data."),
    ("baseline", "Density without latents, fitted to the training data."),
    (
        "predictive checks",
        "Statistics of the data among those of data sets that the model draws, z from the prior. The p-value is one "
        "for all statistics together.",
    ),
    (
        "PIT",
        "Where a value lies in its predictive distribution, between 0 and 1, drawn at random within the step of a "
        "discrete one. Uniform if the model is right.",
    ),
    (
        "typicality",
        "Rank of log p(x) of a datum among those of the model's own draws, uniform if the model is right. Both are by "
        "as many draws of the guide.",
    ),
    (
        "AUC",
        "Probability that log p(x) of a test datum is above that of a foreign one. Draws of the guide give foreign "
        "data too low a log p(x), so that the AUC may be too large, never too small for this reason.",
    ),
    (
        "SBC",
        "Simulation-based calibration: the rank of a true latent among the guide's draws, for data of the model, is "
        "uniform if the guide is the posterior. The weighted one tests the weights, whatever the guide.",
    ),
    (
        "KL of a dimension",
        "E_x KL(q(z_j|x), p(z_j)). Below 0.01 nats for 99 % of the data the dimension has collapsed.",
    ),
    (
        "aggregate posterior",
        "q(z_j), the codes of all data together. KL(q(z_j), p(z_j)) is the middle of an upper and a lower estimate.",
    ),
    ("entropy", "-E log q(z_j|x). The cross-entropy -E log p(z_j) is entropy plus KL divergence. 1 nat is 1.44 bits."),
    ("activity", "Variance over data of the posterior mean of a latent, over the variance of the prior."),
    ("approximation gap", "log p(x) less the ELBO of the best normal posterior of each datum."),
    ("amortisation gap", "ELBO of the best normal posterior of each datum less that of the guide."),
)

SECTIONS: tuple[Callable[[Findings], Iterator[Block]], ...] = (
    verdict,
    what_was_run,
    numbers,
    warnings,
    pictures,
    explore,
    diagnostics,
    definitions,
)
"""Sections in the order of the page."""


def _tried(make: Callable[[Fit], Iterator[Block]], fit: Fit, reasons: set[str]) -> list[Block]:
    """Make blocks; if that fails, say why in their place, unless the same reason was given before."""
    try:
        return list(make(fit))
    except Exception as error:  # programs of the user may raise anything
        if out_of_memory(error):
            raise
        name, reason = (make.__doc__ or make.__name__).split(".")[0].strip(), describe(error)
        if reason in reasons:
            return []
        reasons.add(reason)
        return [Words(f"Not shown: {name} ({reason}).")]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
