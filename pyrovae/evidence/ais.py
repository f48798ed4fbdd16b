"""Annealed importance sampling: log p(x) per datum, by chains that walk from a start to the posterior."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from pyrovae.densities import Program, entry, num_data, set_torch_generator_states, torch_generator_states, vectorize
from pyrovae.evidence.annealing import STUCK, Path, Start, Tuning, Walk, anneal, execution_of, rows_of, tune
from pyrovae.evidence.blocks import check_counts, concatenate, data_at_once, data_blocks, evaluation_mode
from pyrovae.evidence.temperatures import check_betas
from pyrovae.execution import Execution
from pyrovae.stats import LogMarginal, summarize_log_weights

_COMMIT_EVERY = 100  # temperatures


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
    num_tuning: int = 200,
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
    stay fixed afterwards, so that the estimate stays unbiased.

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        *args: Positional arguments of both programs, the data first, with shape (N, ...). Every tensor with leading
            length N is per datum.
        guide: Pyro program q(z|x) to start from; None for the prior.
        num_particles: Number of chains K per datum.
        betas: Inverse temperatures, increasing from 0 to 1, with shape (T + 1,), such as `linear_schedule(1000)`.
        start: Mean, with shape (N, U), and scale_tril, with shape (N, U, U), of a normal in u to start from, or a
            function that finds them in the `LatentSpace` of model and guide; None for the guide or the prior.
        num_leapfrog: Number of leapfrog steps per transition.
        acceptance: Target acceptance rate of the step sizes.
        num_tuning: Approximate number of transitions of the preliminary run; at least 2 at each of up to 50
            temperatures.
        chunk_size: Number of chains, K times n data, run at once, which bounds memory; None for 8,192.
        execution: How to run the path's gradients: "eager", "recorded", "compiled", or "auto", which chooses by the
            number of gradients.
        progress: Whether to show a progress bar.
        commit: Called with the state, a dict of tensors and plain values, after every 100 temperatures and every block
            of data.
        resume: A state that `commit` received, to resume from. The results are bit-identical on the CPU.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Returns:
        LogMarginal of value, std_error, ess and khat of the K weights, each with shape (N,), in nats, float64.

    Raises:
        ValueError: If betas do not increase from 0 to 1, a count is below 1, execution is unknown, latents are
            discrete, data lie outside the support, a weight is NaN, the state to resume is of another run, or a program
            breaks the contract of `log_weights`.
    """
    check_counts(num_particles=num_particles, num_leapfrog=num_leapfrog, num_tuning=num_tuning)
    betas = check_betas(betas)
    if not 0 < acceptance < 1:
        raise ValueError(f"acceptance must lie between 0 and 1, got {acceptance}")
    how = execution_of(betas, num_leapfrog, num_tuning, execution)
    model, guide = vectorize(model, guide, args, kwargs, plate=plate)
    size, at_once, num_steps = num_data(args, kwargs), data_at_once(num_particles, chunk_size), len(betas) - 1
    num_blocks = math.ceil(size / at_once)
    run = {"num_data": size, "num_particles": num_particles, "blocks": num_blocks, "betas": betas}
    run |= {"num_leapfrog": num_leapfrog, "acceptance": acceptance, "num_tuning": num_tuning}
    run |= {"guide": guide is not None, "start": start is not None}
    state = AISState(run) if resume is None else AISState.from_dict(resume, run)

    def save() -> None:
        if commit is not None:
            commit(state.to_dict())

    done = state.block * num_steps + state.temperature
    bar = tqdm(total=num_blocks * num_steps, initial=done, unit="step", disable=not progress, dynamic_ncols=True)
    with bar, evaluation_mode(model, guide):
        for block in data_blocks(model, guide, args, kwargs, at_once, num_done=state.block):
            path = Path(block.space, rows_of(start, block.rows), how)
            if state.tuning is None or state.walk is None:
                tuning = tune(path, betas, num_leapfrog=num_leapfrog, acceptance=acceptance, num_tuning=num_tuning)
                walk = Walk.start(path, path.draw(num_particles))
            else:
                tuning, walk = state.tuning.to(path.device), state.walk.to(path.device)
            walks = anneal(path, walk, betas, range(state.temperature, len(betas)), tuning, num_leapfrog)
            for walk in walks:
                bar.update()
                state.temperature += 1
                if state.temperature % _COMMIT_EVERY == 0 and state.temperature < num_steps:
                    state.tuning, state.walk = tuning, walk
                    save()
            block.check(walk.log_w)
            path.undefined.warn(block.first, STUCK)
            state.finish_block(summarize_log_weights(walk.log_w, rounding=block.space.rounding))
            save()
    return LogMarginal(*concatenate(state.done))


@dataclass
class AISState:
    """Position of a run of `ais`.

    Attributes:
        run: Settings of the run, by name.
        block: Number of finished blocks of data.
        temperature: Number of finished temperatures of the next block.
        done: Results of the finished blocks.
        tuning: Tuning of the next block; None before its first commit.
        walk: Chains of the next block; None before its first commit.
    """

    run: dict[str, Any]
    block: int = 0
    temperature: int = 0
    done: list[LogMarginal] = field(default_factory=list)
    tuning: Tuning | None = None
    walk: Walk | None = None

    def finish_block(self, result: LogMarginal) -> None:
        """Add the result of a block and go to the next one."""
        self.done.append(result)
        self.block, self.temperature, self.tuning, self.walk = self.block + 1, 0, None, None

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict of tensors and plain values, with the present states of torch's generators."""
        return {
            "run": self.run,
            "block": self.block,
            "temperature": self.temperature,
            "done": [tuple(result) for result in self.done],
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
            ValueError: If the saved settings differ.
        """
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
            Tuning(*saved["tuning"]) if saved["tuning"] else None,
            Walk(*saved["walk"]) if saved["walk"] else None,
        )
