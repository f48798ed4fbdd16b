"""The run folder and the command line."""

from pyrovae.runs.cli import Seed, Stopper, finishing_steps, make_parser, make_run_parser, near, parse_flags, run_script
from pyrovae.runs.config import (
    build_kl_weight,
    build_objective,
    build_vae,
    check_parts,
    find_device,
    parse_training,
    resolve,
)
from pyrovae.runs.export import to_arviz
from pyrovae.runs.files import read_json, read_state, write_json, write_state, write_whole
from pyrovae.runs.run import METRICS, Run, load, open_run

__all__ = [
    "METRICS",
    "Run",
    "Seed",
    "Stopper",
    "build_kl_weight",
    "build_objective",
    "build_vae",
    "check_parts",
    "find_device",
    "finishing_steps",
    "load",
    "make_parser",
    "make_run_parser",
    "near",
    "open_run",
    "parse_flags",
    "parse_training",
    "read_json",
    "read_state",
    "resolve",
    "run_script",
    "to_arviz",
    "write_json",
    "write_state",
    "write_whole",
]
