"""The run folder and the command line.

train.py: flags -> parse -> table_data -> resolve -> build, with the registry of parts and their options.
All scripts: parser (flags, help, errors), words (types in words), cli (exit codes, signals).
Run folder: run, files, locks, snapshots, report, tables, export, encodings, comparison, sweep, versions.
Files of strangers: reading (sizes, kinds of values), readers (one per file), partial (stopped evaluations).
"""

from pyrovae.runs.build import (
    Objective,
    build_objective,
    build_vae,
    check_contract,
    check_enumeration,
    check_reparameterised,
    check_site_order,
    needs_enumeration,
    needs_mean_field,
)
from pyrovae.runs.cli import Stopper, finishing_steps, out_of_memory, run_script
from pyrovae.runs.encodings import write_projector
from pyrovae.runs.export import to_arviz
from pyrovae.runs.files import check_folder, check_writable, read_state, write_json, write_state, write_whole
from pyrovae.runs.parse import parse_training
from pyrovae.runs.parser import make_parser, make_run_parser, parse_flags, with_name_lists
from pyrovae.runs.reading import read_json
from pyrovae.runs.registry import describe
from pyrovae.runs.resolve import find_device, resolve
from pyrovae.runs.run import METRICS, Run, load, open_run
from pyrovae.runs.snapshots import Snapshots, SnapshotWriter, read_snapshots
from pyrovae.runs.table_data import training_data, training_table, trusted_modules
from pyrovae.runs.tables import KHAT_DRAWS, aligned, caution, ladder_lines, table, table_lines
from pyrovae.runs.words import Seed, near

__all__ = [
    "KHAT_DRAWS",
    "METRICS",
    "Objective",
    "Run",
    "Seed",
    "SnapshotWriter",
    "Snapshots",
    "Stopper",
    "aligned",
    "build_objective",
    "build_vae",
    "caution",
    "check_contract",
    "check_enumeration",
    "check_folder",
    "check_reparameterised",
    "check_site_order",
    "check_writable",
    "describe",
    "find_device",
    "finishing_steps",
    "ladder_lines",
    "load",
    "make_parser",
    "make_run_parser",
    "near",
    "needs_enumeration",
    "needs_mean_field",
    "open_run",
    "out_of_memory",
    "parse_flags",
    "parse_training",
    "read_json",
    "read_snapshots",
    "read_state",
    "resolve",
    "run_script",
    "table",
    "table_lines",
    "to_arviz",
    "training_data",
    "training_table",
    "trusted_modules",
    "with_name_lists",
    "write_json",
    "write_projector",
    "write_state",
    "write_whole",
]
