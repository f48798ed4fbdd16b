"""Training by stochastic variational inference.

svi              `fit`: the loop, early stopping
inputs           training and validation data, with their case weights
batches          order of the data, batches of data in memory or on disk
loaders          batches of a DataLoader
batch_sites      sites of the programs on a batch, and the plates over its rows
plates           sites outside these plates, subsampling plates
case_weights     weights of the data in the objective
optimizers       torch optimizers, also from those of pyro.optim
learning_rate    schedules and warm-up of the learning rate
averaging        exponential average of the weights
parameters       the tensors to train
steps            one training step: eager or recorded
graphed_steps    one step as a CUDA graph (execution/cuda_graphs runs the optimizer)
stepper          the steps of a run, each of the fastest kind that works
epochs           many steps, one by one or as one CUDA graph
refits           fits on bootstrap rows
validation       ELBO of held-out data
training_state   `History`, checkpoints, the best epoch's weights
checks           options, data, finiteness
"""

from pyrovae.training.batches import Argument, Batches
from pyrovae.training.checks import NonFiniteLossError, check_data
from pyrovae.training.epochs import GraphedEpoch, SingleSteps
from pyrovae.training.learning_rate import BurdaLR, LearningRate
from pyrovae.training.parameters import trainable_parameters
from pyrovae.training.refits import bootstrap_rows, refit
from pyrovae.training.stepper import Stepper
from pyrovae.training.svi import StoppedError, fit
from pyrovae.training.training_state import History

__all__ = [
    "Argument",
    "Batches",
    "BurdaLR",
    "GraphedEpoch",
    "History",
    "LearningRate",
    "NonFiniteLossError",
    "SingleSteps",
    "Stepper",
    "StoppedError",
    "bootstrap_rows",
    "check_data",
    "fit",
    "refit",
    "trainable_parameters",
]
