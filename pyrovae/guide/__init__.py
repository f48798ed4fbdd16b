"""The guides, one Markdown file per topic. `python -m pyrovae.guide [topic]` lists and pages them."""

from pathlib import Path

__all__ = ["TOPICS", "read", "summary"]

TOPICS = (
    "start",
    "own-data",
    "own-array",
    "trained-run",
    "parts",
    "models",
    "programs",
    "log-p-x",
    "look",
    "objectives",
    "training",
    "scripts",
    "run-folder",
    "safety",
    "speed",
    "results",
    "published",
    "tables",
    "house",
    "glossary",
)
"""The topics, in reading order."""


def read(topic: str) -> str:
    """Return the text of a guide.

    Args:
        topic: Name among `TOPICS`.

    Raises:
        KeyError: If there is no such topic.
    """
    if topic not in TOPICS:
        raise KeyError(topic)
    return Path(__file__).with_name(f"{topic}.md").read_text(encoding="utf-8")


def summary(topic: str) -> str:
    """Return the first sentence below a guide's title."""
    return read(topic).split("\n\n")[1].replace("\n", " ").partition(". ")[0].rstrip(".")
