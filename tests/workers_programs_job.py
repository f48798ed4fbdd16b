"""What tests/execution/test_workers_programs.py has one process and two do: training of programs of many kinds."""

import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from pyrovae import ImportanceWeightedELBO, Whole, fit
from pyrovae.execution import joined

N, D = 12, 3


def rows():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def encoder(outputs):
    return torch.nn.Linear(D, outputs).double()


def local_program(size=None):
    """One latent per datum, of dimension 2."""
    net, decoder = encoder(4), torch.nn.Linear(2, D).double()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", size or len(x), subsample=x if size else None, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("rows", size or len(x), subsample=x if size else None, dim=-1):
            loc, log_scale = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def whole_program():
    """An argument that is the same for all data, whose length is that of a process's share."""
    net = encoder(4)

    def model(x, w):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = z.sum(-1, keepdim=True) * w[:D]
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x, w):
        pyro.module("net", net)
        with pyro.plate("rows", len(x), dim=-1):
            loc, log_scale = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def enumerated_program(inside=True):
    """A mixture whose discrete latent is summed out, inside the plate or outside it."""
    net = encoder(2)

    def model(x):
        means = pyro.param("means", torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64))
        prior = dist.Categorical(x.new_ones(3))
        c = None if inside else pyro.sample("c", prior, infer={"enumerate": "parallel"})
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            c = pyro.sample("c", prior, infer={"enumerate": "parallel"}) if inside else c
            mean = (z + means[c]).unsqueeze(-1) * x.new_ones(D)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("rows", len(x), dim=-1):
            loc, log_scale = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc.squeeze(-1), log_scale.squeeze(-1).exp()))

    return model, guide


def outside_program(scaled=False, subsampled=False, width=4):
    """Global weights, as many as a process has rows, and a latent per datum."""
    net = encoder(2)

    def plate(x):
        return pyro.plate("rows", N, subsample=x, dim=-1) if subsampled else pyro.plate("rows", len(x), dim=-1)

    def scale(x):
        return poutine.scale(scale=N / len(x)) if scaled else poutine.scale(scale=1.0)

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(width), 1.0).to_event(1))
        with scale(x), plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal((z + w.sum()).unsqueeze(-1), 1.0).expand([len(x), D]).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        loc = pyro.param("loc", torch.zeros(width, dtype=torch.float64))
        log_scale = pyro.param("log_scale", torch.zeros(width, dtype=torch.float64))
        pyro.sample("w", dist.Normal(loc, log_scale.exp()).to_event(1))
        with scale(x), plate(x):
            mean, log_scale = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean.squeeze(-1), log_scale.squeeze(-1).exp()))

    return model, guide


def pixels_program(data_dim):
    """Data at one dim and pixels, as many as a process has rows, at the other, with a latent for each pixel."""
    pixels = 4
    net = encoder(2)

    def model(x):
        y = x.sum(-1)[:, None] if data_dim == -2 else x.sum(-1)
        with pyro.plate("rows", len(x), dim=data_dim), pyro.plate("pixels", pixels, dim=-3 - data_dim):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            g = pyro.sample("g", dist.Gamma(x.new_ones(()), 1.0))
            pyro.sample("x", dist.Normal(z + g, 1.0), obs=y.expand(z.shape))

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = (v if data_dim == -2 else v.T for v in net(x).chunk(2, -1))
        with pyro.plate("rows", len(x), dim=data_dim), pyro.plate("pixels", pixels, dim=-3 - data_dim):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))
            pyro.sample("g", dist.Gamma(loc.exp(), 1.0))

    return model, guide


def global_program():
    """Latents outside the plate alone."""

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w[:D], 1.0).to_event(1), obs=x)

    return model


def auto(guide, model):
    return model, guide(model)


def weighing():
    """Case weights of the data, and held-out data with theirs."""
    weights = torch.arange(float(N)) % 4
    return {"weights": weights, "validation": rows()[:5] + 1, "validation_weights": weights[:5]}


def summing():
    return TraceEnum_ELBO(max_plate_nesting=1)


CASES = {
    "tensors": lambda: (*local_program(), rows(), {}),
    "loader": lambda: (*local_program(), DataLoader(TensorDataset(rows()), batch_size=7, shuffle=True), {}),
    "subsampled": lambda: (*local_program(N), rows(), {}),
    "whole": lambda: (*whole_program(), (rows(), Whole(torch.linspace(0, 1, 4, dtype=torch.float64))), {}),
    "enumerated": lambda: (*enumerated_program(), rows(), {"elbo": summing()}),
    "enumerated outside": lambda: (*enumerated_program(False), rows(), {"elbo": summing(), "batch_size": N}),
    "outside": lambda: (*outside_program(), rows(), {}),
    "outside, all at once": lambda: (*outside_program(width=6), rows(), {"batch_size": N}),
    "outside, subsampled": lambda: (*outside_program(subsampled=True), rows(), {}),
    "outside, scaled": lambda: (*outside_program(scaled=True), rows(), {}),
    "pixels right": lambda: (*pixels_program(-2), rows(), {}),
    "pixels left": lambda: (*pixels_program(-1), rows(), {}),
    "weighted": lambda: (*local_program(), rows(), weighing()),
    "weighted bound": lambda: (*local_program(), rows(), weighing() | {"elbo": ImportanceWeightedELBO(3)}),
    "auto global": lambda: (*auto(AutoNormal, global_program()), rows(), {}),
    "auto joint": lambda: (*auto(AutoMultivariateNormal, global_program()), rows(), {}),
    "auto local": lambda: (*auto(AutoNormal, local_program()[0]), rows(), {"batch_size": N}),
    "auto joint local": lambda: (*auto(AutoMultivariateNormal, local_program()[0]), rows(), {"batch_size": N}),
}
RECORDED = [("outside", "recorded"), ("subsampled", "recorded"), ("enumerated", "recorded"), ("weighted", "recorded")]


def train(name, execution):
    """Parameters and losses of a short run, or the message of its refusal."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    torch.set_default_dtype(torch.float64)
    model, guide, data, options = CASES[name]()
    options = {"elbo": Trace_ELBO(), "batch_size": 7} | options
    if isinstance(data, DataLoader):
        del options["batch_size"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            descent = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01)}
            history = fit(model, guide, data, epochs=2, execution=execution, **descent, **options)
    except ValueError as error:
        return {"refused": str(error)}
    finally:
        torch.set_default_dtype(torch.float32)
    objectives = history["train_objective"] + [v for v in history["validation_objective"] if v is not None]
    found = {k: v.detach() for k, v in pyro.get_param_store().named_parameters()}
    if isinstance(guide, torch.nn.Module):
        found |= {k: v.detach() for k, v in guide.named_parameters()}
    return {"parameters": found, "objective": objectives, "after": torch.rand(3)}


def main(out, cases):
    with joined() as workers:
        found = {case: train(*case) for case in (tuple(text.rsplit("-", 1)) for text in cases)}
        torch.save(found, out / f"{workers.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
