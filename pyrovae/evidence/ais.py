"""Annealed importance sampling: log p(x) per datum, by chains that walk from a start to the posterior."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from pyrovae.densities import (
    Program,
    bad_data,
    entry,
    isolated_rng,
    num_data,
    set_torch_generator_states,
    torch_generator_states,
    vectorize,
)
from pyrovae.evidence.annealing import (
    STUCK,
    Path,
    Start,
    Tuning,
    Walk,
    anneal,
    execution_of,
    rows_of,
    transitions_of,
    tune,
)
from pyrovae.evidence.blocks import (
    DataBlock,
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_at_once,
    data_blocks,
    evaluation_mode,
    fingerprint,
)
from pyrovae.evidence.nested import funnel_coordinate, site_of
from pyrovae.evidence.temperatures import check_betas
from pyrovae.evidence.weight_blocks import summarize_known, tell_faults
from pyrovae.execution import Execution, Progress
from pyrovae.stats import LogMarginal, Rounding, sampling_std_error, student_t_critical, summarize_log_weights

_COMMIT_EVERY = 100  # temperatures
_FORMAT = 4  # of a saved state
_MANY_CHAINS = 50  # whose khat is known well enough
_LARGEST_ERROR_OF_ALL = 3.0  # nats, by all chains, also by those that stay behind
_LARGEST_ERROR = 2.0  # nats; a larger error of few chains says only that temperatures are too few


@entry()
def ais(
    model: Program,
    *args: Any,
    guide: Program | None = None,
    num_particles: int,
    betas: Tensor,
    start: Start | None = None,
    num_leapfrog: int = 10,
    acceptance: float = 0.65,
    num_tuning: int | None = None,
    chunk_size: int | None = None,
    execution: Execution = "auto",
    plate: str | None = None,
    progress: bool = False,
    commit: Callable[[dict[str, Any]], None] | None = None,
    resume: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x_n) by annealed importance sampling, for each datum n.

    log w_kn = sum_t (b_t - b_{t-1}) (log p(x_n, z_{t-1}) - log s(z_{t-1})),   f_b = s^(1-b) p(x_n, z)^b,

    where z_0 is drawn from s and z_t by a Hamiltonian Monte Carlo transition that leaves f_{b_t} invariant (Neal 2001,
    "Annealed importance sampling", https://arxiv.org/abs/physics/9803008; for decoders Wu, Burda, Salakhutdinov, Grosse
    2017, https://arxiv.org/abs/1611.04273). The start s is the prior (then f_b = p(z) p(x|z)^b), the guide, or a normal
    in u. The mean of w is unbiased for p(x_n), so the value is a lower bound in expectation.

    Transitions are preconditioned by the covariance of a normal start, or else by standard deviations per dimension.
    A preliminary run with 8 separate chains determines these and the step sizes, one per datum and temperature. They
    stay fixed afterwards, so that the estimate stays unbiased. From a normal start, trajectories are about 3.5 standard
    deviations long, half a period of a normal, and take at most num_leapfrog steps. Decoders with 40 to 50 latents
    needed 4 steps, and their standard errors were smaller than with 10.

    Chains find only the modes that the start covers: from a guide that covers one of two modes with equal mass, the
    value is log 2 too low, and the error does not show it. Start from the prior where modes may be missed. A normal at
    one place of a funnel, such as a scale and the entries that it scales, misses the rest, and a warning says so: for a
    half-Cauchy scale and 30 entries, values from the Laplace fit with T = 400 were 5.5 nats too low on average, with
    errors of 0.3. With too few temperatures the weights of the chains vary too much; `bracket` with betas shows it on
    data that the model simulates, and `agreeing_schedule` finds enough. With 16 chains and T = 100 on linear-Gaussian
    models, +- 1.96 std_error cover 0.93 to 0.97 with two latents from the prior, and with two and six from guides of
    several widths; with six from the prior the error is inf (`scripts/studies/chains.py`).

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        *args: Positional arguments of both programs, the data first, with shape (N, ...). Every tensor with leading
            length N is per datum.
        guide: Pyro program q(z|x) to start from; None for the prior.
        num_particles: Number of chains K per datum.
        betas: Inverse temperatures, increasing from 0 to 1, with shape (T + 1,), such as `linear_schedule(1000)`.
        start: Mean, with shape (N, U), and scale_tril, with shape (N, U, U), of a normal in u to start from, or a
            function that finds them in the `LatentSpace` of model and guide; None for the guide or the prior.
        num_leapfrog: Number of leapfrog steps per transition; from a normal start, the largest number.
        acceptance: Target acceptance rate of the step sizes.
        num_tuning: Approximate number of transitions of the preliminary run; at least 2 at each of up to 50
            temperatures; None for 200, or for 100 from a normal start, whose coordinates need no standard deviations.
        chunk_size: Number of chains, K times n data, run at once, which bounds memory; None for 8,192, or
            for 6,500,000 / D if there are more than 793 columns D.
        execution: How to run the path's gradients: "eager", "recorded", "compiled", or "auto", which chooses by the
            number of gradients.
        progress: Whether to show a progress bar, or lines where stderr is no terminal.
        commit: Called with the state, a dict of tensors and plain values, after every 100 temperatures and every block
            of data.
        resume: A state that `commit` received, to resume from. The results are bit-identical on the CPU.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Returns:
        LogMarginal of value, std_error, ess and khat of the K weights, each with shape (N,), in nats, float64. The
        error is that of `summarize_chains`; inf, unknown, above 2 nats. khat is inf, unknown, below 21 chains. Data
        with a weight that is NaN or unbounded get NaN, with a warning that says why.

    Raises:
        ValueError: If betas do not increase from 0 to 1, a count is below 1, execution is unknown, latents are
            discrete, data lie outside the support, all data have a weight that is NaN, the state to resume is of
            another run, or a program breaks the contract of `log_weights`.
    """
    num_tuning = transitions_of(num_tuning, start)
    check_counts(num_particles=num_particles, num_leapfrog=num_leapfrog, num_tuning=num_tuning)
    betas = check_betas(betas)
    if not 0 < acceptance < 1:
        raise ValueError(f"acceptance must lie between 0 and 1, got {acceptance}")
    how = execution_of(betas, num_leapfrog, num_tuning, execution)
    inputs = 0 if commit is None and resume is None else fingerprint((model, guide), args, kwargs)
    model, guide = vectorize(model, guide, args, kwargs, plate=plate)
    at_once = data_at_once(num_particles, chunk_size_or_default(chunk_size, args, kwargs))
    size, num_steps = num_data(args, kwargs), len(betas) - 1
    num_blocks = math.ceil(size / at_once)
    run = {"num_data": size, "num_particles": num_particles, "data_at_once": at_once, "betas": betas, "inputs": inputs}
    run |= {"num_leapfrog": num_leapfrog, "acceptance": acceptance, "num_tuning": num_tuning}
    run |= {"format": _FORMAT, "guide": guide is not None, "start": start is not None}
    state = AISState(run) if resume is None else AISState.from_dict(resume, run)

    def save() -> None:
        if commit is not None:
            commit(state.to_dict())

    done = state.block * num_steps + state.temperature
    bar = Progress(num_blocks * num_steps, "step", initial=done, shown=progress)
    with bar, evaluation_mode(model, guide):
        for block in data_blocks(model, guide, args, kwargs, at_once, num_done=state.block):
            path = Path(block.space, rows_of(start, block.rows), how)
            if block.first == 0:
                _warn_of_funnel(path)
            if state.tuning is None or state.walk is None:
                tuning = tune(path, betas, num_leapfrog=num_leapfrog, acceptance=acceptance, num_tuning=num_tuning)
                walk = Walk.start(path, path.draw(num_particles))
            else:
                tuning, walk = state.tuning.to(path.device), Walk.of(state.walk, path.device)
            walks = anneal(path, walk, betas, range(state.temperature, len(betas)), tuning)
            for walk in walks:
                bar.update()
                state.temperature += 1
                if state.temperature % _COMMIT_EVERY == 0 and state.temperature < num_steps:
                    state.tuning, state.walk = tuning, walk.tensors()
                    save()
            path.undefined.warn(block.first, STUCK)
            state.finish_block(*_summarised(block, walk.log_w))
            save()
    result = LogMarginal(*concatenate(state.done))
    tell_faults(state.faults, result.value)
    return result


