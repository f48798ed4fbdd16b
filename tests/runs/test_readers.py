"""Files of a run folder from elsewhere: special files, sizes, structures and numbers that do not fit."""

import json
import os
import resource
import shutil
import time

import numpy as np
import pytest
import torch

import pyrovae
from pyrovae.runs import Run, read_json, read_state, write_state, write_whole
from pyrovae.runs.comparison import Evaluated
from pyrovae.runs.files import sha256_of, tensors_to_bytes
from pyrovae.runs.readers import read_values, sealed
from pyrovae.runs.reading import read_yaml

GB = 2**30


def committed(folder):
    run = Run(folder)
    config = run.config()
    return run.committed(run.vae(config), run.data(config))


# What reads each file of a run folder.
READERS = {
    "manifest.json": Run,
    "config.yaml": pyrovae.load,
    "weights.safetensors": pyrovae.load,
    "evaluation.json": Evaluated.of,
    "evaluation.csv": Evaluated.of,
    "checkpoint.safetensors": committed,
    "metrics.jsonl": lambda folder: Run(folder).metrics(),
}
SPECIAL = {
    "a named pipe": os.mkfifo,
    "a link to a device": lambda path: os.symlink("/dev/zero", path),
    "a folder": os.mkdir,
    "a link to a folder": lambda path: os.symlink(path.parent.parent, path),
}


@pytest.fixture
def folder(straight, tmp_path, monkeypatch):
    """A copy of the finished run, from where its data are found."""
    monkeypatch.chdir(straight.parent)
    return shutil.copytree(straight, tmp_path / "runs" / "copy")


def refusal(read, *arguments):
    """Return the one line that a reader refuses a file with, within two seconds and 500 MB."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match="; ") as caught:
        read(*arguments)
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def edit(path, change):
    """Change the content of a JSON file."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


def sign(folder, name):
    """Write the sum of a file to the manifest, as one who changed both would."""
    sums = {name: sha256_of(folder / name)}
    edit(folder / "manifest.json", lambda manifest: sealed({**manifest, "files": {**manifest["files"], **sums}}))


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.thin(4)
def test_a_special_file_is_refused_without_waiting(folder, name, special):
    (folder / name).unlink()
    SPECIAL[special](folder / name)
    message = refusal(READERS[name], folder)
    assert str(folder / name) in message
    assert special.removeprefix("a link to ") in message


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_ten_gigabytes_is_refused_by_its_size(folder, name):
    os.truncate(folder / name, 10 * GB)
    message = refusal(READERS[name], folder)
    assert str(folder / name) in message
    assert f"{10 * GB:,} bytes" in message or name == "evaluation.csv" or "no complete safetensors file" in message


def test_a_checkpoint_with_a_tensor_beyond_the_model_is_refused_by_its_header(folder):
    header = json.dumps({"000000": {"dtype": "U8", "shape": [9 * GB], "data_offsets": [0, 9 * GB]}}).encode()
    path = folder / "checkpoint.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 9 * GB)
    assert "bytes" in refusal(committed, folder)
    header = 100 * 2**20
    path.write_bytes(header.to_bytes(8, "little"))
    os.truncate(path, 8 + header)
    assert f"its header {header:,}" in refusal(committed, folder)


def test_a_size_beyond_the_file_in_a_header_is_refused(folder):
    for path in (folder / "weights.safetensors", folder / "checkpoint.safetensors"):
        content = path.read_bytes()
        for begin in (b"\xff" * 8, (2**40).to_bytes(8, "little"), b"\x01"):
            path.write_bytes(begin + content[8:] if len(begin) == 8 else begin)
            assert str(path) in refusal(READERS[path.name], folder)
        path.write_bytes(content)


MANIFESTS = {
    "nested without end": "[" * 100_000,
    "nested in keys": '{"a":' * 100_000,
    "a number of 100,000 digits": '{"format": ' + "9" * 100_000 + "}",
    "no finite number": '{"format": 1e999}',
    "NaN": '{"format": NaN}',
    "a key twice": '{"format": 2, "format": 1}',
    "a list": "[1]",
    "a text": '"format"',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "foreign bytes": b'{"format": "\xff"}',
    "sixteen bits": '{"format": 1}'.encode("utf-16"),
    "nothing": "",
}


