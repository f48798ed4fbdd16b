"""Models with exact answers, and programs as a user would write them."""

import math
import sys

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import VAE, Encoder, NormalLikelihood, StandardNormalPrior
from pyrovae.training import Stepper


class LinearGaussian:
    """Linear-Gaussian model z ~ N(0, I), x|z ~ N(W z + b, scale^2 I), in closed form (Bishop 2006, section 2.3.3)."""

    def __init__(
        self, data_dim: int = 5, latent_dim: int = 2, scale: float = 0.7, *, dtype=torch.float64, seed: int = 3
    ):
        generator = torch.Generator().manual_seed(seed)
        self.scale, self.latent_dim, self.dtype = scale, latent_dim, dtype
        self.weight = torch.randn(data_dim, latent_dim, generator=generator, dtype=dtype)
        self.bias = torch.randn(data_dim, generator=generator, dtype=dtype)
        self.generator = generator

    def data(self, size: int) -> Tensor:
        z = torch.randn(size, self.latent_dim, generator=self.generator, dtype=self.dtype)
        noise = torch.randn(size, len(self.bias), generator=self.generator, dtype=self.dtype)
        return z @ self.weight.T + self.bias + self.scale * noise

    def log_marginal(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.bias), dtype=self.dtype)
        if mask is None:
            return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x)
        return torch.stack(
            [
                torch.distributions.MultivariateNormal(self.bias[m], covariance[m][:, m]).log_prob(row[m])
                for row, m in zip(x, mask, strict=True)
            ]
        )

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = torch.eye(self.latent_dim, dtype=self.dtype) + self.weight.T @ self.weight / self.scale**2
        covariance = torch.linalg.inv(precision)
        return (x - self.bias) @ self.weight @ covariance / self.scale**2, covariance

    def decoder(self) -> nn.Linear:
        layer = nn.Linear(self.latent_dim, len(self.bias), dtype=self.dtype)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)
        return layer

    def vae(self, *, sd_factor: float | None = None, shift: float = 0.0) -> VAE:
        """Make the VAE whose guide is the posterior, or a diagonal normal with sd_factor times the posterior's sd."""
        prior = StandardNormalPrior(self.latent_dim).to(self.dtype)
        likelihood = NormalLikelihood(self.decoder(), scale=self.scale).to(self.dtype)
        encoder = ExactEncoder(self) if sd_factor is None else DiagonalEncoder(self, sd_factor, shift)
        return VAE(prior, likelihood, encoder)


class ExactEncoder(Encoder):
    def __init__(self, oracle: LinearGaussian):
        super().__init__(nn.Identity())
        self.oracle = oracle

    def forward(self, x, covariates=None):
        loc, covariance = self.oracle.posterior(x)
        return dist.MultivariateNormal(loc, covariance)


class DiagonalEncoder(Encoder):
    def __init__(self, oracle: LinearGaussian, sd_factor: float, shift: float):
        super().__init__(nn.Identity())
        self.oracle, self.sd_factor, self.shift = oracle, sd_factor, shift

    def forward(self, x, covariates=None):
        loc, covariance = self.oracle.posterior(x)
        scale = covariance.diagonal().sqrt()
        return dist.Normal(loc + self.shift * scale, self.sd_factor * scale).to_event(1)


class HandWritten:
    """Model and guide as plain functions, with parameters declared to Pyro and another plate name than ours."""

    def __init__(self, data_dim: int = 4, latent_dim: int = 2):
        self.decoder = nn.Linear(latent_dim, data_dim)
        self.encoder = nn.Linear(data_dim, latent_dim)
        self.latent_dim = latent_dim

    def model(self, rows):
        decoder = pyro.module("hand_decoder", self.decoder)
        scale = pyro.param("hand_scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("batch", rows.shape[0], dim=-1):
            latent = pyro.sample("latent", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("row", dist.Normal(decoder(latent), scale).to_event(1), obs=rows)

    def guide(self, rows):
        encoder = pyro.module("hand_encoder", self.encoder)
        spread = pyro.param("hand_spread", torch.ones(self.latent_dim), constraint=dist.constraints.positive)
        with pyro.plate("batch", rows.shape[0], dim=-1):
            pyro.sample("latent", dist.Normal(encoder(rows), spread).to_event(1))

    def log_marginal(self, x: Tensor, scale: float = 1.0) -> Tensor:
        weight, bias = self.decoder.weight.detach(), self.decoder.bias.detach()
        covariance = weight @ weight.T + scale**2 * torch.eye(len(bias))
        return torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)


LOG_2PI = math.log(2 * math.pi)


def normal_near(oracle: LinearGaussian, x: Tensor, factor: float = 1.2, shift: float = 0.3) -> tuple[Tensor, Tensor]:
    """Return mean, with shape (N, U), and scale_tril, with shape (N, U, U), of a normal near the posterior."""
    loc, covariance = oracle.posterior(x)
    return loc + shift * covariance.diagonal().sqrt(), factor * torch.linalg.cholesky(covariance).expand(len(x), -1, -1)


def stepper_of(vae, elbo, make_optimizer, execution, calls, *, weighted=False):
    """Make a stepper for all parameters of a VAE on the CPU."""
    parameters = list(vae.parameters())
    return Stepper(
        vae.model,
        vae.guide,
        elbo,
        parameters,
        make_optimizer(parameters),
        execution=execution,
        calls=calls,
        weighted=weighted,
        device=torch.device("cpu"),
    )


def counted(monkeypatch, *names):
    """Patch functions of pyrovae.execution.replay to append their names to the returned list when called."""
    replay, calls = sys.modules["pyrovae.execution.replay"], []

    def noting(name, function):
        return lambda *args: calls.append(name) or function(*args)

    for name in names:
        monkeypatch.setattr(replay, name, noting(name, getattr(replay, name)))
    return calls
