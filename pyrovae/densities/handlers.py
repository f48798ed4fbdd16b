"""Effect handlers that Pyro lacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class temper(Messenger):  # noqa: N801  # a handler, named as Pyro names its own
    """Handler that weights the log densities of latent sites, of observed sites, or of both.

        latent=b around model and guide:  ELBO = E_q[log p(x|z)] - b KL(q, p(z))
        observed=b around the model:      log p(z) + b log p(x|z)

    The first is the objective of Higgins et al., "beta-VAE" (ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl);
    Bowman et al., "Generating sentences from a continuous space" (2016, https://arxiv.org/abs/1511.06349), raise b from
    0 to 1 in training. The second is the path from prior to posterior of annealed importance sampling. `ais` does not
    use this handler, since its path need not start at the prior.

    Args:
        latent: Weight of the latent sites.
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
            msg["scale"] = (
                weight if untouched else msg["scale"] * weight
            )  # one object for all sites, so that their weights compare as identical


@contextmanager
def check_unchanged() -> Iterator[None]:
    """Check that a run of a program changes no mask and no value in place after its site.

    Pyro computes log densities after the run, and hence with the mask and the value as they are then.

    Raises:
        ValueError: If the program changes one.
    """
    keeper = _Keeper()
    with keeper:
        yield
    for name, what, tensor, copy in keeper.kept:
        if not torch.equal(tensor.nan_to_num(), copy.nan_to_num()):
            raise ValueError(
                f"the {what} of site {name!r} is changed in place after the site, so Pyro computes its log density "
                f"with another {what}; make a new tensor, as in mask = mask | seen in place of mask |= seen"
            )


class _Keeper(Messenger):
    """Handler that keeps copies of the masks and values of sites."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, str, Tensor, Tensor]] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        for what in ("mask", "value"):
            if isinstance(msg[what], Tensor):
                self.kept.append((msg["name"], what, msg[what], msg[what].detach().clone()))
