"""Random programs with vector latents and latents in further plates or loops, with log p(x_n) by nested integrals."""

import random
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.integrals import circle, filtered, half_line, interval, line

# Kind of latent: distribution at a location, grid, guide, bounded feature of its value.
KINDS: dict[str, tuple[Any, ...]] = {
    "normal": (lambda c: dist.Normal(c, 0.9), lambda: line(8.0, 121), lambda c: dist.Normal(c, 1.4), torch.tanh),
    "gamma": (
        lambda c: dist.Gamma(1.5, torch.exp(c)),
        lambda: half_line(161),
        lambda c: dist.LogNormal(c, 1.3),
        torch.log1p,
    ),
    "beta": (
        lambda c: dist.Beta(1.5 + 0 * c, torch.exp(c)),
        lambda: interval(size=161),
        lambda c: dist.Beta(1.0 + 0 * c, torch.exp(0.3 * c)),
        lambda z: 2 * z - 1,
    ),
    "angle": (lambda c: dist.VonMises(c, 0.8), lambda: circle(80), lambda c: dist.VonMises(c, 0.5), torch.sin),
}
PLACES = ("plate right", "plate left", "loop", "chain")


class NestedProgram:
    """Random program: a vector v of two latents per datum, and P latents u_p given v, in a plate, a loop or a chain.

    Args:
        seed: Seed.
    """

    def __init__(self, seed: int) -> None:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.vector, self.inner = rng.choice(list(KINDS)), rng.choice(list(KINDS))
        self.place, self.pixels, self.size = rng.choice(PLACES), rng.choice([1, 2]), rng.choice([3, 5])
        self.binary = rng.random() < 0.4
        y = torch.randn(self.size, self.pixels, generator=generator, dtype=torch.float64)
        self.args = ((y > 0).double() if self.binary else y,)
        self.text = f"v {self.vector}, u {self.inner}, {self.place}, P = {self.pixels}, N = {self.size}"

    def observed(self, mean: Tensor) -> Any:
        """Make the distribution of an observation."""
        return dist.Bernoulli(logits=mean) if self.binary else dist.Normal(mean, 0.7)

    def _run(self, x: Tensor, program: int) -> None:
        prior, feature = KINDS[self.vector][program], KINDS[self.vector][3]
        inner, inner_feature = KINDS[self.inner][program], KINDS[self.inner][3]
        right = self.place == "plate right"  # the data at dim -2
        with pyro.plate("data", len(x), dim=-2 if right else -1):
            batch = x.new_zeros(len(x), 1) if right else x.new_zeros(len(x))
            v = pyro.sample("v", prior(0.2 + batch.unsqueeze(-1).expand(*batch.shape, 2)).to_event(1))
            total = 0.5 * feature(v).sum(-1)
            if self.place in ("plate right", "plate left"):
                with pyro.plate("pixels", self.pixels, dim=-1 if right else -2):
                    u = pyro.sample("u", inner(total + x.new_zeros(self.pixels, 1) if not right else total))
                    if program == 0:
                        pyro.sample("x", self.observed(inner_feature(u) + total), obs=x if right else x.T)
                return
            before = total
            for p in pyro.markov(range(self.pixels)):
                u = pyro.sample(f"u{p}", inner(before))
                if self.place == "chain":
                    before = total + 0.5 * inner_feature(u)
                if program == 0:
                    pyro.sample(f"x{p}", self.observed(inner_feature(u) + total), obs=x[:, p])

    def model(self, x: Tensor) -> None:
        """Run the model."""
        self._run(x, 0)

    def guide(self, x: Tensor) -> None:
        """Run the guide."""
        self._run(x, 2)

    def log_p(self) -> Tensor:
        """Compute log p(x_n), with shape (N,): over v on a grid, and over u_p inside."""
        (z, log_w), (u, log_wu) = KINDS[self.vector][1](), KINDS[self.inner][1]()
        feature, inner_feature = KINDS[self.vector][3], KINDS[self.inner][3]
        log_v = KINDS[self.vector][0](torch.full_like(z, 0.2)).log_prob(z) + log_w
        # v matters by the sum of its two features alone, of which log p(x | v) is a smooth function: interpolate it.
        total = 0.5 * (feature(z)[:, None] + feature(z)).flatten()
        log_pair = (log_v[:, None] + log_v).flatten()
        middle, half = (total.max() + total.min()) / 2, (total.max() - total.min()) / 2
        order = torch.arange(25, dtype=torch.float64)
        nodes = torch.cos((order + 0.5) / 25 * torch.pi)  # Chebyshev's

        def basis(t: Tensor) -> Tensor:
            return torch.cos(order * torch.arccos(t.clamp(-1, 1)).unsqueeze(-1))

        found = []
        for row in self.args[0]:
            each = torch.stack([self._given(middle + half * t, row, u, log_wu, inner_feature) for t in nodes])
            at = basis((total - middle) / half) @ torch.linalg.solve(basis(nodes), each)
            found.append((log_pair + at).logsumexp(0))
        return torch.stack(found)

    def _given(self, total: Tensor, row: Tensor, u: Tensor, log_w: Tensor, feature: Any) -> Tensor:
        prior = KINDS[self.inner][0]
        log_obs = [self.observed(feature(u) + total).log_prob(value) for value in row]
        start = prior(total + 0 * u).log_prob(u)
        if self.place == "chain":
            step = prior((total + 0.5 * feature(u))[:, None] + 0 * u).log_prob(u)
            return filtered(start, step, log_obs, log_w)
        return torch.stack([(start + each + log_w).logsumexp(0) for each in log_obs]).sum()
