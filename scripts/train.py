"""Train a VAE by SVI, evaluate it on held-out data, and write a run folder.

python scripts/train.py                                              # scikit-learn's digits, 20 to 60 s on an idle core
python scripts/train.py --data mnist --data_dir data --latent_dim 50 --network.hidden '[200,200]' --epochs 20
python scripts/train.py --prior MixturePrior --prior.num_components 20 --elbo Trace_ELBO --optimizer.eps 1e-4
python scripts/train.py --data counts.npy --likelihood BinomialLikelihood --likelihood.total_count 20
python scripts/train.py --data survey.csv --describe true > columns.yaml   # a table: look at its columns first
python scripts/train.py --data survey.csv --columns columns.yaml     # then train
python scripts/train.py --prior mymodule.StudentTPrior               # your own class, in ./mymodule.py
python scripts/train.py --config runs/digits-001/config.yaml         # the same run again
python scripts/train.py --resume runs/digits-001                     # resume a stopped run
torchrun --nproc-per-node=2 scripts/train.py --data mnist            # several processes share each batch
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import shlex
import sys

from jsonargparse import Namespace
from torch import nn

from pyrovae.columns import number_text
from pyrovae.data import Binarize, Data
from pyrovae.densities import SupportError
from pyrovae.execution import Workers, joined
from pyrovae.page import TRAINING_CHECKS, Diagnosis, Fit, training_lines
from pyrovae.programs import ProgramPair
from pyrovae.runs import (
    Objective,
    Run,
    SnapshotWriter,
    Stopper,
    build_objective,
    check_contract,
    check_enumeration,
    check_reparameterised,
    check_site_order,
    find_device,
    finishing_steps,
    needs_enumeration,
    needs_mean_field,
    parse_training,
    resolve,
    run_script,
    training_data,
    training_table,
    trusted_modules,
)
from pyrovae.runs.fitting import fit_vae, make_vae
from pyrovae.runs.report import (
    MISSING_AT_RANDOM,
    SPLIT_WORDS,
    classification_line,
    compare_to_baselines,
    describe_columns,
    describe_floors,
    describe_table,
    evaluate_run,
    write_posterior,
    write_sample_figures,
    write_training_figure,
)
from pyrovae.runs.tables import caution, table
from pyrovae.training import History, StoppedError, check_data

SPLITS = ("train", "validation", "test")


def main() -> int:
    """Train, evaluate, and print the table."""
    flags = parse_training(sys.argv[1:], prog="train.py", description=__doc__)
    if flags.describe:
        return describe(flags)
    with joined() as workers:  # before anything is on a GPU
        return train_and_evaluate(flags, workers)


def describe(flags: Namespace) -> int:
    """Print the columns of a table as YAML, and on stderr as a table with the questions about them."""
    columns = training_table(flags)
    print(columns.describe(), end="")
    print(f"{describe_columns(columns)}\n", *columns.questions, sep="\n", file=sys.stderr)
    return 0


def train_and_evaluate(flags: Namespace, workers: Workers) -> int:
    """Create a run, or open the one to resume, and finish it."""
    if flags.resume:
        run = Run(flags.resume)
        if run.finished:
            print(f"{run.path} is finished; see its evaluation.json, or run scripts/evaluate.py {run.path}")
            return 0
        with run.locked():
            config = run.config(flags.trust_imports)
            config.device = str(find_device(config.device))
            data = run.data(config, data_dir=flags.data_dir)
            return finish(run, config, data, make_vae(config, data), build_objective(config), workers)
    Run.check_out(flags.out)
    data = training_data(flags)
    config = resolve(flags, data)
    config.trust_imports = trusted_modules(flags)
    vae = make_vae(config, data)
    objective = build_objective(config)
    check_programs(config, data, vae)
    check_values(data, vae, config.device)
    run = workers.from_first(lambda: Run.create(flags.out, config, data))
    with run.locked():
        return finish(run, config, data, vae, objective, workers, new=True)


def finish(
    run: Run,
    config: Namespace,
    data: Data,
    vae: ProgramPair,
    objective: Objective,
    workers: Workers,
    *,
    new: bool = False,
) -> int:
    """Train from the last commit on, and close the run."""
    history = None
    try:
        with finishing_steps() as stopper:
            if data.table is not None:
                print(f"{describe_table(data.table)}\n")
            else:
                print(*_about_array(data, vae), sep="", end="")
            print(f"{run.path}: {len(data.train):,} training data, {config.device}", flush=True)
            history = train(run, config, data, vae, objective, stopper, workers)
        if workers.any(stopper()):
            sys.exit(stopper.exit_code or 1)
        close(run, config, data, vae, history, workers)
    except StoppedError as stop:
        say(workers, f"{stop}; saved. Resume with: train.py --resume {run.path}")
        return stopper.exit_code or 1
    except (KeyboardInterrupt, SystemExit):
        say(workers, f"stopped{' during the evaluation' if history else ''}. Resume with: train.py --resume {run.path}")
        raise
    except Exception as error:
        removed = new and workers.rank == 0 and run.discard_unless_committed()
        if not removed and not isinstance(error, BrokenPipeError):
            say(workers, f"{run.path} stays. Resume with: train.py --resume {run.path}, or remove the folder")
        raise
    return 0


def _about_array(data: Data, vae: ProgramPair) -> list[str]:
    """Say what is assumed of an array, one sentence a line."""
    likelihood = getattr(vae.model, "likelihood", None)
    words = [MISSING_AT_RANDOM] if data.has_holes else []
    words += filter(None, [describe_floors(likelihood)] if isinstance(likelihood, nn.Module) else [])
    return [f"{line}\n" for line in words]


def say(workers: Workers, text: str) -> None:
    """Print a line on stderr, on rank 0."""
    if workers.rank == 0:
        print(text, file=sys.stderr)


def check_programs(config: Namespace, data: Data, vae: ProgramPair) -> None:
    """Check that the parts work together, and with the objective."""
    x, conditions = data.test.to(config.device), data.conditions("test", config.device, labels=True)
    check_contract(vae.model, vae.guide, x, **conditions)
    if needs_mean_field(config):
        check_reparameterised(vae.guide, x, **conditions)
        check_site_order(vae.model, vae.guide, x, **conditions)
    if needs_enumeration(config):
        check_enumeration(vae.model, vae.guide, x, **conditions)


def check_values(data: Data, vae: ProgramPair, device: str) -> None:
    """Check that all data lie in the support.

    Raises:
        ValueError: With the row of the first datum outside it in the source.
    """
    for split in SPLITS:
        x, conditions = getattr(data, split).to(device), data.conditions(split, device, labels=True)
        transform = Binarize() if split == "train" and data.binarize == "dynamic" else None
        try:
            check_data(vae.model, vae.guide, (x,), conditions, transform)
        except SupportError as error:
            row = int(getattr(data, f"{split}_index")[error.datum])
            place = f"row {row}"
            if data.table is not None:  # rows are counted as in messages of the table's reader
                place = f"row {row + 1:,}"
                if error.entry is not None:
                    column = data.table.columns.data[error.entry]
                    place = f"column {column.name!r}, {place}"
                    if column.origin:
                        place += f", in numbers from the origin {number_text(column, column.origin)} on"
            raise ValueError(f"{data.name}, {place} ({split} datum {error.datum}): {error}") from error


def train(
    run: Run,
    config: Namespace,
    data: Data,
    vae: ProgramPair,
    objective: Objective,
    stopper: Stopper,
    workers: Workers,
) -> History:
    """Run SVI, commit every epoch to the run folder, and keep snapshots of some."""
    snapshots = SnapshotWriter(run.path, config, data, vae)
    history = fit_vae(
        config,
        data,
        vae,
        objective,
        progress=True,
        resume=workers.from_first(lambda: run.committed(vae, data)),
        commit=run.commit,
        should_stop=stopper,
        on_start=snapshots.start,
        on_epoch=snapshots.after_epoch,
    )
    if workers.rank == 0:
        snapshots.finish(history.best_epoch)
    return history


def close(run: Run, config: Namespace, data: Data, vae: ProgramPair, history: History, workers: Workers) -> None:
    """Evaluate the run, write its files, the manifest last, and print the table."""
    workers.from_first(lambda: run.write_weights(vae))
    evaluation, summary = evaluate_run(
        run, vae, data, split="test", num_particles=config.num_particles, proposal=config.proposal
    )
    if workers.rank > 0:
        return
    write_training_figure(run, history)
    if data.table is None:  # a row of a table is no image
        write_sample_figures(run, vae, data, size=64, seed=0)
    write_posterior(run, vae, data, seed=0)
    run.finish(config, data)

    log_p, measure = evaluation.marginal.log_marginal.value, evaluation.base_measure
    baselines = compare_to_baselines(config, data, log_p, base_measure=measure, split="test")
    fit = Fit.of_run(run, config, vae, data, baselines, history=history)
    diagnosis = Diagnosis.of(fit, TRAINING_CHECKS)
    reason = "no improvement" if history.stop_reason == "plateau" else "all epochs done"
    print(f"\nstopped after epoch {len(history)} ({reason}); the best on validation data is epoch {history.best_epoch}")
    print(f"{len(data.test):,} test data, K = {config.num_particles:,} draws each; nats per datum")
    print(SPLIT_WORDS["test"])
    print(f"proposal: {evaluation.marginal.proposal}\n")
    print(table({"VAE": summary, **baselines.rows}))
    failed = {check.name for check in diagnosis.warnings}  # which have lines of their own below
    if "weights" not in failed:
        print(caution(summary))
    if baselines.words and "baselines" not in failed:
        print(baselines.words)
    if line := classification_line(summary):
        print(line)
    print(f"\n{training_lines(diagnosis)}\n")
    print(f"wrote {run.path}; see it as one page: python scripts/report.py {shlex.quote(str(run.path))}")


if __name__ == "__main__":
    run_script(main)
