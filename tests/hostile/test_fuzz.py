"""Damaged files and strange flags: one line, nothing half-written, and nothing wrong believed."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside this one

from mutations import TEXTS, mutate
from script_helpers import TINY, Script, run

from pyrovae.runs.files import sha256_of, write_json
from pyrovae.runs.flags import FLAGS
from pyrovae.runs.readers import sealed
from pyrovae.runs.reading import read_json

SECONDS, GIGABYTES = 10, 2  # of one call: processor time, and peak of memory
TRAIN = ["--data", "bits.npy", *TINY, "--epochs", "1"]
EVALUATE = ["--num_particles", "10"]
RESOLVED = ("data", "data_dir", "binarize", "covariates", "device", "threads", "likelihood", "output_bias")
# Files of a run, and the calls that read them.
READERS = {
    "run/config.yaml": ("evaluate", "sample", "config", "resume", "compare"),
    "run/manifest.json": ("evaluate", "sample", "resume", "compare"),
    "run/weights.safetensors": ("evaluate", "sample"),
    "run/checkpoint.safetensors": ("resume",),
    "run/metrics.jsonl": ("resume",),
    "run/epochs.safetensors": ("resume",),
    "run/evaluation.csv": ("compare",),
    "run/evaluation.json": ("compare",),
    "bits.npy": ("evaluate", "train"),
    "both.npz": ("array",),
    "covariates.npy": ("covariates",),
}
CALLS = {
    "evaluate": ("evaluate", ["run", *EVALUATE]),
    "sample": ("sample", ["run", "--num_samples", "2"]),
    "config": ("train", ["--config", "run/config.yaml", "--out", "new"]),
    "resume": ("train", ["--resume", "run"]),
    "compare": ("compare", ["run", "other"]),
    "train": ("train", [*TRAIN, "--out", "new"]),
    "array": ("train", [*TRAIN, "--data", "both.npz:reals", "--likelihood", "NormalLikelihood", "--out", "new"]),
    "covariates": ("train", [*TRAIN, "--covariates", "covariates.npy", "--out", "new"]),
}
# Flags of the other scripts.
OTHERS = {
    "evaluate": ["num_particles", "proposal", "target_std_error", "split", "chunk_size", "execution", "seed", "device"],
    "sample": ["num_samples", "seed", "device", "out"],
    "compare": ["figure", "reference"],
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A folder with data, two runs, and one that is not finished."""
    root = tmp_path_factory.mktemp("origin")
    generator = np.random.default_rng(0)
    np.save(root / "bits.npy", (generator.random((60, 6)) < 0.5).astype(np.uint8))
    np.savez(root / "both.npz", reals=generator.normal(size=(60, 5)))
    np.save(root / "covariates.npy", generator.normal(size=(60, 2)))
    for name in ("run", "other"):
        run("train", *TRAIN, "--seed", len(name), "--out", name, cwd=root)
    return root


def fresh(origin: Path, place: Path) -> None:
    """Copy the folder; its runs then have their data beside them."""
    shutil.copytree(origin, place)
    os.mkfifo(place / "pipe")
    for name in ("run", "other"):
        config = place / name / "config.yaml"
        config.write_text(config.read_text().replace(str(origin), str(place)))
        manifest = read_json(place / name / "manifest.json")
        manifest["files"]["config.yaml"] = sha256_of(config)
        write_json(place / name / "manifest.json", sealed(manifest))


