"""README and guides: order, length, links and names. Doctests run the Python, test_commands.py parses the commands."""

import builtins
import fnmatch
import importlib
import os
import pkgutil
import re
import runpy
import signal
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyro.distributions
import pyro.infer
import pyro.nn
import pyro.optim
import pytest
import torch
from test_rooms import ROOMS

import pyrovae
from pyrovae.guide import TOPICS, summary
from pyrovae.guide.__main__ import main

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "pyrovae" / "guide"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
LONGEST = {"README.md": 130}  # lines; 250 for a guide

# What the README has, in this order.
ORDER = {
    "a sentence": r"^[A-Z][^.#`|]*\.\n\n",
    "a picture": r"^!\[[^]]+\]\(\S+\.png\)\n\n",
    "the command that installs and trains": r"^    .*pip install -e \. .*scripts/train\.py\n\n",
    "the command that runs the tests": r"^    .*pip install -e '\.\[test\]'.*pytest.*\n\n",
    "the table, explained in three lines": r"^    VAE .*\n.*\n    independent .*\n    histogram .*\n\n"
    r"(?:- .*\n(?:  .*\n)?){3}\n(?!-)",
    "an example of 12 lines": r"^```python\n(?:>>> .*\n(?:(?!>>>).+\n)*){12}\n```",
    "what can be swapped": r"^## What can be swapped\n\n\|",
    "why the number can be believed": r"^## Why the number can be believed\n",
    "speed in one line": r"^\*\*Speed\*\*: .*\n(?:.+\n)?\n",
    "which guide for which task": r"^## Which guide for which task\n",
    "what it does not do": r"^## What it does not do\n\n(?:- .*\n)+",
    "the licence": r"^## Licence and citation\n\nApache",
    "the citation with an author": r"^    @software\{.*author = \{[^}]+\}",
}

# Where the names of classes in the prose may come from, and names that stand for the user's own.
HOMES = [
    pyrovae,
    *(importlib.import_module(f"pyrovae.{room.name}") for room in pkgutil.iter_modules(pyrovae.__path__)),
    *(pyro, pyro.distributions, pyro.infer, pyro.infer.autoguide, pyro.nn, pyro.optim),
    *(torch, torch.distributions, torch.nn, torch.optim),
    builtins,
]
PLACEHOLDERS = {"module.Class"}


def out_of_order(text):
    """Find what a README lacks, or has before what should precede it."""
    end, missing = 0, []
    for name, pattern in ORDER.items():
        match = re.compile(pattern, flags=re.M).search(text, end)
        if match:
            end = match.end()
        else:
            missing.append(name)
    return missing


def unknown_classes(text):
    """Find names of classes between backticks outside of blocks that no library has."""
    text = re.sub(r"^```[^`]*^```$|^ {4}.*$", "", text, flags=re.M)
    spans = [span for span in re.findall(r"`([^`]+)`", text) if span not in PLACEHOLDERS]
    names = [name for span in spans for name in re.findall(r"(?<![\w/\"-])[A-Z]\w*[a-z]\w*", span)]
    return [name for name in names if not any(hasattr(home, name) for home in HOMES)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_keeps_its_maximum_of_lines(page):
    assert len(page.read_text().splitlines()) <= LONGEST.get(page.name, 250)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_links_to_files_and_headings_that_exist(page):
    for target, _, heading in re.findall(r"\]\(([^)#\s]*)(#?)([^)\s]*)\)", page.read_text()):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M) if heading else []
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
            assert heading in ["", *slugs]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_is_a_doctest(page):
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    assert all(block.startswith(">>> ") for block in blocks)
    assert all(block.endswith("\n\n") for block in blocks), "end each block with an empty line, as doctest needs"


def test_the_readme_has_its_parts_in_order():
    assert out_of_order((ROOT / "README.md").read_text()) == []


@pytest.mark.parametrize("name", ORDER)
def test_a_part_that_the_readme_lacks_or_has_too_late_is_found(name):
    text = (ROOT / "README.md").read_text()
    part = re.search(ORDER[name], text, flags=re.M)[0]
    assert name in out_of_order(text.replace(part, ""))
    assert out_of_order(part + text.replace(part, "")) == ([] if name == "a sentence" else [name])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_class_in_the_prose_of_a_page_exists(page):
    assert unknown_classes(page.read_text()) == []


