"""The commands and flags in README, guides and docstrings of the scripts: each is given to its script, which parses it.

`train.py` also loads small data and builds its programs, and stops before it writes the run folder.
"""

import ast
import doctest
import re
import runpy
import shlex
import signal
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data_helpers import write_fake_mnist

import pyrovae.runs
from pyrovae.data import columns_yaml, load_data, read_table
from pyrovae.guide import TOPICS
from pyrovae.runs.options import part_options
from pyrovae.runs.parse import config_to_yaml
from pyrovae.runs.registry import known_parts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "pyrovae" / "guide").glob("*.md"))]
SOURCES = [
    path
    for path in sorted((ROOT / "scripts").rglob("*.py"))
    if not path.name.startswith("benchmark_") and "run_script(main)" in path.read_text()
]
# Scripts whose flags the prose of the pages names, with the arguments that they need.
NEEDED = {
    "train": [],
    "evaluate": ["RUN"],
    "sample": ["RUN"],
    "report": ["RUN"],
    "compare": ["RUN", "RUN2"],
    "impute": ["RUN", "survey.csv"],
    "score": ["RUN", "survey.csv"],
    "studies/swap": ["--out", "table"],
    "studies/published": ["burda-iwae", "--data_dir", "data"],
}
# What the commands name and this machine may lack, and what stands for it here.
STANDS_FOR = {"cuda": "cpu", "[topic]": "glossary"}
# A table with the columns that the pages name.
TABLE = "income,species,body_mass_g,school,w,year\n" + "".join(
    f"{900 + 37 * i % 500},s{i % 3},{2700 + 25 * (7 * i % 90)},c{i % 9},{1 + i % 2},{2007 + i % 3}\n" for i in range(90)
)


ACCEPTED = set()  # commands that this process has tried


class AcceptedError(BaseException):
    """Raised in place of what a script does after it has accepted its command line."""


def code_of(page):
    """Code other than Python: indented lines, fenced lines, and text between backticks."""
    text = re.sub(r"^```python$.*?^```$", "", page.read_text(), flags=re.M | re.S)
    fenced = re.findall(r"^```(?:sh|text)?$(.*?)^```$", text, flags=re.M | re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4}(.*)$", text, flags=re.M)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^ {4}.*$", "", text, flags=re.M))
    lines = "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()
    return [*lines, *(span.replace("\n", " ") for span in inline)]


def lines_of(source):
    """Return the commands in a script's docstring: lines that begin with the name of a program."""
    text = ast.get_docstring(ast.parse(source.read_text()))
    return [line for line in text.splitlines() if line.startswith(("python ", "torchrun "))]


def commands_in(page):
    """Find the commands of a page or script as (script, arguments); a script is a path or `pyrovae.guide`."""
    found = []
    for line in code_of(page) if page.suffix == ".md" else lines_of(page):
        for command in line.split(" && "):
            if "scripts/" not in command and "-m pyrovae" not in command:
                continue
            words = shlex.split(command.partition(" > ")[0], comments=True)
            for place, word in enumerate(words):
                if re.search(r"(^|/)scripts/.*\.py$", word):
                    found.append((word[word.index("scripts/") :], words[place + 1 :]))
                elif word.startswith("pyrovae.") and words[place - 1] == "-m":
                    found.append((word, words[place + 1 :]))
    return found


def own_module():
    """Return the source of `mymodule`: the imports and the parts that the guides tell the user to save in a file."""
    statements = []
    for name in ("parts", "models"):
        examples = doctest.DocTestParser().get_examples((ROOT / "pyrovae" / "guide" / f"{name}.md").read_text())
        for statement in (statement for example in examples for statement in ast.parse(example.source).body):
            if isinstance(statement, ast.Import | ast.ImportFrom | ast.ClassDef):
                statements.append(ast.unparse(statement))
    return "\n".join(statements)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Make a folder with small data, a module and a configuration, named as in the commands."""
    path = tmp_path_factory.mktemp("commands")
    counts = np.random.default_rng(0).integers(0, 9, (60, 16)).astype(np.float32)
    for name in ("counts", "large"):
        np.save(path / f"{name}.npy", counts)
    np.save(path / "batch.npy", counts[:, :1])
    np.savez(path / "many.npz", expression=counts)
    for name in ("survey", "penguins"):
        (path / f"{name}.csv").write_text(TABLE)
    columns = {**yaml.safe_load(columns_yaml(read_table(path / "survey.csv").columns))}
    (path / "columns.yaml").write_text(yaml.safe_dump(columns))
    write_fake_mnist(path / "data", 60, 30)
    (path / "mymodule.py").write_text(own_module())
    defaults = pyrovae.runs.resolve(pyrovae.runs.parse_training([]), load_data("digits"))
    for run in ("RUN", "runs/digits-001"):
        (path / run).mkdir(parents=True)
        (path / run / "config.yaml").write_bytes(config_to_yaml(defaults))
    return path


@pytest.fixture
def accept(folder, monkeypatch):
    """Return a function that gives a command to its script and returns None, or the script's refusal."""

    def stop(*args, **kwargs):
        raise AcceptedError

    def then_stop(parse):
        def parse_and_stop(*args, **kwargs):
            parse(*args, **kwargs)
            stop()

        return parse_and_stop

    monkeypatch.chdir(folder)
    monkeypatch.setattr(pyrovae.runs, "parse_flags", then_stop(pyrovae.runs.parse_flags))  # not that of train.py
    monkeypatch.setattr(pyrovae.runs.Run, "create", stop)
    monkeypatch.setattr(pyrovae.runs.Run, "__init__", stop)

    def accept(script, arguments, *, only_parse=False):
        words = [STANDS_FOR.get(word, word) for word in arguments]
        monkeypatch.setattr(sys, "argv", [script, *words])
        monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        before = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
        out = StringIO()
        try:
            with redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stderr", out)
                if only_parse:
                    patch.setattr(pyrovae.runs, "parse_training", then_stop(pyrovae.runs.parse_training))
                runpy.run_path(str(ROOT / script), run_name="__main__")
        except AcceptedError:
            return None
        except SystemExit as end:
            return out.getvalue().strip() if end.code else None  # without an error: a help was printed
        finally:
            signal.signal(signal.SIGTERM, before[0])
            torch.set_num_threads(before[1])
        return f"{script} neither accepted nor refused {shlex.join(words)}"

    return accept


