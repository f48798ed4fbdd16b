"""Which room may import which: the two towers meet only in the courtyard, and importing changes nothing."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyrovae"

# Each room of a tower, and the rooms it may import. The courtyard may import all of them.
ROOMS = {
    # ground
    "bijections": "",
    "columns": "",
    # what the model is
    "nn": "columns",
    "distributions": "",
    "priors": "bijections nn distributions",
    "likelihoods": "columns nn distributions",
    "encoders": "bijections columns nn distributions",
    "programs": "columns nn priors likelihoods encoders",
    # what is computed
    "stats": "",
    "densities": "",
    "execution": "densities",
    "evidence": "bijections densities stats execution",
    "objectives": "densities execution",
    "training": "densities execution objectives",
}
COURTYARD = {"baselines", "data", "diagnostics", "page", "plots", "runs", "sklearn"}
LIBRARIES = {  # of the rooms on the ground
    "bijections": {"torch"},
    "columns": {"torch"},
    "nn": {"torch"},
    "stats": {"torch", "scipy"},
}
FILES = sorted(path for folder in ("pyrovae", "scripts", "tests") for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports_of(path: Path) -> set[str]:
    """The dotted names that a file imports."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def rooms_of(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("pyrovae.")}


@cache
def exported_by(room: str) -> set[str]:
    """The public names of a room."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    return set(next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)))


def test_every_file_is_in_a_room():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - {"guide"} == set(ROOMS) | COURTYARD


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room):
    for path in files_of(room):
        above = rooms_of(path) - {room, *ROOMS[room].split()}
        assert not above, f"{path.relative_to(PACKAGE)} imports {above}"


@pytest.mark.parametrize("room", [*ROOMS, *sorted(COURTYARD)])
def test_other_rooms_are_imported_by_their_public_names(room):
    """No file imports a private name or a module of another room, the whole package, or the guides."""
    for path in files_of(room):
        for name in imports_of(path):
            package, *inside = name.split(".")
            if package != "pyrovae" or inside[:1] == [room]:
                continue
            where = f"{path.relative_to(PACKAGE)} imports {name}"
            assert inside[:1] != ["guide"], where
            if path.name == "registry.py" and len(inside) == 1:
                continue  # it lists the classes of whole rooms
            assert len(inside) == 2, f"{where}; import a public name of a room"
            assert inside[1] in exported_by(inside[0]), f"{where}, which {inside[0]} does not export"


def test_no_module_is_imported_by_a_string():
    for path in PACKAGE.rglob("*.py"):
        assert path.name == "registry.py" or "import_module(" not in path.read_text(), path.name


def test_the_imports_of_rooms_form_no_cycle():
    uses = {room: set().union(*map(rooms_of, files_of(room))) - {room} for room in {*ROOMS, *COURTYARD}}
    while uses:
        free = {room for room, below in uses.items() if not below & set(uses)}
        assert free, f"a circle among {sorted(uses)}"
        uses = {room: below for room, below in uses.items() if room not in free}


@pytest.mark.parametrize("room", sorted({*ROOMS, *COURTYARD}))
def test_a_room_says_what_it_is_for_and_hands_on_its_names(room):
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    assert len(ast.get_docstring(tree).split()) >= 5
    handed_on = {name.rsplit(".", 1)[1] for name in imports_of(PACKAGE / room / "__init__.py")}
    assert handed_on == exported_by(room)


def test_tests_mirror_the_rooms():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {*ROOMS, *COURTYARD, "hostile"}  # of all rooms: what a stranger may feed in


def test_no_two_files_of_tests_share_a_name():
    """Files of tests are no package, so that pytest would take the second for the first."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in set(names) if names.count(name) > 1] == []


@pytest.mark.parametrize("room", sorted(LIBRARIES))
def test_the_ground_imports_its_libraries_alone(room):
    allowed = [["pyrovae", below] for below in (room, *ROOMS[room].split())]
    for path in files_of(room):
        others = {name for name in imports_of(path) if name.split(".")[:2] not in allowed}
        assert {name.split(".")[0] for name in others} - set(sys.stdlib_module_names) <= LIBRARIES[room]


def test_no_file_is_longer_than_500_lines():
    assert [str(path) for path in FILES if len(path.read_text().splitlines()) > 500] == []


def test_no_function_body_is_longer_than_80_lines():
    long = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and body[-1].end_lineno - body[0].lineno >= 80:
                    long.append(f"{path}: {node.name}")
    assert long == []


def test_importing_changes_no_global_state():
    script = """
import random, numpy, pyro, torch
import torch.distributions
def state():
    return (torch.get_default_dtype(), torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            torch.distributions.Distribution._validate_args, pyro.settings.get(), list(pyro.get_param_store()),
            torch.is_grad_enabled(), torch.get_num_threads())
before = state()
import pyrovae
assert state() == before, "importing pyrovae changed global state"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_the_top_level_has_nothing_but_the_project():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone of the repository")
    names = {name.split("/")[0] for name in listed.stdout.splitlines()}
    kept = {"pyproject.toml", "pyrovae", "scripts", "tests", "README.md", "LICENSE"}
    assert {name for name in names if not name.startswith(".")} == kept
