"""Every prior, encoder and likelihood is recorded, with the values, gradients and draws of Pyro's objectives."""

from functools import partial
from itertools import zip_longest

import pyro
import pytest
import torch
from catalogue import ENCODERS, LIKELIHOODS, PRIORS, C
from combinations_of_parts import CELLS as PAIRS
from combinations_of_parts import DISCRETE, N, build, seed, some_data
from oracles import counted, stepper_of
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

SGD = partial(torch.optim.SGD, lr=1e-2)
ENUMERATED = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)

# Every part at least once: each prior with the normal encoder, each encoder with one of three priors, and each
# likelihood with the standard normal prior and the normal encoder.
# Every prior and every likelihood in one cell, and every encoder in another.
CELLS = [
    (p, "normal", q)
    for p, q in zip_longest((p for p in PRIORS if p != "categorical"), LIKELIHOODS, fillvalue="standard")
]
CELLS += [(p, q, "poisson") for p, q in zip(("standard", "mixture", "logistic normal") * 3, ENCODERS, strict=False)]
COMPILED_CELLS = [("standard", "normal", "bernoulli")]
MORE_COMPILED_CELLS = [
    ("mixture", "full covariance", "negative binomial"),
    ("student-t", "student-t", "student"),
    ("laplace", "mixture", "negative binomial, network"),
    ("vamp", "flow, maf", "poisson"),
    ("vamp, weights", "normal", "beta, network"),
    ("flow, maf", "low rank", "normal, network"),
    ("autoregressive", "normal", "laplace, network"),
    ("two layers", "two layers, up", "binomial"),
    ("standard", "two layers, down", "zero-inflated poisson"),
    ("conditional", "full covariance", "categorical"),
    ("logistic normal", "normal", "logistic mixture"),
    ("dirichlet", "normal", "multinomial"),
]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def steps_of(cell, elbo, execution, steps=3):
    """Take steps on a cell, each with its own data. Returns losses and gradients, and a draw after them."""
    prior, encoder, likelihood = cell
    generator = torch.Generator().manual_seed(1)
    support = LIKELIHOODS[likelihood]()(torch.zeros(2)).support
    batches = [some_data(support, generator) for _ in range(steps)]
    conditions = [
        {"covariates": torch.randn(N, C, generator=generator)} if prior == "conditional" else {} for _ in range(steps)
    ]
    pyro.clear_param_store()
    seed(0)
    vae = build(prior, encoder, likelihood, batches[0])
    parameters = list(vae.parameters())
    stepper = stepper_of(vae, elbo, SGD, execution, {N: steps})
    out = []
    for batch, condition in zip(batches, conditions, strict=True):
        loss = stepper(N, (batch,), condition).clone()
        out.append([loss, *(None if p.grad is None else p.grad.clone() for p in parameters)])
    return out, torch.rand(())


def assert_close(one, other, tolerance):
    for theirs, ours in zip(one, other, strict=True):
        for a, b in zip(theirs, ours, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * (1 + float(a.abs().max())))


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
@pytest.mark.thin(5)
def test_recorded_steps_of_every_part_have_the_loss_and_gradients_of_pyros_objective(cell):
    elbo = (Trace_ELBO, TraceMeanField_ELBO)[CELLS.index(cell) % 2]()
    eager, draw = steps_of(cell, elbo, "eager")
    recorded, same_draw = steps_of(cell, elbo, "recorded")  # a warning that it runs eagerly would be an error
    assert_close(eager, recorded, 2e-6)
    assert draw == same_draw


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_recorded_steps_of_every_prior_and_encoder_have_the_eager_loss_and_gradients(pair):
    """Each pair has another likelihood."""
    cell = (*pair, list(LIKELIHOODS)[PAIRS.index(pair) % len(LIKELIHOODS)])
    elbo = ENUMERATED if pair in DISCRETE else Trace_ELBO()
    eager, draw = steps_of(cell, elbo, "eager")
    recorded, same_draw = steps_of(cell, elbo, "recorded")
    assert_close(eager, recorded, 5e-6)
    assert draw == same_draw


@pytest.mark.compiles
@pytest.mark.parametrize(
    "cell",
    [*COMPILED_CELLS, *(pytest.param(cell, marks=pytest.mark.slow) for cell in MORE_COMPILED_CELLS)],
    ids=" ".join,
)
def test_compiled_steps_equal_eager_steps(cell, monkeypatch):
    check_compiled(cell, 1e-4, monkeypatch)


@pytest.mark.compiles
@pytest.mark.slow
def test_compiled_steps_of_splines_equal_eager_steps(double, monkeypatch):
    """In double precision: in single precision, a change of one ulp in the parameters moves gradients by 4e-5."""
    check_compiled(("flow, nsf", "flow, nsf", "bernoulli"), 1e-9, monkeypatch)


def check_compiled(cell, tolerance, monkeypatch):
    calls = counted(monkeypatch, "compile_graph")
    eager, draw = steps_of(cell, TraceMeanField_ELBO(), "eager")
    assert calls == []
    compiled, same_draw = steps_of(cell, TraceMeanField_ELBO(), "compiled")
    assert len(calls) == 1
    assert_close(eager, compiled, tolerance)
    assert draw == same_draw
