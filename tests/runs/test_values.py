"""Values of files and flags that YAML reads as something else than they seem, or not at all."""

import pytest
from script_helpers import assert_refused, call

from pyrovae.runs.parse import parse_training
from pyrovae.runs.reading import parse_yaml, read_yaml


@pytest.mark.parametrize("value", ["!!bool maybe", '!!int ""', '!!float ""', "!!null 3", "!!str 3", "! 3", "!!map {}"])
def test_a_tag_is_refused_in_a_file_and_on_a_command_line(tmp_path, value):
    (tmp_path / "config.yaml").write_text(f"patience: {value}\n")
    with pytest.raises(ValueError, match=r"no YAML file of plain values: the tag .* is refused"):
        read_yaml(tmp_path / "config.yaml")
    for flag in ("--patience", "--stream", "--network.hidden", "--lr", "--elbo.jit_options"):
        with pytest.raises(ValueError, match=f"{flag} .*expected"):
            parse_training([flag, value])


@pytest.mark.parametrize("value", ["010", "1:30", "1_0", "0x10", "0b1", "-017", "1:30.5", "1_0.5"])
def test_a_number_that_yaml_reads_as_another_is_refused(tmp_path, value):
    (tmp_path / "config.yaml").write_text(f"seed: {value}\n")
    with pytest.raises(ValueError, match=f"the number {value} is not decimal"):
        read_yaml(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="expected a list of whole numbers"):
        parse_training(["--network.hidden", f"[{value}]"])


def test_decimal_numbers_are_read():
    assert parse_yaml("[0, 10, -3, 0.5, -0.25, 1.0e-3, .5, 0.0]") == [0, 10, -3, 0.5, -0.25, 1e-3, 0.5, 0.0]
    assert parse_training(["--epochs", "010"]).epochs == 10
    assert parse_training(["--out", "2001-01-01"]).out == "2001-01-01"
    assert parse_training(["--out", "!x"]).out == "!x"


@pytest.mark.parametrize(
    "argv",
    [
        ["--elbo.jit_options", "[" * 50_000 + "]" * 50_000],
        ["--prior", "{" * 5_000],
        ["--prior.init_args", "{" + "[" * 50_000],
        ["--prior", "{class_path: [1]}"],
        ["--prior", "{class_path: StandardNormalPrior, class_path: MixturePrior}"],
        ["--elbo.jit_options", "9" * 5_000],
    ],
)
def test_a_part_that_is_no_plain_value_is_refused_in_one_line_of_some_length(argv, capsys, monkeypatch):
    code, err = call(capsys, monkeypatch, "train", *argv)
    assert_refused("train", code, err, "expected")
    assert len(err) < 3000


def test_an_error_shows_control_characters_and_an_odd_rank_hides_none(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "x")
    code, err = call(capsys, monkeypatch, "evaluate", "red\x1b[31m\x07")
    assert_refused("evaluate", code, err, r"red\x1b[31m\x07 is no run folder")


@pytest.mark.parametrize("device", ["hpu", "privateuseone", "opengl", "mtia"])
def test_a_device_without_a_module_or_a_backend_is_refused(device, capsys, monkeypatch):
    code, err = call(capsys, monkeypatch, "train", "--device", device)
    assert_refused("train", code, err, f"--device {device} is not available")
    assert "INTERNAL ASSERT" not in err
