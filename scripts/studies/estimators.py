"""Compare estimators of log p(x) in nats and seconds, on the first test data of one trained run.

python scripts/studies/estimators.py runs/mnist-001 --out estimators.json
python scripts/studies/estimators.py runs/mnist-001 --num_data 20 --ais_prior '[]' --ais_guide '[100,400]'

The estimators are importance sampling from the guide, as in most papers, and from the default proposal of
`log_marginal`, and annealed importance sampling with 16 chains from the prior, the guide, and the Laplace
approximation. All are lower bounds of log p(x) in expectation, so the highest is the closest. After an interruption,
the same command resumes from the file --out.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from torch import Tensor

from pyrovae import VAE, GuideProposal, LogMarginal, ais, log_marginal, sigmoidal_schedule
from pyrovae.densities import isolated_rng
from pyrovae.evidence import LatentSpace, laplace_fit
from pyrovae.runs import (
    check_writable,
    find_device,
    make_run_parser,
    open_run,
    parse_flags,
    read_json,
    read_state,
    run_script,
    write_json,
    write_state,
)
from pyrovae.runs.files import from_plain, to_plain
from pyrovae.runs.run import WEIGHTS
from pyrovae.runs.tables import aligned
from pyrovae.stats import mean_and_std_error, monte_carlo_std_error

CHAINS = 16


def laplace(space: LatentSpace) -> tuple[Tensor, Tensor]:
    """Find the start of the chains: the normal at the mode of each datum's posterior."""
    fit = laplace_fit(space)
    return fit.mode, fit.scale_tril


def main() -> int:
    """Run the estimators and print the table."""
    parser = make_run_parser(prog="estimators.py", description=__doc__)
    parser.add_argument("--num_data", type=PositiveInt, default=50, help="number of test data, from the first")
    for flag, counts, meaning in (
        ("guide", [1000, 5000, 50_000], "numbers of draws K from the guide"),
        ("default", [500, 5000], "numbers of draws K from the default proposal"),
        ("ais_prior", [100, 1000], "numbers of temperatures of AIS from the prior"),
        ("ais_guide", [100, 400], "numbers of temperatures of AIS from the guide"),
        ("ais_laplace", [100, 400], "numbers of temperatures of AIS from the Laplace approximation"),
    ):
        parser.add_argument(
            f"--{flag}", type=list[PositiveInt], default=counts, help=f"{meaning}, one per row", may_be_empty=True
        )
    parser.add_argument("--out", type=str, default="estimators.json", help="file for the table")
    args = parse_flags(parser, sys.argv[1:])

    check_writable("--out", args.out)
    run, vae, data = open_run(args)
    device = find_device(args.device)
    x = data.test[: args.num_data].to(device)
    conditions = {name: value[: len(x)] for name, value in data.conditions("test", device).items()}
    estimators = make_estimators(args, vae, x, conditions)
    if not estimators:
        raise ValueError("the table needs at least one estimator, got none; give one of the flags a number")

    out, about = Path(args.out), {"weights": run.manifest["files"][WEIGHTS], "num_data": len(x), "seed": args.seed}
    table = read_json(out) if out.exists() else {"about": about, "rows": {}}
    if table.get("about") != about:
        raise ValueError(f"--out {out} holds the table of another run, seed or number of data; choose another file")
    partial_path = out.with_name(f"{out.name}.partial")
    for name in estimators:
        if name not in table["rows"]:
            made, seconds = estimate(name, estimators[name], args.seed, partial_path)
            table["rows"][name] = {
                "value": to_plain(made.value),
                "std_error": to_plain(made.std_error),
                "seconds": seconds,
            }
            write_json(out, table)
            partial_path.unlink(missing_ok=True)
    print(f"\n{len(x):,} test data; nats per datum; AIS with {CHAINS} chains; differences from the last\n")
    print(layout({name: table["rows"][name] for name in estimators if name in table["rows"]}))
    print(f"wrote {out}")
    return 0


def make_estimators(args: Namespace, vae: VAE, x: Tensor, conditions: dict[str, Tensor]) -> dict[str, Any]:
    """Make the estimators that the flags ask for, by name, as functions without arguments."""
    estimators: dict[str, Any] = {}
    for name, proposal in (("guide", GuideProposal()), ("default", None)):
        for count in args[name]:
            estimators[f"{name}, K = {count:,}"] = partial(
                log_marginal, vae.model, vae.guide, x, num_particles=count, proposal=proposal, **conditions
            )
    starts = {"prior": {}, "guide": {"guide": vae.guide}, "laplace": {"guide": vae.guide, "start": laplace}}
    for name, start in starts.items():
        for count in args[f"ais_{name}"]:
            betas = sigmoidal_schedule(count)
            estimators[f"AIS from {name.capitalize() if name == 'laplace' else name}, T = {count:,}"] = partial(
                ais, vae.model, x, num_particles=CHAINS, betas=betas, progress=True, **start, **conditions
            )
    return estimators


def estimate(name: str, estimator: Any, seed: int, path: Path) -> tuple[LogMarginal, float]:
    """Run one estimator; the chains of annealing resume from the state of an earlier call, if any."""
    options: dict[str, Any] = {}
    before = 0.0
    started = time.perf_counter()
    if name.startswith("AIS"):
        begun = read_state(path) if path.exists() else {"name": None}
        if begun["name"] == name:
            options["resume"], before = begun["state"], begun["seconds"]

        def commit(state: dict[str, Any]) -> None:
            write_state(path, {"name": name, "state": state, "seconds": before + time.perf_counter() - started})

        options["commit"] = commit
    with isolated_rng(seed):
        made = estimator(**options)
    return made, before + time.perf_counter() - started


def summary(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Compute means, Monte Carlo errors, and paired differences from the last row, whose own are None."""
    found: dict[str, dict[str, float | None]] = {}
    *_, reference = rows.values()
    other, other_error = from_plain(reference["value"]), from_plain(reference["std_error"])
    for name, row in rows.items():
        value, error = from_plain(row["value"]), from_plain(row["std_error"])
        last = row is reference
        mean, over_data = mean_and_std_error(value - other)
        found[name] = {
            "mean": value.mean().item(),
            "mc_std_error": monte_carlo_std_error(error),
            "difference": None if last else mean,
            "difference_std_error": None if last else over_data,
            "difference_mc_std_error": None if last else monte_carlo_std_error(torch.hypot(error, other_error)),
            "seconds": row["seconds"],
        }
    return found


def layout(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the table of `summary`."""
    forms = (".3f", ".3f", "+.3f", ".3f", ".3f", ".1f")
    lines = [["", "log p(x)", "s.e. MC", "difference", "s.e. data", "s.e. MC", "seconds"]]
    for name, row in summary(rows).items():
        texts = ("" if v is None else format(v, form) for v, form in zip(row.values(), forms, strict=True))
        lines.append([name, *texts])
    return aligned(lines)


if __name__ == "__main__":
    run_script(main)
