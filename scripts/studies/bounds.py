"""Compare training objectives: the ELBO, the importance-weighted bound, and DReG, for several draws and seeds.

python scripts/studies/bounds.py --out bounds
python scripts/studies/bounds.py --out bounds --draws '[1,10]' -- --data mnist --data_dir data --epochs 5

scripts/train.py trains each objective with each seed into a separate run folder. Flags after -- are passed to train.py.
A second call resumes an interrupted one. L_K is the published protocol with draws from the guide; log p(x) uses the
default proposal with fewer draws. Standard errors are over data and seeds; those of differences are paired. VAE is the
ELBO averaged over k draws. With one draw it equals the importance-weighted bound, which is then not trained again.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from itertools import pairwise
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from pyrovae.diagnostics import ACTIVE_FROM, unit_activity
from pyrovae.execution import Progress
from pyrovae.programs import ProgramPair
from pyrovae.runs import Seed, check_folder, make_parser, parse_flags, run_script, write_json
from pyrovae.runs.sweep import device_of, measure, refuse_flags, split_flags, train_all
from pyrovae.runs.tables import aligned
from pyrovae.stats import crossed_mean_and_std_error

OBJECTIVES = {
    "VAE": "--elbo MultiplyImportanceWeightedELBO --elbo.num_particles 1 --elbo.num_groups {k}",
    "IWAE": "--elbo ImportanceWeightedELBO --elbo.num_particles {k}",
    "DReG": "--elbo ImportanceWeightedELBO --elbo.num_particles {k} --elbo.gradient dreg",
}
TAKEN = {
    "elbo": "the table compares objectives",
    "seed": "give --seeds before --",
    "out": "give --out before --",
    "num_particles": "give --num_particles before --",
    "proposal": "the table uses the default and the guide",
}
Cell = tuple[str, int]


def main() -> int:
    """Train the missing runs, evaluate all, and print the tables."""
    parser = make_parser(prog="bounds.py", description=__doc__)
    add = parser.add_argument
    add("--out", type=str, required=True, help="folder of the runs and of bounds.json")
    add("--draws", type=list[PositiveInt], default=[1, 5, 50], help="draws per datum in training, k")
    add("--seeds", type=list[Seed], default=[0, 1, 2], help="training seeds")
    add("--jobs", type=PositiveInt, default=1, help="number of trainings at the same time")
    add("--num_data", type=PositiveInt, default=1000, help="largest number of test data in the table")
    add("--guide_particles", type=PositiveInt, default=5000, help="draws of the guide per test datum, K of L_K")
    add("--num_particles", type=PositiveInt, default=500, help="draws of the default proposal per test datum")
    own, training = split_flags(sys.argv[1:])
    flags = parse_flags(parser, own)
    refuse_flags(training, TAKEN)
    check_folder("--out", flags.out)
    out = Path(flags.out)
    cells: list[Cell] = [(name, k) for name in OBJECTIVES for k in sorted(flags.draws) if (name, k) != ("IWAE", 1)]
    folders = {(cell, seed): out / f"{cell[0]}-{cell[1]}-{seed}" for seed in flags.seeds for cell in cells}
    few = ["--num_particles", "25", "--proposal", "guide"]  # the table uses separate draws
    runs = {
        folder: [*OBJECTIVES[name].format(k=k).split(), *training, "--seed", str(seed), *few]
        for ((name, k), seed), folder in folders.items()
    }
    train_all(Path(__file__).parents[1] / "train.py", runs, jobs=flags.jobs)

    settings = {key: flags[key] for key in ("num_data", "guide_particles", "num_particles")}
    device = device_of(training)
    found: dict[Cell, dict[str, Tensor]] = {}
    with Progress(len(folders), "run", "log p(x)") as progress:
        for cell in cells:
            by_seed = []
            for seed in flags.seeds:
                by_seed.append(measure(folders[cell, seed], **settings, device=device, also=activity))
                progress.update()
            found[cell] = {key: torch.stack([one[key] for one in by_seed]) for key in by_seed[0]}
    if ("VAE", 1) in found:
        found["IWAE", 1] = found["VAE", 1]
    rows = {f"{name}, k = {k}": summary(values) for (name, k), values in found.items() if (name, k) in cells}
    differences = compared(found)
    write_json(out / "bounds.json", {"training": training, "flags": vars(flags), "rows": rows, "gains": differences})

    size = next(iter(found.values()))["bound"].shape[1]
    print(f"\n{size:,} test data, {len(flags.seeds)} seeds; nats per datum; sd: over the seeds\n")
    head = ["", f"L_{flags.guide_particles}", "s.e.", "sd", "log p(x)", "ELBO", "active units"]
    columns = ("bound", "bound_std_error", "bound_sd", "log_marginal", "elbo")
    lines = [[k, *(number(r[c], ".2f") for c in columns), number(r["active"], ".1f")] for k, r in rows.items()]
    print(aligned([head, *lines]))
    print(f"\ngain in L_{flags.guide_particles}, paired\n")
    lines = [[k, *(number(r[c], "+.3f") for c in ("gain", "std_error", "sd"))] for k, r in differences.items()]
    print(aligned([["", "gain", "s.e.", "sd"], *lines]))
    print(f"wrote {out / 'bounds.json'}")
    return 0


def activity(pair: ProgramPair, x: Tensor, conditions: dict[str, Tensor]) -> dict[str, Tensor]:
    """Measure the activity of each latent."""
    return {"activity": unit_activity(pair.model, pair.guide, x, **conditions).activity}


def summary(values: dict[str, Tensor]) -> dict[str, float | None]:
    """Compute means over seeds and data of values with shape (S, N), and the standard errors of L_K."""
    bound, error = crossed_mean_and_std_error(values["bound"])
    return {
        "bound": bound,
        "bound_std_error": error,
        "bound_sd": over_seeds(values["bound"]),
        "log_marginal": values["log_marginal"].mean().item(),
        "elbo": values["elbo"].mean().item(),
        "active": (values["activity"] > ACTIVE_FROM).double().sum(1).mean().item(),
    }


def compared(found: dict[Cell, dict[str, Tensor]]) -> dict[str, dict[str, float | None]]:
    """Compute paired gains of more draws for each objective, and of one objective over another for equal draws."""
    counts = sorted({k for _, k in found})
    pairs = [((name, low), (name, high)) for name in OBJECTIVES for low, high in pairwise(counts)]
    pairs += [((low, k), (high, k)) for low, high in (("VAE", "IWAE"), ("IWAE", "DReG")) for k in counts if k > 1]
    gains: dict[str, dict[str, float | None]] = {}
    for low, high in pairs:
        if low in found and high in found:
            difference = found[high]["bound"] - found[low]["bound"]
            gain, error = crossed_mean_and_std_error(difference)
            name = f"{high[0]}, k = {high[1]}, over {low[0]}, k = {low[1]}"
            gains[name] = {"gain": gain, "std_error": error, "sd": over_seeds(difference)}
    return gains


def over_seeds(values: Tensor) -> float | None:
    """Compute the standard deviation over seeds of the mean over data; None for one seed."""
    return values.mean(1).std().item() if len(values) > 1 else None


def number(value: float | None, form: str) -> str:
    """Format a number of a table; a dash for None."""
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    run_script(main)