def test_a_class_in_the_prose_that_does_not_exist_is_found():
    text = (
        "`MLP`, `MixedPrior(3)`\n\n```python\n>>> Block()\n```\n\n    Indented\n\n`pyrovae.nn.GatedNet`, `module.Class`"
    )
    assert unknown_classes(text) == ["MixedPrior", "GatedNet"]


def test_the_guides_are_listed_with_a_sentence_each(capsys):
    assert {path.stem for path in GUIDE.glob("*.md")} == set(TOPICS)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TOPICS)
    assert all(summary(topic) in line and len(line) <= 110 for topic, line in zip(TOPICS, lines, strict=True))


def test_a_guide_is_printed_whole_without_a_terminal(capsys):
    assert main(["glossary"]) == 0
    assert capsys.readouterr().out.rstrip() == (GUIDE / "glossary.md").read_text().rstrip()


def test_an_unknown_topic_is_answered_in_one_line_with_near_names(capsys):
    assert main(["log-px"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "did you mean log-p-x" in err


@pytest.mark.parametrize("arguments", [[], ["glossary"]])
def test_a_closed_pipe_ends_the_guides_without_a_traceback(arguments, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["guide", *arguments])
    monkeypatch.delitem(sys.modules, "pyrovae.guide.__main__")  # runpy warns of a module that is there already
    try:
        with open(writer, "w") as closed:
            monkeypatch.setattr(sys, "stdout", closed)
            with pytest.raises(SystemExit) as stop:
                runpy.run_module("pyrovae.guide", run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (stop.value.code, capsys.readouterr().err) == (141, "")


def test_the_wheel_holds_the_guides_and_their_figures():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["pyrovae.guide"]
    files = [path.relative_to(GUIDE) for path in GUIDE.rglob("*") if path.suffix in (".md", ".png")]
    assert [str(file) for file in files if not any(fnmatch.fnmatch(str(file), pattern) for pattern in patterns)] == []
    assert all(path.stat().st_size <= 300_000 for path in GUIDE.rglob("*.png"))


def test_the_house_guide_shows_the_rooms_as_the_test_of_rooms_has_them():
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \|[^|]*\|([^|]*)\|$", (GUIDE / "house.md").read_text(), flags=re.M)
    shown = {room: re.sub(r"torch( and SciPy)? alone", "", allowed).replace(",", "").split() for room, allowed in rows}
    assert {room: shown.get(room) for room in ROOMS} == {room: allowed.split() for room, allowed in ROOMS.items()}


def test_no_other_room_imports_the_guides():
    for path in (ROOT / "pyrovae").rglob("*.py"):
        if GUIDE not in path.parents:
            assert not re.search(r"^\s*(from|import) pyrovae\.guide\b", path.read_text(), flags=re.M), path


def test_the_example_of_pooling_prints_the_pooled_difference_of_draws(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    sex = np.array(["female", "male"] * 50)
    lines, differences = [".imp,.id,.refit,body_mass_g,sex"], []
    for imputation in range(20):
        mass = 4000 + 700 * (sex == "male") + 300 * rng.normal(size=100)
        differences.append(mass[1::2].mean() - mass[::2].mean())
        lines += [f"{imputation + 1},{n + 1},{imputation // 4 + 1},{mass[n]},{sex[n]}" for n in range(100)]
    folder = tmp_path / "runs" / "penguins-001"
    folder.mkdir(parents=True)
    (folder / "draws.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```text\n(.*?)^```$", (GUIDE / "own-data.md").read_text(), flags=re.M | re.S)
    exec(block, {})
    printed = [float(number) for number in re.findall(r"-?\d+\.\d", capsys.readouterr().out)]
    error = (sum(300**2 / 50 for _ in range(2)) + np.var(differences, ddof=1)) ** 0.5
    assert printed[0] == pytest.approx(np.mean(differences), abs=0.1)
    assert printed[1] == pytest.approx(error, rel=0.25)
    assert printed[2] < 700 < printed[3]
