"""How a history of `fit` prints."""

import pytest

from pyrovae import History
from pyrovae.training.svi import _describe

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


@pytest.mark.parametrize(
    ("train", "validation", "text"),
    [
        # Train and validation: objective, ELBO.
        ((-3.456, -3.456), (-4.0, -4.0), "ELBO train -3.46, validation -4.00 nats"),
        ((-3.456, -3.456), (None, None), "ELBO train -3.46 nats"),
        # The objective chooses the epoch, and may rise while the ELBO falls.
        ((-3.456, None), (-4.0, -9.0), "objective train -3.46, validation -4.00; ELBO validation -9.00 nats"),
        ((-3.456, None), (None, None), "objective train -3.46 nats"),
    ],
)
def test_a_line_of_an_epoch_has_the_objective_unless_it_is_the_elbo(train, validation, text):
    row = dict(zip(("train_objective", "train_elbo"), train, strict=True))
    row |= dict(zip(("validation_objective", "validation_elbo"), validation, strict=True))
    assert _describe(History([row])) == text
