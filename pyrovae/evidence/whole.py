"""Evidence of the whole data set, for programs whose latents join the data."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from pyrovae.densities import Program, entry, num_data, vectorize_whole
from pyrovae.evidence.blocks import check_counts, chunk_size_or_default
from pyrovae.evidence.importance import log_marginal
from pyrovae.evidence.proposals import Proposal
from pyrovae.execution import Execution
from pyrovae.stats import LogMarginal


@entry(needs_data=False)
def log_evidence(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int,
    proposal: Proposal | Program | None = None,
    chunk_size: int | None = None,
    target_std_error: float | None = None,
    pareto_smoothed: bool = False,
    execution: Execution = "auto",
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x_1, ..., x_N), the evidence of the whole data set, by importance sampling.

    log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k),   z_k ~ q,

    where z are all latents: those of single data, and those outside a plate over the data, such as global weights. If
    every latent lies inside the plate, the result is the sum of log p(x_n), and `log_marginal` needs fewer draws. The
    programs run on the whole data set K times, and each draw has all latents, so this is for programs with few latents.
    Programs that use dims by their position run once per draw, with a `LoopedWarning`.
    A large khat shows that K draws are too few. Modules are in evaluation mode meanwhile, and no gradient is kept.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments. Pyro's auto guides, such as `AutoMultivariateNormal`,
            serve as they are.
        *args: Positional arguments of both programs; none if the programs hold their data themselves.
        num_particles: Number of draws K; the maximum if `target_std_error` is given.
        proposal: `Proposal` to draw from, such as `GuideProposal()` for the guide alone, or a Pyro program with the
            guide's arguments and sites; None for the default of `log_marginal`.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        target_std_error: Standard error in nats that the estimate should reach; None for `num_particles` draws.
        pareto_smoothed: Whether to smooth the largest weights (`pareto_smoothed_log_weights`).
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls.
        **kwargs: Keyword arguments of both programs.

    Returns:
        LogMarginal of value, std_error, ess and khat, each a scalar, in nats, float64.

    Raises:
        ValueError: If num_particles or chunk_size is below 1, target_std_error is not positive or num_particles is then
            below 2, data lie outside the support, a weight is NaN or unbounded, a site carries a scale, the latents of
            model and guide differ, the guide is a point mass, or a program draws random numbers outside its sites.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoMultivariateNormal
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> evidence = log_evidence(model, AutoMultivariateNormal(model), torch.zeros(8), num_particles=1000)
        >>> round(evidence.value.item())  # exact: -8 log sqrt(2 pi) - log 3 = -8.45
        -8
    """
    chunk_size = chunk_size_or_default(chunk_size, args, kwargs)
    check_counts(num_particles=num_particles, chunk_size=chunk_size)
    pair = vectorize_whole(model, guide, args, kwargs)
    if proposal is not None and not isinstance(proposal, Proposal | str | type):
        _, proposal = vectorize_whole(model, proposal, args, kwargs)
        ways = {program.how for program in (*pair, proposal)}
        if len(ways) > 1:
            pair = replace(pair[0], how="looped"), replace(pair[1], how="looped")
            proposal = replace(proposal, how="looped")
    found = log_marginal(
        *pair,
        *args,
        num_particles=num_particles,
        proposal=proposal,
        chunk_size=max(1, chunk_size // _num_rows(args, kwargs)),
        target_std_error=target_std_error,
        pareto_smoothed=pareto_smoothed,
        execution="eager" if pair[0].how == "looped" else execution,
        **kwargs,
    )
    return LogMarginal(*(values.squeeze(0) for values in found))


def _num_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the number of data N among the arguments; 1 if no argument is a tensor."""
    with suppress(ValueError):
        return num_data(args, kwargs)
    return 1
