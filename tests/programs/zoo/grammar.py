"""Random small programs as text, each with the text of its log p(x, z) for one datum, which shares no code with it.

A program has up to two continuous and one or two discrete latents, which may depend on each other, one or two observed
sites, masks of both kinds, a further plate, sites left to enumeration, and operations by position.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from zoo.integrals import Axis, circle, half_line, interval, line, log_integral, values

# Kind of latent: prior in Pyro, its log density, a guide, a bounded feature of its value. {c} is the location.
CONTINUOUS = {
    "normal": ("dist.Normal({c}, 0.9)", "dist.Normal({c}, 0.9)", "dist.Normal({g}, 1.4)", "{z}"),
    "student": ("dist.StudentT(5.0, {c}, 0.8)",) * 2 + ("dist.StudentT(4.0, {g}, 1.3)", "torch.tanh({z})"),
    "gamma": ("dist.Gamma(1.5, torch.exp({c}))",) * 2 + ("dist.LogNormal({g}, 1.3)", "torch.log1p({z})"),
    "lognormal": ("dist.LogNormal({c}, 0.7)",) * 2 + ("dist.LogNormal({g}, 1.1)", "torch.log({z})"),
    "beta": ("dist.Beta(1.5, torch.exp({c}))",) * 2 + ("dist.Beta(1.0, torch.exp(0.3 * {g}))", "(2 * {z} - 1)"),
    "uniform": ("dist.Uniform(-1.0, 1.5)",) * 2 + ("dist.Uniform(-1.0, 1.5)", "{z}"),
    "tensor_bounds": ("dist.Uniform(-1.0, 1.5 + 0 * {c})",) * 2 + ("dist.Uniform(-1.0, 1.5 + 0 * {g})", "{z}"),
    "bounds": ("dist.Uniform({c} - 1.0, {c} + 1.5)",) * 2 + ("dist.Normal({g}, 1.5)", "{z}"),
    "angle": ("dist.VonMises({c}, 0.8)",) * 2 + ("dist.VonMises({g}, 0.5)", "torch.sin({z})"),
}
DISCRETE = {
    "bernoulli": ("dist.Bernoulli(logits={c})",) * 2 + ("dist.Bernoulli(logits=0.5 * {g})", "(1.6 * {z} - 0.8)"),
    "categorical": (
        "dist.Categorical(logits=torch.stack([{c}, 0.5 - {c}, 0 * {c}], -1))",
        "dist.Categorical(logits=torch.stack([{c}, 0.5 - {c}, 0 * {c}], -1))",
        "dist.Categorical(logits=torch.stack([{g}, 0 * {g}, 0.3 * {g}], -1))",
        "(0.8 * {z} - 0.8)",
    ),
}
NEEDS = {"angle": 7, "tensor_bounds": 7, "bounds": 7}  # points of the issue that some kinds of latent need
OBSERVED = {
    "normal": "dist.Normal({eta}, 0.7)",
    "bernoulli": "dist.Bernoulli(logits={eta})",
    "poisson": "dist.Poisson(torch.exp(0.7 * torch.tanh({eta})))",
}
# The decoder: in the program, of features h with shape (N, L) or a sum of them, and for one datum.
NETWORKS = {
    "network": ("torch.tanh(h @ v) @ w2 + b", "torch.tanh(h @ v) @ w2 + b"),
    "softmax": ("torch.softmax(h, dim=1) @ v @ w2 + b", "torch.softmax(h, -1) @ v @ w2 + b"),
    "sum": ("h.sum(1).unsqueeze(-1) * w + b", "h.sum(-1, keepdim=True) * w + b"),
    "view": ("torch.tanh(h.view(-1, {L})) @ v @ w2 + b", "torch.tanh(h) @ v @ w2 + b"),
    "index": (
        "(h @ v @ w2).index_put((y > 0,), torch.tanh((h @ v @ w2)[y > 0])) + b",
        "(torch.tanh(h @ v @ w2) if y > 0 else h @ v @ w2) + b",
    ),
}


@dataclass
class Latent:
    """A latent of a random program."""

    name: str
    kind: str
    parent: "Latent | None"
    mask: str  # "", "handler" or "inside", in the model
    guide_mask: str
    enumerated: bool

    @property
    def forms(self) -> tuple[str, ...]:
        """Prior, density, guide and feature."""
        return (CONTINUOUS | DISCRETE)[self.kind]

    def axis(self, fine: bool) -> Axis:
        """Grid of its values; None for bounds that move."""
        size = 361 if fine else 161
        table = {
            "normal": lambda: line(8.0, size),
            "student": lambda: student_axis(size),
            "gamma": lambda: half_line(size),
            "lognormal": lambda: half_line(size),
            "beta": lambda: interval(size=size),
            "uniform": lambda: interval(-1.0, 1.5, size),
            "tensor_bounds": lambda: interval(-1.0, 1.5, size),
            "bounds": lambda: interval(size=size),
            "angle": lambda: circle(size),
            "bernoulli": lambda: values(0.0, 1.0),
            "categorical": lambda: values(0.0, 1.0, 2.0),
        }
        return table[self.kind]()


def student_axis(size: int) -> Axis:
    u, log_w = line(9.0, size)
    return torch.sinh(u), log_w + torch.cosh(u).log()


@dataclass
class RandomProgram:
    """A random program.

    Attributes:
        text: Source of model and guide.
        reference: Source of log p(x_n, z).
        args: Data.
        latents: Latents, in the order of the model.
        needs: Points of the issue that it needs.
        namespace: What the sources define.
    """

    text: str
    reference: str
    args: tuple[Tensor, ...]
    latents: list[Latent]
    needs: set[int] = field(default_factory=set)
    namespace: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        """The model."""
        return self.namespace["model"]

    @property
    def guide(self) -> Any:
        """The guide."""
        return self.namespace["guide"]

    def log_p(self) -> Tensor:
        """Compute log p(x_n), with shape (N,), by summing and integrating over all latents."""
        continuous = [z for z in self.latents if z.kind in CONTINUOUS]
        axes = [z.axis(len(continuous) == 1) for z in self.latents]
        return log_integral(self.namespace["log_joint"], axes, *self.args)


def make(seed: int) -> RandomProgram:
    """Make the random program of a seed."""
    rng = random.Random(seed)
    latents = _latents(rng)
    enumerated = any(z.enumerated for z in latents)
    style = rng.choice(["event", "event", "event", "right", "left"])
    network = "linear"
    if style == "event" and rng.random() < 0.7:
        network = "network" if enumerated else rng.choice(list(NETWORKS))
    observed = rng.choice(list(OBSERVED))
    mask = rng.choice(["", "", "handler", "inside"])
    second = rng.choice(["", "", "plain", "handler", "inside"])
    sized = style == "right" or rng.random() < 0.7
    args, constants = _data(rng, seed, observed, len(latents))
    text = _program(rng, latents, style, network, observed, mask, second, sized)
    reference = _reference(latents, style, network, observed, mask, second)
    needs = {NEEDS[z.kind] for z in latents if z.kind in NEEDS} | ({12} if enumerated else set())
    if not sized and any(z.kind == "uniform" for z in latents):
        needs.add(9)  # a plate without size leaves a distribution of one number as it is
    made = RandomProgram(text, reference, args, latents, needs)
    made.namespace = {"torch": torch, "pyro": pyro, "dist": dist, "poutine": poutine, **constants}
    exec(text + "\n" + reference, made.namespace)
    return made


def _latents(rng: random.Random) -> list[Latent]:
    kinds = [rng.choice(list(CONTINUOUS)) for _ in range(rng.choice([0, 1, 1, 2]))]
    kinds += [rng.choice(list(DISCRETE)) for _ in range(rng.choice([0, 0, 1, 1, 2] if kinds else [1, 2]))]
    rng.shuffle(kinds)
    latents: list[Latent] = []
    for index, kind in enumerate(kinds):
        parent = rng.choice([None, *latents])
        enumerated = kind in DISCRETE and rng.random() < 0.5
        masks = (
            ["", ""]
            if rng.random() < 0.7 or enumerated or kind == "bounds"
            else rng.choices(["handler", "inside"], k=2)
        )
        latents.append(Latent(f"z{index}", kind, parent, *masks, enumerated))
    return latents


def _data(rng: random.Random, seed: int, observed: str, count: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    size, width = rng.choice([4, 6]), rng.choice([2, 3])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = {"normal": lambda v: v, "bernoulli": lambda v: (v > 0).double(), "poisson": lambda v: v.exp().floor()}
    args = (x[observed](normal(size, width)), normal(size), normal(size, width) > -0.7, normal(size) > -0.5)
    constants = {"w": normal(width), "b": 0.5 * normal(width), "v": normal(count, 2), "w2": normal(2, width)}
    return args, constants


def _location(latent: Latent) -> str:
    return "0.3" if latent.parent is None else f"0.2 + 0.6 * torch.tanh(f_{latent.parent.name})"


def _program(
    rng: random.Random,
    latents: list[Latent],
    style: str,
    network: str,
    observed: str,
    mask: str,
    second: str,
    sized: bool,
) -> str:
    dim = -2 if style == "right" else -1
    column = "[:, None]" if style == "right" else ""
    plate = f"pyro.plate('data', len(x), dim={dim})" if sized else f"pyro.plate('data', dim={dim})"
    head = [f"    y, m = y{column}, m{column}", f"    with {plate}:", f"        zero = torch.zeros(len(x)){column}"]
    model = ["def model(x, y, mx, m):", "    x_, mx_ = x, mx", *head]
    for z in latents:
        fn = z.forms[0].format(c=f"(zero + {_location(z)})")
        model += _site(z.name, fn, z.mask, "infer={'enumerate': 'parallel'}" if z.enumerated else "")
        feature = z.forms[3].format(z=z.name)
        model.append(f"        f_{z.name} = zero + " + (f"torch.where(m, {feature}, 0.0)" if z.mask else feature))
    model += _observed(latents, style, network, observed, mask, second)
    guide = ["def guide(x, y, mx, m):", *head]
    drawn = [z for z in latents if not z.enumerated]
    if rng.random() < 0.5:
        drawn = drawn[::-1]
    for index, z in enumerate(drawn):
        loc = (
            "(0.3 * torch.tanh(y))"
            if not index
            else f"(0.2 * torch.tanh(y) + 0.2 * torch.sin(1.0 * {drawn[index - 1].name}))"
        )
        if z.kind == "bounds":
            loc = "(zero + 0.4)"
        if index and drawn[index - 1].mask:
            loc = "(0.3 * torch.tanh(y))"
        guide += _site(z.name, z.forms[2].format(g=loc), z.guide_mask, "")
    return "\n".join([*model, *guide])


def _site(name: str, fn: str, mask: str, option: str, where: str = "m", indent: str = "        ") -> list[str]:
    fn = f"{fn}.mask({where})" if mask == "inside" else fn
    call = f"{name} = pyro.sample({name!r}, {fn}{', ' + option if option else ''})"
    if mask == "handler":
        return [f"{indent}with poutine.mask(mask={where}):", f"{indent}    {call}"]
    return [indent + call]


def _observed(latents: list[Latent], style: str, network: str, observed: str, mask: str, second: str) -> list[str]:
    features = ", ".join(f"f_{z.name}" for z in latents)
    lines = [f"        total = sum([{features}])"]
    if second:
        lines += _site("y_", "dist.Normal(total, 0.9)", second.replace("plain", ""), "obs=y")
    if network == "linear":
        eta = {"event": "total.unsqueeze(-1) * w + b", "right": "total * w + b"}.get(
            style, "total * w.unsqueeze(-1) + b.unsqueeze(-1)"
        )
    else:
        lines.append(f"        h = torch.stack(torch.broadcast_tensors({features}), -1)")
        eta = NETWORKS[network][0].format(L=len(latents))
    fn, at = OBSERVED[observed].format(eta=f"({eta})"), "        "
    obs, where = ("x_.T", "mx_.T") if style == "left" else ("x_", "mx_")
    if style != "event":
        lines.append(f"        with pyro.plate('pixels', x_.shape[1], dim={-1 if style == 'right' else -2}):")
        return lines + _site("x", fn, mask, f"obs={obs}", where, at + "    ")
    if mask == "inside":
        fn = f"{fn}.mask({where})"
    fn, where = f"{fn}.to_event(1)", "mx_[:, 0]"
    return lines + _site("x", fn, "handler" if mask == "handler" else "", f"obs={obs}", where, at)


def _reference(latents: list[Latent], style: str, network: str, observed: str, mask: str, second: str) -> str:
    lines = ["def log_joint(x, y, mx, m, " + ", ".join(z.name for z in latents) + "):", "    total = 0.0"]
    for z in latents:
        name, loc = z.name, f"torch.as_tensor({_location(z)}).double().expand({z.name}.shape)"
        if z.kind == "bounds":  # z is a share of the interval, which is uniform
            lines.append(f"    log_{name} = torch.zeros_like({name})")
            lines.append(f"    {name} = ({loc}) - 1.0 + 2.5 * {name}")
        else:
            density = z.forms[1].format(c=f"({loc})")
            lines.append(f"    log_{name} = {density}.log_prob({name})")
        feature = z.forms[3].format(z=name)
        if z.mask:  # what is masked out has no density: a normalised one integrates to 1
            lines.append(f"    f_{name} = {feature} if m else torch.zeros_like({name})")
        else:
            lines.append(f"    f_{name} = {feature}")
        lines.append(f"    total = total + log_{name}")
    features = ", ".join(f"f_{z.name}" for z in latents)
    lines.append(f"    h = torch.stack([{features}], -1)")
    if second:
        lik = "torch.distributions.Normal(h.sum(-1), 0.9).log_prob(y)"
        lines.append(f"    total = total + {lik}" + ("" if second == "plain" else " * m"))
    eta = "h.sum(-1, keepdim=True) * w + b" if network == "linear" else NETWORKS[network][1]
    fn = OBSERVED[observed].format(eta=f"({eta})")
    if mask:
        keep = "mx[0]" if (style, mask) == ("event", "handler") else "mx"
        lines.append(f"    lik = {fn}.log_prob(x) * {keep}")
    else:
        lines.append(f"    lik = {fn}.log_prob(x)")
    lines.append("    return total + lik.sum(-1)")
    return "\n".join(lines)
