"""One program of the zoo: how it is built, how it runs on draws, and its log p(x)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Built:
    """A model and a guide with data.

    Attributes:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        args: Positional arguments of both programs.
        kwargs: Keyword arguments of both programs.
        log_p: Function that computes log p(x_n) in nats, with shape (N,), without the library; None if refused.
        error: Error of `log_p` in nats.
        evidence: Function that computes the log p of the whole data set; None if it is the sum of log p(x_n).
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    log_p: Callable[[], Tensor] | None = None
    error: float = 1e-6
    evidence: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Entry:
    """A program of the zoo.

    Attributes:
        name: What the program is, for the guide's table.
        how: "broadcast", "tiled" or "refused".
        build: Function that makes the programs and the data anew.
        estimators: What applies: `log_marginal` by "default" or by draws of the "guide"; "exact", "ais".
        refusal: Regular expression of the error of `log_marginal`, if refused.
        reason: Why it is refused, and what to do, for the table.
        enumerates: The program, "model" or "guide", whose discrete sites `fit` enumerates; empty if none.
        trains: Whether `fit` is compared with SVI.
        shuffles: Whether `fit` shuffles the rows; not if the guide has parameters for each.
        warns: Start of a warning of `log_marginal`, if any.
        waits: By kind of test, the point of the issue that it needs and that is not there yet.
    """

    name: str
    how: str
    build: Callable[[], Built]
    estimators: tuple[str, ...] = ("default", "guide", "exact", "ais")
    refusal: str = ""
    reason: str = ""
    enumerates: str = ""
    trains: bool = True
    shuffles: bool = True
    warns: str = ""
    waits: Mapping[str, int] = field(default_factory=dict)


def waits_for(point: int, kinds: str) -> dict[str, int]:
    """Say which kinds of test, separated by blanks, wait for a point of the issue."""
    return dict.fromkeys(kinds.split(), point)


ENUMERATION = waits_for(12, "weights default guide bound exact ais")

ZOO: dict[str, Entry] = {}


def program(name: str, how: str = "broadcast", **options: Any) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Add the programs that a function builds to the zoo."""

    def add(build: Callable[[], Built]) -> Callable[[], Built]:
        assert build.__name__ not in ZOO
        ZOO[build.__name__] = Entry(name, how, build, **options)
        return build

    return add