@pytest.mark.parametrize("content", MANIFESTS.values(), ids=MANIFESTS)
@pytest.mark.parametrize("name", ["manifest.json", "evaluation.json"])
def test_json_that_is_none_of_ours_is_refused(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "evaluation.json":
        sign(folder, name)
    assert str(folder / name) in refusal(READERS[name], folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("status", "done", "'status' must be one of 'training', 'finished', got 'done'"),
        ("files", ["config.yaml"], "'files' must be keys and values"),
        ("files", {"config.yaml": 3}, "'files.config.yaml' must be a SHA-256"),
        ("data", None, "'data' must be keys and values"),
        ("data", {}, "'data' has no key 'name'"),
        ("threads", True, "'threads' must be a whole number from 1"),
        ("threads", 10**80, "'threads' must be a whole number from 1"),
        ("versions", {"torch": "x" * 60_000}, "'versions.torch' must be a text of at most"),
        ("device", "\ud800", "'device' must be a text"),
        ("format", True, "'format' must be a whole number"),
        ("format", [1], "does not have format 1 or 2"),
        ("sum", "none", "'sum' must be a SHA-256"),
    ],
)
def test_a_manifest_with_another_structure_is_refused_with_the_key(folder, key, value, words):
    edit(folder / "manifest.json", lambda manifest: {**manifest, key: value})
    assert words in refusal(Run, folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_dims", 13, "a datum of shape [3, 4] has 12 values, not 13"),
        ("num_dims", -1, "'data.num_dims' must be a whole number from 1"),
        ("num_dims", 12.0, "'data.num_dims' must be a whole number from 1"),
        ("shape", [[3, 4]], "'data.shape.0' must be a whole number from 1"),
        ("sha256", "none", "'data.sha256' must be a SHA-256"),
        ("num_covariates", "2", "'data.num_covariates' must be a whole number"),
    ],
)
def test_a_manifest_with_impossible_data_is_refused(folder, key, value, words):
    edit(folder / "manifest.json", lambda manifest: {**manifest, "data": {**manifest["data"], key: value}})
    assert words in refusal(Run, folder)


@pytest.mark.parametrize(("key", "value"), [("binarize", "static"), ("num_test", 11), ("num_covariates", 1)])
def test_a_manifest_with_other_data_than_the_run_has_is_refused(folder, key, value):
    edit(folder / "manifest.json", lambda manifest: sealed({**manifest, "data": {**manifest["data"], key: value}}))
    run = Run(folder)
    assert f"the {key} of the data is {value}, but they have" in refusal(run.data, run.config())


@pytest.mark.parametrize("draws", [-3.5, 0, "5"])
def test_an_evaluation_by_an_impossible_number_of_draws_is_refused(folder, draws):
    of_default = "log_marginal"
    edit(folder / "evaluation.json", lambda it: {**it, of_default: {**it[of_default], "num_particles": draws}})
    sign(folder, "evaluation.json")
    assert "'log_marginal.num_particles' must be a number, at least 1" in refusal(Evaluated.of, folder)


def test_the_same_manifest_without_a_key_that_may_be_missing_is_read(folder):
    def without(manifest):
        del manifest["data"]["num_covariates"]
        return sealed({**manifest, "more": 1})

    edit(folder / "manifest.json", without)
    assert pyrovae.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: {**manifest, "files": {**manifest["files"], "posterior.nc": "0" * 64}},
        lambda manifest: {**manifest, "threads": manifest["threads"] + 1},
        lambda manifest: {**manifest, "status": "training"},
        lambda manifest: {**manifest, "format": 1},
        lambda manifest: {**manifest, "more": 1},
        lambda manifest: {**manifest, "sum": "0" * 64},
        lambda manifest: {key: value for key, value in manifest.items() if key != "sum"},
    ],
    ids=["sum of a file nobody reads", "threads", "status", "format", "another key", "its sum", "without its sum"],
)
def test_a_manifest_that_was_changed_anywhere_is_refused(folder, change):
    edit(folder / "manifest.json", change)
    assert "manifest.json was changed or damaged: its content does not match its own sum" in refusal(Run, folder)


def test_a_manifest_of_format_1_has_no_sum_of_its_own_and_is_read(folder):
    edit(folder / "manifest.json", lambda it: {key: it[key] for key in it if key != "sum"} | {"format": 1})
    assert pyrovae.load(folder)
    Run(folder).record_evaluation()
    assert json.loads((folder / "manifest.json").read_text()).keys() > {"sum"}
    assert Run(folder).manifest["format"] == 2


