"""Estimate ELBO and log p(x) of a trained run on held-out data, and write RUN/evaluation.json and .csv.

python scripts/evaluate.py runs/digits-001 --num_particles 5000
python scripts/evaluate.py runs/digits-001 --num_particles 5000 --proposal guide    # as most papers do
python scripts/evaluate.py runs/mnist-001 --split validation --device cuda
"""

import sys
from typing import Literal

from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from pyrovae.config import find_device
from pyrovae.evaluation import caution, evaluate, table
from pyrovae.proposals import PROPOSALS, ProposalName
from pyrovae.recording import Execution
from pyrovae.report import baseline_summary, split_of, write_evaluation
from pyrovae.run import open_run
from pyrovae.terminal import make_run_parser, parse_flags, run_script


def main() -> int:
    """Evaluate a run and print the table."""
    parser = make_run_parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("--num_particles", type=PositiveInt, default=5000, help="draws per datum, K")
    parser.add_argument("--proposal", type=ProposalName, default="default", help="where the draws come from")
    parser.add_argument("--split", type=Literal["train", "validation", "test"], default="test", help="which data")
    parser.add_argument("--chunk_size", type=PositiveInt | None, default=None, help="latents decoded at once")
    parser.add_argument("--execution", type=Execution, default="auto", help="of chunks: eager, recorded or compiled")
    args = parse_flags(parser, sys.argv[1:])

    run, vae, data = open_run(args, bits=True)
    device = find_device(args.device)
    x, _ = split_of(data, args.split)
    with tqdm(total=len(x), unit="datum", desc="log p(x)") as bar:
        evaluation = evaluate(
            vae.model,
            vae.guide,
            x.to(device),
            num_particles=args.num_particles,
            proposal=PROPOSALS[args.proposal],
            seed=args.seed,
            chunk_size=args.chunk_size,
            on_progress=bar.update,
            execution=args.execution,
            **data.conditions(args.split, device),
        )
    summary = write_evaluation(run, evaluation, data, split=args.split)
    baseline = baseline_summary(data, split=args.split, base_measure=evaluation.base_measure)
    print(f"\n{len(x):,} {args.split} data, K = {args.num_particles:,} draws each; nats per datum")
    print(f"proposal: {evaluation.proposal}\n")
    print(table({"VAE": summary, "independent pixels": baseline}))
    print(caution(summary))
    print(f"wrote {run.path / 'evaluation.json'} and, per datum, evaluation.csv")
    return 0


if __name__ == "__main__":
    run_script(main)
