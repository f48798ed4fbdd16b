"""ELBO with a classification term: against its definition, and the numbers that it must leave alone."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO

from pyrovae import MLP, Blueprint, MixtureVAE, NormalLikelihood
from pyrovae.objectives import ClassificationELBO
from pyrovae.training import fit
from pyrovae.training.validation import validate

DIMS, N, CLASSES = 4, 20, 3
LABELS = torch.arange(N) % 5 - 1
LABELS[LABELS == CLASSES] = -1
NUM_LABELLED = int((LABELS >= 0).sum())


def made(num_covariates=0):
    pyro.set_rng_seed(2)
    blueprint = Blueprint(DIMS, 2, num_covariates, likelihood=NormalLikelihood, network=partial(MLP, hidden=[6]))
    vae = MixtureVAE(blueprint, num_classes=CLASSES).double()
    data = {"x": torch.randn(N, DIMS).double(), "labels": LABELS}
    if num_covariates:
        data["covariates"] = torch.randn(N, num_covariates).double()
    return vae, data


def loss_and_gradients(elbo, vae, data):
    vae.zero_grad()
    pyro.set_rng_seed(1)
    loss = elbo.loss_and_grads(vae.model, vae.guide, **data)
    pyro.set_rng_seed(1)
    assert elbo.loss(vae.model, vae.guide, **data) == pytest.approx(loss)
    return loss, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in vae.named_parameters()}


@pytest.mark.parametrize("num_covariates", [0, 2])
def test_the_term_is_the_log_probability_of_the_labels(num_covariates):
    vae, data = made(num_covariates)
    alpha = 0.3
    loss, gradients = loss_and_gradients(ClassificationELBO(N, NUM_LABELLED, alpha), vae, data)
    plain, others = loss_and_gradients(TraceEnum_ELBO(max_plate_nesting=1), vae, data)
    logits = vae.guide.classes(data["x"], *([data["covariates"]] if num_covariates else [])).logits
    term = torch.nn.functional.cross_entropy(logits, LABELS, ignore_index=-1, reduction="mean") * alpha * N
    assert loss - plain == pytest.approx(term.item(), rel=1e-9)
    vae.zero_grad()
    term.backward()
    for name, parameter in vae.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradients[name] - others[name], own)
    without, _ = loss_and_gradients(ClassificationELBO(N, NUM_LABELLED, 0.0), vae, data)
    assert without == pytest.approx(plain)


def test_a_class_may_be_an_index_in_any_program():
    shares = torch.tensor([0.5, 0.2, 0.3])
    weight = torch.ones(CLASSES, requires_grad=True)

    def model(x, labels=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(shares))
            pyro.sample("x", dist.Normal(y.to(x.dtype), 1.0), obs=x)

    def guide(x, labels=None):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x[:, None] * weight), infer={"enumerate": "parallel"})

    x = torch.randn(N)
    elbo = ClassificationELBO(N, NUM_LABELLED)
    term = elbo.loss(model, guide, x, labels=LABELS) - TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    known = LABELS >= 0
    assert term == pytest.approx(0.1 * N * torch.tensor(CLASSES).log().item(), rel=1e-4)  # q(y|x) is uniform
    assert int(known.sum()) == NUM_LABELLED


def test_recorded_training_equals_eager_training_and_reports_the_elbo_without_the_term():
    ends = []
    for execution in ("eager", "recorded"):
        vae, data = made(2)
        elbo = ClassificationELBO(N, NUM_LABELLED, 2.0)
        pyro.set_rng_seed(0)
        history = fit(
            vae.model, vae.guide, data, elbo=elbo, epochs=6, batch_size=8, validation=data, execution=execution
        )
        assert history["train_elbo"] == [None] * 6
        found = validate(vae.model, vae.guide, **data)
        assert found.elbo == pytest.approx(max(history["validation_elbo"]), abs=1.0)
        assert history["validation_objective"][-1] < history["validation_elbo"][-1] - 0.5
        ends.append(torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
    torch.testing.assert_close(*ends)


def test_labelled_data_train_the_classifier_by_the_term_alone():
    errors = []
    for alpha in (0.0, 1.0):
        vae, data = made()
        data["labels"] = LABELS.clamp(min=0)
        elbo = ClassificationELBO(N, N, alpha)
        before = vae.guide.classes(data["x"]).logits.detach()
        fit(vae.model, vae.guide, data, elbo=elbo, epochs=50, optimizer=partial(torch.optim.Adam, lr=0.06))
        after = vae.guide.classes(data["x"]).logits.detach()
        assert torch.equal(before, after) == (alpha == 0)
        errors.append((after.argmax(1) != data["labels"]).double().mean().item())
    assert errors[1] < 0.2 < errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0), "num_labelled must be above 0 and at most num_data=10, got 0"),
        ((10, 11), "num_labelled must be above 0 and at most num_data=10, got 11"),
        ((10, 5, -0.1), "alpha must be at least 0, got -0.1"),
        ((10, 5, float("nan")), "alpha must be at least 0, got nan"),
    ],
)
def test_wrong_weights_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassificationELBO(*arguments)


def test_programs_without_labels_or_classes_are_refused():
    vae, data = made()
    elbo = ClassificationELBO(N, NUM_LABELLED)
    with pytest.raises(ValueError, match=r"ClassificationELBO needs the argument labels by name.*got none"):
        elbo.loss(vae.model, vae.guide, data["x"])
    with pytest.raises(ValueError, match=r"the guide draws no site 'class', so there is no q\(y\|x\) to train"):
        ClassificationELBO(N, NUM_LABELLED, site="class").loss(vae.model, vae.guide, **data)
