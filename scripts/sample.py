"""Draw from a trained run: a grid of prior samples, and a grid of data beside their reconstructions.

python scripts/sample.py runs/digits-001
python scripts/sample.py runs/digits-001 --num_samples 100 --seed 7
"""

import sys

from jsonargparse.typing import NonNegativeInt, PositiveInt

from pyrovae.config import find_device
from pyrovae.report import write_sample_figures
from pyrovae.run import Run
from pyrovae.terminal import make_parser, parse_flags, run_script


def main() -> int:
    """Write samples.png and reconstructions.png into the run folder."""
    parser = make_parser(prog="sample.py", description=__doc__)
    parser.add_argument("run", type=str, help="run folder of train.py")
    parser.add_argument("--num_samples", type=PositiveInt, default=64, help="draws, and data to reconstruct")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of the draws")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ... (auto: cuda where there is one)")
    parser.add_argument("--data_dir", type=str | None, default=None, help="folder of MNIST, where it has moved")
    parser.add_argument(
        "--trust_imports",
        type=list[str],
        default=[],
        help="[modules] that the run's files may import",
    )
    args = parse_flags(parser, sys.argv[1:])

    run = Run(args.run)
    config = run.config(args.trust_imports)
    device = find_device(args.device)
    vae = run.vae(config).to(device)
    data = run.data(config, data_dir=args.data_dir)
    write_sample_figures(run, vae, data.test.to(device), data.shape, size=args.num_samples, seed=args.seed)
    print(f"wrote {run.path / 'samples.png'} and {run.path / 'reconstructions.png'}")
    return 0


if __name__ == "__main__":
    run_script(main)
