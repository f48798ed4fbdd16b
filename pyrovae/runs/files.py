"""Atomic writes, checksums, and states of tensors and plain values in one file."""

import errno
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyrovae.runs.locks import sweep, unfinished
from pyrovae.runs.reading import LIMIT, open_regular, parse_json, what_is

_UNFINISHED = ".unfinished-"
UNFINISHED_NAME = r"[0-9a-f]{32}(\.\w+)?"  # the rest of the name of such a file
_DIGEST_LENGTH = hashlib.sha256().digest_size * 2
_MOST_STRIDE = 2**53
# Names of dtypes in the safetensors format.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: after a kill or on a full disk, the old file or the new one exists, never a part.

    The bytes are written to a temporary file in the same folder, synced, and renamed into place. Temporary files that
    killed calls left in the folder are removed.

    Args:
        path: Path of the file.
        content: Content of the file.

    Raises:
        OSError: If the disk is full, the folder does not exist or is not writable, or the path is a folder, a named
            pipe, a socket or a device; what is there stays intact.
    """
    if path.exists() and not path.is_file():  # a rename would put a file in place of a device
        raise FileExistsError(errno.EEXIST, f"cannot write {path}: it is {what_is(path)}; choose another name")
    sweep(path.parent, _UNFINISHED, UNFINISHED_NAME)
    try:
        with unfinished(lambda: _new_file(path)) as beside:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        _sync(path.parent)
    except OSError as error:
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {path}: no such folder {path.parent}; make it, or choose another"
            ) from error
        message = f"cannot write {path}: {error.strerror}; free space on the disk, or choose another folder"
        raise OSError(error.errno, message) from error


def _new_file(path: Path) -> Path:
    beside = path.parent / f"{_UNFINISHED}{uuid.uuid4().hex}{path.suffix}"
    beside.touch(exist_ok=False)
    return beside


def check_writable(flag: str, path: str | Path | None) -> None:
    """Check before a long computation that its file can be written.

    Args:
        flag: Flag that names the file, for the message.
        path: Path of the file; None for none.

    Raises:
        ValueError: If the file is a folder, a device or a link, or its folder does not exist or is not writable.
    """
    if path is None:
        return
    given, path = os.fspath(path), Path(path)
    if path.is_dir() or given.endswith(os.sep):
        raise ValueError(f"{flag} {given} is a folder; give the name of a file")
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):  # such as /dev/null and /dev/stdout
        raise ValueError(f"{flag} {path} is {what_is(path)}, not a regular file; give the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: no such folder {path.parent}; make it, or choose another")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{flag} {path}: the folder {path.parent} is not writable; choose another")


def check_folder(flag: str, path: str | Path) -> None:
    """Check before a long computation that a folder exists and is writable, or can be made.

    Args:
        flag: Flag that names the folder, for the message.
        path: Path of the folder.

    Raises:
        ValueError: If it is a file, or it or the folder to make it in is not writable.
    """
    for folder in (Path(path), *Path(path).parents):
        if os.path.lexists(folder):
            if not folder.is_dir():
                reason = "a file has the name of a folder"
                raise ValueError(f"{flag} {path} cannot be written ({reason}); choose another folder")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ValueError(f"{flag} {path} cannot be written ({folder} is not writable); choose another folder")
            return


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed calls of `write_whole` left in a folder."""
    sweep(folder, _UNFINISHED, UNFINISHED_NAME)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. Numbers that are not finite become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def to_plain(values: Tensor) -> Any:
    """Convert a tensor to numbers for JSON, in nested lists; inf and NaN, which JSON lacks, become texts."""
    return _plain(values.tolist())


def _plain(values: Any) -> Any:
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return values if math.isfinite(values) else str(float(values))


def from_plain(values: Any) -> Tensor:
    """Convert the result of `to_plain` back to a tensor, in float64."""
    return torch.tensor(_numbers(values), dtype=torch.float64)


def _numbers(values: Any) -> Any:
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return math.nan if values is None else float(values)  # null in files of earlier versions


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_to_bytes(tensors: Mapping[str, Tensor], note: str | None = None) -> bytes:
    """Write tensors in the safetensors format, sorted by name, with at most one metadata entry, the note."""
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    return save(plain, metadata=None if note is None else {"note": note})


