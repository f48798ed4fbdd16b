"""Snapshots of a run: codes and decoded draws before training and at nine epochs, in epochs.safetensors.

The file has at most 8 MB: 11 snapshots of 5 tensors, each of at most 32,768 numbers in single precision. It
has a checksum inside, since every kept epoch writes it again.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor

from pyrovae.data import Data
from pyrovae.densities import ProgramState, VectorizedProgram, take, vectorize_pair
from pyrovae.diagnostics import Snapshot, take_snapshot
from pyrovae.programs import ProgramPair
from pyrovae.runs.files import read_state, write_state
from pyrovae.runs.fitting import device_of
from pyrovae.runs.reading import TENSOR, TEXT, OrNull, check_kind, one_of, whole
from pyrovae.runs.registry import describe
from pyrovae.runs.run import EPOCHS

_NUM_EPOCHS = 9  # besides that before training
_MOST_DATA = 500
_LARGEST = 2**24  # bytes of the file
_RESTORE = "restore it from a copy"

_TENSORS = ("mean", "draw", "prior", "samples", "reconstructions")
_KIND = {
    "split": one_of("validation", "test"),
    "rows": TENSOR,
    "names": [TEXT],
    "reason": TEXT,
    "epochs": [whole(0)],
    "snapshots": [{**dict.fromkeys(_TENSORS, TENSOR), "prior": OrNull(TENSOR)}],
}


class Snapshots(NamedTuple):
    """Snapshots of a run.

    Attributes:
        split: Split of the data whose codes are kept: "validation" or "test".
        rows: Their rows in the split, with shape (N,), int64.
        by_epoch: Snapshots by epoch, in order; epoch 0 is before training.
        reason: Why there are no further ones; "" if all are there.
    """

    split: str
    rows: Tensor
    by_epoch: dict[int, Snapshot]
    reason: str = ""


def kept_epochs(epochs: int) -> tuple[int, ...]:
    """Choose epoch 0 and up to nine more, the last of them included, in geometric steps.

    Args:
        epochs: Maximum number of epochs.

    Example:
        >>> kept_epochs(300)
        (0, 1, 2, 4, 8, 17, 35, 72, 147, 300)
        >>> kept_epochs(3)
        (0, 1, 2, 3)
    """
    chosen = [1]
    while chosen[-1] < epochs and len(chosen) < _NUM_EPOCHS:
        ratio = (epochs / chosen[-1]) ** (1 / (_NUM_EPOCHS - len(chosen)))
        chosen.append(min(epochs, max(chosen[-1] + 1, round(chosen[-1] * ratio))))
    return (0, *chosen)


class SnapshotWriter:
    """Takes the snapshots of a training and writes them to its run folder.

    Snapshots do not change the training: they have random numbers of their own, and what they change in the programs is
    restored. If one fails, such as for programs without real latents, the file has the reason, no more are taken, and
    the training goes on.

    Args:
        folder: Run folder.
        config: Configuration of the run.
        data: Data of the run. Codes are those of the validation data, or of the test data if there are too few.
        vae: Model in training.
    """

    def __init__(self, folder: Path, config: Namespace, data: Data, vae: ProgramPair) -> None:
        self.folder, self.vae, self.data = folder, vae, data
        self.epochs, self.seed = kept_epochs(config.epochs), config.seed
        self.split = "validation" if len(data.validation) > 1 else "test"
        size = len(getattr(data, self.split))
        self.rows = torch.linspace(0, size - 1, min(size, _MOST_DATA), dtype=torch.float64).round().long()
        self._pair: tuple[VectorizedProgram, VectorizedProgram] | None = None

    def start(self) -> None:
        """Take the snapshot before training, and forget those of an earlier start."""
        self._add(Snapshots(self.split, self.rows, {}), 0)

    def after_epoch(self, row: dict[str, Any]) -> None:
        """Take the snapshot of an epoch, if it is one of those to keep.

        Args:
            row: Row of `History.rows`.
        """
        epoch: int = row["epoch"]
        if epoch in self.epochs:
            found = self._earlier()
            # A stopped run may have begun the epochs from this one on before.
            self._add(found._replace(by_epoch={e: s for e, s in found.by_epoch.items() if e < epoch}), epoch)

    def finish(self, best_epoch: int) -> None:
        """Take the snapshot of the epoch whose weights the model has in the end, if there is none.

        Args:
            best_epoch: The epoch.
        """
        found = self._earlier()
        if best_epoch not in found.by_epoch:
            self._add(found, best_epoch)

    def _earlier(self) -> Snapshots:
        """Read the earlier snapshots; without a readable file of these data, there are none."""
        found = read_snapshots(self.folder)
        if isinstance(found, str) or found.split != self.split or not torch.equal(found.rows, self.rows):
            return Snapshots(self.split, self.rows, {})
        return found

    def _add(self, found: Snapshots, epoch: int) -> None:
        if found.reason:
            return
        try:
            found.by_epoch[epoch] = self._take()
        except Exception as error:  # programs of the user may raise anything
            found = found._replace(reason=describe(error))
        write_snapshots(self.folder, found)

    def _take(self) -> Snapshot:
        device = device_of(self.vae)
        x = getattr(self.data, self.split).to(device)
        args, kwargs = take((x,), self.data.conditions(self.split, device), self.rows.to(device))
        before = ProgramState([self.vae.model, self.vae.guide])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the evaluation repeats those that matter
                if self._pair is None:  # how programs run on draws does not depend on their parameters
                    self._pair = vectorize_pair(self.vae.model, self.vae.guide, args, kwargs, in_training=True)
                return take_snapshot(*self._pair, *args, seed=self.seed, **kwargs)
        finally:
            before.restore()


def write_snapshots(folder: Path, found: Snapshots) -> None:
    """Write the snapshots of a run.

    Args:
        folder: Run folder.
        found: Snapshots.

    Raises:
        OSError: As `write_whole`.
    """
    taken = sorted(found.by_epoch.items())
    tensors: list[dict[str, Tensor | None]] = []
    for place, (_, one) in enumerate(taken):
        tensors.append({name: getattr(one, name) for name in _TENSORS})
        if place and torch.equal(one.prior, taken[place - 1][1].prior):
            tensors[-1]["prior"] = None  # as before
    state = {
        "split": found.split,
        "rows": found.rows,
        "names": list(taken[0][1].names) if taken else [],
        "reason": "".join(letter if letter.isprintable() else " " for letter in found.reason)[:1000],
        "epochs": [epoch for epoch, _ in taken],
        "snapshots": tensors,
    }
    write_state(folder / EPOCHS, state)


def read_snapshots(folder: Path) -> Snapshots | str:
    """Read the snapshots of a run.

    Args:
        folder: Run folder.

    Returns:
        The snapshots, or in one sentence why there are none: the file is missing, damaged, or has another structure.
    """
    path = folder / EPOCHS
    try:
        state = read_state(path, largest=_LARGEST)
        check_kind(state, _KIND, path, _RESTORE)
        names, prior, taken = tuple(state["names"]), None, []
        for one in state["snapshots"]:
            prior = one["prior"] if one["prior"] is not None else prior
            taken.append(Snapshot(names, **{**{name: one[name] for name in _TENSORS}, "prior": prior}))
        if problem := _problem(state["rows"], state["epochs"], taken):
            raise ValueError(f"{path} does not have the expected structure: {problem}; {_RESTORE}")
    except FileNotFoundError:
        return f"{path.name} is missing, as in runs of earlier versions"
    except (OSError, ValueError) as error:
        return str(error)
    by_epoch = dict(sorted(zip(state["epochs"], taken, strict=True)))
    return Snapshots(state["split"], state["rows"], by_epoch, state["reason"])


def _problem(rows: Tensor, epochs: list[int], taken: list[Snapshot]) -> str:
    """Say how the tensors do not fit together; empty if they do."""
    if rows.dim() != 1 or rows.dtype != torch.int64 or not bool((rows[1:] > rows[:-1]).all()) or bool((rows < 0).any()):
        return "the rows do not rise"
    if len(epochs) != len(taken) or len(set(epochs)) < len(epochs):
        return f"there are {len(taken)} snapshots, but the epochs {epochs[:20]}"
    for one in taken:
        size, count = len(one.names), len(one.mean)
        if any(tensor is None or tensor.dim() != 2 or tensor.dtype != torch.float32 for tensor in one[1:]):
            return "a tensor is no matrix of float32"
        if one.mean.shape != (count, size) or one.draw.shape != one.mean.shape or one.prior.shape[1] != size:
            return f"a snapshot of {size} dimensions has codes with shape {tuple(one.mean.shape)}"
        if not 2 <= count <= len(rows) or len(one.prior) < 1 or size < 1:
            return f"a snapshot has codes of {count} data"
        if any(a.shape != b.shape for a, b in zip(one[1:], taken[0][1:], strict=True)):
            return "the snapshots have several shapes"
        if not all(bool(part.isfinite().all()) for part in (one.mean, one.draw, one.prior)):
            return "a code is not finite"
    return ""
