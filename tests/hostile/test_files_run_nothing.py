"""No configuration runs code: neither by `load`, nor by evaluate.py, sample.py, train.py --config and --resume."""

import contextlib
import getpass
import shutil
import subprocess
import sys
import tempfile
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # for the two modules beside this one

from audit import watched
from payloads import CLASSES, FORMS, hostile, spec
from script_helpers import TINY, Script, run

from pyrovae import load
from pyrovae.runs import build_objective, build_vae, parse_training
from pyrovae.runs.files import sha256_of, write_json
from pyrovae.runs.readers import sealed
from pyrovae.runs.reading import read_json

COMPILED = [Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"]  # a folder that torch makes

THING = """
import pathlib
pathlib.Path({mark!r}).touch()
from pyrovae import StandardNormalPrior
class Thing(StandardNormalPrior):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run, a module that runs code when it is imported, and the place of its mark."""
    root = tmp_path_factory.mktemp("hostile")
    np.save(root / "bits.npy", (np.random.default_rng(0).random((60, 6)) < 0.5).astype(np.uint8))
    run("train", "--data", "bits.npy", *TINY, "--epochs", 1, "--out", "honest", cwd=root)
    (root / "marks").mkdir()
    (root / "hostile_module.py").write_text(THING.format(mark=str(root / "marks" / "mark")))
    return root


@pytest.fixture(scope="module")
def honest(folder):
    config = yaml.safe_load((folder / "honest/config.yaml").read_text())
    assert {"elbo", "prior", "network"} <= config.keys()
    return config


def written(folder: Path, config: Any) -> Path:
    """A copy of the run with another configuration, whose checksum its manifest has."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "honest", copy)
    (copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    manifest = read_json(copy / "manifest.json")
    manifest["files"]["config.yaml"] = sha256_of(copy / "config.yaml")
    write_json(copy / "manifest.json", sealed(manifest))
    return copy


@contextlib.contextmanager
def nothing_happens(folder: Path):
    """Check that the code inside starts no process, opens no socket and writes no file outside of the run."""
    with watched(folder / "copy", *COMPILED) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        found = list(seen)
        (folder / "control").write_text("")
    assert not found
    assert seen == [f"open {folder / 'control'}"]  # the hook works
    assert not any((folder / "marks").iterdir())
    assert "hostile_module" not in sys.modules


def test_each_payload_fires_under_plain_instantiation(folder):
    """In a process of its own, which no other test has changed."""
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("plain_instantiation.py"), folder]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert not result.returncode, result.stderr
    assert sorted(result.stdout.splitlines()) == sorted(f"{kind}, {form}" for kind in CLASSES for form in FORMS)


def refusal(copy):
    """Why `load` refuses a run; empty if it does not."""
    try:
        load(copy)
    except ValueError as error:
        return str(error)
    return ""


def load_each(folder, honest, every):
    count = refused = 0
    for name, config in islice(hostile(honest, folder / "marks" / "mark"), None, None, every):
        copy = written(folder, config)
        with nothing_happens(folder):
            reason = refusal(copy)
        assert len(reason.splitlines()) <= 1, name
        assert len(reason) < 1000, name
        refused += bool(reason)
        count += 1
    assert refused > 0.7 * count  # the others are texts and maps that nothing reads as code
    return count


def build_each(folder, honest, every):
    count = 0
    for _, config in islice(hostile(honest, folder / "marks" / "mark"), None, None, every):
        (folder / "copy" / "given.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        with nothing_happens(folder), contextlib.suppress(ValueError):
            flags = parse_training(["--config", "copy/given.yaml"])
            build_vae(flags, 6)
            build_objective(flags)
        count += 1
    return count


def test_no_configuration_runs_code_in_load_and_in_a_training(folder, honest, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    assert load_each(folder, honest, 13) > 30
    assert build_each(folder, honest, 31) >= 2 * len(CLASSES)


@pytest.mark.slow
def test_none_of_all_configurations_runs_code_in_load_and_in_a_training(folder, honest, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    assert load_each(folder, honest, 1) > 450
    assert build_each(folder, honest, 1) > 450


def test_trust_admits_the_classes_of_a_module_and_not_what_it_imports(folder, honest, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "honest_module.py").write_text(
        "import subprocess\nfrom pyrovae import MixturePrior, StandardNormalPrior\n"
        "class Mine(StandardNormalPrior):\n    pass\n"
    )
    copy = written(folder, honest | {"prior": spec("honest_module.Mine")})
    with pytest.raises(ValueError, match="if you trust it, use --trust_imports honest_module"):
        load(copy)
    assert "Mine()" in repr(load(copy, trust_imports="honest_module"))
    for path, reason in {
        "honest_module.MixturePrior": "MixturePrior is not defined in honest_module, but in pyrovae",
        "honest_module.subprocess.Popen": "module 'honest_module.subprocess' is neither installed nor",
        "honest_modules.Mine": "--trust_imports honest_modules",
    }.items():
        with pytest.raises(ValueError, match=reason):
            load(written(folder, honest | {"prior": spec(path)}), trust_imports="honest_module")


OPENERS = {
    "evaluate": lambda copy: ("evaluate", [copy, "--num_particles", 10]),
    "sample": lambda copy: ("sample", [copy, "--num_samples", 2]),
    "train --config": lambda copy: ("train", ["--config", copy / "config.yaml", "--out", copy.parent / "copy/new"]),
    "train --resume": lambda copy: ("train", ["--resume", copy]),
}


def open_all(folder, honest, opener, every, first=0):
    for name, config in islice(hostile(honest, folder / "marks" / "mark"), first, None, every):
        copy = written(folder, config | {"epochs": 1} if isinstance(config.get("epochs"), int) else config)
        if opener == "train --resume":
            manifest = read_json(copy / "manifest.json")
            write_json(copy / "manifest.json", sealed(manifest | {"status": "training"}))
        script, arguments = OPENERS[opener](copy)
        seen = folder / "seen.txt"
        env = {"AUDIT": str(seen), "AUDIT_ALLOWED": str(copy)}
        process = Script(script, arguments, cwd=folder, strict=False, env=env)
        code = process.poll(60)
        err = process.files["err"].read_text()
        assert code is not None, name
        assert "Traceback" not in err, (name, err)
        assert not seen.exists() or not seen.read_text(), (name, seen.read_text())
        assert not any((folder / "marks").iterdir()), name


@pytest.mark.parametrize("opener", OPENERS)
def test_no_configuration_runs_code_in_a_script(folder, honest, opener):
    # Two for each opener, which together have each kind of payload once, in other forms and places.
    open_all(folder, honest, opener, every=248, first=75 * list(OPENERS).index(opener))


@pytest.mark.slow
@pytest.mark.parametrize("opener", OPENERS)
def test_no_configuration_at_all_runs_code_in_a_script(folder, honest, opener):
    open_all(folder, honest, opener, every=1)