@cache
def flags_of(script):
    """Read the flags in a script's help, without the dashes."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as text:
        patch.setattr(sys, "argv", [script, "--help"])
        patch.syspath_prepend((ROOT / script).parent)  # the studies import each other
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return {"help", *re.findall(r"(?:^\s*|, |\[)--(\w+)", text.getvalue(), flags=re.M)}


def named(page):
    return page.stem


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=named)
@pytest.mark.thin(7)
def test_a_script_accepts_every_command_that_a_page_or_docstring_gives(page, accept):
    for script, arguments in commands_in(page):
        if script == "pyrovae.guide":
            assert {STANDS_FOR.get(word, word) for word in arguments} <= set(TOPICS)
            continue
        assert (ROOT / script).is_file()
        end = arguments.index("--") if "--" in arguments else len(arguments)  # the rest goes to train.py
        if not arguments and page.suffix == ".md" and script != "scripts/train.py":
            continue  # the name of a script, without what it needs
        for name, given in ((script, arguments), ("scripts/train.py", arguments[end + 1 :])):
            if (name, *given) not in ACCEPTED:  # on another page
                assert accept(name, given) is None, (page.name, name, given)
                ACCEPTED.add((name, *given))


@pytest.mark.parametrize(
    ("script", "command", "words"),
    [
        ("train", "--prior MixedPrior", "no such prior"),
        ("train", "--prior MixturePrior --prior.components 20", "components"),
        ("train", "--prior.num_components 20", "num_components"),
        ("train", "--epoch 2", "no such flag"),
        ("train", "--epochs many", "--epochs many"),
        ("train", "--output_bias mean", "--output_bias mean"),
        ("train", "--prior mymodule.Missing", "no class Missing"),
        ("train", "--data counts.npy --likelihood BernoulliLikelihood", "counts.npy"),
        ("train", "--prior CategoricalPrior --encoder CategoricalEncoder --elbo TraceMeanField_ELBO", "TraceEnum_ELBO"),
        ("evaluate", "RUN --proposal posterior", "--proposal posterior"),
        ("compare", "", "required"),
        ("studies/bounds", "--out bounds --draws [0]", "--draws"),
    ],
)
def test_a_command_with_a_wrong_name_or_value_is_refused(accept, script, command, words):
    assert words in (accept(f"scripts/{script}.py", shlex.split(command)) or "")


def refusals_of(span, accept):
    """Give a flag, with its value if any, to every script or part that has it; return what each answers."""
    flag, *value = shlex.split(span)
    name, _, option = flag[2:].partition(".")
    if option and name != "columns":
        parts = [part for part, found in known_parts(name).items() if option in (part_options(name, found) or ())]
        commands = [("train", [f"--{name}", part, *([flag, *value] if value else [])]) for part in parts]
    else:
        owners = [script for script in NEEDED if name in flags_of(f"scripts/{script}.py")]
        commands = [(script, [*NEEDED[script], *([flag, *value] if value else [])]) for script in owners]
    return [accept(f"scripts/{script}.py", arguments, only_parse=True) for script, arguments in commands]


@pytest.mark.parametrize("page", PAGES, ids=named)
@pytest.mark.thin(5)
def test_a_script_has_every_flag_in_the_prose_of_a_page_and_accepts_its_value(page, accept):
    for span in re.findall(r"`(--[^`]+)`", page.read_text()):
        assert None in refusals_of(span.replace("\n", " "), accept), span


@pytest.mark.parametrize(
    "span", ["--epoch", "--prior.components", "--prior MixedPrior", "--stream perhaps", "--likelihood.num_bins many"]
)
def test_a_flag_of_the_prose_with_a_wrong_name_or_value_is_found(accept, span):
    assert None not in refusals_of(span, accept)


def test_every_script_is_named_in_a_page():
    scripts = {script for page in PAGES for script, _ in commands_in(page)}
    assert {str(path.relative_to(ROOT)) for path in SOURCES} <= scripts
