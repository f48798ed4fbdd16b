"""Two and three processes have the draws of one, and its results up to the order of summation."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import workers_job
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from script_helpers import SCRIPTS, TINY, Script, call, run

from pyrovae import VAE, BernoulliLikelihood, BetaTCELBO, Capacity, NormalEncoder, StandardNormalPrior, fit
from pyrovae.execution import Share, Workers, joined
from pyrovae.runs import write_state

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def forks(number, script, arguments, cwd):
    """Run a script in several processes, as torchrun does, but as forks of a process that has imported torch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    size |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{**size, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    started = [Script(script, arguments, cwd=cwd, strict=False, env=env) for env in ranks]
    for process in started:
        assert process.wait() == 0, process.stderr
    return started


def asked(request):
    """The cases, "name-execution", whose tests were collected for this number of processes."""
    given = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    given = [one for one in given if "name" in one and one.get("outcome") == request.param]
    return sorted({f"{one['name']}-{one['execution']}" for one in given})


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Return the path of the state of one process after one of three epochs, to be resumed."""
    path, states = tmp_path_factory.mktemp("state") / "state.safetensors", []
    workers_job.train("normal", "eager", epochs=1, commit=states.append)
    states[-1]["stop_reason"] = None
    write_state(path, states[-1])
    return path


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def outcome(request, tmp_path_factory, resumed):
    """Run the job in several processes. Returns the folder of their results and their number."""
    out = tmp_path_factory.mktemp(f"by-{request.param}")
    started = forks(request.param, Path(workers_job.__file__).with_suffix(""), [out, resumed, *asked(request)], cwd=out)
    assert [process.stdout.split() for process in started] == [["rank", "0"]] + [[]] * (request.param - 1)
    return out, request.param


def check_training(outcome, name, execution):
    out, size = outcome
    alone = workers_job.train(name, execution)
    for rank in range(size):
        found = torch.load(out / f"{name}-{execution}-{rank}.pt")
        for mine, theirs in zip(alone["parameters"], found["parameters"], strict=True):
            torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-12)
        torch.testing.assert_close(found["validation"], alone["validation"], rtol=1e-12, atol=0)
        assert torch.equal(found["after"], alone["after"])
        # Only rank 0 commits. A gamma has parameters, which the processes exchange; that cannot be recorded.
        assert len(found["refused"]) == (2 if rank == 0 else 0)
        assert [bool(reason) for reason in found["refused"]] == [name == "student-t"] * len(found["refused"])


@pytest.mark.parametrize(("name", "execution"), workers_job.CASES)
@pytest.mark.thin(3)
def test_several_processes_train_as_one(outcome, name, execution):
    check_training(outcome, name, execution)


@pytest.mark.slow
@pytest.mark.parametrize("outcome", [3], indirect=True)
@pytest.mark.parametrize(("name", "execution"), workers_job.MORE_CASES)
def test_three_processes_train_as_one(outcome, name, execution):
    check_training(outcome, name, execution)


def test_a_run_resumes_with_another_number_of_processes(outcome):
    out, _ = outcome
    alone, found = workers_job.train("normal", "eager", epochs=3), torch.load(out / "resumed.pt")
    for mine, theirs in zip(alone["parameters"], found["parameters"], strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-12)
    assert torch.equal(found["after"], alone["after"])


def test_evaluations_of_several_processes_are_bit_identical_and_committed_by_rank_0(outcome):
    out, size = outcome
    alone, _ = workers_job.weighed()
    for rank in range(size):
        found = torch.load(out / f"evaluation-{rank}.pt")
        assert torch.equal(found["log_marginal"], alone["log_marginal"])
        assert torch.equal(found["elbo"], alone["elbo"])
        assert found["commits"] == ((1 if size == 2 else 0) if rank == 0 else 0)
        assert found["states"] == (2 if rank == 0 else 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [1, 5, 100])
def test_the_shares_of_the_workers_partition_the_rows(size, total):
    shares = [Workers(rank, size).share(total) for rank in range(size)]
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(total))
    counts = [share.stop - share.start for share in shares]
    assert max(counts) - min(counts) <= 1


def test_a_worker_with_an_empty_share_runs_on_one_row():
    assert Share(1, 0, 0).rows == slice(0, 1)
    assert Share(1, 0, 0).empty


def test_several_processes_refuse_batch_normalisation(monkeypatch):
    monkeypatch.setattr(Workers, "current", classmethod(lambda cls: Workers(0, 2)))
    network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(torch.nn.Linear(2, 6)), NormalEncoder(network))
    with pytest.raises(ValueError, match="BatchNorm1d normalises over each process's own rows"):
        fit(vae.model, vae.guide, torch.ones(4, 6), elbo=TraceMeanField_ELBO(), epochs=1)


@pytest.mark.parametrize("options", [{"elbo": BetaTCELBO(num_data=4)}, {"elbo": Trace_ELBO(), "kl_weight": Capacity()}])
def test_several_processes_refuse_objectives_of_a_whole_batch(monkeypatch, options):
    monkeypatch.setattr(Workers, "current", classmethod(lambda cls: Workers(0, 2)))
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(torch.nn.Linear(2, 6)), NormalEncoder(torch.nn.Linear(6, 4)))
    with pytest.raises(ValueError, match="combines the data of a batch; train with one process"):
        fit(vae.model, vae.guide, torch.ones(4, 6), epochs=1, **options)


def by_torchrun(script, arguments, cwd):
    command = [*TORCHRUN, "--nproc-per-node=2", str(SCRIPTS / f"{script}.py"), *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def by_forks(script, arguments, cwd):
    return "".join(process.stdout for process in forks(2, script, arguments, cwd))


@pytest.mark.parametrize("start", [by_forks, pytest.param(by_torchrun, marks=pytest.mark.slow)])
def test_scripts_train_and_evaluate_with_several_processes(tmp_path, start):
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 6)))
    written = start("train", ["--data", "bits.npy", *TINY, "--epochs", "1", "--out", "two"], tmp_path)
    assert written.count("wrote two") == 1
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["status"] == "finished"
    shared = (tmp_path / "two" / "evaluation.csv").read_bytes()
    run("evaluate", "two", "--num_particles", 25, cwd=tmp_path)
    assert (tmp_path / "two" / "evaluation.csv").read_bytes() == shared


def test_several_processes_exchange_stop_requests_every_20_steps_and_after_each_epoch(monkeypatch):
    asked = []

    class Two(Workers):
        """Two processes, the other of which adds nothing."""

        def add(self, tensors):
            pass

        def any(self, flag):
            asked.append(steps)
            return flag

        def differing(self, tensors):
            return []

    monkeypatch.setattr(Workers, "current", classmethod(lambda cls: Two(0, 2)))
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(torch.nn.Linear(2, 6)), NormalEncoder(torch.nn.Linear(6, 4)))
    steps = 0

    def counted(x):
        nonlocal steps
        steps += 1
        return x

    settings = {"epochs": 2, "batch_size": 2, "transform": counted, "should_stop": lambda: False}
    fit(vae.model, vae.guide, torch.ones(90, 6), elbo=TraceMeanField_ELBO(), skip_support_check=True, **settings)
    assert [step - asked[0] for step in asked] == [0, 20, 25, 45, 65, 70]  # of 45 an epoch: 20, 40 and the last


@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_0_prints_an_error(capsys, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    code, err = call(capsys, monkeypatch, "train", "--epochs", "none")
    assert code == 1
    assert err.count("error: --epochs") == (1 if rank == 0 else 0)


@pytest.mark.parametrize("text", ["x", "", "-1", "1.5"])
def test_a_variable_of_torchrun_that_is_no_whole_number_is_named(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ValueError, match="the environment variable WORLD_SIZE is"), joined():
        pass
