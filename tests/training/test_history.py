"""How a history of `fit` prints."""

import pytest

from pyrovae import History

ROW = {"train_objective": -3.456, "validation_elbo": -2.345, "seconds": 1.0}


@pytest.mark.parametrize(
    ("history", "text"),
    [
        (History(), "History(0 epochs, best_epoch=0, stop_reason=None)"),
        (
            History([ROW] * 500, 470, "plateau"),
            "History(500 epochs, best_epoch=470, validation_elbo=-2.35, stop_reason='plateau')",
        ),
        (
            History([{**ROW, "validation_elbo": None}], 1, "epochs"),
            "History(1 epochs, best_epoch=1, train_objective=-3.46, stop_reason='epochs')",
        ),
    ],
)
def test_a_history_prints_in_one_short_line(history, text):
    assert repr(history) == text
