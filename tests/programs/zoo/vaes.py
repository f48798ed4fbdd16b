"""Autoencoders: by hand, semi-supervised, conditional, with labels, covariates, dropout and other priors."""

import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import TorchDistribution
from torch import nn

from zoo.entry import Built, program, waits_for
from zoo.integrals import line, log_integral, values
from zoo.parts import N, log_bernoulli, log_normal, noise, normal_guide, standard_normal

W, BIAS = noise(1, 2, 4), noise(2, 4)
X = (noise(3, N, 4) > 0).double()
PLANE = (line(), line())


def logits(z1, z2, w=W, bias=BIAS):
    return torch.tanh(torch.stack([z1, z2], -1)) @ w + bias


def log_joint(x, z1, z2, w=W, bias=BIAS):
    return log_normal(z1, 0, 1) + log_normal(z2, 0, 1) + log_bernoulli(x, logits(z1, z2, w, bias)).sum(-1)


@program("VAE by hand")
def plain():
    def model(x):
        w = pyro.param("w", W.clone())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(z) @ w + BIAS).to_event(1), obs=x)

    return Built(model, normal_guide(2, 4), (X,), log_p=lambda: log_integral(log_joint, PLANE, X))


@program("VAE whose data plate has no size")
def plate_without_size():
    def model(x):
        w = pyro.param("w", W.clone())
        with pyro.plate("data"):
            z = pyro.sample("z", standard_normal(2).expand([len(x)]))
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(z) @ w + BIAS).to_event(1), obs=x)

    start = 0.1 * noise(50, 4, 2)

    def guide(x):
        a = pyro.param("a", start.clone())
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x @ a, 1.2).to_event(1))

    return Built(model, guide, (X,), log_p=lambda: log_integral(log_joint, PLANE, X))


@program("conditional VAE, a network of x and covariates")
def conditional():
    covariates, v = noise(4, N, 2), noise(5, 2, 2)

    def model(x, covariates):
        w = pyro.param("w", W.clone())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(covariates @ v, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(z) @ w + BIAS).to_event(1), obs=x)

    start = 0.1 * noise(6, 6, 2)

    def guide(x, covariates):
        a = pyro.param("a", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            loc = torch.cat([x, covariates], -1) @ a + covariates @ v
            pyro.sample("z", dist.Normal(loc, 1.2).to_event(1))

    def joint(x, c, z1, z2):
        loc = c @ v
        prior = log_normal(z1, loc[0], 1) + log_normal(z2, loc[1], 1)
        return prior + log_bernoulli(x, logits(z1, z2)).sum(-1)

    wide = (line(14, 361), line(14, 361))
    kwargs = {"x": X, "covariates": covariates}
    return Built(model, guide, (), kwargs, log_p=lambda: log_integral(joint, wide, X, covariates))


class Inner:
    """A plain object that holds a network."""

    def __init__(self):
        torch.manual_seed(7)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)).double()


class Outer:
    """A plain object that holds a plain object."""

    __slots__ = ("inner",)

    def __init__(self):
        self.inner = Inner()


@program("VAE with dropout, its network two plain objects down")
def dropout():
    outer = Outer()

    def model(x):
        pyro.module("decoder", outer.inner.net)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=outer.inner.net(z)).to_event(1), obs=x)

    first, _, _, last = Inner().net

    def joint(x, z1, z2):
        with torch.no_grad():
            hidden = torch.tanh(torch.stack([z1, z2], -1) @ first.weight.T + first.bias)
            found = log_bernoulli(x, hidden @ last.weight.T + last.bias).sum(-1)
        return log_normal(z1, 0, 1) + log_normal(z2, 0, 1) + found

    return Built(model, normal_guide(2, 4), (X,), log_p=lambda: log_integral(joint, PLANE, X))


def semi_supervised(label):
    """Make a model with a label y, and a guide that draws it: all, none or some labels are given."""
    v = noise(8, 3, 4)

    def model(x, *labels):
        w = pyro.param("w", W.clone())
        with pyro.plate("data", len(x), dim=-1):
            y = label("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), *labels)
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(z) @ w + v[y]).to_event(1), obs=x)

    def joint(x, y, z1, z2):
        prior = torch.tensor([0.2, 0.3, 0.5]).log()[y.long()]
        lik = log_bernoulli(x, torch.tanh(torch.stack([z1, z2], -1)) @ W + v[y.long()]).sum(-1)
        return prior + log_normal(z1, 0, 1) + log_normal(z2, 0, 1) + lik

    return model, joint


Y = torch.tensor([0, 1, 2, 2, 1, 0])
GRID = (line(size=121), line(size=121))


@program("semi-supervised VAE, all labels given")
def labels_all():
    model, joint = semi_supervised(lambda name, fn, y: pyro.sample(name, fn, obs=y))
    return Built(model, normal_guide(2, 4), (X, Y), log_p=lambda: log_integral(joint, GRID, X, Y))


