"""One page about a fit, as a single HTML file: a verdict, the numbers with their errors, checks, pictures.

fit, about: `Fit`, a trained model with what is known of it.
check, checks, diagnostic_checks: `Check` and `Diagnosis`, one function per check.
sections, tables, pictures, and *_pictures by subject: what the page shows, one function each.
plane, live, packed: its interactive part.
blocks, inline, shorter, write: paragraphs, tables and pictures as HTML, and the whole page.
"""

from pyrovae.page.check import Check
from pyrovae.page.checks import CHECKS, TRAINING_CHECKS, Diagnosis, training_lines
from pyrovae.page.fit import Fit
from pyrovae.page.write import Page, make_page

__all__ = [
    "CHECKS",
    "TRAINING_CHECKS",
    "Check",
    "Diagnosis",
    "Fit",
    "Page",
    "make_page",
    "training_lines",
]
