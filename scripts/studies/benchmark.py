"""Measure pyrovae against hand-written PyTorch, Pyro and NumPyro, side by side in one run.

python scripts/studies/benchmark.py                                    # all tables, on random bits
python scripts/studies/benchmark.py --data_dir data --json speed.json  # on MNIST, numbers kept
python scripts/studies/benchmark.py --parts '[steps]' --batch_sizes '[20,256]' --rounds 40
python scripts/studies/benchmark.py --parts '[evidence,annealing]' --run RUN --threads 1   # log p(x) of a trained model

The model is a VAE, 784-400-50 and back, softplus, in float32, without Pyro's validation. Every way has one turn in each
round, so that other load on the machine affects all alike. Ratios within one run count. The first calls, which record
and compile, are timed apart. NumPyro is measured if it is installed (pip install numpyro). Its products are in full
float32 too: on a GPU, JAX uses TF32 by default.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import importlib.util
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import benchmark_evidence as evidence
import pyro
import torch
from benchmark_evidence import make_vae, ways_of_annealing, ways_of_evaluating
from benchmark_floors import sampling_products, step_products
from benchmark_peers import (
    NUM_DATA,
    PARTICLES,
    D,
    hand_written_sampling,
    hand_written_step,
    numpyro_sampling,
    numpyro_steps,
    pyro_sampling,
    svi_step,
)
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from pyrovae import GuideProposal
from pyrovae.data import load_data
from pyrovae.evidence import DEFAULT_CHUNK_SIZE, log_marginal, log_weight_blocks
from pyrovae.execution import Execution, Workers
from pyrovae.runs import check_writable, find_device, make_parser, parse_flags, read_json, run_script, write_json
from pyrovae.runs.tables import aligned
from pyrovae.training import Batches, GraphedEpoch, SingleSteps, Stepper, trainable_parameters

GROWTH_DATA, GROWTH_PARTICLES, TENFOLD = 64, 500, 10
Part = Literal["floor", "growth", "steps", "sampling", "evidence", "annealing", "processes"]
FIRST_CALLS = 3  # which record, compile and compare
Times = dict[str, list[float]]


def main() -> int:
    """Measure, print the tables, and write the numbers if requested."""
    args = parse_flags(benchmark_parser(), sys.argv[1:])
    if args.threads:
        torch.set_num_threads(args.threads)
        if args.threads == 1:  # JAX has no other way to be told
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    device = find_device(args.device)
    check_writable("--json", args.json)
    if args.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {args.rounds}; quartiles need two")
    if args.run is not None and not {"evidence", "annealing"} & set(args.parts):
        raise ValueError("--run: only the parts evidence and annealing measure a run; omit it, or add one to --parts")
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)
    if args.data_dir is None:
        x = torch.bernoulli(torch.full((max([NUM_DATA, *args.batch_sizes]), D), 0.3))
    else:
        x = load_data("mnist", data_dir=args.data_dir, binarize="static").train
    x = x.to(device)

    model = "a random decoder" if args.run is None else args.run
    found = []
    if "floor" in args.parts:
        found.append(floor(device, args.rounds))
    if "growth" in args.parts:  # before anything else has taken memory
        found.append(growth(x, args.execution[0], max(3, args.rounds // 5)))
    for size in args.batch_sizes if "steps" in args.parts else ():
        first, times = measure(ways_of_stepping(x[:size], args.execution, args.steps), args.rounds, args.steps)
        found.append(report(f"training step, batch {size}: ms", first, times, 1e3))
    if "sampling" in args.parts:
        first, times = measure(ways_of_sampling(x, args.execution, args.chunk_sizes, args.rounds), args.rounds, 1)
        found.append(report("importance sampling: s per million latents", first, times, 1e6 / NUM_DATA / PARTICLES))
    if "evidence" in args.parts:
        ways = ways_of_evaluating(device, args.execution[-1], args.run, FIRST_CALLS + args.rounds)
        first, times = measure(ways, args.rounds, 1)
        title = f"log p(x) of {model}, K = {evidence.PARTICLES:,} where not said: ms per datum"
        found.append(report(title, first, times, 1e3 / evidence.BLOCK))
    if "annealing" in args.parts:
        first, times = measure(ways_of_annealing(device, args.execution, args.run), args.rounds, 1, first_calls=1)
        plan = f"{model}, T = {evidence.TEMPERATURES}, {evidence.CHAINS} chains, {evidence.LEAPFROG} steps each"
        found.append(
            report(f"annealing from the Laplace fit, {plan}: s per datum", first, times, 1 / evidence.ANNEALED)
        )
        found.append(evidence.difference_from_annealing(device, args.execution[-1], args.run))
    if "processes" in args.parts and device.type == "cpu":
        found.append(processes(args.rounds, args.steps))
    if args.json:
        about = {
            "torch": torch.__version__,
            "pyro": pyro.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
        write_json(Path(args.json), {"about": about, "tables": found})
    return 0


def benchmark_parser() -> ArgumentParser:
    """Make the parser of the flags."""
    parser = make_parser(prog="benchmark.py", description=__doc__)
    add = parser.add_argument
    add("--data_dir", type=str | None, default=None, help="folder with MNIST (default: random bits)")
    add("--parts", type=list[Part], default=list(get_args(Part)), help="measurements")
    add("--batch_sizes", type=list[PositiveInt], default=[20, 100, 256, 1024], help="data per training step")
    add("--execution", type=list[Execution], default=["recorded", "compiled"], help="how pyrovae runs")
    add("--rounds", type=PositiveInt, default=20, help="rounds, in each of which every way has one turn")
    add("--steps", type=PositiveInt, default=10, help="training steps in a turn")
    add(
        "--chunk_sizes",
        type=list[PositiveInt],
        default=[DEFAULT_CHUNK_SIZE],
        help="latents that pyrovae decodes at once",
    )
    add("--run", type=str | None, default=None, help="run whose log p(x) is measured (default: random decoders)")
    add("--threads", type=PositiveInt | None, default=None, help="CPU threads (default: torch's choice)")
    add("--device", type=str, default="cpu", help="cpu, cuda, ...")
    add("--json", type=str | None, default=None, help="file for all numbers (default: null)")
    return parser


def ways_of_stepping(x: Tensor, executions: Sequence[Execution], steps: int) -> dict[str, Callable[[], Any]]:
    """List the ways to take a training step with this batch, ours first."""
    ways = {f"ours, {how}": ours_step(x, how) for how in executions}
    if x.is_cuda:
        ways |= {f"ours, {how}, {steps} in one graph": ours_epoch(x, how, steps) for how in executions}
    ways |= {"hand-written, fused Adam": hand_written_step(x), "Pyro SVI.step": svi_step(x)}
    if "compiled" in executions:
        ways["hand-written, torch.compile"] = hand_written_step(x, compiled=True)
    if importlib.util.find_spec("numpyro"):
        ways["NumPyro, steps in one jit"] = numpyro_steps(x, steps)
    return ways | {"products and Adam alone": step_products(x)}


def ways_of_sampling(
    x: Tensor, executions: Sequence[Execution], chunk_sizes: Sequence[int], rounds: int
) -> dict[str, Callable[[], Any]]:
    """List the ways to draw importance weights of the first data, ours first."""
    some = x[:NUM_DATA]
    ways = {
        f"ours, {how}, chunk {chunk}": ours_sampling(some, how, chunk, rounds + FIRST_CALLS)
        for how in executions
        for chunk in chunk_sizes
    }
    ways |= {
        "hand-written": hand_written_sampling(some),
        "Pyro, vectorised weights": pyro_sampling(some),
        "matrix products alone": sampling_products(x.device),
    }
    if "compiled" in executions:
        ways["hand-written, torch.compile"] = hand_written_sampling(some, compiled=True)
    if importlib.util.find_spec("numpyro"):
        ways["NumPyro RenyiELBO(0)"] = numpyro_sampling(some)
    return ways


def measure(
    ways: dict[str, Callable[[], Any]], rounds: int, calls: int, first_calls: int = FIRST_CALLS
) -> tuple[dict[str, float], Times]:
    """Time the first calls of each way together, and one call in each round, in turn. Returns seconds."""
    first, times = {}, {name: [] for name in ways}
    for name, way in ways.items():
        started = time.perf_counter()
        for _ in range(first_calls):
            way()
        synchronize()
        first[name] = time.perf_counter() - started
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            for _ in range(1 if hasattr(ways[name], "steps") else calls):
                ways[name]()
            synchronize()
            times[name].append((time.perf_counter() - started) / calls)
    return first, times


def synchronize() -> None:
    """Wait until the GPU has finished, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def report(title: str, first: dict[str, float], times: Times, unit: float) -> dict[str, Any]:
    """Print medians with quartiles, and the medians of the ratios within each round; return them."""
    ours = _ours(times)
    lines = [["", "median", "quartiles", "first, s", *(f"{name} /" for name in ours)]]
    rows = []
    for name, values in times.items():
        low, middle, high = (unit * q for q in statistics.quantiles(values, n=4))
        ratios = {one: statistics.median(a / b for a, b in zip(times[one], values, strict=True)) for one in ours}
        shown = (f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{first[name]:.1f}")
        lines.append([name, *shown, *(f"{ratio:.2f}" for ratio in ratios.values())])
        row = {"way": name, "median": middle, "quartiles": [low, high], "first_seconds": first[name], "ratios": ratios}
        rows.append(row | {"all": [unit * value for value in values]})
    print(f"\n{title}\n{aligned(lines)}", flush=True)
    return {"title": title, "rows": rows}


def _ours(times: Times) -> list[str]:
    return [name for name in times if name.startswith("ours")]


def make_stepper(x: Tensor, execution: Execution, workers: Workers | None = None) -> Stepper:
    """Make the stepper of `fit`."""
    vae = make_vae(x.device)
    parameters = trainable_parameters(vae.model, vae.guide, x)
    return Stepper(
        vae.model,
        vae.guide,
        TraceMeanField_ELBO(),
        parameters,
        torch.optim.Adam(parameters, lr=1e-3, fused=True),
        execution=execution,
        calls={len(x): 1},
        weighted=False,
        device=x.device,
        workers=workers,
    )


def ours_step(x: Tensor, execution: Execution, workers: Workers | None = None) -> Callable[[], Any]:
    """Make a function that takes one step of `fit`."""
    stepper = make_stepper(x, execution, workers)
    return lambda: stepper(len(x), (x,), {})


def ours_epoch(x: Tensor, execution: Execution, steps: int) -> Callable[[], Any]:
    """Make a function that takes several steps of `fit` as one CUDA graph."""
    losses = torch.zeros(steps, dtype=torch.float64, device=x.device)
    batches = Batches((x.repeat(steps, 1),), {}, batch_size=len(x))
    batches.start_epoch(0)
    take_steps = GraphedEpoch(SingleSteps(make_stepper(x, execution), batches, losses))

    def call() -> None:
        step = 0
        while step < steps:
            step += len(take_steps(step, lambda step: 1.0))

    call.steps = steps  # type: ignore[attr-defined]  # measure calls it once
    return call


def ours_sampling(x: Tensor, execution: Execution, chunk: int, calls: int) -> Callable[[], Any]:
    """Make a function that weighs one block of data per call, as `log_marginal` does under the guide."""
    vae = make_vae(x.device)
    blocks = log_weight_blocks(
        vae.model,
        vae.guide,
        x.repeat(calls, 1),
        num_particles=PARTICLES,
        chunk_size=chunk,
        proposal=GuideProposal(),
        skip_support_check=True,
        execution=execution,
    )
    return lambda: next(blocks)


def floor(device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure the machine: the rate of a large matrix product, and of copying."""
    a, b = (torch.randn(2048, 2048, device=device) for _ in range(2))
    source = torch.randn(2**24, device=device)
    target = torch.empty_like(source)
    _, times = measure({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, rounds, 10)
    product, copy = (statistics.median(times[name]) for name in ("product", "copy"))
    rows = {"GFLOP/s, float32": 2 * 2048**3 / product / 1e9, "GB/s, copied": 2 * 4 * 2**24 / copy / 1e9}
    print("\nthe machine: " + "; ".join(f"{value:,.0f} {name}" for name, value in rows.items()), flush=True)
    return {"title": "the machine", "rows": rows}


def growth(x: Tensor, execution: Execution, rounds: int) -> dict[str, Any]:
    """Measure time and peak memory of `log_marginal` under the guide, as K and N grow tenfold."""
    cells = [(1, GROWTH_PARTICLES), (1, GROWTH_PARTICLES * TENFOLD), (TENFOLD, GROWTH_PARTICLES)]
    weigh = _weighing(x, execution)
    given = x[:GROWTH_DATA].cpu(), x.device, execution, torch.get_num_threads()
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:  # each in a process of its own
        memory = {cell: alone.submit(_peak_of, *given, *cell).result() for cell in cells}
    for cell in cells:
        weigh(*cell)
    seconds: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for cell in cells:
            started = time.perf_counter()
            weigh(*cell)
            synchronize()
            seconds[cell].append(time.perf_counter() - started)
    print(f"\ngrowth, {execution}{'':22}{'s':>9}{'ratio':>9}{'peak, MB':>12}")
    rows = []
    for cell in cells:
        taken = statistics.median(seconds[cell])
        ratio = statistics.median(a / b for a, b in zip(seconds[cell], seconds[cells[0]], strict=True))
        name = f"N = {GROWTH_DATA * cell[0]:,}, K = {cell[1]:,}"
        print(f"{name:30}{taken:>11.2f}{ratio:>9.2f}{memory[cell]:>12.0f}", flush=True)
        rows.append({"cell": name, "seconds": seconds[cell], "ratio": ratio, "peak_megabytes": memory[cell]})
    return {"title": "growth", "rows": rows}


def _weighing(x: Tensor, execution: Execution) -> Callable[[int, int], Any]:
    """Make a call of `log_marginal` on repeated data."""
    vae = make_vae(x.device)
    whole = x.repeat(-(-GROWTH_DATA * TENFOLD // len(x)), 1)

    def weigh(times: int, particles: int) -> None:
        log_marginal(
            vae.model,
            vae.guide,
            whole[: GROWTH_DATA * times],
            num_particles=particles,
            proposal=GuideProposal(),
            execution=execution,
        )

    return weigh


def _peak_of(x: Tensor, device: torch.device, execution: Execution, threads: int, times: int, particles: int) -> float:
    """Measure the peak memory in a process of its own, after a first call."""
    torch.set_num_threads(threads)
    pyro.enable_validation(False)
    weigh = _weighing(x.to(device), execution)
    weigh(times, particles)
    reset_peak(device)
    weigh(times, particles)
    return peak(device)


def reset_peak(device: torch.device) -> None:
    """Reset the memory peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """Return the peak memory in MB: GPU memory, or resident memory of the process (NaN if the system hides it)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), float("nan"))


def processes(rounds: int, steps: int) -> dict[str, Any]:
    """Time training steps of a batch of 1,024 with one process and with two, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "steps.json"
        torch.multiprocessing.spawn(_share_steps, args=(2, Path(folder), out, rounds, steps), nprocs=2)
        found = read_json(out)
    ratio = statistics.median(a / b for a, b in zip(found["two"], found["one"], strict=True))
    print(f"\ntwo processes, one thread each: a step of a batch of 1,024 takes {ratio:.2f} of one process' time")
    return {"title": "two processes", "rows": found, "ratio": ratio}


def _share_steps(rank: int, size: int, folder: Path, out: Path, rounds: int, steps: int) -> None:
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    x = torch.bernoulli(torch.full((1024, D), 0.3))
    alone, together = ours_step(x, "recorded", Workers()), ours_step(x, "recorded", Workers.current())
    times: Times = {"one": [], "two": []}
    for turn in range(rounds + 1):
        for name, way in (("one", alone), ("two", together)):
            torch.distributed.barrier()
            started = time.perf_counter()
            if name == "two" or rank == 0:
                for _ in range(max(steps, FIRST_CALLS) if turn == 0 else steps):
                    way()
            torch.distributed.barrier()
            if turn:
                times[name].append((time.perf_counter() - started) / steps)
    if rank == 0:
        write_json(out, times)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_script(main)
