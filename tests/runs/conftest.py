"""A folder with data and a user's module, and a finished run in it, for each file of tests."""

import numpy as np
import pytest
from script_helpers import TINY, run

OWN_MODULE = """
import pathlib
import pyro.distributions as dist
import torch
from pyrovae import Encoder, Likelihood, Prior

pathlib.Path(__file__).with_suffix(".imported").touch()

class StudentTPrior(Prior):
    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        self.df = df
        self.register_buffer("loc", torch.zeros(latent_dim))

    def forward(self, covariates=None):
        return dist.StudentT(self.df, self.loc, 1.0).to_event(1)

class LazyPrior(StudentTPrior):
    def __init__(self, latent_dim: int) -> None:
        self.loc = torch.nn.Parameter(torch.zeros(latent_dim))

class CauchyLikelihood(Likelihood):
    def __init__(self, network, scale: float = 1.0) -> None:
        super().__init__(network)
        self.scale = scale

    def forward(self, z, covariates=None):
        return dist.Cauchy(self.outputs(z, covariates), self.scale).to_event(1)

class TiedEncoder(Encoder):
    @classmethod
    def num_outputs(cls, latent_dim: int) -> int:
        return latent_dim + 1

    def forward(self, x, covariates=None):
        outputs = self.outputs(x, covariates)
        return dist.Normal(outputs[..., :-1], outputs[..., -1:].exp()).to_event(1)

class WidePrior(Prior):
    def forward(self, covariates=None):
        return dist.Normal(torch.zeros(7), 1.0).to_event(1)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an array of bits, one of counts, and one of reals."""
    root = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    bits = (generator.random((120, 3, 4)) < generator.random((1, 3, 4))).astype(np.uint8)
    np.save(root / "bits.npy", bits)
    np.savez(root / "both.npz", counts=generator.integers(0, 9, (60, 5)), reals=generator.normal(size=(60, 5)))
    (root / "mymodule.py").write_text(OWN_MODULE)
    return root


@pytest.fixture(scope="module")
def straight(place):
    """A finished run of twelve epochs."""
    run("train", "--data", "bits.npy", *TINY, "--epochs", 12, "--out", "straight", cwd=place)
    return place / "straight"
