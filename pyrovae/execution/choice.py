"""The choice between eager, recorded and compiled execution."""

from typing import Literal

Execution = Literal["auto", "eager", "recorded", "compiled"]


def choose_execution(execution: Execution, calls: int, *, recorded_from: int, compiled_from: int) -> Execution:
    """Resolve "auto" by the number of calls. The choice never depends on timing, so that runs are reproducible.

    Args:
        execution: How to run the programs: "eager", "recorded", "compiled", or "auto", which chooses by the number of
            calls.
        calls: Number of calls of the function in the whole run.
        recorded_from: Number of calls from which recording pays.
        compiled_from: Number of calls from which compiling pays.

    Raises:
        ValueError: If execution is none of the four.
    """
    if execution not in ("auto", "eager", "recorded", "compiled"):
        raise ValueError(f'execution must be "auto", "eager", "recorded" or "compiled", got {execution!r}')
    if execution != "auto":
        return execution
    return "compiled" if calls >= compiled_from else "recorded" if calls >= recorded_from else "eager"
