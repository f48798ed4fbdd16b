"""Who may import whom: the two towers meet only in the courtyard, and importing changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyrovae"

# Each module's own modules below it. What stands in neither tower is the courtyard, which may import everything.
MODEL_TOWER = {"nn": set(), "bijections": set(), "chains": set(), "flows": set(), "likelihoods": {"nn"}}
MODEL_TOWER |= {kind: {"nn", "bijections", "chains", "flows"} for kind in ("priors", "encoders")}
MODEL_TOWER["vae"] = set(MODEL_TOWER)
MODEL_TOWER["programs"] = set(MODEL_TOWER)
COMPUTE_TOWER = {"pareto": set(), "stats": {"pareto"}, "handlers": set(), "streamed": set()}
COMPUTE_TOWER["arguments"] = {"streamed"}
COMPUTE_TOWER["densities"] = {"stats", "handlers"}
COMPUTE_TOWER["activity"] = {"arguments", "densities"}
# Torch alone, and no part of a model: the ground under both towers.
COMPUTE_TOWER["workers"] = set()
COMPUTE_TOWER["precision"] = set()
COMPUTE_TOWER["graphs"] = set()
COMPUTE_TOWER["recording"] = {"densities", "graphs"}
COMPUTE_TOWER["chunks"] = {"recording"}
COMPUTE_TOWER["latents"] = {"arguments", "stats", "densities", "handlers", "bijections", "chunks"}
COMPUTE_TOWER["laplace"] = {"latents", "densities"}
COMPUTE_TOWER["proposals"] = {"laplace", "latents", "densities"}
COMPUTE_TOWER["exact"] = {"laplace", "latents", "densities"}
COMPUTE_TOWER["temperatures"] = set()
COMPUTE_TOWER["ais"] = {"arguments", "stats", "densities", "latents", "recording", "temperatures"}
COMPUTE_TOWER["brackets"] = {"arguments", "stats", "densities", "latents", "proposals", "ais", "temperatures"}
COMPUTE_TOWER["refinement"] = {"arguments", "stats", "densities", "latents", "ais"}
COMPUTE_TOWER["importance"] = {"arguments", "stats", "densities", "latents", "proposals", "recording", "chunks"}
COMPUTE_TOWER["plain"] = {"densities", "recording"}
COMPUTE_TOWER["steps"] = {"arguments", "densities", "graphs", "handlers", "plain", "precision", "recording", "workers"}
COMPUTE_TOWER["losses"] = {"densities"}
COMPUTE_TOWER["means"] = set()
COMPUTE_TOWER["bounds"] = {"densities", "handlers", "losses", "means"}
COMPUTE_TOWER["decompositions"] = {"densities", "losses"}
COMPUTE_TOWER["kl"] = set()
COMPUTE_TOWER["objectives"] = {"densities", "kl", "losses"}
COMPUTE_TOWER["validation"] = {"arguments", "densities", "handlers", "importance", "stats", "workers"}
COMPUTE_TOWER["progress"] = {"densities", "objectives", "steps", "validation"}
COMPUTE_TOWER["svi"] = set(COMPUTE_TOWER)
TOWERS = {**MODEL_TOWER, **COMPUTE_TOWER}
TORCH_ONLY = {"graphs", "means", "pareto", "precision", "kl", "stats", "nn", "bijections", "temperatures"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(module: str) -> list[Path]:
    folder = PACKAGE / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{module}.py"]


@pytest.mark.parametrize("module", TOWERS)
def test_a_floor_imports_only_floors_below_it(module):
    for path in files_of(module):
        for name in imports_of(path):
            if name.split(".")[0] == "pyrovae":
                below = name.split(".")[1]
                assert below in TOWERS[module] | {module}, f"{path.name} imports {name}"


@pytest.mark.parametrize("module", sorted(TORCH_ONLY))
def test_the_ground_floors_import_torch_alone(module):
    for path in files_of(module):
        own = (f"pyrovae.{module}.", *(f"pyrovae.{below}." for below in TOWERS[module]))
        others = {name for name in imports_of(path) if not name.startswith(own)}
        assert {name.split(".")[0] for name in others} - set(sys.stdlib_module_names) <= {"torch"}


def test_every_module_of_the_towers_is_there():
    for module in TOWERS:
        assert all(path.is_file() for path in files_of(module))


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
