"""Bijections from the real vectors to where a latent lives."""

import torch
from torch import Tensor
from torch.distributions import StickBreakingTransform, Transform, biject_to, constraints
from torch.nn.functional import logsigmoid


class StickBreaking(StickBreakingTransform):
    """Real numbers, with shape (..., Z - 1), to the simplex, (..., Z), as torch's class of this name, but near its rim.

    z_d = s_d prod_{e<d} (1 - s_e), s_d = sigmoid(y_d - log(Z - d)), d = 1..Z-1; the last entry is what is left. Torch
    finds what is left as 1 - sum(z), which in single precision is lost below 1e-7, and its density with it; here no
    difference is taken, so entries are right down to the smallest number of the precision.
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
        """Log of the volume, in the first Z - 1 entries of z, of a unit volume of y; the leading shape of x."""
        taken, left = self._log_shares(x)
        return (taken + left.cumsum(-1)).sum(-1)

    def _log_shares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shifted = x - self._offset(x)
        return logsigmoid(shifted), logsigmoid(-shifted)

    @staticmethod
    def _offset(x: Tensor) -> Tensor:
        return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()


def bijection(support: constraints.Constraint) -> Transform:
    """Make a bijection from the real vectors to a support: torch's `biject_to`, but `StickBreaking` to the simplex.

    It remembers its last point, so that a draw's own pre-image comes back as it was, which the inverse would round.

    Raises:
        ValueError: If there is none, as for a discrete support.
    """
    if support is constraints.simplex:
        return StickBreaking(cache_size=1)
    try:
        return biject_to(support).with_cache()
    except NotImplementedError as error:
        raise ValueError(
            f"no bijection from the real vectors to {support} is known; give an encoder that lives there, and say so "
            "by its attribute support"
        ) from error
