"""Programs that use dimensions by their position, that look across data, or that draw outside of sample sites."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from zoo.entry import Built, program
from zoo.integrals import line, log_integral
from zoo.parts import N, log_normal, noise, normal_guide, standard_normal

COUNTS = torch.tensor([[3, 1, 0, 2], [0, 0, 5, 1], [1, 1, 1, 1], [7, 0, 0, 1], [2, 2, 2, 0], [0, 1, 0, 4]]).double()
TOPICS = noise(20, 2, 4)
X = noise(21, N, 3)
W = noise(22, 2, 3)
PLANE = (line(), line())


def log_multinomial(counts, log_probs):
    coefficient = torch.lgamma(counts.sum() + 1) - torch.lgamma(counts + 1).sum()
    return coefficient + (counts * log_probs).sum(-1)


def prodlda(mix):
    """Make a topic model of counts, with a mixture of topics by mix, and the part of its reference that differs."""

    def model(x):
        with pyro.plate("documents", len(x), dim=-1):
            z = pyro.sample("z", standard_normal(2))
            total = int(x.sum(-1).max())
            pyro.sample("x", dist.Multinomial(total, mix(z)), obs=x)

    start = 0.1 * noise(50, 4, 2)

    def guide(x):
        a = pyro.param("a", start.clone())
        with pyro.plate("documents", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ a, 1.2).to_event(1))

    return model, guide


def prodlda_log_p(log_probs):
    def joint(x, z1, z2):
        shares = torch.softmax(torch.stack([z1, z2], -1), -1)
        return log_normal(z1, 0, 1) + log_normal(z2, 0, 1) + log_multinomial(x, log_probs(shares))

    return lambda: log_integral(joint, PLANE, COUNTS)


@program("ProdLDA without BatchNorm")
def prodlda_plain():
    def mix(z):
        topics = pyro.param("topics", TOPICS.clone())
        return torch.softmax(torch.softmax(z, -1) @ topics, -1)

    model, guide = prodlda(mix)
    return Built(model, guide, (COUNTS,), log_p=prodlda_log_p(lambda s: torch.log_softmax(s @ TOPICS, -1)))


def batch_norm():
    norm = nn.BatchNorm1d(4, affine=False).double()
    norm.running_mean, norm.running_var = noise(23, 4), noise(24, 4).exp()
    return norm


@program("ProdLDA with BatchNorm and softmax(dim=1)", "tiled")
def prodlda_batch_norm():
    norm = batch_norm()

    def mix(z):
        topics = pyro.param("topics", TOPICS.clone())
        return torch.softmax(norm(torch.softmax(z, 1) @ topics), 1)

    model, guide = prodlda(mix)
    mean, std = noise(23, 4), (noise(24, 4).exp() + 1e-5).sqrt()
    return Built(
        model, guide, (COUNTS,), log_p=prodlda_log_p(lambda s: torch.log_softmax((s @ TOPICS - mean) / std, -1))
    )


def normal_vae(decode, guide=None):
    """Make a VAE with x ~ N(decode(z), 0.7)."""

    def model(x):
        w = pyro.param("w", W.clone())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Normal(decode(z, w, x), 0.7).to_event(1), obs=x)

    return model, guide or normal_guide(2, 3)


def normal_log_p(decode):
    def joint(x, z1, z2):
        found = log_normal(x, decode(torch.stack([z1, z2], -1)), 0.7).sum(-1)
        return log_normal(z1, 0, 1) + log_normal(z2, 0, 1) + found

    return lambda: log_integral(joint, PLANE, X)


@program("softmax(dim=1) in the decoder", "tiled")
def softmax_by_position():
    model, guide = normal_vae(lambda z, w, x: torch.softmax(z, dim=1) @ w)
    return Built(model, guide, (X,), log_p=normal_log_p(lambda z: torch.softmax(z, -1) @ W))


@program("z.sum(1) in the decoder", "tiled")
def sum_by_position():
    model, guide = normal_vae(lambda z, w, x: z.sum(1).unsqueeze(-1) * w[0])
    return Built(model, guide, (X,), log_p=normal_log_p(lambda z: z.sum(-1, keepdim=True) * W[0]))


@program("view(-1, D) in the decoder", "tiled")
def view_by_position():
    model, guide = normal_vae(lambda z, w, x: torch.tanh(z.view(-1, 2)) @ w)
    return Built(model, guide, (X,), log_p=normal_log_p(lambda z: torch.tanh(z) @ W))


@program("boolean indexing by the data in the decoder", "tiled")
def boolean_indexing():
    def decode(z, w, x):
        loc = z @ w
        positive = x[:, 0] > 0
        loc = loc.clone()
        loc[positive] = torch.tanh(loc[positive])
        return loc

    model, guide = normal_vae(decode)

    def joint(x, z1, z2):
        loc = torch.stack([z1, z2], -1) @ W
        loc = torch.tanh(loc) if x[0] > 0 else loc
        return log_normal(z1, 0, 1) + log_normal(z2, 0, 1) + log_normal(x, loc, 0.7).sum(-1)

    fine = (line(size=481), line(size=481))
    return Built(model, guide, (X,), log_p=lambda: log_integral(joint, fine, X))


@program("BatchNorm in the decoder", "tiled")
def batch_norm_decoder():
    norm = nn.BatchNorm1d(3, affine=False).double()
    norm.running_mean, norm.running_var = noise(25, 3), noise(26, 3).exp()
    model, guide = normal_vae(lambda z, w, x: torch.tanh(norm(z @ w)))
    mean, std = noise(25, 3), (noise(26, 3).exp() + 1e-5).sqrt()
    return Built(model, guide, (X,), log_p=normal_log_p(lambda z: torch.tanh((z @ W - mean) / std)))


@program("BatchNorm in the encoder, which draws do not reach")
def batch_norm_encoder():
    norm = nn.BatchNorm1d(3, affine=False).double()
    start = 0.1 * noise(50, 3, 2)

    def guide(x):
        a = pyro.param("a", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(norm(x) @ a, 1.2).to_event(1))

    model, guide = normal_vae(lambda z, w, x: torch.tanh(z) @ w, guide)
    return Built(model, guide, (X,), log_p=normal_log_p(lambda z: torch.tanh(z) @ W))


ACROSS = "depends on which other data"


@program(
    "x - x.mean(0) in the guide",
    "refused",
    refusal=ACROSS,
    reason="log q of a datum depends on the other data: use the training data's statistics",
)
def centred_guide():
    start = noise(50, 3, 2)

    def guide(x):
        a = pyro.param("a", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x - x.mean(0)) @ a, 1.2).to_event(1))

    model, guide = normal_vae(lambda z, w, x: torch.tanh(z) @ w, guide)
    return Built(model, guide, (X,))


@program(
    "z - z.mean(0) in the decoder",
    "refused",
    refusal=ACROSS,
    reason="log p of a datum depends on the other data",
)
def centred_decoder():
    model, guide = normal_vae(lambda z, w, x: (z - z.mean(-2, keepdim=True)) @ w)
    return Built(model, guide, (X,))


@program(
    "random numbers outside of sample sites",
    "refused",
    refusal="draws random numbers outside",
    reason="two runs at the same latents differ: use pyro.sample",
)
def hidden_noise():
    model, guide = normal_vae(lambda z, w, x: z @ w + 0.5 * torch.randn(()))
    return Built(model, guide, (X,))


@program(
    "scale of the number of rows",
    "refused",
    refusal="depends on which other data|depends on the number of rows",
    reason="log p of a datum depends on N",
)
def depends_on_size():
    model, guide = normal_vae(lambda z, w, x: z @ w * (1 + 1 / len(x)))
    return Built(model, guide, (X,))
