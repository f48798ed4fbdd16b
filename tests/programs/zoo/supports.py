"""Latents with supports other than the real numbers: angles, bounds per datum or by other latents, point masses."""

import pyro
import pyro.distributions as dist
import torch
from scipy import special

from zoo.entry import Built, program, waits_for
from zoo.integrals import circle, half_line, interval, line, log_integral, values
from zoo.parts import N, log_bernoulli, log_normal, noise

X = 0.8 * noise(60, N, 2)
LOW, HIGH = noise(61, N) - 1.5, noise(62, N).abs() + 1.0


@program("angle: von Mises", waits=waits_for(7, "exact"))
def von_mises():
    def model(x):
        radius = pyro.param("radius", torch.tensor(1.2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.VonMises(0.5, 0.7))
            loc = radius * torch.stack([z.cos(), z.sin()], -1)
            pyro.sample("x", dist.Normal(loc, 0.6).to_event(1), obs=x)

    def guide(x):
        b = pyro.param("b", torch.tensor(0.8))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.VonMises(torch.atan2(x[..., 1], x[..., 0]), b))

    def joint(x, z):
        log_prior = 0.7 * torch.cos(z - 0.5) - torch.log(2 * torch.pi * torch.as_tensor(special.i0(0.7)))
        loc = 1.2 * torch.stack([z.cos(), z.sin()], -1)
        return log_prior + log_normal(x, loc, 0.6).sum(-1)

    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, (circle(),), X))


@program("uniform with bounds per datum", waits=waits_for(7, "default exact ais"))
def bounds_per_datum():
    def model(x, low, high):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(low, high))
            pyro.sample("x", dist.Normal(a * z.unsqueeze(-1), 0.6).to_event(1), obs=x)

    def guide(x, low, high):
        b = pyro.param("b", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            unit = dist.Beta(torch.ones(len(x)) * b, 1.0)
            pyro.sample("z", dist.TransformedDistribution(unit, dist.transforms.AffineTransform(low, high - low)))

    def log_p():
        found = []
        for x, low, high in zip(X, LOW.tolist(), HIGH.tolist(), strict=True):
            z, log_w = interval(low, high)
            found.append((log_normal(x, z.unsqueeze(-1), 0.6).sum(-1) + log_w).logsumexp(0))
        return torch.stack(found) - (HIGH - LOW).log()

    return Built(model, guide, (X, LOW, HIGH), log_p=log_p)


@program("uniform bounded by another latent", waits=waits_for(7, "default exact ais"))
def bounds_by_latent():
    def model(x):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Uniform(0.0, 2.0))
            z2 = pyro.sample("z2", dist.Uniform(torch.zeros_like(z1), z1))
            pyro.sample("x", dist.Normal(torch.stack([a * z1, z2], -1), 0.5).to_event(1), obs=x)

    def guide(x):
        b = pyro.param("b", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Uniform(torch.zeros(len(x)), 2.0))
            share = dist.Beta(b.exp().expand(len(x)), 1.0)
            pyro.sample("z2", dist.TransformedDistribution(share, dist.transforms.AffineTransform(0.0, z1)))

    def joint(x, z1, share):  # z2 = share * z1 is uniform, so that share is uniform on (0, 1)
        return log_normal(x[0], z1, 0.5) + log_normal(x[1], share * z1, 0.5) - torch.tensor(2.0).log()

    axes = (interval(0.0, 2.0, 481), interval(size=481))
    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, axes, X))


@program("Beta, log-normal and categorical latents", estimators=("default", "guide"))
def mixed_supports():
    def model(x):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            z = pyro.sample("z", dist.Beta(1.5, 2.0))
            s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
            loc = torch.stack([a * z * 2 - k, k * z], -1)
            pyro.sample("x", dist.Normal(loc, s.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x):
        b = pyro.param("b", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Bernoulli(logits=b + 0.3 * x[..., 1]))
            pyro.sample("z", dist.Beta(torch.ones(len(x)), 1.2))
            pyro.sample("s", dist.LogNormal(torch.zeros(len(x)), 0.7))

    def joint(x, k, z, s):
        log_k = torch.tensor([0.4, 0.6]).double().log()[k.long()]
        log_beta = torch.as_tensor(special.betaln(1.5, 2.0))
        prior = log_k + 0.5 * z.log() + (1 - z).log() - log_beta + log_normal(s.log(), 0, 0.5) - s.log()
        return prior + log_normal(x[0], 2 * z - k, s) + log_normal(x[1], k * z, s)

    axes = (values(0.0, 1.0), interval(size=241), half_line(241))
    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, axes, X))


@program("guide that draws in another order than the model, each given the last")
def other_order():
    def model(x):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(a * torch.sin(z2), 0.7))
            pyro.sample("x", dist.Normal(torch.stack([z1, z2 * z1], -1), 0.8).to_event(1), obs=x)

    def guide(x):
        b = pyro.param("b", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(b * x[..., 0], 1.0))
            pyro.sample("z2", dist.Normal(0.5 * z1, 1.2))

    def joint(x, z1, z2):
        prior = log_normal(z2, 0, 1) + log_normal(z1, torch.sin(z2), 0.7)
        return prior + log_normal(x[0], z1, 0.8) + log_normal(x[1], z2 * z1, 0.8)

    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, (line(), line()), X))


@program("discrete latents drawn by the guide", estimators=("default", "guide", "exact"))
def discrete():
    bits = (X > 0).double()
    logits = torch.tensor([[1.0, -1.0], [-2.0, 0.5], [0.3, 2.0]]).double()

    def model(x):
        a = pyro.param("a", logits.clone())
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.2 * k))
            pyro.sample("x", dist.Bernoulli(logits=a[k] + b.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x):
        c = pyro.param("c", torch.zeros(2, 3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Categorical(logits=x @ c))
            pyro.sample("b", dist.Bernoulli(torch.full((len(x),), 0.5)))

    def joint(x, k, b):
        prior = torch.tensor([0.2, 0.3, 0.5]).double().log()[k.long()]
        rate = 0.2 + 0.2 * k
        prior = prior + b * rate.log() + (1 - b) * (1 - rate).log()
        return prior + log_bernoulli(x, logits[k.long()] + b.unsqueeze(-1)).sum(-1)

    axes = (values(0.0, 1.0, 2.0), values(0.0, 1.0))
    return Built(model, guide, (bits,), log_p=lambda: log_integral(joint, axes, bits))


@program(
    "Delta in the guide",
    "refused",
    refusal="Delta|point mass",
    reason="a point mass has no density",
    waits=waits_for(7, "refusal"),
)
def point_mass():
    def model(x):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a * z.unsqueeze(-1), 0.6).to_event(1), obs=x)

    def guide(x):
        b = pyro.param("b", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(b * x.mean(-1)))

    return Built(model, guide, (X,))
