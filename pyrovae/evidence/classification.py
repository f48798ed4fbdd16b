"""Classes of data: probabilities p(y|x) of a discrete latent y, and their error rate where classes are known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.densities import Program, entry, entry_of, log_joint, take, vectorize
from pyrovae.evidence.blocks import case_weights_of, check_counts, chunk_size_or_default, concatenate, evaluation_mode
from pyrovae.evidence.importance import log_marginal
from pyrovae.evidence.proposals import Proposal
from pyrovae.stats import check_case_weights, mean_and_std_error


class ErrorRate(NamedTuple):
    """Share of wrong classes.

    Attributes:
        value: Share of the data with a known class whose most probable class is another one; NaN without such data.
        std_error: Standard error of a binomial share, sqrt(value (1 - value) / size). It is 0 for no error, where the
            95 % bound of the share is about 3 / size. With case weights, that of `mean_and_std_error`.
        size: Number of data with a known class; with case weights, of positive weight.
    """

    value: float
    std_error: float
    size: int


class Classification(NamedTuple):
    """Probabilities of the K classes of each datum, with Monte Carlo errors; float64.

    Attributes:
        probabilities: p(y|x), with shape (N, K); NaN for data without an estimate.
        std_error: Monte Carlo standard errors of the probabilities, with shape (N, K); 0 if they are exact.
        log_joint: Log p(x, y) in nats, with shape (N, K); their log-sum-exp over K is log p(x).
        khat: k-hats of the weights of log_joint, with shape (N, K); above 0.7 the error is unreliable. NaN if exact.
        error: Error rate of the data whose class is known; None without labels.
    """

    probabilities: Tensor
    std_error: Tensor
    log_joint: Tensor
    khat: Tensor
    error: ErrorRate | None


@entry("num_particles", "proposal", "chunk_size", "site", "plate")
def classify(
    model: Program,
    guide: Program | None,
    x: Tensor,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    num_particles: int = 1000,
    proposal: Proposal | None = None,
    chunk_size: int | None = None,
    site: str = "y",
    plate: str | None = None,
    **kwargs: Any,
) -> Classification:
    """Compute p(y|x) of a discrete latent y by Bayes' rule, from one estimate of log p(x, y) for each class.

        p(y|x_n) = p(x_n, y) / sum_y' p(x_n, y'),   p(x_n, y) = E_q[p(x_n, y, z) / q(z)],   z ~ q(z|x_n, y)

    The sum over y is exact. Each class has its own draws of the other latents z, from a proposal that is adapted to
    p(z|x_n, y), so that no class is lost since the guide's q(y|x) rarely draws it; q(y|x) is not used. If all other
    latents can be summed out, or there are none, p(y|x) is exact. The cost is K times that of `log_marginal`. The
    standard errors follow from those of log p(x, y) by the delta method.

    Args:
        model: Pyro program p(y) p(z|y) p(x|z,y), whose latent y has one of K values per datum, an index or one-hot.
        guide: Pyro program q(z|x,y), with the model's arguments; it may draw y. None if no other latents are drawn.
        x: Data, with shape (N, ...).
        labels: Known class of each datum, with shape (N,), integers from 0 to K - 1, and -1 where unknown, for the
            error rate alone: the programs do not receive them.
        weights: Case weights of the error rate, not negative, with shape (N,); None for 1. The probabilities do not
            depend on them.
        num_particles: Number of draws K of the other latents per datum and class.
        proposal: `Proposal` to draw the other latents from; None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        site: Name of the site of y.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Further keyword arguments of both programs, such as mask and covariates.

    Raises:
        ValueError: If the model has no such latent, it has not one of finitely many values per datum, there are other
            latents and no guide, labels are not N codes of classes, weights are no case weights, or as `log_marginal`.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])))
        ...         pyro.sample("x", dist.Normal(2.0 * y, 1.0), obs=x)
        >>> found = classify(model, None, torch.tensor([1.0, 3.0]), labels=torch.tensor([-1, 1]))
        >>> found.probabilities[:, 1]  # 1 / (1 + exp(2 - 2x))
        tensor([0.5000, 0.9820], dtype=torch.float64)
        >>> found.error
        ErrorRate(value=0.0, std_error=0.0, size=1)
    """
    check_counts(num_particles=num_particles)
    values = _values(model, site, x, kwargs, plate)
    if labels is not None:
        labels = _checked(labels, len(x), len(values))
    weights = case_weights_of("classify", weights, len(x), model, guide)
    options: dict[str, Any] = {"num_particles": num_particles, "proposal": proposal, "chunk_size": chunk_size}
    options |= {"plate": plate, **kwargs}
    found = []
    for value in values:
        given_y = _Given(site, value)(model)
        if _is_exact(given_y, x, kwargs, plate):
            found.append(_exactly(given_y, x, kwargs, chunk_size, plate))
        elif guide is None:
            raise ValueError(
                f"the model has latents beside {site!r}, which a guide must draw, got None; give the guide"
            )
        else:
            rest = _Given(site, value, hidden=True)(guide)
            estimate = log_marginal(given_y, rest, x, **options)
            found.append((estimate.value, estimate.std_error, estimate.khat))
    log_p, error, khat = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    p = log_p.softmax(1)
    rate = None if labels is None else error_rate(p, labels, weights)
    return Classification(p, _std_error(p, torch.where(p > 0, error, 0.0)), log_p, khat, rate)


def error_rate(probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> ErrorRate:
    """Compute the share of the data with a known class whose most probable class is another one.

    With case weights it is the share of their sum, and the standard error is that of `mean_and_std_error`.

    A datum with probabilities that are NaN counts as wrong.

    Args:
        probabilities: Probabilities of the classes, with shape (N, K).
        labels: Class of each datum, with shape (N,), integers from 0 to K - 1, and -1 where unknown.
        weights: Case weights, not negative, with shape (N,); None for 1.

    Raises:
        ValueError: If labels are not N codes of classes, or weights are no case weights.
    """
    labels = _checked(labels, *probabilities.shape).to(probabilities.device)
    known = labels >= 0
    wrong = (probabilities.argmax(1) != labels) | probabilities.isnan().any(1)
    if weights is not None:
        check_case_weights(weights, len(labels))
        known &= weights.to(known.device) > 0
    size = int(known.sum())
    if not size:
        return ErrorRate(float("nan"), float("nan"), 0)
    if weights is not None:
        return ErrorRate(*mean_and_std_error(wrong[known].double(), weights.to(known.device)[known]), size)
    share = int((wrong & known).sum()) / size
    return ErrorRate(share, (share * (1 - share) / size) ** 0.5, size)


class _Given(Messenger):
    """Handler that gives a site one value for all draws and data.

    Args:
        site: Name of the site.
        value: Value, with the shape of the site's event.
        hidden: Whether the site leaves the program, as one of a guide that is to draw the other latents alone.
    """

    def __init__(self, site: str, value: Tensor, *, hidden: bool = False) -> None:
        super().__init__()
        self.site, self.value, self.hidden = site, value, hidden

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["value"] = self.value.expand(msg["fn"].batch_shape + self.value.shape)
            msg["is_observed"], msg["done"], msg["stop"] = not self.hidden, self.hidden, self.hidden


def _values(model: Program, site: str, x: Tensor, kwargs: Mapping[str, Any], plate: str | None) -> Tensor:
    """List the values of a discrete latent, with shape (K, *event)."""
    vectorized, _ = vectorize(model, None, (x,), kwargs, plate=plate)
    args, kwargs = take((x,), kwargs, slice(0, 1)) if vectorized.divisible else ((x,), dict(kwargs))
    with evaluation_mode(vectorized):
        latents = vectorized.trace(1, args, kwargs).latents
    if site not in latents:
        raise ValueError(
            f"the model has no latent {site!r} that it draws, but {', '.join(map(repr, latents)) or 'none'}; give site="
        )
    found = latents[site]
    if found.event_shape != found.fn.event_shape:
        raise ValueError(
            f"latent {site!r} has {tuple(found.event_shape)} values per datum, but a class is one value; put one site "
            "for each of them into the data plate alone"
        )
    try:
        values: Tensor = found.fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ValueError(
            f"latent {site!r} ({type(entry_of(found.fn)).__name__}) has no finite list of values, so it is no "
            "class; give the site of a Categorical, a OneHotCategorical or a Bernoulli"
        ) from error
    return values.reshape(-1, *found.fn.event_shape)


def _is_exact(model: Program, x: Tensor, kwargs: Mapping[str, Any], plate: str | None) -> bool:
    """Return whether a model has no latents, or latents that can all be summed out."""
    vectorized, _ = vectorize(model, None, (x,), kwargs, plate=plate, given=())
    args, kwargs = take((x,), kwargs, slice(0, 1)) if vectorized.divisible else ((x,), dict(kwargs))
    with evaluation_mode(vectorized):
        return not vectorized.trace(1, args, kwargs).latents


def _exactly(
    model: Program, x: Tensor, kwargs: Mapping[str, Any], chunk_size: int | None, plate: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log p(x, y) of a model whose latents are all summed out, with error 0 and no k-hat."""
    at_once = chunk_size_or_default(chunk_size, (x,), kwargs)
    vectorized, _ = vectorize(model, None, (x,), kwargs, plate=plate, given=())
    at_once = at_once if vectorized.divisible else len(x)
    parts = []
    with evaluation_mode(vectorized):
        for start in range(0, len(x), at_once):
            args, some = take((x,), kwargs, slice(start, start + at_once))
            parts.append([log_joint(model, {}, *args, plate=plate, **some)[0].double()])
    (value,) = concatenate(parts)
    return value, torch.zeros_like(value), torch.full_like(value, torch.nan)


def _std_error(p: Tensor, error: Tensor) -> Tensor:
    """Compute the errors of a softmax, with shape (N, K), from independent errors of the logits, by the delta method.

    d p_i / d l_j = p_i (1[i = j] - p_j)
    """
    others = (p * error).square().unsqueeze(1) * (1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device))
    return p * (others.sum(2) + ((1 - p) * error).square()).sqrt()


def _checked(labels: Tensor, size: int, num_classes: int) -> Tensor:
    """Check that labels are N codes of classes, and return them as a tensor."""
    labels = torch.as_tensor(labels)
    if labels.shape != (size,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be integers of shape ({size},), -1 where unknown, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; give one code for each datum"
        )
    if bool(((labels < -1) | (labels >= num_classes)).any()):
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, and -1 where unknown, got {int(labels.min())} to "
            f"{int(labels.max())}; give codes of the {num_classes} classes"
        )
    return labels