def sums(folder: Path) -> dict[str, str]:
    """The checksum of each file."""
    return {str(path): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def check_call(script, arguments, place, about):
    """Run a script; check that it ends well or with one line, in time and memory; return its exit code."""
    process = Script(script, arguments, cwd=place, strict=False, env={"XDG_CACHE_HOME": str(place / "cache")})
    code = process.poll(90)
    if code is None:
        process.kill()
    err = process.stderr
    assert code is not None, f"{about}: it does not end"
    assert "Traceback" not in err, f"{about}: {err[-3000:]}"
    assert code in (0, 1), f"{about}: exit code {code}, {err[-500:]}"
    assert err.count(": error") == code, f"{about}: {err[-500:]}"
    seconds, peak = process.used()
    assert seconds < SECONDS, f"{about}: {seconds:.0f} s"
    assert peak < GIGABYTES * 2**30, f"{about}: {peak / 2**30:.1f} GB"
    left = [path for path in place.rglob(".*") if path.name.startswith((".new-", ".unfinished-"))]
    assert not left, f"{about}: {left}"
    return code


def has_values(path: Path, values: dict) -> bool:
    """Return whether a path is a regular file that holds these values as JSON, in any layout."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size > 10**6:
        return False
    try:
        return json.loads(path.read_bytes()) == values
    except (ValueError, RecursionError):
        return False


def try_file(origin, place, at):
    """Damage a file, and call a script that reads it."""
    name = at.choice(list(READERS))
    opener = at.choice(READERS[name])
    fresh(origin, place)
    manifest = read_json(place / "run/manifest.json")
    if opener == "resume":
        write_json(place / "run/manifest.json", sealed(manifest | {"status": "training"}))
    before = (place / name).read_bytes()
    before_values = read_json(place / "run/manifest.json")
    about = f"{opener}: {mutate(place / name, at)}"
    path = place / name
    others = sums(place / "other")
    same = name == "run/manifest.json" and has_values(path, before_values)  # an edit may write the value that it had
    script, arguments = CALLS[opener]
    code = check_call(script, arguments, place, about)
    assert sums(place / "other") == others, about
    if code or not path.is_file() or path.is_symlink() or path.stat().st_size > 10**8 or path.read_bytes() == before:
        return
    checked = {"run/config.yaml": opener != "config", "run/weights.safetensors": True, "run/evaluation.csv": True}
    assert not checked.get(name), f"{about} was believed"
    if name == "run/manifest.json":
        assert same, f"{about} was believed"
    if name == "bits.npy" and opener == "evaluate":
        np.testing.assert_array_equal(np.load(path), np.load(origin / name), err_msg=about)


def try_flag(origin, place, at):
    """Give a flag a strange value; if it is accepted, the value is that of the run."""
    script = at.choice(["train", "train", "train", *OTHERS])
    flag = at.choice(
        [flag.name for flag in FLAGS if flag.name != "help_parts"] if script == "train" else OTHERS[script]
    )
    text = at.choice(TEXTS)
    fresh(origin, place)
    about = f"{script} --{flag} {text[:80]!r}"
    start = {"train": TRAIN, "evaluate": ["run", *EVALUATE], "sample": ["run"], "compare": ["run", "other"]}[script]
    alone = flag == "resume" and text != "null"  # which trains as without the flag
    out = ["--out", "new"] if script == "train" and flag != "out" and not alone else []
    before = sums(place / "other")
    given = [f"--{flag}={text}"] if at.random() < 0.5 else [f"--{flag}", text]
    code = check_call(script, ["--resume", text] if alone else [*start, *out, *given], place, about)
    assert sums(place / "other") == before, about
    if code or not (place / "new/config.yaml").exists():
        return
    recorded = yaml.safe_load((place / "new/config.yaml").read_text())
    if flag in recorded and flag not in RESOLVED:
        value = recorded[flag]
        if isinstance(value, dict):
            assert text.rpartition(".")[2] in value["class_path"] or text.startswith("{"), about
        else:
            assert str(value) == text or value == yaml.safe_load(text) or float(value) == float(text), about


def fuzz(origin, tmp_path, seed, count):
    at = random.Random(seed)
    for number in range(count):
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        attempt = try_file if number % 2 else try_flag
        attempt(origin, place, at)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.thin(1)
def test_damaged_files_and_strange_flags_are_refused_in_one_line_or_do_what_they_say(origin, tmp_path, seed):
    fuzz(origin, tmp_path, seed, 14)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_more_damaged_files_and_strange_flags(origin, tmp_path, seed):
    fuzz(origin, tmp_path, seed, 100)
