"""Tracing and hoisting: lifted tensors, refusals, and products that are computed once per block of data."""

import random
from collections import Counter

import numpy as np
import pyro
import pytest
import torch
from catalogue import LIKELIHOODS, C
from combinations_of_parts import build, seed, some_data
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GuideProposal,
    NormalEncoder,
    StandardNormalPrior,
    log_marginal,
)
from pyrovae.evidence import log_weight_blocks
from pyrovae.evidence.importance import chunks_of
from pyrovae.execution import NotRecordedError, Recorded
from pyrovae.execution.trace import record

CELLS = [
    ("vamp", "flow, maf", "poisson"),
    ("autoregressive", "two layers, down", "normal, network"),
    ("conditional", "normal", "student"),
]


class Rows(TorchDispatchMode):
    """Count the rows that are multiplied by each matrix, by the size of the matrix."""

    def __init__(self):
        super().__init__()
        self.rows = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            matrix = args[-1]
            self.rows[tuple(matrix.shape)] += out.shape[0]
        return out


@pytest.mark.parametrize("proposal", [pytest.param(None, marks=pytest.mark.slow), GuideProposal()])
def test_the_encoder_runs_once_for_each_datum(proposal):
    torch.manual_seed(0)
    encoder = NormalEncoder(MLP(6, 2 * 7, hidden=[11]))
    vae = VAE(StandardNormalPrior(7), BernoulliLikelihood(MLP(7, 6, hidden=[10])), encoder)
    x = torch.bernoulli(torch.full((70, 6), 0.5))
    rows = {}
    for execution in ("eager", "recorded"):
        with Rows() as counted:
            log_marginal(
                vae.model, vae.guide, x, num_particles=400, chunk_size=640, proposal=proposal, execution=execution
            )
        rows[execution] = counted.rows[6, 11] / 70, counted.rows[7, 10] / 70
    assert rows["eager"][0] > 40  # chunks of 10 draws each
    # A new shape costs four runs to verify and record, and the proposal's preparation, for any number of draws.
    assert rows["recorded"][0] < 25
    assert rows["recorded"][1] >= 400


@pytest.mark.parametrize("cell", CELLS, ids=", ".join)
@pytest.mark.thin(1)
def test_recorded_log_marginal_of_other_parts_equals_the_eager_one(cell):
    prior, encoder, likelihood = cell
    support = LIKELIHOODS[likelihood]()(torch.zeros(2)).support
    x = some_data(support, torch.Generator().manual_seed(1))
    condition = {"covariates": torch.randn(len(x), C)} if prior == "conditional" else {}
    seed(7)
    vae = build(prior, encoder, likelihood, x)
    estimates = []
    for how in ("eager", "recorded"):
        pyro.set_rng_seed(4)
        found = log_marginal(
            vae.model,
            vae.guide,
            x,
            num_particles=4,
            chunk_size=20,
            proposal=GuideProposal(),
            execution=how,
            **condition,
        )
        estimates.append(found.value)
    torch.testing.assert_close(*estimates, rtol=1e-4, atol=1e-4)


def test_recorded_chunks_use_changed_parameters_and_data_in_the_next_block():
    torch.manual_seed(0)
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6, hidden=[8])), NormalEncoder(MLP(6, 4, hidden=[8])))
    chunks = chunks_of(30, 10, 50, 100, "recorded")
    for _ in range(3):
        x = torch.bernoulli(torch.full((10, 6), 0.5))
        found = []
        for how in ("eager", chunks):
            pyro.set_rng_seed(1)
            blocks = log_weight_blocks(
                vae.model, vae.guide, x, num_particles=50, proposal=GuideProposal(), chunk_size=100, execution=how
            )
            found.append(next(iter(blocks)).log_w)
        torch.testing.assert_close(*found)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(torch.randn_like(parameter) / 3)


def test_products_that_depend_on_draws_or_changed_memory_are_not_hoisted():
    weight = torch.randn(4, 4)

    def function(latents, x):
        noisy = torch.randn(3, 4) @ weight
        base = torch.zeros(3, 4)
        view, early = base[:2], base @ weight
        view.add_(x[:2])
        left, right = x.split(2, 1)
        plain = (left @ weight[:2]).relu() @ weight + right.sum()
        return [noisy + latents + plain + base @ weight + early]

    recorded = Recorded(function, num_varying=1)
    for _ in range(3):
        recorded.forget()
        x = torch.randn(3, 4)
        for _ in range(3):
            latents, state = torch.randn(3, 4), torch.get_rng_state()
            found = recorded(latents, x)[0]
            torch.set_rng_state(state)
            torch.testing.assert_close(found, function(latents, x)[0])
        assert {type(value) for replay in recorded._replays.values() for value in replay.constants} == {torch.Tensor}


def test_a_record_lifts_tensors_by_reference_and_drops_unused_ones():
    x = torch.bernoulli(torch.full((70, 6), 0.3))
    weight, unread = nn.Parameter(torch.ones(6)), torch.ones(3)

    def function(x):
        unread.exp()
        return [(x * weight.exp()).sum(), None]

    graph, lifted = record(function, [x])
    assert len(lifted) == 1
    with torch.no_grad():
        weight.zero_()
    total, nothing = graph(*lifted, x)
    assert nothing is None
    assert torch.equal(total, x.sum())
    assert [node.op for node in graph.graph.nodes].count("call_function") == 3  # exp, mul, sum


@pytest.mark.parametrize(
    ("draw", "state"), [(random.random, random.getstate), (np.random.random, lambda: str(np.random.get_state()))]
)
def test_a_function_that_draws_from_another_generator_than_torchs_is_refused(draw, state):
    """Its draw would be a constant of the record."""
    recorded, before = Recorded(lambda x: [x + (draw() > 1e-9)]), state()
    with pytest.raises(NotRecordedError, match="draws different random numbers"):
        recorded(torch.ones(2))
    assert state() == before
