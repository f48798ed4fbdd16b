"""What tests/test_workers.py has one, two and three processes do, each in the same way."""

import sys
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.optim.lr_scheduler import ExponentialLR

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalEncoder,
    CategoricalPrior,
    DirichletPrior,
    FlowEncoder,
    ImportanceWeightedELBO,
    LinearWarmup,
    MixtureEncoder,
    NormalEncoder,
    StandardNormalPrior,
    StudentTEncoder,
    fit,
)
from pyrovae.evidence import evaluate
from pyrovae.execution import joined
from pyrovae.runs import read_state

D, Z, N, BATCH = 6, 2, 17, 8  # batches of 8, 8 and 1: for the last, most of three processes have nothing


def network(num_outputs, num_inputs=D, **options):
    return MLP(num_inputs, num_outputs, hidden=[8], activation="tanh", **options)


def likelihood():
    return BernoulliLikelihood(network(D, Z))


def encoder(cls, **options):
    return cls(network(cls.num_outputs(Z, **options)), **options)


ENCODERS = {
    "normal": lambda: encoder(NormalEncoder),
    "student-t": lambda: encoder(StudentTEncoder),  # a gamma among its draws
    "flow": lambda: encoder(FlowEncoder, num_features=3),
    "mixture": lambda: encoder(MixtureEncoder, num_components=3),  # a categorical
}


class Dropping(NormalEncoder):
    """An encoder that draws outside of any site."""

    def forward(self, x, covariates=None):
        return super().forward(torch.nn.functional.dropout(x, 0.3, training=self.training), covariates)


class DroppingAtOnce(NormalEncoder):
    """The same by the one operation that CUDA has for it."""

    def forward(self, x, covariates=None):
        return super().forward(torch.native_dropout(x, 0.3, self.training)[0], covariates)


def programs(name):
    if name == "simplex":
        vae = VAE(DirichletPrior(Z, concentration=2.0), likelihood(), NormalEncoder(network(2 * (Z - 1))))
    elif name == "categorical":
        vae = VAE(CategoricalPrior(Z), likelihood(), encoder(CategoricalEncoder))
    elif name == "dropout":
        vae = VAE(StandardNormalPrior(Z), likelihood(), Dropping(network(2 * Z)))
    elif name == "native dropout":
        vae = VAE(StandardNormalPrior(Z), likelihood(), DroppingAtOnce(network(2 * Z)))
    elif name == "dirichlet":
        return own_programs()
    else:
        vae = VAE(StandardNormalPrior(Z), likelihood(), ENCODERS.get(name, ENCODERS["normal"])())
    vae.double()
    return vae.model, vae.guide, list(vae.parameters())


def own_programs():
    """Two sites, one of them a Dirichlet that is drawn as such, with gradients through it."""
    decoder, recognition = network(D, 2 * Z).double(), network(3 * Z).double()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x), dim=-1):
            a = pyro.sample("a", dist.Dirichlet(x.new_ones(Z)))
            b = pyro.sample("b", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=decoder(torch.cat([a, b], -1))).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", recognition)
        with pyro.plate("rows", len(x), dim=-1):
            concentration, loc, log_scale = recognition(x).chunk(3, -1)
            pyro.sample("b", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("a", dist.Dirichlet(1 + concentration.exp()))

    return model, guide, [*decoder.parameters(), *recognition.parameters()]


# What is trained, and how steps are taken.
CASES = [
    ("normal", "eager"),
    ("bound", "recorded"),  # many particles, and DReG gradients
    ("student-t", "recorded"),  # which refuses, in all processes alike
    ("simplex", "recorded"),
    ("categorical", "eager"),
    ("dropout", "recorded"),
    ("schedule", "recorded"),  # of the learning rate, with an average and clipped gradients
]
MORE_CASES = [  # by three processes
    ("normal", "recorded"),
    ("flow", "recorded"),
    ("mixture", "eager"),
    ("native dropout", "recorded"),
    ("dirichlet", "eager"),
]


def bits(rows):
    return torch.bernoulli(torch.full((rows, D), 0.4, dtype=torch.float64), generator=torch.Generator().manual_seed(1))


def train(name, execution, *, epochs=2, **options):
    """Parameters and history of a short run."""
    states = []
    options.setdefault("commit", states.append)
    pyro.set_rng_seed(3)
    model, guide, parameters = programs(name)
    scored = name in ("categorical", "dirichlet", "mixture")
    elbo = Trace_ELBO() if scored else TraceMeanField_ELBO()
    if name == "bound":
        elbo = ImportanceWeightedELBO(num_particles=3, gradient="dreg")
    if name == "schedule":
        options |= {"lr_schedule": partial(ExponentialLR, gamma=0.5), "lr_warmup": 1.5, "average": 0.6, "clip": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sites to enumerate, and of what is not recorded
        history = fit(
            model,
            guide,
            bits(N),
            elbo=elbo,
            epochs=epochs,
            batch_size=BATCH,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02),
            validation=bits(11),
            transform=lambda x: torch.where(torch.rand_like(x) < 0.1, 1 - x, x),
            kl_weight=LinearWarmup(2.0),
            execution=execution,
            **options,
        )
    after = torch.rand(3)  # generators are in step
    return {
        "parameters": [value.detach() for value in parameters],
        "validation": torch.tensor(history["validation_elbo"], dtype=torch.float64),
        "after": after,
        "refused": [state["stepper"]["refused"] for state in states],
    }


def weighed():
    """An evaluation of two blocks and a bit."""
    pyro.set_rng_seed(3)
    vae = VAE(StandardNormalPrior(Z), likelihood(), NormalEncoder(network(2 * Z))).double()
    committed = []
    found = evaluate(vae.model, vae.guide, bits(600), num_particles=5, seed=2, commit=committed.append)
    return {"log_marginal": found.marginal.log_marginal.value, "elbo": found.elbo}, len(committed)


def main(out, resume, cases):
    with joined() as workers:
        for name, execution in (case.rsplit("-", 1) for case in cases):
            torch.save(train(name, execution), out / f"{name}-{execution}-{workers.rank}.pt")
        state = read_state(resume)
        committed = []
        torch.save(train("normal", "eager", epochs=3, resume=state, commit=committed.append), out / "resumed.pt")
        found, commits = weighed()
        torch.save({**found, "commits": commits, "states": len(committed)}, out / f"evaluation-{workers.rank}.pt")
        print("rank", workers.rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
