"""The SVI training loop, its steps, its state, and validation."""

from pyrovae.training.steps import Stepper, StepsAtOnce
from pyrovae.training.svi import Argument, NonFiniteLossError, StoppedError, check_data, fit, trainable_parameters
from pyrovae.training.training_state import History

__all__ = [
    "Argument",
    "History",
    "NonFiniteLossError",
    "Stepper",
    "StepsAtOnce",
    "StoppedError",
    "check_data",
    "fit",
    "trainable_parameters",
]
