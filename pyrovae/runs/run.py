"""The run folder: its files, and how a run is created, resumed and loaded.

config.yaml              the resolved configuration
columns.yaml             the columns of a table, with the numbers of its training rows
manifest.json            SHA-256 sums of files, data and itself, versions, and the status: training or finished
checkpoint.safetensors   state of `fit` for --resume; its rename into place is the commit
metrics.jsonl            one line per epoch
epochs.safetensors       codes and decoded draws at ten epochs, for the page; it has a checksum of its own
weights.safetensors      the best epoch's parameters and buffers
evaluation.json, .csv    summary, and values per datum; the manifest has the SHA-256 sums of the last evaluation
posterior.nc             draws from the guide, for ArviZ
*.png                    the figures
report.html              the page of scripts/report.py, and diagnosis.json, its findings
"""

import json
import platform
import re
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from pyrovae.columns import Columns
from pyrovae.data import Data, columns_yaml, load_data, read_columns, read_table
from pyrovae.execution import Workers
from pyrovae.programs import ProgramPair
from pyrovae.runs.build import build_vae
from pyrovae.runs.files import (
    UNFINISHED_NAME,
    check_folder,
    read_tensors,
    remove_unfinished,
    sha256_of,
    tensors_to_bytes,
    write_json,
    write_state,
    write_whole,
)
from pyrovae.runs.locks import is_locked, locked, sweep, unfinished
from pyrovae.runs.parse import config_to_yaml, parse_config
from pyrovae.runs.readers import (
    FORMAT,
    read_checkpoint,
    read_evaluation,
    read_manifest,
    read_metrics,
    read_values,
    sealed,
)
from pyrovae.runs.reading import CONFIG_LIMIT, LIMIT, check_size, read_yaml
from pyrovae.runs.resolve import find_device
from pyrovae.runs.table_data import COLUMNS, fold_of, takes_labels
from pyrovae.runs.versions import all_versions
from pyrovae.training import History

CONFIG, MANIFEST, CHECKPOINT = "config.yaml", "manifest.json", "checkpoint.safetensors"
_NEW = ".new-"  # prefix of folders that are not yet in their place; mkdtemp adds eight letters
WEIGHTS, METRICS, POSTERIOR = "weights.safetensors", "metrics.jsonl", "posterior.nc"
EVALUATION, VALUES, EPOCHS = "evaluation.json", "evaluation.csv", "epochs.safetensors"