LAUGHS = "a: &a [1,1]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))  # noqa: B905
YAML = {
    "billion laughs": (LAUGHS, "aliases are refused"),
    "an alias to itself": ("a: &a [*a]", "aliases are refused"),
    "60,000 letters": ("prior: " + "a" * 60_000, "60,007 bytes"),
    "a key of 20,000 letters": ("a" * 20_000 + ": 1", "is no YAML file"),
    "60,000 letters in a list": ("prior: [" + "a," * 14_000 + "a" * 4500 + "]", "a text has 4,500 letters"),
    "nested without end": ("a: " + "[" * 30_000, "nested too deeply"),
    "nested maps": ("{a: " * 8_000, "nested too deeply"),
    "nested lines": ("".join(" " * i + "a:\n" for i in range(200)), "nested too deeply"),
    "a megabyte": ("a: 1\n" * 200_000, "1,000,000 bytes"),
    "20,000 letters": ("prior: " + "a" * 20_000, "a text has 20,000 letters"),
    "a number of 20,000 digits": ("epochs: " + "9" * 20_000, "20,000 letters"),
    "a number of 4,000 digits": ("epochs: " + "9" * 4_000, "4,000 digits"),
    "a number to the base of 60": ("epochs: " + "1:" * 2_000 + "1", "digits"),
    "a Python object": ("prior: !!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python"),
    "a tag": ("prior: !thing {a: 1}", "the tag '!thing' is refused"),
    "bytes": ("prior: !!binary aGk=", "tag"),
    "a date": ("prior: 2020-01-01", "timestamp"),
    "a set": ("prior: !!set {a, b}", "set' is refused"),
    "a merge": ("a: {<<: {b: 1}}", "merge' is refused"),
    "a key twice": ("epochs: 1\nepochs: 2", "the key 'epochs' is there twice"),
    "a list as key": ("? [1]\n: 2", "is no YAML file"),
    "foreign bytes": (b"prior: \xff", "is no YAML file"),
    "a zero byte": (b"prior: \x00", "is no YAML file"),
    "two documents": ("a: 1\n---\nb: 2", "is no YAML file"),
}


@pytest.mark.parametrize(("content", "words"), YAML.values(), ids=YAML)
def test_a_configuration_that_is_no_plain_yaml_is_refused_in_a_second(tmp_path, content, words):
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    message = refusal(read_yaml, path)
    assert time.process_time() - started < 1
    assert str(path) in message
    assert words in message


def test_plain_yaml_is_read_as_before(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: [1, 2.5, null, true, text]\nb: {c: -1e-3, d: '2020-01-01', e: .inf}\nf: 'x: y'\n")
    expected = {"a": [1, 2.5, None, True, "text"], "b": {"c": "-1e-3", "d": "2020-01-01", "e": float("inf")}}
    assert read_yaml(path) == {**expected, "f": "x: y"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.thin(1)
def test_weights_of_another_dtype_are_refused(folder, dtype):
    weights = {name: value.to(dtype) for name, value in pyrovae.load(folder).state_dict().items()}
    write_whole(folder / "weights.safetensors", tensors_to_bytes(weights))
    sign(folder, "weights.safetensors")
    message = refusal(pyrovae.load, folder)
    assert f"needs shape {tuple(next(iter(weights.values())).shape)} and torch.float32, got" in message
    assert str(dtype) in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epoch", 5, "rows of 12 epochs"),
        ("epoch", 10**9, "1000000000 finished epochs"),
        ("epoch", "12", "'epoch' must be a whole number"),
        ("best_epoch", 13, "a best epoch 13, but 12 finished epochs"),
        ("rows", [{"epoch": 1}] * 12, "'rows.0' has no key 'train_objective'"),
        ("stop_reason", "tired", "'stop_reason' must be one of"),
        ("values", {"model.x": 3}, "'values.model.x' must be a tensor, got 3"),
        ("losses", [1.0], "'losses' must be a tensor"),
        ("optimizer", {"state": {}}, "'optimizer' has no key 'param_groups'"),
        ("stepper", {"executions": {"16": "magic"}, "refused": None}, "'stepper.executions.16' must be one of"),
        ("generators", {}, "'generators' has no key 'torch'"),
        ("control", {"weight": "big"}, "'control.weight' must be a tensor"),
    ],
)
def test_a_checkpoint_with_another_structure_is_refused_with_the_key(folder, key, value, words):
    path = folder / "checkpoint.safetensors"
    write_state(path, {**read_state(path), key: value})
    message = refusal(Run(folder).committed)
    assert str(path) in message
    assert words in message


