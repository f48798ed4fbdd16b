"""Plates beside the data's, enumerated mixtures, LDA, scales, and what lies outside of the data plate."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyrovae.densities import Whole
from zoo.entry import ENUMERATION, Built, program, waits_for
from zoo.integrals import half_line, interval, line, log_integral
from zoo.parts import N, log_bernoulli, log_normal, noise

X = noise(40, N, 3)
PIXELS = (noise(41, N, 4) > 0).double()
WORDS = torch.tensor([[0, 1, 2, 2], [3, 3, 3, 0], [1, 1, 0, 2], [2, 2, 2, 2], [0, 3, 1, 1], [0, 0, 0, 1]])


def pixel_joint(x, z):
    return log_normal(z, 0, 1) + log_bernoulli(x, z.unsqueeze(-1) * torch.tensor([1.0, -1.0, 0.5, 2.0])).sum(-1)


def pixel_log_p():
    return log_integral(pixel_joint, (line(),), PIXELS)


@program("pixel plate at dim -1, data at dim -2")
def pixels_right():
    def model(x):
        w = pyro.param("w", torch.tensor([1.0, -1.0, 0.5, 2.0]))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("pixels", 4, dim=-1):
                pyro.sample("x", dist.Bernoulli(logits=z * w), obs=x)

    def guide(x):
        a = pyro.param("a", 0.2 * noise(42, 4))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal((x @ a).unsqueeze(-1), 1.2))

    return Built(model, guide, (PIXELS,), log_p=pixel_log_p)


def pixels_in_rows(logits):
    def model(x):
        w = pyro.param("w", torch.tensor([1.0, -1.0, 0.5, 2.0]))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 4, dim=-2):
                pyro.sample("x", dist.Bernoulli(logits=logits(z, w)), obs=x.T)

    def guide(x):
        a = pyro.param("a", 0.2 * noise(42, 4))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ a, 1.2))

    return Built(model, guide, (PIXELS,), log_p=pixel_log_p)


@program("pixel plate at dim -2, data at dim -1")
def pixels_left():
    return pixels_in_rows(lambda z, w: z * w.unsqueeze(-1))


@program("pixel plate at dim -2, with z.unsqueeze(-2), which moves particles out of their place", "tiled")
def pixels_left_unsqueezed():
    return pixels_in_rows(lambda z, w: z.unsqueeze(-2) * w.unsqueeze(-1))


@program("latent in a further plate, per datum and pixel")
def latent_in_further_plate():
    def model(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.sin(2 * z), scale), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(0.4))
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(a * x, 1.1))

    def log_p():
        z, log_w = line(size=961)
        each = log_normal(z, 0, 1) + log_normal(X.unsqueeze(-1), torch.sin(2 * z), 0.5) + log_w
        return each.logsumexp(-1).sum(-1)

    return Built(model, guide, (X,), log_p=log_p)


@program("sequential plate over dimensions inside the data plate")
def sequential_plate():
    def model(x):
        scale = pyro.param("scale", torch.tensor(0.8))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for i in pyro.plate("entries", x.shape[1]):
                pyro.sample(f"x_{i}", dist.Normal(z * (i + 1) / 2, scale), obs=x[:, i])

    def guide(x):
        a = pyro.param("a", torch.tensor(0.2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x.sum(-1), 1.1))

    def joint(x, z):
        return log_normal(z, 0, 1) + sum(log_normal(x[i], z * (i + 1) / 2, 0.8) for i in range(3))

    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, (line(),), X))


MIXING, LOCS = torch.tensor([0.3, 0.2, 0.5]).double(), torch.tensor([-2.0, 0.0, 1.5]).double()


@program("Gaussian mixture, components enumerated", enumerates="model", waits=ENUMERATION)
def gaussian_mixture():
    def model(x):
        locs = pyro.param("locs", LOCS.clone())
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(MIXING), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(locs[k], 0.6))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x.sum(-1), 1.3))

    def joint(x, z):
        prior = (MIXING.log() + log_normal(z.unsqueeze(-1), LOCS, 0.6)).logsumexp(-1)
        return prior + log_normal(x, z.unsqueeze(-1), 1.0).sum(-1)

    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, (line(size=961),), X))


TOPICS = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.3, 0.5]]).double()


def lda_log_p():
    def joint(words, share):
        shares = torch.stack([share, 1 - share], -1)
        log_prior = share.log() * 0.2 + (1 - share).log() * 0.2 - LOG_BETA
        return log_prior + (shares @ TOPICS[:, words]).log().sum(-1)

    return log_integral(joint, (interval(),), WORDS)


LOG_BETA = 2 * torch.lgamma(torch.tensor(1.2).double()) - torch.lgamma(torch.tensor(2.4).double())


def lda_guide(words, *args):
    a = pyro.param("a", torch.tensor([1.3, 1.3]))
    with pyro.plate("documents", len(words), dim=-1):
        pyro.sample("theta", dist.Dirichlet(a))


@program("LDA, topics of words enumerated", enumerates="model", waits=ENUMERATION)
def lda():
    def model(words):
        topics = pyro.param("topics", TOPICS.clone())
        with pyro.plate("documents", len(words), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(torch.tensor([1.2, 1.2])))
            with pyro.plate("words", words.shape[1], dim=-2):
                k = pyro.sample("k", dist.Categorical(theta), infer={"enumerate": "parallel"})
                pyro.sample("w", dist.Categorical(topics[k]), obs=words.T)

    return Built(model, lda_guide, (WORDS,), log_p=lda_log_p)


OUTSIDE = r"lies outside a plate over the .*log p\(x_n\)"


@program(
    "LDA with topics as latents of the whole data set",
    "refused",
    refusal=OUTSIDE,
    reason="log p(x_n) is not defined with latents outside the data plate; use log_evidence",
    trains=False,
)
def lda_global():
    def model(words):
        with pyro.plate("topics", 2, dim=-1):
            topics = pyro.sample("phi", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("documents", len(words), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(torch.tensor([1.2, 1.2])))
            with pyro.plate("words", words.shape[1], dim=-2):
                pyro.sample("w", dist.Categorical(theta @ topics), obs=words.T)

    def guide(words):
        b = pyro.param("b", torch.ones(2, 4))
        with pyro.plate("topics", 2, dim=-1):
            pyro.sample("phi", dist.Dirichlet(b))
        lda_guide(words)

    return Built(model, guide, (WORDS,))


@program("sparse gamma: two layers of gamma latents")
def sparse_gamma():
    counts = torch.tensor([[1, 0, 3], [0, 0, 1], [5, 2, 9], [2, 2, 2], [0, 4, 0], [1, 1, 0]]).double()
    w = torch.tensor([0.8, 0.3, 1.1]).double()

    def model(x):
        weights = pyro.param("weights", w.clone())
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Gamma(1.5, 1.0))
            bottom = pyro.sample("bottom", dist.Gamma(1.2, 1.2 / top))
            pyro.sample("x", dist.Poisson(bottom.unsqueeze(-1) * weights).to_event(1), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(0.7))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("top", dist.Gamma(1.2, 0.6))
            pyro.sample("bottom", dist.Gamma(1.0, a / (1 + x.mean(-1))))

    def log_gamma(z, shape, rate):
        shape, rate = torch.as_tensor(shape).double(), torch.as_tensor(rate).double()
        return shape * rate.log() + (shape - 1) * z.log() - rate * z - torch.lgamma(shape)

    def joint(x, top, bottom):
        rate = bottom.unsqueeze(-1) * w
        lik = (x * rate.log() - rate - torch.lgamma(x + 1)).sum(-1)
        return log_gamma(top, 1.5, 1.0) + log_gamma(bottom, 1.2, 1.2 / top) + lik

    return Built(model, guide, (counts,), log_p=lambda: log_integral(joint, (half_line(), half_line()), counts))


def regression(plate_of_data):
    inputs = noise(43, N, 2)
    y = inputs @ torch.tensor([1.0, -1.0]).double() + 0.5 * noise(44, N)

    def model(inputs, y):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = pyro.param("scale", torch.tensor(0.5))
        with plate_of_data(len(y)):
            loc = (inputs * weights).sum(-1)
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    def guide(inputs, y):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("weights", dist.Normal(loc, 0.7).to_event(1))

    def evidence():
        covariance = inputs @ inputs.T + 0.25 * torch.eye(N, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(y)

    return Built(model, guide, (inputs, y), evidence=evidence)


@program(
    "regression with weights as latents of the whole data set",
    "refused",
    refusal=OUTSIDE,
    reason="log p(x_n) is not defined with latents outside the data plate; use log_evidence",
    waits=waits_for(4, "evidence"),
)
def global_weights():
    return regression(lambda size: pyro.plate("data", size, dim=-1))


def simple(scale=None, subsample=None):
    def model(x):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x), subsample_size=subsample, dim=-1) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=scale or 1.0):
                pyro.sample("x", dist.Normal(a * z.unsqueeze(-1), 1.0).to_event(1), obs=x[rows])

    def guide(x):
        b = pyro.param("b", torch.tensor(0.2))
        with pyro.plate("data", len(x), subsample_size=subsample, dim=-1) as rows:
            pyro.sample("z", dist.Normal(b * x[rows].sum(-1), 1.1))

    return Built(model, guide, (X,))


@program(
    "subsampling plate",
    "refused",
    refusal="by the subsampling plate",
    reason="values are scaled, no log densities: let fit make the batches",
    trains=False,
)
def subsampling():
    return simple(subsample=3)


@program("poutine.scale", "refused", refusal="carries scale", reason="scaled values are no log densities", trains=True)
def scaled():
    return simple(scale=0.5)


@program("vector of N numbers that is the same for all data, in Whole", waits=waits_for(6, "exact fit recorded"))
def whole_vector():
    x, scales = noise(45, N, N), torch.linspace(0.5, 1.5, N, dtype=torch.float64)

    def model(x, scales):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a * z.unsqueeze(-1), scales).to_event(1), obs=x)

    def guide(x, scales):
        b = pyro.param("b", torch.tensor(0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(b * x.sum(-1), 1.1))

    def joint(x, z):
        return log_normal(z, 0, 1) + log_normal(x, z.unsqueeze(-1), scales).sum(-1)

    return Built(model, guide, (x, Whole(scales)), log_p=lambda: log_integral(joint, (line(),), x))


def linear():
    def model(x):
        scale = pyro.param("scale", torch.tensor(0.8))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.tanh(z).unsqueeze(-1), scale).to_event(1), obs=x)

    def joint(x, z):
        return log_normal(z, 0, 1) + log_normal(x, torch.tanh(z).unsqueeze(-1), 0.8).sum(-1)

    return model, lambda: log_integral(joint, (line(),), X)


@program("AutoNormal over the data plate", shuffles=False, waits=waits_for(13, "default guide bound ais fit"))
def auto_normal():
    model, log_p = linear()
    guide = AutoNormal(model, init_scale=0.8)
    guide(X)  # now, since the first run draws where it starts
    return Built(model, guide, (X,), log_p=log_p)


@program(
    "AutoMultivariateNormal",
    "refused",
    refusal="log_evidence",
    reason="its auxiliary site joins all data; use log_evidence",
    waits=waits_for(13, "refusal evidence"),
)
def auto_multivariate():
    model, log_p = linear()
    guide = AutoMultivariateNormal(model, init_scale=0.8)
    return Built(model, guide, (X,), evidence=lambda: log_p().sum())