class Run:
    """Existing run folder.

    Args:
        path: Path of the folder.

    Raises:
        ValueError: If it is no run folder, or its manifest or configuration is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._made: list[Path] = []
        try:
            self.manifest = read_manifest(self.path / MANIFEST)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"{path} is no run folder, since it has no {MANIFEST}; give a folder that train.py wrote"
            ) from error
        self._check_sum(CONFIG, CONFIG_LIMIT)

    @staticmethod
    def check_out(out: str | None) -> None:
        """Check before any work that a run folder can be made.

        Raises:
            ValueError: If the folder exists and is not empty, or cannot be made.
        """
        if out:
            _check_free(Path(out))
        path = Path(out or "runs")
        check_folder("--out", path.parent if out and path.exists() else path)

    @classmethod
    def create(cls, out: str | None, config: Namespace, data: Data) -> "Run":
        """Create a run folder atomically.

        Args:
            out: Path of the folder; None for the next free runs/NAME-NUMBER.
            config: Resolved configuration.
            data: Training data.

        Raises:
            ValueError: If the folder exists and is not empty.
            OSError: If it cannot be written.
        """
        stem = Path(data.name.partition(":")[0]).stem
        target = Path(out) if out else None
        if target:
            _check_free(target)
        parent = target.parent if target else Path("runs")
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            run = cls._create_in(parent, target, stem, config, data)
        except OSError as error:
            _remove_empty(made)
            blocked = isinstance(error, FileExistsError | NotADirectoryError)
            reason = "a file has the name of a folder" if blocked else error.strerror or error
            raise OSError(f"--out {target or parent} cannot be written ({reason}); choose another folder") from error
        run._made = made
        return run

    @classmethod
    def _create_in(cls, parent: Path, target: Path | None, stem: str, config: Namespace, data: Data) -> "Run":
        content = config_to_yaml(config)
        if len(content) > CONFIG_LIMIT:
            raise ValueError(f"the configuration has {len(content):,} bytes, but at most {CONFIG_LIMIT:,}; shorten it")
        parent.mkdir(parents=True, exist_ok=True)
        files = rf"{re.escape(CONFIG)}|{re.escape(COLUMNS)}|{re.escape(MANIFEST)}|\.unfinished-{UNFINISHED_NAME}"
        sweep(parent, _NEW, r"[a-z0-9_]{8}", files)
        with unfinished(lambda: Path(tempfile.mkdtemp(dir=parent, prefix=_NEW))) as new:
            write_whole(new / CONFIG, content)
            if data.table is not None:
                write_whole(new / COLUMNS, columns_yaml(data.table.columns).encode())
            sums = {name: sha256_of(new / name) for name in (CONFIG, COLUMNS) if (new / name).exists()}
            write_json(new / MANIFEST, sealed(_manifest("training", sums, config, data)))
            new.chmod(0o755)
            if target:
                try:
                    new.rename(target)
                except OSError:
                    _check_free(target)  # another process may have taken it meanwhile
                    raise
                return cls(target)
            for number in range(1, 10**6):
                target = parent / f"{stem}-{number:03d}"
                try:
                    if not target.exists():
                        new.rename(target)
                        return cls(target)
                except OSError:  # another process took the number
                    continue
        raise OSError("it has no free number")

    @property
    def finished(self) -> bool:
        """Whether training and the closing evaluation are done."""
        return self.manifest["status"] == "finished"

    def config(self, trust_imports: Iterable[str] = ()) -> Namespace:
        """Read the resolved configuration.

        Args:
            trust_imports: Modules besides pyrovae, torch and Pyro that it may import, which runs their code.

        Raises:
            ValueError: If it is damaged, or names a module that is not trusted.
        """
        source = str(self.path / CONFIG)
        config = parse_config(read_yaml(self.path / CONFIG), source=source, trust_imports=trust_imports)
        config.trust_imports = list(trust_imports)
        return config

    def columns(self) -> Columns | None:
        """Read the columns of the run's table; None if its data are an array or images.

        Raises:
            ValueError: If the file was changed or damaged.
        """
        if COLUMNS not in self.manifest["files"]:
            return None
        self._check_sum(COLUMNS, LIMIT)
        return read_columns(self.path / COLUMNS)

    def data(self, config: Namespace, *, data_dir: str | None = None, bits: bool = False) -> Data:
        """Load the data of the run.

        Args:
            config: Configuration of the run.
            data_dir: Folder of MNIST; None for the folder in the configuration.
            bits: Whether to binarise the training data, once, if training binarised them dynamically.

        Raises:
            ValueError: If the data differ from those of the training.
        """
        columns = self.columns()
        if columns is not None:
            splits = {"split_seed": config.split_seed, "fold": fold_of(config)}
            table = read_table(config.data, columns=columns, unseen=config.unseen, **splits)
            data = Data.of(table, labelled=takes_labels(config) and table.labels is not None)
        else:
            data = load_data(
                config.data,
                data_dir=data_dir or config.data_dir,
                binarize="static" if bits and config.binarize == "dynamic" else config.binarize,
                split_seed=config.split_seed,
                fold=fold_of(config),
                num_validation=config.num_validation,
                stream=config.stream and not bits,
                covariates=config.covariates,
                download=False,
            )
        if data.sha256 != self.manifest["data"]["sha256"]:
            raise ValueError(
                f"{config.data}: the data differ from those of {self.path} (SHA-256 {data.sha256[:12]}..., in training "
                f"{self.manifest['data']['sha256'][:12]}...); restore the training data"
            )
        found = {**_about(data), "binarize": config.binarize}
        for key, value in self.manifest["data"].items():
            if found.get(key, value) != value:
                raise ValueError(
                    f"{self.path / MANIFEST}: the {key} of the data is {value}, but they have {found[key]}; restore it "
                    "from a copy"
                )
        return data

    def commit(self, state: dict[str, Any]) -> None:
        """Save a state of `fit`. The rename of the checkpoint into place is the commit.

        Raises:
            OSError: If the disk is full; the last commit stays valid.
        """
        self.write_metrics(state["rows"])
        write_state(self.path / CHECKPOINT, state)

    def committed(self, vae: ProgramPair | None = None, data: Data | None = None) -> dict[str, Any] | None:
        """Read the last commit and truncate the metrics to it; return None before the first commit.

        Args:
            vae: Model that the commit is of, which bounds the size of its file; None for no limit.
            data: Data of the run, which bound it as well.

        Raises:
            ValueError: If the checkpoint is damaged, too large, or no state of `fit`.
        """
        remove_unfinished(self.path)
        path = self.path / CHECKPOINT
        size = None if vae is None else _num_bytes(vae)
        if size is not None and data is not None:
            size += 4 * len(data.train) * data.train.shape[1]
        try:
            state = read_checkpoint(path, size)
        except FileNotFoundError:
            return None
        self.write_metrics(state["rows"])
        return state

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics, one row per epoch.

        Raises:
            OSError: If there are none.
            ValueError: If they were changed or damaged.
        """
        if self.finished:
            self._check_sum(METRICS, LIMIT)
        return read_metrics(self.path / METRICS)

    def history(self) -> History:
        """Read the history of the training. The best epoch is the first with the best validation objective, if any.

        Raises:
            OSError: As `metrics`.
            ValueError: As `metrics`.
        """
        rows = self.metrics()
        known = [row for row in rows if row["validation_objective"] is not None]
        best: int = max(known, key=lambda row: row["validation_objective"])["epoch"] if known else len(rows)
        return History(rows, best)

    def evaluation(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the last evaluation: its summary, and its values per datum (see `read_values`).

        Raises:
            ValueError: If there is none, it was changed or damaged, or it belongs to another run.
        """
        if not self.finished or VALUES not in self.manifest["files"]:
            raise ValueError(
                f"{self.path} has no evaluation with a checksum; finish it with train.py --resume {self.path}, or run "
                f"evaluate.py {self.path}"
            )
        self._check_sum(EVALUATION, LIMIT, f"write it again with evaluate.py {self.path}")
        summary = read_evaluation(self.path / EVALUATION)
        return summary, read_values(self.path / VALUES, summary["num_data"], self.manifest["files"][VALUES])

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder inside the context, so that no other process trains or evaluates the run. Rank 0 locks it.

        Raises:
            ValueError: If another process has locked it.
        """
        return locked(self.path) if Workers.current().rank == 0 else nullcontext()

    def discard_unless_committed(self) -> bool:
        """Remove the folder of a run that failed before its first commit, and the folders that `create` made for it.

        Returns:
            Whether nothing was committed.
        """
        if (self.path / CHECKPOINT).exists():
            return False
        for name in (METRICS, EPOCHS, CONFIG, COLUMNS, MANIFEST):
            (self.path / name).unlink(missing_ok=True)
        _remove_empty([self.path, *self._made])
        return True

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write one line of JSON per epoch."""
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        write_whole(self.path / METRICS, text.encode())

    def write_weights(self, vae: ProgramPair) -> None:
        """Write the parameters and buffers. Equal weights give equal bytes."""
        write_whole(self.path / WEIGHTS, tensors_to_bytes(vae.state_dict()))

    def finish(self, config: Namespace, data: Data) -> None:
        """Write the manifest of a finished run, with the SHA-256 sums of its files."""
        names = [CONFIG, WEIGHTS, METRICS, POSTERIOR, EVALUATION, VALUES]
        names += [COLUMNS] if data.table is not None else []
        sums = {name: sha256_of(self.path / name) for name in names}
        self._write_manifest(_manifest("finished", sums, config, data))

    def record_evaluation(self) -> None:
        """Write the SHA-256 sums of a new evaluation of a finished run to the manifest."""
        if self.finished:
            sums = {name: sha256_of(self.path / name) for name in (EVALUATION, VALUES)}
            self._write_manifest({**self.manifest, "files": {**self.manifest["files"], **sums}})

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        self.manifest = sealed({**manifest, "format": FORMAT})
        write_json(self.path / MANIFEST, self.manifest)

    def vae(self, config: Namespace) -> ProgramPair:
        """Build the model and load the trained weights.

        Args:
            config: Configuration of the run.

        Raises:
            ValueError: If the run is not finished, or the weights are damaged or belong to another model.
        """
        if not self.finished:
            raise ValueError(f"{self.path}: the run is not finished; resume it with train.py --resume {self.path}")
        about = self.manifest["data"]
        vae = build_vae(config, about["num_dims"], about.get("num_covariates", 0), columns=self.columns())
        largest = LIMIT + _num_bytes(vae)
        self._check_sum(WEIGHTS, largest)
        weights, _ = read_tensors(self.path / WEIGHTS, largest=largest, like=vae.state_dict())
        vae.load_state_dict(weights)
        return vae.eval()

    def _check_sum(self, name: str, largest: int, advice: str = "restore it from a copy") -> None:
        path = self.path / name
        try:
            check_size(path, largest)
            found = sha256_of(path)
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing, but the manifest lists it; {advice}") from error
        if found != self.manifest["files"].get(name):
            raise ValueError(f"{path} was changed or damaged: its SHA-256 differs from the manifest's; {advice}")


def _num_bytes(vae: ProgramPair) -> int:
    """Count the bytes of the parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in vae.state_dict().values())


