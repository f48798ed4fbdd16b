"""Make objects of the payloads as jsonargparse does by default, and print those that ran code."""

import shutil
import sys
from pathlib import Path
from typing import Any

import jsonargparse
from audit import watched
from payloads import CLASSES, FORMS, WRITTEN

import pyrovae.runs  # noqa: F401  # some payloads go through its modules


def main(folder):
    sys.path.insert(0, str(folder))
    marks = folder / "marks"
    for kind, make in CLASSES.items():
        for form in FORMS:
            parser = jsonargparse.ArgumentParser(exit_on_error=False)
            parser.add_argument("--x", type=Any)
            sys.modules.pop("hostile_module", None)
            with watched() as seen:
                made = parser.instantiate(parser.parse_object({"x": WRITTEN[form](make(marks / "mark"))})).x
            if seen:
                print(f"{kind}, {form}")
            for end in ("wait", "close", "cleanup"):
                getattr(made, end, lambda: None)()
            for path in marks.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
