"""Sequences: deep Markov models with ragged lengths, HMMs, time loops, presence variables."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from zoo.entry import ENUMERATION, Built, program, waits_for
from zoo.integrals import filtered, line, log_integral
from zoo.parts import N, log_bernoulli, log_normal, noise

T = 3
X = noise(30, N, T)
LENGTHS = torch.tensor([3, 1, 2, 3, 2, 1])
STATES, LOG_W = line(9.0, 601)


def step_loc(z):
    return 1.5 * torch.tanh(z)


def markov_log_p(x, lengths):
    """Compute log p of the first observations of each sequence by forward recursion on a grid."""
    log_step = log_normal(STATES.unsqueeze(0), step_loc(STATES).unsqueeze(1), 0.8)
    log_start = log_normal(STATES, 0.0, 0.8)
    return torch.stack(
        [
            filtered(log_start, log_step, [log_normal(value, STATES, 0.6) for value in row[:length]], LOG_W)
            for row, length in zip(x, lengths.tolist(), strict=True)
        ]
    )


def by_handler(name, fn, mask, **options):
    with poutine.mask(mask=mask):
        return pyro.sample(name, fn, **options)


def inside(name, fn, mask, **options):
    return pyro.sample(name, fn.mask(mask), **options)


def deep_markov(sample, loop=range):
    """Make a Markov model of ragged sequences; sample masks a site."""

    def model(x, lengths):
        scale = pyro.param("scale", torch.tensor(0.8))
        with pyro.plate("data", len(x), dim=-1):
            z = torch.zeros(len(x))
            for t in loop(x.shape[1]):
                mask = t < lengths
                z = sample(f"z_{t}", dist.Normal(step_loc(z), scale), mask)
                sample(f"x_{t}", dist.Normal(z, 0.6), mask, obs=x[:, t])

    def guide(x, lengths):
        a = pyro.param("a", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            z = torch.zeros(len(x))
            for t in loop(x.shape[1]):
                z = sample(f"z_{t}", dist.Normal(0.3 * z + a * x[:, t], 0.9), t < lengths)

    return model, guide


RAGGED = ("default", "guide", "ais")


@program("deep Markov model, ragged lengths by poutine.mask", estimators=RAGGED)
def markov_handler():
    model, guide = deep_markov(by_handler)
    return Built(model, guide, (X, LENGTHS), log_p=lambda: markov_log_p(X, LENGTHS))


@program("deep Markov model, ragged lengths by a mask inside the distribution", estimators=RAGGED)
def markov_inside():
    model, guide = deep_markov(inside)
    return Built(model, guide, (X, LENGTHS), log_p=lambda: markov_log_p(X, LENGTHS))


@program("time loop with pyro.markov", estimators=RAGGED)
def markov_loop():
    model, guide = deep_markov(inside, lambda steps: pyro.markov(range(steps)))
    return Built(model, guide, (X, LENGTHS), log_p=lambda: markov_log_p(X, LENGTHS))


@program("model masks by handler, guide inside the distribution", estimators=RAGGED)
def masks_in_two_forms():
    model, guide = deep_markov(by_handler)[0], deep_markov(inside)[1]
    return Built(model, guide, (X, LENGTHS), log_p=lambda: markov_log_p(X, LENGTHS))


@program(
    "guide with another mask than the model",
    "refused",
    refusal="one mask in the model and another in the guide",
    reason="densities would be of different latents: give both the same mask",
)
def unequal_masks():
    model = deep_markov(inside)[0]
    guide = deep_markov(lambda name, fn, mask, **options: pyro.sample(name, fn, **options))[1]
    return Built(model, guide, (X, LENGTHS))


@program("latent sequence as one vector with a mask inside Independent", estimators=RAGGED)
def masked_vector():
    def sites(x, lengths):
        return torch.arange(x.shape[1]) < lengths.unsqueeze(-1)

    def model(x, lengths):
        scale = pyro.param("scale", torch.tensor(0.6))
        with pyro.plate("data", len(x), dim=-1):
            mask = sites(x, lengths)
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape), 1.0).mask(mask).to_event(1))
            pyro.sample("x", dist.Normal(torch.sin(2 * z), scale).mask(mask).to_event(1), obs=x)

    def guide(x, lengths):
        a = pyro.param("a", torch.tensor(0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x, 1.1).mask(sites(x, lengths)).to_event(1))

    def log_p():
        each = log_normal(STATES, 0, 1) + log_normal(X.unsqueeze(-1), torch.sin(2 * STATES), 0.6) + LOG_W
        return torch.where(torch.arange(T) < LENGTHS.unsqueeze(-1), each.logsumexp(-1), 0.0).sum(-1)

    return Built(model, guide, (X, LENGTHS), log_p=log_p)


TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double()
LOCS = torch.tensor([-1.0, 1.5]).double()


def paths(length):
    return torch.cartesian_prod(*[torch.arange(2)] * length)


def log_path(s):
    start = torch.tensor([0.6, 0.4]).double().log()[s[:, 0]]
    return start + TRANSITION.log()[s[:, :-1], s[:, 1:]].sum(-1)


@program(
    "HMM, states enumerated, nothing else latent",
    enumerates="model",
    estimators=("default", "guide", "exact"),
    waits=waits_for(12, "how weights default guide bound"),
)
def hmm():
    def model(x):
        locs = pyro.param("locs", LOCS.clone())
        with pyro.plate("data", len(x), dim=-1):
            probs = torch.tensor([0.6, 0.4])
            for t in pyro.markov(range(x.shape[1])):
                s = pyro.sample(f"s_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(locs[s], 1.0), obs=x[:, t])
                probs = TRANSITION[s]

    def guide(x):
        pass

    def log_p():
        s = paths(T)
        return torch.stack([(log_path(s) + log_normal(x, LOCS[s], 1.0).sum(-1)).logsumexp(0) for x in X])

    return Built(model, guide, (X,), log_p=log_p)


@program("HMM of ragged sequences with a continuous latent each", enumerates="model", waits=ENUMERATION)
def hmm_continuous():
    def model(x, lengths):
        locs = pyro.param("locs", LOCS.clone())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            probs = torch.tensor([0.6, 0.4])
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    s = pyro.sample(f"s_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Normal(locs[s] + z, 1.0), obs=x[:, t])
                    probs = TRANSITION[s]

    def guide(x, lengths):
        a = pyro.param("a", torch.tensor(0.2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x.sum(-1), 1.1))

    def log_p():
        found = []
        for x, length in zip(X, LENGTHS.tolist(), strict=True):
            s = paths(length).reshape(-1, length)
            lik = log_normal(x[:length], LOCS[s] + STATES.reshape(-1, 1, 1), 1.0).sum(-1) + log_path(s)
            found.append((lik.logsumexp(-1) + log_normal(STATES, 0, 1) + LOG_W).logsumexp(0))
        return torch.stack(found)

    return Built(model, guide, (X, LENGTHS), log_p=log_p)


@program("AIR-like: steps with presence that mask a latent", estimators=("default", "guide"))
def presence():
    x = noise(31, N, 2)

    def prior(steps, present, t):
        return dist.Bernoulli(0.6 * present)

    def model(x):
        w = pyro.param("w", torch.tensor([1.0, 0.5]))
        with pyro.plate("data", len(x), dim=-1):
            present, loc = torch.ones(len(x)), torch.zeros(len(x), 1)
            for t in range(2):
                present = pyro.sample(f"present_{t}", dist.Bernoulli(0.6 * present))
                where = pyro.sample(f"where_{t}", dist.Normal(torch.zeros(1), 1.0).to_event(1).mask(present.bool()))
                loc = loc + present.unsqueeze(-1) * where * (t + 1)
            pyro.sample("x", dist.Normal(loc * w, 0.7).to_event(1), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(0.2))
        with pyro.plate("data", len(x), dim=-1):
            present = torch.ones(len(x))
            for t in range(2):
                present = pyro.sample(f"present_{t}", dist.Bernoulli(0.5 * present))
                pyro.sample(f"where_{t}", dist.Normal(a * x[..., :1], 1.2).to_event(1).mask(present.bool()))

    def log_lik(x, loc):
        return log_normal(x[0], loc, 0.7) + log_normal(x[1], 0.5 * loc, 0.7)

    def log_p():
        none = torch.tensor(0.4).log() + torch.stack([log_lik(v, torch.tensor(0.0)) for v in x])
        one = torch.tensor(0.6 * 0.4).log() + log_integral(
            lambda v, z: log_normal(z, 0, 1) + log_lik(v, z), (line(),), x
        )
        two = torch.tensor(0.36).log() + log_integral(
            lambda v, z, u: log_normal(z, 0, 1) + log_normal(u, 0, 1) + log_lik(v, z + 2 * u), (line(), line()), x
        )
        return torch.stack([none, one, two]).logsumexp(0)

    return Built(model, guide, (x,), log_p=log_p)


@program("observation sites with different masks and a factor")
def two_observations():
    y, seen_x, seen_y = noise(32, N), torch.tensor([1, 1, 0, 0, 1, 0]).bool(), torch.tensor([1, 0, 1, 0, 1, 1]).bool()
    x = noise(33, N)

    def model(x, y, seen_x, seen_y):
        a = pyro.param("a", torch.tensor(1.3))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=seen_x):
                pyro.sample("x", dist.Normal(a * z, 0.5), obs=x)
            pyro.sample("y", dist.Bernoulli(logits=z).mask(seen_y), obs=(y > 0).to(x.dtype))
            pyro.factor("penalty", -0.3 * z**2)

    def guide(x, y, seen_x, seen_y):
        b = pyro.param("b", torch.tensor(0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(b * x, 1.2))

    def joint(x, y, sx, sy, z):
        return (
            log_normal(z, 0, 1)
            + sx * log_normal(x, 1.3 * z, 0.5)
            + sy * log_bernoulli((y > 0).double(), z)
            - 0.3 * z**2
        )

    data = (x, y, seen_x, seen_y)
    return Built(model, guide, data, log_p=lambda: log_integral(joint, (line(),), *data))


@program(
    "NaN under a mask in a plain program",
    estimators=("default",),
    trains=False,
    waits=waits_for(8, "weights default bound"),
)
def nan_under_mask():
    seen = noise(34, N, 12) > -0.7
    w = noise(35, 6, 12)
    loc, scale = torch.zeros(6), 0.02
    x = torch.where(seen, noise(36, N, 6) @ w + scale * noise(37, N, 12), torch.nan)

    def model(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, scale).mask(seen).to_event(1), obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.where(seen, x, 0.0) @ (0.05 * w.T), 1.0).to_event(1))

    def log_p():
        found = []
        for value, known in zip(x, seen, strict=True):
            covariance = w[:, known].T @ w[:, known] + scale**2 * torch.eye(int(known.sum()), dtype=torch.float64)
            normal = torch.distributions.MultivariateNormal(torch.zeros(len(covariance)).double(), covariance)
            found.append(normal.log_prob(value[known]))
        return torch.stack(found)

    return Built(model, guide, (x, seen), log_p=log_p)