def _warn_of_funnel(path: Path) -> None:
    """Warn if the start is a normal and the posterior is a funnel, of which a normal covers one place."""
    if path.normal is None:
        return
    with isolated_rng():
        held = funnel_coordinate(path.space, near=path.normal[0])
    if held is not None:
        warnings.warn(
            f"the posterior narrows along {site_of(path.space, held)!r} like a funnel, of which a normal start covers "
            "one place: values may be many nats too low, and std_error does not show it; use log_marginal, whose "
            "default covers funnels, or start from the prior",
            stacklevel=5,
        )


def _summarised(block: DataBlock, log_w: Tensor) -> tuple[LogMarginal, str]:
    """Summarise the chains of a block of data, and say why some data have NaN; empty if none has."""
    fault = block.describe(log_w)
    if not fault:
        return summarize_chains(log_w, block.space.rounding), ""
    log_w = torch.where(bad_data(log_w), torch.nan, log_w)
    found: LogMarginal = summarize_known(log_w, lambda known: summarize_chains(known, block.space.rounding))
    return found, fault


def summarize_chains(log_w: Tensor, rounding: Rounding | None = None) -> LogMarginal:
    """Summarise the log weights of K chains by the estimate of log p(x) and an error that few chains allow.

    The log weight of a chain is a sum over temperatures, near a normal with some variance s^2. The mean of K such
    weights is near a log-normal (Fenton 1960, "The sum of log-normal probability distributions in scatter transmission
    systems", https://doi.org/10.1109/TCOM.1960.1097606), so that the log mean has

        variance v = log(1 + (exp(s^2) - 1) / K),   bias -v / 2.

    The error is the larger of sqrt(v + v^2 / 4) and of the delta method. Chains that stay behind skew the log weights
    to the left and hardly matter, so s^2 is the mean square above the median, from the median. Few chains know either
    roughly, so the error is multiplied by t / 1.96, where t is the 95 % point of Student's t with K - 1 degrees of
    freedom: value +- 1.96 std_error is an interval by Student's t. The error is inf above 2 nats, and if the variance
    of all chains in place of s^2 gives more than 3 nats. With 50 chains or more whose khat is below 0.5, the weights
    themselves show their tail, and only the delta method with Student's t counts.

    Args:
        log_w: Log weights in nats, with shape (K, N); -inf is a weight of zero.
        rounding: Rounding of the log weights; None for the epsilon of their dtype.

    Returns:
        LogMarginal of value, std_error, ess and khat, each with shape (N,).
    """
    found, num_chains = summarize_log_weights(log_w, rounding=rounding), len(log_w)
    if num_chains == 1:
        return found
    sampling = sampling_std_error(log_w)
    of_rounding = (found.std_error.square() - sampling.square()).clamp(min=0).sqrt()
    ordered, half = log_w.double().sort(0).values, num_chains // 2
    middle = ordered[half - 1 + num_chains % 2 : half + 1].mean(0)
    spread = (ordered[-half:] - middle).square().mean(0).nan_to_num(0.0)  # NaN if most weights are zero
    student = student_t_critical(0.95, num_chains - 1) / student_t_critical(0.95, math.inf)
    enough = (found.khat < 0.5) & (num_chains >= _MANY_CHAINS)
    error = student * torch.maximum(sampling, _log_normal_error(spread, num_chains))
    by_all = student * _log_normal_error(log_w.double().var(0).nan_to_num(0.0), num_chains)
    known = (error <= _LARGEST_ERROR) & (by_all <= _LARGEST_ERROR_OF_ALL)
    error = torch.where(known, error, torch.inf)
    error = torch.where(enough, student * sampling, error)
    return found._replace(std_error=torch.hypot(error, of_rounding))


