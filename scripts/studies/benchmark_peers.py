"""The VAE of benchmark.py in other libraries: by hand, in Pyro alone, in NumPyro; training steps and sampling."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn
from torch.nn import functional

D, H, Z = 784, 400, 50
NUM_DATA, PARTICLES = 64, 160  # of importance sampling: 10,240 latents, which the others decode at once


class PlainPyro(nn.Module):
    """VAE in plain Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = HandWritten()

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z)."""
        pyro.module("decoder", self.nets.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z, device=x.device), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.nets.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x)."""
        pyro.module("encoder", self.nets.encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.nets.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def svi_step(x: Tensor) -> Callable[[], Any]:
    """Make a function that takes one step of Pyro's SVI."""
    pyro.clear_param_store()
    programs = PlainPyro().to(x.device)
    svi = SVI(programs.model, programs.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    return lambda: svi.step(x)


class HandWritten(nn.Module):
    """VAE in plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, H), nn.Softplus(), nn.Linear(H, 2 * Z))
        self.decoder = nn.Sequential(nn.Linear(Z, H), nn.Softplus(), nn.Linear(H, D))

    def loss(self, x: Tensor) -> Tensor:
        """Compute minus the ELBO, with the KL divergence in closed form."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        logits = self.decoder(loc + scale * torch.randn_like(loc))
        kl = 0.5 * (loc.square() + scale.square() - 1).sum() - log_scale.sum()
        return functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl

    def log_weights(self, x: Tensor, num_particles: int) -> Tensor:
        """Compute log p(x, z) - log q(z|x), with shape (K, N); the constants of both normals cancel."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn(num_particles, *loc.shape, device=x.device)
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z)
        log_lik = (logits * x - functional.softplus(logits)).sum(-1)
        return log_lik - 0.5 * z.square().sum(-1) + 0.5 * noise.square().sum(-1) + log_scale.sum(-1)


def hand_written_step(x: Tensor, *, compiled: bool = False) -> Callable[[], Any]:
    """Make a function that takes one step without Pyro, eager or compiled."""
    model = HandWritten().to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    loss = torch.compile(model.loss) if compiled else model.loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x).backward()
        optimizer.step()

    return step


def hand_written_sampling(x: Tensor, *, compiled: bool = False) -> Callable[[], Any]:
    """Make a function that runs importance sampling without Pyro."""
    model = HandWritten().to(x.device)
    log_weights = torch.compile(model.log_weights) if compiled else model.log_weights

    def sample() -> Tensor:
        with torch.no_grad():
            return log_weights(x, PARTICLES)

    return sample


def pyro_sampling(x: Tensor) -> Callable[[], Any]:
    """Make a function that computes Pyro's vectorised importance weights, which sum over the data of the batch."""
    pyro.clear_param_store()
    programs = PlainPyro().to(x.device)

    def sample() -> None:
        with torch.no_grad():
            vectorized_importance_weights(programs.model, programs.guide, x, num_samples=PARTICLES, max_plate_nesting=1)

    return sample


def numpyro_svi(loss: str, **options: Any) -> tuple[Any, Any]:
    """Make NumPyro's SVI of the VAE, and a random key."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro import infer

    jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU the default is TF32

    def dense(name: str, value: Any, num_inputs: int, num_outputs: int) -> Any:
        scale = num_inputs**-0.5
        weight = numpyro.param(
            f"{name}.weight",
            lambda key: jax.random.uniform(key, (num_inputs, num_outputs), minval=-scale, maxval=scale),
        )
        return value @ weight + numpyro.param(f"{name}.bias", lambda key: jax.numpy.zeros(num_outputs))

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jax.numpy.zeros(Z), 1.0).to_event(1))
            logits = dense("decoder.1", jax.nn.softplus(dense("decoder.0", z, Z, H)), H, D)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        outputs = dense("encoder.1", jax.nn.softplus(dense("encoder.0", x, D, H)), H, 2 * Z)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(outputs[:, :Z], jax.numpy.exp(outputs[:, Z:])).to_event(1))

    svi = infer.SVI(model, guide, numpyro.optim.Adam(1e-3), getattr(infer, loss)(**options))
    return svi, jax.random.PRNGKey(0)


def numpyro_steps(x: Tensor, steps: int) -> Callable[[], Any]:
    """Make a function that takes several steps in one jitted loop, as NumPyro's users run an epoch."""
    import jax

    data = jax.numpy.asarray(x.cpu().numpy())
    svi, key = numpyro_svi("TraceMeanField_ELBO")
    state = [svi.init(key, data)]
    epoch = jax.jit(lambda state: jax.lax.scan(lambda now, _: svi.update(now, data), state, None, length=steps))

    def call() -> None:
        state[0], losses = epoch(state[0])
        losses.block_until_ready()

    call.steps = steps  # type: ignore[attr-defined]  # measure calls it once
    return call


def numpyro_sampling(x: Tensor) -> Callable[[], Any]:
    """Make a function that computes NumPyro's importance-weighted bound, jitted."""
    import jax

    data = jax.numpy.asarray(x.cpu().numpy())
    svi, key = numpyro_svi("RenyiELBO", alpha=0.0, num_particles=PARTICLES)
    parameters = svi.get_params(svi.init(key, data))
    loss = jax.jit(lambda key, parameters: svi.loss.loss(key, parameters, svi.model, svi.guide, data))
    keys = iter(jax.random.split(key, 10_000))
    return lambda: loss(next(keys), parameters).block_until_ready()
