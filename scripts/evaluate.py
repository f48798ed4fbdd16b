"""Estimate ELBO and log p(x) of a trained run on held-out data, and write RUN/evaluation.json and .csv.

python scripts/evaluate.py runs/digits-001 --num_particles 5000
python scripts/evaluate.py runs/digits-001 --num_particles 5000 --proposal guide    # the protocol of most papers
python scripts/evaluate.py runs/digits-001 --target_std_error 0.05 --num_particles 100000
python scripts/evaluate.py runs/mnist-001 --split validation --device cuda
torchrun --nproc-per-node=2 scripts/evaluate.py runs/mnist-001                     # several processes share the data

A second call with the same flags resumes a stopped evaluation, which lies in the user's cache, not in the run folder.
The protocol of most papers, draws from the guide alone, is always estimated as well.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from contextlib import ExitStack
from typing import Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from pyrovae.evidence import ProposalName
from pyrovae.execution import Execution, joined
from pyrovae.runs import make_run_parser, open_run, parse_flags, run_script
from pyrovae.runs.report import SPLIT_WORDS, classification_line, compare_to_baselines, evaluate_run
from pyrovae.runs.tables import caution, ladder_lines, table


def main() -> int:
    """Evaluate a run and print the table."""
    parser = make_run_parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("--num_particles", type=PositiveInt, default=5000, help="draws K per datum")
    parser.add_argument("--proposal", type=ProposalName, default="default", help="proposal of the draws")
    parser.add_argument(
        "--target_std_error",
        type=PositiveFloat | None,
        default=None,
        help="standard error of log p(x) that suffices, in nats (default: null)",
    )
    parser.add_argument("--split", type=Literal["train", "validation", "test"], default="test", help="data to evaluate")
    parser.add_argument(
        "--chunk_size", type=PositiveInt | None, default=None, help="latents decoded at once (default: 8192)"
    )
    parser.add_argument("--execution", type=Execution, default="auto", help="how the programs run")
    parser.add_argument("--fresh", type=bool, default=False, help="start anew instead of resuming a stopped evaluation")
    args = parse_flags(parser, sys.argv[1:])

    with joined() as workers, ExitStack() as stack:  # before anything is on a GPU
        run, vae, data = open_run(args, bits=True)
        stack.enter_context(run.locked())
        evaluation, summary = evaluate_run(
            run,
            vae,
            data,
            split=args.split,
            num_particles=args.num_particles,
            proposal=args.proposal,
            target_std_error=args.target_std_error,
            seed=args.seed,
            chunk_size=args.chunk_size,
            execution=args.execution,
            fresh=args.fresh,
        )
        if workers.rank > 0:
            return 0
    config, marginal, measure = run.config(args.trust_imports), evaluation.marginal, evaluation.base_measure
    log_p = marginal.log_marginal.value
    baselines = compare_to_baselines(config, data, log_p, base_measure=measure, split=args.split)
    drawn = f"K = {args.num_particles:,} draws each"
    if args.target_std_error is not None:
        drawn = f"{marginal.draws.double().mean().item():,.0f} draws each on average, {args.num_particles:,} at most"
        missed, largest = int((~evaluation.reached).sum()), marginal.log_marginal.std_error.max().item()
        drawn += f"; {missed:,} data do not reach a standard error of {args.target_std_error:g}"
        drawn += f" (largest {largest:.3g}; see evaluation.csv, column reached)" if missed else ""
    print(f"\n{len(evaluation.elbo):,} {args.split} data, {drawn}; nats per datum")
    print(SPLIT_WORDS[args.split])
    print(f"proposal: {marginal.proposal}\n")
    print(table({"VAE": summary, **baselines.rows}))
    print(caution(summary))
    if baselines.words:
        print(baselines.words)
    if line := classification_line(summary):
        print(line)
    print("\nlog p(x) from the first K draws (K = 1: one draw of one component of the proposal)\n")
    print(f"{ladder_lines(summary)}\n")
    print(f"wrote {run.path / 'evaluation.json'} and, per datum, evaluation.csv")
    return 0


if __name__ == "__main__":
    run_script(main)
