"""Measure pyrovae against hand-written PyTorch and Pyro, side by side in one run.

python scripts/benchmark.py                                    # the table, on random bits
python scripts/benchmark.py --data_dir data --json speed.json  # on MNIST, numbers kept
python scripts/benchmark.py --parts [steps] --batch_sizes [20,256] --rounds 40

The model is one VAE, 784-400-50 and back, softplus. All ways take turns in every round, so that what else the machine
does meets all alike; what counts are ratios within the run. The first calls, recording and compiling, are timed apart.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from jsonargparse.typing import PositiveInt
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional

from pyrovae import MLP, VAE, BernoulliLikelihood, GuideProposal, NormalEncoder, StandardNormalPrior
from pyrovae.data import load_data
from pyrovae.densities import evaluating, trace_with_particles
from pyrovae.files import write_json
from pyrovae.importance import DEFAULT_CHUNK_SIZE, log_weight_blocks
from pyrovae.recording import Execution
from pyrovae.steps import Stepper
from pyrovae.svi import trainable_parameters
from pyrovae.terminal import make_parser, parse_flags, run_script

D, H, Z = 784, 400, 50
NUM_DATA, PARTICLES = 64, 256  # of importance sampling: two chunks of the default size
FIRST_CALLS = 3  # which record, compile and compare
Times = dict[str, list[float]]


def main() -> int:
    """Measure, print the tables, and write the numbers where asked."""
    parser = make_parser(prog="benchmark.py", description=__doc__)
    add = parser.add_argument
    add("--data_dir", type=str | None, default=None, help="folder with MNIST (default: random bits)")
    add("--parts", type=list[Literal["steps", "sampling"]], default=["steps", "sampling"], help="what to measure")
    add("--batch_sizes", type=list[PositiveInt], default=[20, 100, 256, 1024], help="of the training steps")
    add("--execution", type=list[Execution], default=["recorded", "compiled"], help="of ours")
    add("--rounds", type=PositiveInt, default=20, help="turns that each way takes")
    add("--steps", type=PositiveInt, default=10, help="training steps in a turn")
    add("--chunk_sizes", type=list[PositiveInt], default=[DEFAULT_CHUNK_SIZE], help="latents that ours decodes at once")
    add("--threads", type=PositiveInt | None, default=None, help="CPU threads (default: torch's choice)")
    add("--device", type=str, default="cpu", help="cpu, cuda, ...")
    add("--json", type=str | None, default=None, help="file for all numbers")
    args = parse_flags(parser, sys.argv[1:])
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)
    if args.data_dir is None:
        x = torch.bernoulli(torch.full((max([NUM_DATA, *args.batch_sizes]), D), 0.3))
    else:
        x = load_data("mnist", data_dir=args.data_dir, binarize="static").train
    x = x.to(device)

    found = []
    for size in args.batch_sizes if "steps" in args.parts else ():
        ways = {f"ours, {how}": ours_step(x[:size], how) for how in args.execution}
        ways |= {"hand-written, fused Adam": hand_written_step(x[:size]), "Pyro SVI.step": svi_step(x[:size])}
        first, times = measure(ways, args.rounds, args.steps)
        found.append(report(f"training step, batch {size}: ms", first, times, 1e3))
    if "sampling" in args.parts:
        ways = {
            f"ours, {how}, chunk {chunk}": ours_sampling(x[:NUM_DATA], how, chunk, args.rounds + FIRST_CALLS)
            for how in args.execution
            for chunk in args.chunk_sizes
        }
        ways |= {
            "hand-written": hand_written_sampling(x[:NUM_DATA]),
            "Pyro, vectorised plate": pyro_sampling(x[:NUM_DATA]),
            "matrix products alone": products(device),
        }
        first, times = measure(ways, args.rounds, 1)
        found.append(report("importance sampling: s per million latents", first, times, 1e6 / NUM_DATA / PARTICLES))
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


def measure(ways: dict[str, Callable[[], Any]], rounds: int, calls: int) -> tuple[dict[str, float], Times]:
    """Seconds of the first calls of each way together, and of one call in each round, in turn."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    first, times = {}, {name: [] for name in ways}
    for name, way in ways.items():
        started = time.perf_counter()
        for _ in range(FIRST_CALLS):
            way()
        synchronize()
        first[name] = time.perf_counter() - started
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            for _ in range(calls):
                ways[name]()
            synchronize()
            times[name].append((time.perf_counter() - started) / calls)
    return first, times


def report(title: str, first: dict[str, float], times: Times, unit: float) -> dict[str, Any]:
    """Print medians with quartiles, and the medians of the ratios within each round; return them."""
    heads = f"{'':30}{'median':>9}{'quartiles':>18}{'first, s':>10}   ratios of {'; '.join(_ours(times))}"
    print(f"\n{title}\n{heads}")
    rows = []
    for name, values in times.items():
        low, middle, high = (unit * q for q in statistics.quantiles(values, n=4))
        ratios = {
            ours: statistics.median(a / b for a, b in zip(times[ours], values, strict=True)) for ours in _ours(times)
        }
        shown = "".join(f"{ratio:>9.2f}" for ratio in ratios.values())
        print(f"{name:30}{middle:>9.3f}{f'{low:.3f} to {high:.3f}':>18}{first[name]:>10.1f}   {shown}", flush=True)
        row = {"way": name, "median": middle, "quartiles": [low, high], "first_seconds": first[name], "ratios": ratios}
        rows.append(row | {"all": [unit * value for value in values]})
    return {"title": title, "rows": rows}


