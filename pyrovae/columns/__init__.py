"""The schema of a table: what each column is, in which units, and what it is used for.

    column      `Column`: kind, levels, resolution, origin, centre and spread of one column
    columns     `Columns`: all columns of a table by name, as plain values and as a printed table
    grids       the step of the grid on which values lie

The table decides the likelihood. Nothing else in the library learns what a column is.
"""

from pyrovae.columns.column import (
    COMMON_SHARE,
    DEFAULT_LIKELIHOODS,
    DROPPED_BY_FLAG,
    KINDS,
    LEVELLED,
    NUMERIC,
    ODD_FACTOR,
    ROLES,
    Column,
)
from pyrovae.columns.columns import Columns, date_text, number_text, shown
from pyrovae.columns.grids import grid_of

__all__ = [
    "COMMON_SHARE",
    "DEFAULT_LIKELIHOODS",
    "DROPPED_BY_FLAG",
    "KINDS",
    "LEVELLED",
    "NUMERIC",
    "ODD_FACTOR",
    "ROLES",
    "Column",
    "Columns",
    "date_text",
    "grid_of",
    "number_text",
    "shown",
]
