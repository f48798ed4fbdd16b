"""List the guides of the installed version, or page one.

python -m pyrovae.guide            # the topics
python -m pyrovae.guide log-p-x    # one of them
"""

import argparse
import pydoc
import sys
from collections.abc import Sequence

from pyrovae.guide import TOPICS, read, summary
from pyrovae.runs import near, run_script


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list of topics, or one guide, through a pager on a terminal."""
    parser = argparse.ArgumentParser(prog="python -m pyrovae.guide", description="Show the guides of pyrovae.")
    parser.add_argument("topic", nargs="?", help=f"one of {', '.join(TOPICS)}; without it, list them")
    topic = parser.parse_args(argv).topic
    if topic is None:
        width = max(map(len, TOPICS))
        print("\n".join(f"{name:{width}}  {summary(name)}" for name in TOPICS))
        return 0
    if topic not in TOPICS:
        print(f"no guide is called {topic!r}; {near(topic, TOPICS)}", file=sys.stderr)
        return 2
    pydoc.pager(read(topic))
    return 0


if __name__ == "__main__":
    run_script(main)
