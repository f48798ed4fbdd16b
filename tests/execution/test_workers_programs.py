"""Two processes train programs of many kinds as one does, or refuse."""

import socket
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
import workers_programs_job as job
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from script_helpers import Script

from pyrovae import fit
from pyrovae.execution import Workers
from pyrovae.training.loaders import LoaderBatches

REFUSED = {
    "auto local": "one row of parameters for each datum",
    "auto joint local": "one row of parameters for each datum",
    "enumerated outside": r"sums out 'c', which lies outside .* with one process",
}


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    """Train by two processes what the collected tests ask for. Returns the results of both."""
    out = tmp_path_factory.mktemp("programs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    given = [item.callspec.params for item in request.session.items if "two" in getattr(item, "fixturenames", ())]
    asked = {"-".join(one["case"]) if "case" in one else f"{one['name']}-eager" for one in given}
    path = Path(job.__file__).with_suffix("")
    started = [Script(path, [out, *sorted(asked)], cwd=out, strict=False, env=env) for env in ranks]
    for process in started:
        assert process.wait() == 0, process.stderr
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", [(name, "eager") for name in job.CASES if name not in REFUSED] + job.RECORDED)
@pytest.mark.thin(3)
def test_two_processes_train_a_program_as_one(two, case):
    alone = job.train(*case)
    for found in (each[case] for each in two):
        assert found.get("refused") is None
        assert found["parameters"].keys() == alone["parameters"].keys()
        for name, value in alone["parameters"].items():
            torch.testing.assert_close(found["parameters"][name], value, rtol=0, atol=1e-11)
        torch.testing.assert_close(found["objective"], alone["objective"], rtol=1e-12, atol=0)
        assert torch.equal(found["after"], alone["after"])


@pytest.mark.parametrize("name", REFUSED)
def test_two_processes_refuse_programs_whose_data_cannot_be_shared(two, name):
    assert "refused" not in job.train(name, "eager")
    for found in two:
        with pytest.raises(ValueError, match=REFUSED[name]):
            raise ValueError(found[name, "eager"]["refused"])


def test_a_sum_over_a_latent_of_all_data_is_refused_on_batches():
    pyro.clear_param_store()
    model, guide = job.enumerated_program(inside=False)
    with pytest.raises(ValueError, match=r"sums out 'c', which lies outside .*batch_size=12"):
        fit(model, guide, job.rows(), elbo=TraceEnum_ELBO(max_plate_nesting=1), epochs=1, batch_size=4)


def _refuse_two(monkeypatch, model, guide, message, **others):
    class Two(Workers):
        def gathered(self, value):
            return [value, {**value, **others}]

    monkeypatch.setattr(Workers, "current", classmethod(lambda cls: Two(0, 2)))
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=message):
        fit(model, guide, job.rows(), elbo=Trace_ELBO(), epochs=1, batch_size=4)


@pytest.mark.parametrize("name", ["parameters", "data", "random states"])
def test_processes_that_start_unlike_are_refused(monkeypatch, name):
    model, guide = job.local_program()
    _refuse_two(monkeypatch, model, guide, f"start alike, but their {name} differ", **{name: "other"})


def test_programs_whose_plates_ignore_the_rows_are_refused(monkeypatch):
    data = job.rows()

    def model(x):
        with pyro.plate("rows", len(data), subsample_size=4, dim=-1) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[rows, 0])

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("rows", len(data), subsample_size=4, dim=-1):
            pyro.sample("z", dist.Normal(loc.expand(4), 1.0))

    _refuse_two(monkeypatch, model, guide, "no plate takes its size from the rows")


def test_loaders_that_give_other_batches_in_other_processes_are_refused(monkeypatch):
    class Two(Workers):
        def gathered(self, value):
            return [value, {"data": "other"}]

    monkeypatch.setattr(Workers, "current", classmethod(lambda cls: Two(0, 2)))
    loader = torch.utils.data.DataLoader(job.rows(), batch_size=4)
    batches = LoaderBatches(loader, job.local_program())
    batches.start_epoch(0)
    with pytest.raises(ValueError, match="gives other batches in other processes"):
        batches.batch(0)


def test_factors_of_the_rows_outside_their_plate_are_refused(monkeypatch):
    model, guide = job.local_program()

    def with_factor(x):
        model(x)
        pyro.factor("penalty", -x.square().sum())

    _refuse_two(monkeypatch, with_factor, guide, "site 'penalty' of the model is an observation or factor outside")