def _log_normal_error(spread: Tensor, num_chains: int) -> Tensor:
    """Compute the root mean square error of the log mean of K log-normal weights, with this variance of their logs."""
    variance = torch.log1p(torch.expm1(spread) / num_chains)
    return (variance + variance.square() / 4).sqrt()


@dataclass
class AISState:
    """Position of a run of `ais`.

    Attributes:
        run: Settings of the run, by name.
        block: Number of finished blocks of data.
        temperature: Number of finished temperatures of the next block.
        done: Results of the finished blocks.
        faults: Why some data of each finished block have NaN; empty if none has.
        tuning: Tuning of the next block; None before its first commit.
        walk: Tensors of the chains of the next block; None before its first commit.
    """

    run: dict[str, Any]
    block: int = 0
    temperature: int = 0
    done: list[LogMarginal] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    tuning: Tuning | None = None
    walk: Sequence[Tensor] | None = None

    def finish_block(self, result: LogMarginal, fault: str) -> None:
        """Add the result of a block, with the reason why some data have NaN, and go to the next one."""
        self.done.append(result)
        self.faults.append(fault)
        self.block, self.temperature, self.tuning, self.walk = self.block + 1, 0, None, None

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict of tensors and plain values, with the present states of torch's generators."""
        return {
            "run": self.run,
            "block": self.block,
            "temperature": self.temperature,
            "done": [tuple(result) for result in self.done],
            "faults": list(self.faults),
            "tuning": tuple(self.tuning or ()),
            "walk": tuple(self.walk or ()),
            "generators": torch_generator_states(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], run: dict[str, Any]) -> Self:
        """Convert back, and set torch's generators to the saved states.

        Args:
            saved: Result of `to_dict`.
            run: Settings of the run that resumes.

        Raises:
            ValueError: If the saved settings differ, or another version of pyrovae saved the state.
        """
        if saved["run"].get("format") != run["format"]:
            raise ValueError("another version of pyrovae saved the state to resume; start anew without it")
        different = [
            name
            for name, value in run.items()
            if not torch.equal(torch.as_tensor(saved["run"].get(name, -1)), torch.as_tensor(value))
        ]
        if different:
            raise ValueError(
                f"the state to resume is of another run, with other {', '.join(different)}; resume with its settings"
            )
        set_torch_generator_states(saved["generators"])
        return cls(
            run,
            saved["block"],
            saved["temperature"],
            [LogMarginal(*result) for result in saved["done"]],
            list(saved["faults"]),
            Tuning(*saved["tuning"]) if saved["tuning"] else None,
            saved["walk"] or None,
        )