def read_tensors(
    path: Path, *, largest: int | None = None, like: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors and the note of a safetensors file. The header is checked before any tensor is read.

    Args:
        path: Path of the file.
        largest: Maximum size of the file in bytes; None for no limit.
        like: Tensors with the expected names, shapes and dtypes; None if any may come.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged, too large, or has other tensors than expected.
    """
    _check_header_size(path, largest)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            _check_header(
                path, {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in found.items()}, like
            )
            return {name: file.get_tensor(name) for name in found}, (file.metadata() or {}).get("note")
    except (SafetensorError, OverflowError) as error:
        problem = str(error)[:200]  # it repeats texts of the header
        raise ValueError(f"{path} is no complete safetensors file ({problem}); restore it from a copy") from error


def _check_header_size(path: Path, largest: int | None) -> None:
    """Check the sizes of a safetensors file and of its header, which begins with its length in 8 bytes."""
    with open_regular(path) as file:
        size, header = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if size < 8 or header > size - 8:
        raise ValueError(f"{path} is no complete safetensors file; restore it from a copy")
    if header > LIMIT or size > (largest or size):
        raise ValueError(
            f"{path} has {size:,} bytes, its header {header:,}, but at most {largest or size:,} and {LIMIT:,} are "
            "expected; restore it from a copy"
        )


def _check_header(
    path: Path, found: Mapping[str, tuple[str, tuple[int, ...]]], like: Mapping[str, Tensor] | None
) -> None:
    for name, (dtype, shape) in found.items():
        if dtype not in _DTYPES:
            raise ValueError(f"{path}: {name[:80]!r} has the unknown dtype {dtype[:20]}; restore it from a copy")
        if math.prod(max(1, size) for size in shape) > _MOST_STRIDE:  # an empty tensor may claim any sizes
            raise ValueError(f"{path}: {name[:80]!r} has a shape beyond all use; restore it from a copy")
    if like is None:
        return
    for name in sorted(set(found) ^ set(like)):
        raise ValueError(
            f"{path} belongs to another model, which differs in {name[:80]!r}; restore the file of this run"
        )
    for name, value in like.items():
        got, shape = _DTYPES[found[name][0]], found[name][1]
        if (shape, got) != (tuple(value.shape), value.dtype):
            raise ValueError(
                f"{path}: {name} needs shape {tuple(value.shape)} and {value.dtype}, got {shape} and {got}; restore "
                "the file of this run"
            )


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of nested dicts, lists, tuples, tensors, arrays and plain values to one file.

    Raises:
        OSError: As `write_whole`.
        TypeError: If the state contains a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, tensors))
    write_whole(path, tensors_to_bytes(tensors, _digest(text, tensors) + text))


def read_state(path: Path, *, largest: int | None = None) -> dict[str, Any]:
    """Read a state that `write_state` wrote.

    Args:
        path: Path of the file.
        largest: Maximum size of the file in bytes; None for no limit.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged, too large, or contains no state.
    """
    tensors, note = read_tensors(path, largest=largest)
    if note is None:
        raise ValueError(f"{path} contains no state to resume; give a file that write_state wrote")
    digest, text = note[:_DIGEST_LENGTH], note[_DIGEST_LENGTH:]
    if digest != _digest(text, tensors):
        raise ValueError(f"{path} is damaged: its content does not match its SHA-256; restore it from a copy")
    try:
        state = _unpack(parse_json(text, finite=False), tensors)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} contains no state to resume ({str(error)[:200]}); restore it from a copy") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} contains no state to resume; give a file that write_state wrote")
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = f"{len(tensors):06d}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, tensors) for item in value]}
    if isinstance(value, np.integer | np.floating):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state needs tensors, arrays and plain values, got {type(value).__name__}; convert it")


def _unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    match plain:
        case {"tensor": key}:
            return tensors[key]
        case {"array": values, "dtype": dtype}:
            if np.dtype(dtype).kind not in "biuf":
                raise ValueError(f"an array has the dtype {dtype!r}")
            return np.array(values, dtype=dtype)
        case {"dict": items}:
            return {key: _unpack(item, tensors) for key, item in items}
        case {"list": items}:
            return [_unpack(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(_unpack(item, tensors) for item in items)
    return plain


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not np.isfinite(content):
        return None
    return content


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