def unlabelled_guide(name="y", config=None, wrap=lambda labels: poutine.mask(mask=True)):
    start, b = 0.1 * noise(9, 4, 2), 0.1 * noise(10, 4, 3)

    def guide(x, *labels):
        a = pyro.param("a", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            with wrap(labels):
                pyro.sample(name, dist.Categorical(logits=x @ b), infer=config)
            pyro.sample("z", dist.Normal(x @ a, 1.2).to_event(1))

    return guide


@program("semi-supervised VAE, no labels, the guide draws them", estimators=("default", "guide"))
def labels_none():
    model, joint = semi_supervised(lambda name, fn: pyro.sample(name, fn))
    every = lambda x, *zs: joint(x, *zs)  # noqa: E731
    axes = (values(0, 1, 2), *GRID)
    return Built(model, unlabelled_guide(), (X,), log_p=lambda: log_integral(every, axes, X))


@program("semi-supervised VAE, no labels, enumerated in the guide", estimators=("default", "guide"), enumerates="guide")
def labels_enumerated():
    model, joint = semi_supervised(lambda name, fn: pyro.sample(name, fn))
    guide = unlabelled_guide(config={"enumerate": "parallel"})
    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, (values(0, 1, 2), *GRID), X))


@program("semi-supervised VAE, some labels given by obs_mask", estimators=("default", "guide"))
def labels_some():
    given = torch.tensor([True, True, False, False, True, False])
    model, joint = semi_supervised(lambda name, fn, y, m: pyro.sample(name, fn, obs=y, obs_mask=m))
    guide = unlabelled_guide("y_unobserved", wrap=lambda labels: poutine.mask(mask=~labels[1]))

    def log_p():
        known = log_integral(joint, GRID, X, Y)
        unknown = log_integral(joint, (values(0, 1, 2), *GRID), X)
        return torch.where(given, known, unknown)

    return Built(model, guide, (X, Y, given), log_p=log_p)


def cevae_like():
    t, y = torch.tensor([0.0, 1, 1, 0, 1, 0]), noise(11, N)
    v = noise(12, 2)

    def model(x, t, y):
        w = pyro.param("w", W.clone())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(z) @ w + BIAS).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=z @ v), obs=t)
            pyro.sample("y", dist.Normal(z[..., 0] + t * z[..., 1], 1.0), obs=y)

    start = 0.1 * noise(13, 4, 2)

    def guide(x, t, y):
        a = pyro.param("a", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.Bernoulli(logits=x.sum(-1)), obs=t, infer={"is_auxiliary": True})
            pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x @ a, 1.2).to_event(1))

    def joint(x, t, y, z1, z2):
        treated = log_bernoulli(t, z1 * v[0] + z2 * v[1])
        return log_joint(x, z1, z2) + treated + log_normal(y, z1 + t * z2, 1.0)

    return Built(model, guide, (X, t, y), log_p=lambda: log_integral(joint, PLANE, X, t, y))


@program(
    "CEVAE-like, the guide observes treatment and outcome",
    "refused",
    refusal="observed.*poutine.block",
    reason="log q(z\\|x) has no observed sites; use poutine.block(guide, hide=[...])",
    waits=waits_for(13, "refusal"),
)
def cevae():
    return cevae_like()


@program("CEVAE-like, the guide's observed sites hidden by poutine.block")
def cevae_blocked():
    built = cevae_like()
    built.guide = poutine.block(built.guide, hide=["t", "y"])
    return built


class Warped(TorchDistribution):
    """A distribution of our reader: sinh-arcsinh of a normal, without a support."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc, batch_shape=()):
        self.loc = loc
        super().__init__(torch.Size(batch_shape), torch.Size([2]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Warped(self.loc, batch_shape)

    def rsample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return torch.sinh(1.2 * torch.asinh(torch.randn(shape)) + self.loc)

    def log_prob(self, z):
        u = (torch.asinh(z) - self.loc) / 1.2
        slope = torch.cosh(u).log() - 0.5 * torch.log1p(z**2) - torch.tensor(1.2).log()
        return (log_normal(torch.sinh(u), 0, 1) + slope).sum(-1)


def prior_of_two(make):
    """Make a VAE with a prior of two latents."""

    def model(x):
        w = pyro.param("w", W.clone())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", make())
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(z) @ w + BIAS).to_event(1), obs=x)

    start = 0.1 * noise(50, 4, 2)

    def guide(x):
        a = pyro.param("a", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.StudentT(4.0, x @ a, 1.5).to_event(1))

    return model, guide


@program(
    "prior without a support, a wrapper of the reader's own",
    estimators=("default", "guide"),
    warns="latent .* has no support",
    waits=waits_for(10, "default"),
)
def own_wrapper():
    model, guide = prior_of_two(lambda: Warped(torch.tensor([0.3, -0.2])))
    warped = Warped(torch.tensor([0.3, -0.2]))

    def joint(x, z1, z2):
        return warped.log_prob(torch.stack([z1, z2], -1)) + log_bernoulli(x, logits(z1, z2)).sum(-1)

    u, log_w = line(5.5, 321)  # z = sinh(u), since tails are heavy
    axis = torch.sinh(u), log_w + torch.cosh(u).log()
    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, (axis, axis), X), error=1e-5)


@program(
    "flow prior of Zuko through Pyro's wrapper",
    estimators=("default", "guide"),
    warns="latent .* has no support",
    waits=waits_for(10, "default"),
)
def zuko_prior():
    torch.manual_seed(3)
    flow = zuko.flows.NSF(2, transforms=1, hidden_features=[8]).double()
    model, guide = prior_of_two(lambda: ZukoToPyro(flow()))

    def joint(x, z1, z2):
        with torch.no_grad():
            return flow().log_prob(torch.stack([z1, z2], -1)) + log_bernoulli(x, logits(z1, z2)).sum(-1)

    fine = line(9.0, 361)
    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, (fine, fine), X), error=1e-3)
