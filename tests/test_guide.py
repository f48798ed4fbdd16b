"""README and guides: length, links, commands and flags. Doctests run their Python."""

import ast
import fnmatch
import inspect
import re
import runpy
import shlex
import sys
import tomllib
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pyro.infer
import pytest
import torch
from test_rooms import ROOMS

import pyrovae
from pyrovae.guide import TOPICS, summary
from pyrovae.guide.__main__ import main

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "pyrovae" / "guide"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
SCRIPTS = ("train", "evaluate", "sample", "compare", "studies/swap")
LONGEST = {"README.md": 130}  # lines; 250 for a guide

# The part to which options belong if the command names no part of this kind.
DEFAULT_PARTS = {
    "prior": "StandardNormalPrior",
    "encoder": "NormalEncoder",
    "network": "MLP",
    "elbo": "TraceMeanField_ELBO",
    "optimizer": "Adam",
}
KINDS = {*DEFAULT_PARTS, "likelihood", "program", "kl_weight"}


def code_of(page):
    """Code other than Python: indented lines, fenced lines, and text between backticks."""
    text = re.sub(r"^```python$.*?^```$", "", page.read_text(), flags=re.M | re.S)
    fenced = re.findall(r"^```(?:sh|text)?$(.*?)^```$", text, flags=re.M | re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4}(.*)$", text, flags=re.M)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^ {4}.*$", "", text, flags=re.M))
    lines = "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()
    return [*lines, *(span.replace("\n", " ") for span in inline)]


def commands_in(page):
    """Find the commands of a page as (script, arguments); a script is a path or `pyrovae.guide`."""
    found = []
    for line in code_of(page):
        for command in line.split(" && "):
            if "scripts/" not in command and "-m pyrovae" not in command:
                continue
            words = shlex.split(command, comments=True)
            for place, word in enumerate(words):
                if re.search(r"(^|/)scripts/.*\.py$", word):
                    found.append((word[word.index("scripts/") :], words[place + 1 :]))
                elif word.startswith("pyrovae.") and words[place - 1] == "-m":
                    found.append((word, words[place + 1 :]))
    return found


@cache
def flags_of(script):
    """Read the flags in a script's help, without the dashes."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as text:
        patch.setattr(sys, "argv", [script, "--help"])
        patch.syspath_prepend((ROOT / script).parent)  # the studies import each other
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return {"help", *re.findall(r"(?:^\s*|, |\[)--(\w+)", text.getvalue(), flags=re.M)}


def takes(part, option):
    """Whether a part exists and has the option, if any. A part in `mymodule` is not checked."""
    if part.startswith("mymodule."):
        return True
    found = [getattr(home, part) for home in (pyrovae, pyro.infer, torch.optim) if hasattr(home, part)]
    return bool(found) and (not option or option in inspect.signature(found[0]).parameters)


def wrong_flags(arguments, known):
    """Find unknown flags, parts that do not exist, and options that a part does not have."""
    parts, wrong = dict(DEFAULT_PARTS), []
    for place, word in enumerate(arguments):
        if not word.startswith("--"):
            continue
        flag, dot, option = word[2:].partition("=")[0].partition(".")
        value = "".join(arguments[place + 1 : place + 2])
        names_a_part = option == "help" or (not dot and flag in KINDS)
        if names_a_part:
            parts[flag] = value
        if flag not in known or ((names_a_part or dot) and not takes(parts.get(flag, ""), option.replace("help", ""))):
            wrong.append(word)
    return wrong


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
            assert heading in ["", *(title.lower().replace(" ", "-") for title in headings)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_is_a_doctest(page):
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    assert all(block.startswith(">>> ") for block in blocks)
    assert all(block.endswith("\n\n") for block in blocks), "end each block with an empty line, as doctest needs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_with_its_flags(page):
    for script, arguments in commands_in(page):
        if script == "pyrovae.guide":
            assert set(arguments) <= {*TOPICS, "[topic]"}
            continue
        assert (ROOT / script).is_file()
        end = arguments.index("--") if "--" in arguments else len(arguments)  # the rest goes to train.py
        for name, given in ((script, arguments[:end]), ("scripts/train.py", arguments[end + 1 :])):
            assert not given or wrong_flags(given, flags_of(name)) == [], (name, given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_in_the_prose_of_a_page_exists(page):
    spans = re.findall(r"`(--[^`]+)`", page.read_text())
    parts = [part for part in vars(pyrovae).values() if inspect.isclass(part)]
    options = {name for part in parts for name in inspect.signature(part).parameters}
    for word in [word for span in spans for word in shlex.split(span) if word.startswith("--")]:
        flag, _, option = word[2:].partition(".")
        assert any(flag in flags_of(f"scripts/{script}.py") for script in SCRIPTS), word
        assert option in {"", "help", *options}, word


def test_wrong_flags_are_found():
    known = {"prior", "epochs"}
    good = ["--prior", "MixturePrior", "--prior.num_components", "20", "--epochs", "2"]
    assert wrong_flags(good, known) == []
    assert wrong_flags(["--prior.num_components", "20", "--epoch", "2"], known) == ["--prior.num_components", "--epoch"]
    assert wrong_flags(["--prior", "MixedPrior", "--epochs", "2"], known) == ["--prior"]


def test_commands_are_found_in_a_page():
    scripts = {script for page in PAGES for script, _ in commands_in(page)}
    assert {f"scripts/{name}.py" for name in ("train", "evaluate", "sample", "compare")} <= scripts
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "scripts").rglob("*.py")} - scripts <= {
        "scripts/studies/benchmark_peers.py"
    }


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


def test_the_wheel_holds_the_guides_and_their_figures():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["pyrovae.guide"]
    files = [path.relative_to(GUIDE) for path in GUIDE.rglob("*") if path.suffix in (".md", ".png")]
    assert [str(file) for file in files if not any(fnmatch.fnmatch(str(file), pattern) for pattern in patterns)] == []
    assert all(path.stat().st_size <= 300_000 for path in GUIDE.rglob("*.png"))


def test_the_house_guide_shows_the_rooms_as_the_test_of_rooms_has_them():
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \|[^|]*\|([^|]*)\|$", (GUIDE / "house.md").read_text(), flags=re.M)
    shown = {room: allowed.replace("torch alone", "").replace(",", "").split() for room, allowed in rows}
    assert {room: shown.get(room) for room in ROOMS} == {room: allowed.split() for room, allowed in ROOMS.items()}


def test_no_other_room_imports_the_guides():
    for path in (ROOT / "pyrovae").rglob("*.py"):
        if GUIDE not in path.parents:
            names = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert "pyrovae.guide" not in names, path
