"""Effect handlers of our own, beside Pyro's."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class temper(Messenger):  # noqa: N801  # a handler, named as Pyro names its own
    """Weight the log densities of latent sites, of observed sites, or of both.

    Around model and guide, `temper(latent=b)` turns the ELBO into E_q[log p(x|z)] - b KL(q, p(z)) (Higgins et al.,
    "beta-VAE", ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl; raised from 0 to 1 in training, Bowman et al.,
    "Generating sentences from a continuous space", 2016, https://arxiv.org/abs/1511.06349). Around the model alone,
    `temper(observed=b)` gives log p(z) + b log p(x|z), the path from prior to posterior on which annealed importance
    sampling walks (`ais` forms it from the two log densities by itself, since its start need not be the prior).

    Args:
        latent: Weight of the sites that are not observed.
        observed: Weight of the observed sites.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> with pyro.poutine.trace() as traced, temper(latent=0.5):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> traced.trace.nodes["z"]["scale"]
        0.5
    """

    def __init__(self, *, latent: float | Tensor = 1.0, observed: float | Tensor = 1.0) -> None:
        super().__init__()
        self.latent = latent
        self.observed = observed

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and not msg["infer"].get("_deterministic"):
            weight = self.observed if msg["is_observed"] else self.latent
            untouched = not isinstance(msg["scale"], Tensor) and msg["scale"] == 1
            msg["scale"] = weight if untouched else msg["scale"] * weight  # one object for all, which can be told


class substitute(Messenger):  # noqa: N801  # likewise
    """Give latent sites these values, as a draw would, so that they stay latent (`poutine.condition` observes them).

    Args:
        values: A value for each site, by name.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