def _ours(times: Times) -> list[str]:
    return [name for name in times if name.startswith("ours")]


def make_vae(device: torch.device) -> VAE:
    """The VAE of the comparison."""
    decoder, encoder = (MLP(*sizes, hidden=[H], activation="softplus") for sizes in ((Z, D), (D, 2 * Z)))
    return VAE(StandardNormalPrior(Z), BernoulliLikelihood(decoder), NormalEncoder(encoder)).to(device)


def ours_step(x: Tensor, execution: Execution) -> Callable[[], Any]:
    """A step of `fit`."""
    vae = make_vae(x.device)
    parameters = trainable_parameters(vae.model, vae.guide, x)
    stepper = Stepper(
        vae.model,
        vae.guide,
        TraceMeanField_ELBO(),
        parameters,
        torch.optim.Adam(parameters, lr=1e-3, fused=True),
        execution=execution,
        calls={len(x): 1},
        weighted=False,
        device=x.device,
    )
    return lambda: stepper(len(x), (x,), {})


def svi_step(x: Tensor) -> Callable[[], Any]:
    """A step of Pyro's own."""
    vae = make_vae(x.device)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    return lambda: svi.step(x)


class HandWritten(nn.Module):
    """The same VAE as one writes it without a library."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, H), nn.Softplus(), nn.Linear(H, 2 * Z))
        self.decoder = nn.Sequential(nn.Linear(Z, H), nn.Softplus(), nn.Linear(H, D))

    def loss(self, x: Tensor) -> Tensor:
        """Minus the ELBO, with the KL divergence in closed form."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        logits = self.decoder(loc + scale * torch.randn_like(loc))
        kl = 0.5 * (loc.square() + scale.square() - 1).sum() - log_scale.sum()
        return functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl

    def log_weights(self, x: Tensor, num_particles: int) -> Tensor:
        """Log p(x, z) - log q(z|x), with shape (K, N); the constants of both normals cancel."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn(num_particles, *loc.shape, device=x.device)
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z)
        log_lik = (logits * x - functional.softplus(logits)).sum(-1)
        return log_lik - 0.5 * z.square().sum(-1) + 0.5 * noise.square().sum(-1) + log_scale.sum(-1)


def hand_written_step(x: Tensor) -> Callable[[], Any]:
    """A step without Pyro, eager."""
    model = HandWritten().to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(x).backward()
        optimizer.step()

    return step


def ours_sampling(x: Tensor, execution: Execution, chunk: int, calls: int) -> Callable[[], Any]:
    """The loop of `log_marginal` under the guide, one block of data at each call."""
    vae = make_vae(x.device)
    blocks = log_weight_blocks(
        vae.model,
        vae.guide,
        x.repeat(calls, 1),
        num_particles=PARTICLES,
        chunk_size=chunk,
        proposal=GuideProposal(),
        checked=True,
        execution=execution,
    )
    return lambda: next(blocks)


def hand_written_sampling(x: Tensor) -> Callable[[], Any]:
    """The same without Pyro."""
    model = HandWritten().to(x.device)

    def sample() -> None:
        with torch.no_grad():
            for _ in range(len(x) * PARTICLES // DEFAULT_CHUNK_SIZE):
                model.log_weights(x, DEFAULT_CHUNK_SIZE // len(x))

    return sample


def pyro_sampling(x: Tensor) -> Callable[[], Any]:
    """Two traces inside a plate of particles, and the sums of their log densities, as Pyro's users write it."""
    vae = make_vae(x.device)

    def sample() -> None:
        with evaluating(vae):
            for _ in range(len(x) * PARTICLES // DEFAULT_CHUNK_SIZE):
                guide = trace_with_particles(vae.guide, DEFAULT_CHUNK_SIZE // len(x), x)
                replayed = pyro.poutine.replay(vae.model, trace=guide)
                model = trace_with_particles(replayed, DEFAULT_CHUNK_SIZE // len(x), x)
                for trace in (guide, model):
                    trace.compute_log_prob()

    return sample


def products(device: torch.device) -> Callable[[], Any]:
    """The decoder's two matrix products: the floor."""
    z, h = (torch.randn(DEFAULT_CHUNK_SIZE, size, device=device) for size in (Z, H))
    one, two = torch.randn(Z, H, device=device), torch.randn(H, D, device=device)

    def multiply() -> None:
        for _ in range(NUM_DATA * PARTICLES // DEFAULT_CHUNK_SIZE):
            z @ one
            h @ two

    return multiply


if __name__ == "__main__":
    run_script(main)
