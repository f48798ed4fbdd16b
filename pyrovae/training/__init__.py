"""Training by stochastic variational inference: the loop, its steps, its state, and validation."""

from pyrovae.training.batches import Argument, Batches
from pyrovae.training.checks import NonFiniteLossError, check_data
from pyrovae.training.epochs import GraphedEpoch, SingleSteps
from pyrovae.training.steps import Stepper
from pyrovae.training.svi import StoppedError, fit, trainable_parameters
from pyrovae.training.training_state import History

__all__ = [
    "Argument",
    "Batches",
    "GraphedEpoch",
    "History",
    "NonFiniteLossError",
    "SingleSteps",
    "Stepper",
    "StoppedError",
    "check_data",
    "fit",
    "trainable_parameters",
]
