"""The studies' way to `scripts/startup.py`, since Python finds modules in the folder of a script alone."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "startup.py"))