def test_an_empty_tensor_that_claims_a_size_beyond_all_use_is_refused(tmp_path):
    header = b'{"a": {"dtype": "F32", "shape": [0, 18446744073709551615], "data_offsets": [0, 0]}}'
    (tmp_path / "s.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "'a' has a shape beyond all use" in refusal(read_state, tmp_path / "s.safetensors")


def test_states_of_generators_that_point_beyond_their_memory_are_refused(folder):
    path = folder / "checkpoint.safetensors"
    state = read_state(path)
    generators = state["generators"]
    version, words, normal = generators["random"]
    for forged in (
        {"numpy": ("MT19937", generators["numpy"][1], 10**6, 0, 0.0)},
        {"numpy": ("MT19937", generators["numpy"][1][:5], 3, 0, 0.0)},
        {"numpy": ("MT19937", generators["numpy"][1].astype(np.float64), 3, 0, 0.0)},
        {"random": (version, (*words[:-1], 10**6), normal)},
        {"random": (version, words[:-1], normal)},
        {"torch": torch.zeros(3)},
    ):
        write_state(path, {**state, "generators": {**generators, **forged}})
        assert f"'generators.{next(iter(forged))}" in refusal(Run(folder).committed)


def test_a_state_whose_text_is_none_of_ours_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    for text in (
        '{"tensor": "missing"}',
        '{"tensor": [1]}',
        '{"dict": 3}',
        '{"dict": [["a"]]}',
        '{"dict": [[{"dict": []}, 1]]}',
        '{"list": 3}',
        '{"array": ["a"], "dtype": "S2000000000"}',
        '{"array": [1], "dtype": "object"}',
        '{"array": [1], "dtype": {}}',
        '{"list": [' * 50_000,
        "[" * 100_000,
        "9" * 100_000,
        "[]",
        "3",
    ):
        monkeypatch.setattr(json, "dumps", lambda value, text=text: text)
        write_state(path, {})
        monkeypatch.undo()
        assert str(path) in refusal(read_state, path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"epoch": 13', "line 13, is not JSON"),
        ('{"epoch": 13}', "it has no key 'train_objective'"),
        ("[]", "it must be keys and values, got []"),
        ("[" * 100_000, "line 13, is not JSON (it is nested too deeply)"),
        ('{"epoch": NaN}', "NaN is not a finite number"),
    ],
)
def test_metrics_that_do_not_fit_are_refused_with_their_line(folder, line, words):
    path = folder / "metrics.jsonl"
    assert len(Run(folder).metrics()) == 12
    path.write_text(path.read_text() + line + "\n")
    assert "was changed or damaged" in refusal(Run(folder).metrics)
    sign(folder, path.name)
    message = refusal(Run(folder).metrics)
    assert str(path) in message
    assert words in message


def test_a_number_of_many_digits_is_no_json_of_ours(tmp_path):
    (tmp_path / "a.json").write_text("9" * 5000)
    assert "a whole number has 5,000 digits" in refusal(read_json, tmp_path / "a.json")


def test_many_small_lists_that_would_fill_the_memory_are_refused_unread(tmp_path):
    (tmp_path / "a.json").write_text(f"[{'[],' * 3_000_000}1]")
    assert "more than 3,000,000 lists and mappings" in refusal(read_json, tmp_path / "a.json")


def test_a_text_of_60_000_letters_in_a_header_is_not_repeated(folder):
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"F32"', b'"' + b"x" * 60_000 + b'"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    sign(folder, path.name)
    assert "no complete safetensors file" in refusal(pyrovae.load, folder)


def test_no_more_rows_of_an_evaluation_are_read_than_it_has_data(tmp_path):
    path = tmp_path / "evaluation.csv"
    path.write_text("row,log_marginal,std_error,num_particles\n" + "1,-2.0,0.1,5\n" * 10 + "no row at all\n")
    with pytest.raises(ValueError, match=r"evaluation.csv .* more rows than the 3 data of evaluation.json"):
        read_values(path, 3, "0" * 64)
