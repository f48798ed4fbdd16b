"""Inputs of a fuzzer: damaged files and strange values of flags."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

DEEP = 100_000


def cut(content: bytes, at: random.Random) -> bytes:
    return content[: at.randrange(len(content) + 1)]


def flipped(content: bytes, at: random.Random) -> bytes:
    changed = bytearray(content or b"x")
    for _ in range(at.choice([1, 1, 2, 20])):
        changed[at.randrange(len(changed))] ^= 1 << at.randrange(8)
    return bytes(changed)


def spliced(content: bytes, at: random.Random) -> bytes:
    place = at.randrange(len(content) + 1)
    return content[:place] + at.choice(SNIPPETS) + content[place:]


def doubled(content: bytes, at: random.Random) -> bytes:
    first, last = sorted((at.randrange(len(content) + 1), at.randrange(len(content) + 1)))
    return content[:last] + content[first:]


def replaced(content: bytes, at: random.Random) -> bytes:
    return at.choice(WHOLE)


def edited(content: bytes, at: random.Random) -> bytes:
    """Change a value of a JSON document; another damage if it is none."""
    try:
        document = json.loads(content)
    except ValueError:
        return spliced(content, at)
    places: list[tuple[dict | list, str | int]] = []

    def collect(value):
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            collect(value[key])

    collect(document)
    if not places:
        return b"[]"
    holder, key = at.choice(places)
    if at.random() < 0.3:
        del holder[key]
    else:
        holder[key] = at.choice(VALUES)
    return json.dumps(document).encode()


SNIPPETS = [
    b"\0",
    b"\xff\xfe",
    b"NaN",
    b"1e999",
    b'"',
    b"{",
    b"]",
    b"\n",
    b"  ",
    b": ",
    b"-",
    b"9" * 400,
    "١٢".encode(),
]
VALUES = [None, True, -1, 0, 1e308, 10**30, "", "x", "../../x", [], {}, [[]], "NaN", float("inf"), "9" * 60_000]
WHOLE = [
    b"",
    b"\0" * 100,
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"null",
    b"[]",
    b"{}",
    b"3",
    b'"text"',
    b"a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n"
    + b"".join(b"%c: &%c [%s]\n" % (i + 1, i + 1, b", ".join([b"*%c" % i] * 8)) for i in range(98, 110)),
    b"\x89PNG\r\n\x1a\n",
    b"PK\x03\x04",
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3,), }" + b" " * 60 + b"\n",
    b"\xff" * 8 + b"{}",
    b"\x02\0\0\0\0\0\0\0{}",
    b"x" * 60_000,
    b"!!python/object/apply:os.system ['true']",
]
CONTENTS: list[Callable[[bytes, random.Random], bytes]] = [cut, flipped, spliced, doubled, replaced, edited]


def _folder(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def _unreadable(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


KINDS = [_folder, _fifo, _device, _loop, _link_to_nothing, _unreadable, _huge]


def mutate(path: Path, at: random.Random) -> str:
    """Damage a file, or put something else in its place; return what was done."""
    if at.random() < 0.15:
        kind = at.choice(KINDS)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        kind(path)
        return f"{path.name} is {kind.__name__[1:]}"
    how = at.choice(CONTENTS)
    path.write_bytes(how(path.read_bytes(), at))
    return f"{path.name} {how.__name__}"


# Values of flags; none is a large number that is a valid size.
TEXTS = [
    *("", " ", "null", "None", "true", "False", "-1", "0", "3", "3.0", "3.5", "1e3", "1e400", "nan", ".inf", "-.inf"),
    *("1e-300", "9" * 40, "0x10", "1_0", "01", "+3", "[", "[]", "[1", "[3,4]", "[a,b]", "[null]", "{a: 1}", "{", "}"),
    *("{class_path: subprocess.Popen}", "{class_path: MLP, init_args: {hidden: [3]}}", "x"),
    *("x" * 60_000, "\x01", "é"),
    *(
        "../..",
        "pipe",
        "/",
        "~name.npy",
        "*",
        "=",
        "%s%n",
        "$(touch x)",
        "'",
        '"',
        "a\nb",
        "!!python/name:os.system",
    ),
    *(
        "cpu:99",
        "cuda:0",
        "meta",
        "digits",
        "bits.npy",
        "bits.npy:x",
        "both.npz",
        "both.npz:",
        "both.npz:none",
        "honest",
    ),
    *("StandardNormalPrior", "MixturePrior", "pyrovae.Prior", "torch.nn.Linear", "os.system", "a.b.c", ".", "run"),
    *("\udcff", "!!python/name:os.system"),
]
