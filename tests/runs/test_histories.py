"""The history of a run, read from its metrics."""

from types import SimpleNamespace

import pytest

from pyrovae.runs import Run


@pytest.mark.parametrize(
    ("objectives", "best"),
    [([-3.0, -1.0, -1.0, -2.0], 2), ([None, -2.0, None, -1.5], 4), ([None, None, None], 3)],
)
def test_the_best_epoch_is_the_first_with_the_best_objective(objectives, best):
    rows = [{"epoch": place + 1, "validation_objective": value} for place, value in enumerate(objectives)]
    history = Run.history(SimpleNamespace(metrics=lambda: rows))
    assert history.best_epoch == best
    assert history.rows == rows
