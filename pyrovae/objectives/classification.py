"""ELBO with a classification term, for data of which some have a label."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor

from pyrovae.densities import Program
from pyrovae.objectives.case_weights import sum_over_data
from pyrovae.objectives.recordable_elbos import RecordableTraceEnum_ELBO


class ClassificationELBO(RecordableTraceEnum_ELBO):
    """ELBO that also trains q(y|x) on labelled data, as a classifier.

        L = sum_n ELBO_n + alpha N/M sum_{n labelled} log q(y_n|x_n)

    for N data of which M have a label (Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep
    generative models", NeurIPS 2014, https://arxiv.org/abs/1406.5298, eq. 9, with the paper's alpha = 0.1 N spread over
    the M data). The ELBO is that of `TraceEnum_ELBO`, by which labelled data do not train q(y|x). The term ties the
    classes of unlabelled data to the labels. It is no part of any reported ELBO or log p(x, y). If the labels are not
    the largest clusters of x, the published alpha may be too small; compare the errors with a plain classifier.

    Case weights multiply both terms of a datum. M is then N times the labelled share of the sum of weights.

    Args:
        num_data: Number N of training data.
        num_labelled: Number M of these that have a label. With case weights w, N sum_labelled w_n / sum_n w_n.
        alpha: Weight of the classification term; 0 for the ELBO.
        site: Name of the latent y, one-hot or an index, which the guide must draw.
        num_particles: Number of draws K per datum and class.

    Raises:
        ValueError: If num_labelled is not above 0, or above num_data, or alpha is negative. In use: if the programs
            have no argument `labels`, with shape (N,), -1 where missing, or the guide does not draw y.
    """

    recordable = True
    is_elbo = False

    def __init__(
        self, num_data: int, num_labelled: float, alpha: float = 0.1, site: str = "y", num_particles: int = 1
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        if not 0 < num_labelled <= num_data:
            raise ValueError(
                f"num_labelled must be above 0 and at most num_data={num_data}, got {num_labelled:g}; give the number "
                "of training data that have a label, or use TraceEnum_ELBO without any"
            )
        if not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}; give 0.1, the value of the paper")
        self.site, self.weight = site, alpha * num_data / num_labelled

    def weighted_loss(self, weights: Tensor, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch whose data have case weights, with shape (N,), in nats, a scalar."""
        return self._weighed(weights, model, guide, args, kwargs)

    def _weighed(
        self, weights: Tensor | None, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Compute the loss of a batch whose data have case weights; None for 1."""
        labels = kwargs.get("labels")
        if not isinstance(labels, Tensor):
            raise ValueError(
                "ClassificationELBO needs the argument labels by name, a tensor of shape (N,) with -1 where missing, "
                f"got {'none' if labels is None else type(labels).__name__}; give labels=, or use TraceEnum_ELBO"
            )
        loss = super()._weighed(weights, model, guide, args, kwargs)
        hidden = {name: value for name, value in kwargs.items() if name != "labels"}
        q = _distribution(guide, self.site, args, hidden)
        values = q.enumerate_support(expand=False).reshape(-1, *q.event_shape)
        log_q = q.log_prob(values[labels.clamp(min=0)])
        return loss - self.weight * sum_over_data(torch.where(labels >= 0, log_q, 0.0), weights)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Compute the loss of a batch, in nats."""
        with torch.no_grad():
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return warn_if_nan(loss, "loss").item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Compute the loss of a batch, in nats, and add its gradients to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return warn_if_nan(loss.detach(), "loss").item()


class _ReachedError(Exception):
    """A program has reached a site."""


class _StopAt(Messenger):
    """Handler that notes the distribution of a site, and stops the program there.

    Args:
        site: Name of the site.
    """

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site, self.fn = site, None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            self.fn = msg["fn"]
            raise _ReachedError


def _distribution(guide: Program, site: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the distribution of a site. The sites before it are drawn, those after it are not."""
    stop = _StopAt(site)
    try:
        with poutine.block(), stop:
            guide(*args, **kwargs)
    except _ReachedError:
        return stop.fn
    raise ValueError(f"the guide draws no site {site!r}, so there is no q(y|x) to train; give site=")
