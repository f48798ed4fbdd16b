"""Bijections from real vectors to the support of a latent."""

import torch
from torch import Tensor
from torch.distributions import StickBreakingTransform, Transform, biject_to, constraints
from torch.nn.functional import logsigmoid


class StickBreaking(StickBreakingTransform):
    """Stick-breaking bijection from real vectors, with shape (..., Z - 1), to the simplex, with shape (..., Z).

        z_d = s_d prod_{e<d} (1 - s_e),  s_d = sigmoid(y_d - log(Z - d)),  d = 1..Z-1,
        z_Z = prod_{e<Z} (1 - s_e)

    Torch's class computes z_Z as 1 - sum(z), which in float32 is lost below 1e-7, and the density with it. This class
    takes no difference, so entries and density are accurate down to the smallest number of the dtype.
    """

    def _call(self, x: Tensor) -> Tensor:
        taken, left = self._log_shares(x)
        before = left.cumsum(-1)
        smallest = torch.finfo(x.dtype).tiny
        return torch.cat([taken + before - left, before[..., -1:]], -1).exp().clamp(min=smallest)

    def _inverse(self, y: Tensor) -> Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return y[..., :-1].log() - left.log() + self._offset(left)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det dz/dx| of the first Z - 1 entries of z, with the leading shape of x."""
        taken, left = self._log_shares(x)
        return (taken + left.cumsum(-1)).sum(-1)

    def _log_shares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shifted = x - self._offset(x)
        return logsigmoid(shifted), logsigmoid(-shifted)

    @staticmethod
    def _offset(x: Tensor) -> Tensor:
        return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()


def bijection(support: constraints.Constraint) -> Transform:
    """Make a bijection from real vectors to a support: `StickBreaking` for the simplex, else torch's `biject_to`.

    The bijection caches its last point. The inverse of a draw is then exactly the vector that the draw was made from.

    Args:
        support: Constraint of the latent.

    Raises:
        ValueError: If torch knows no bijection, for example for a discrete support.
    """
    if support is constraints.simplex:
        return StickBreaking(cache_size=1)
    try:
        return biject_to(support).with_cache()
    except NotImplementedError as error:
        raise ValueError(
            f"support {support} needs a bijection from real vectors, but torch has none; use an encoder with this "
            "support, named by its attribute support"
        ) from error