def load(run: str | Path, *, trust_imports: Iterable[str] = ()) -> ProgramPair:
    """Load the trained model of a run folder, on the CPU and in evaluation mode.

    Args:
        run: Run folder.
        trust_imports: Modules besides pyrovae, torch and Pyro that its configuration may import, which runs their code.

    Returns:
        The VAE, or the whole model of --program. Both have the programs `model` and `guide`.

    Raises:
        ValueError: If the folder is no finished run, is damaged, or names a module that is not trusted.
    """
    folder = Run(run)
    return folder.vae(folder.config([trust_imports] if isinstance(trust_imports, str) else trust_imports))


def open_run(flags: Namespace, *, bits: bool = False) -> tuple[Run, ProgramPair, Data]:
    """Open a run: return the folder, the trained model on the requested device, and the data.

    Args:
        flags: Flags from a parser of `make_run_parser`.
        bits: Whether to binarise the training data, once, if training binarised them dynamically.

    Raises:
        ValueError: As `load` and `Run.data`, and if the device is not available.
    """
    run = Run(flags.run)
    remove_unfinished(run.path)
    config = run.config(flags.trust_imports)
    vae = run.vae(config).to(find_device(flags.device))
    return run, vae, run.data(config, data_dir=flags.data_dir, bits=bits)


def _check_free(target: Path) -> None:
    """Check that --out is no file, and no folder with files.

    Raises:
        ValueError: If it is, also if another process trains there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if is_locked(target):
        raise ValueError(f"--out {target} is in use: another process is training there; choose another folder")
    raise ValueError(f"--out {target} already exists and is not an empty folder; choose another")


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, innermost first, until one is not empty."""
    with suppress(OSError):  # the user, or another run, may have added files
        for folder in folders:
            folder.rmdir()


def _about(data: Data) -> dict[str, Any]:
    """Return the properties of the data that the manifest has."""
    rows = {} if data.table is None else {"rows_sha256": data.table.rows_sha256}
    return {
        "name": Path(data.name).name,  # the configuration has the path
        **rows,
        "sha256": data.sha256,
        "binarize": data.binarize,
        "shape": list(data.shape),
        "num_dims": data.train.shape[1],
        "num_covariates": data.num_covariates,
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_test": len(data.test),
    }


def _manifest(status: str, sums: dict[str, str], config: Namespace, data: Data) -> dict[str, Any]:
    device = torch.device(config.device)
    return {
        "format": FORMAT,
        "status": status,
        "files": sums,
        "data": _about(data),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": all_versions(),
    }
