"""The page of a fit: one HTML file that needs no network, and the same findings as JSON."""

import base64
import hashlib
import html
import re
from functools import cache
from importlib import resources
from string import Template
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pyrovae.page.blocks import Picture, Table, leaves
from pyrovae.page.checks import Diagnosis
from pyrovae.page.fit import Fit
from pyrovae.page.inline import share_definitions
from pyrovae.page.sections import SECTIONS, Findings
from pyrovae.runs import table_lines

_NO_LETTERS = re.compile(r"[^a-z0-9]+")


class Page(NamedTuple):
    """Page of a fit.

    Attributes:
        text: HTML of the whole page.
        diagnosis: Content of diagnosis.json.
        findings: What the page was made from.
        pictures: Pictures in their order.
    """

    text: str
    diagnosis: dict[str, Any]
    findings: Findings
    pictures: tuple[Picture, ...]

    def figures(self) -> dict[str, Figure]:
        """Return the figures by a name for a file: the place on the page and the title, as "02-cost-of-the-code"."""
        return {
            f"{place:02d}-{_NO_LETTERS.sub('-', picture.title.lower()).strip('-')}": picture.figure
            for place, picture in enumerate(self.pictures, start=1)
        }


def make_page(fit: Fit, *, script: str | None = None) -> Page:
    """Make the page of a fit. The same fit gives the same bytes.

    Args:
        fit: Trained model.
        script: JavaScript of the page; None for page.js.
    """
    findings = Findings(fit, Diagnosis.of(fit))
    names = [(section.__name__.replace("_", "-"), (section.__doc__ or "").split(".")[0]) for section in SECTIONS]
    parts, pictures, tables = [], list[Picture](), list[dict[str, Any]]()
    for (name, title), section in zip(names, SECTIONS, strict=True):
        blocks = list(section(findings))
        for group, block in leaves(blocks, title):
            if isinstance(block, Picture):
                pictures.append(block)
            elif isinstance(block, Table):
                tables.append({"title": group, **block.to_dict()})
        inside = "\n".join(block.html() for block in blocks)
        parts.append(f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>\n{inside}\n</section>')
    style, script = _source("page.css"), script_of() if script is None else script
    text = Template(_source("page.html")).substitute(
        title=html.escape(f"Fit {fit.name}"),
        style=style,
        style_sum=_sum(style),
        script=script,
        script_sum=_sum(script),
        contents="".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in names),
        sections=share_definitions("\n".join(parts)),
    )
    return Page(text, {**_diagnosis(findings), "tables": tables}, findings, tuple(pictures))


def _diagnosis(findings: Findings) -> dict[str, Any]:
    fit = findings.fit
    return {
        "run": fit.name,
        "about": dict(fit.about),
        "command": fit.command,
        "evaluation": fit.summary,
        "table": table_lines({"VAE": fit.summary, **fit.baselines.rows}),
        "above_baselines": {
            name: {"mean": mean, "std_error": error} for name, (mean, error) in fit.baselines.differences.items()
        },
        **findings.diagnosis.to_dict(),
    }


def _sum(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def script_of() -> str:
    """Return page.js, the JavaScript of every page."""
    return _source("page.js")


@cache
def _source(name: str) -> str:
    return resources.files("pyrovae.page").joinpath(name).read_text(encoding="utf-8")
