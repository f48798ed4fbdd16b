"""Mixtures with labels of some data, against classes summed by hand and a latent integrated over a grid."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO

from pyrovae import (
    MLP,
    VAE,
    Blueprint,
    ClassificationELBO,
    ConditionalNormalPrior,
    DefensiveProposal,
    GuideProposal,
    ImportanceWeightedELBO,
    MixtureVAE,
    NormalLikelihood,
    PriorProposal,
    Streamed,
    evidence_lower_bound,
    exact_log_marginal,
    log_marginal,
    log_weights,
)
from pyrovae.data import read_table
from pyrovae.evidence import classify, impute
from pyrovae.runs import check_contract
from pyrovae.training import fit

DIMS, N, C, CLASSES = 3, 6, 2, 3
LABELS = torch.tensor([0, -1, 2, 1, -1, 0])
WHICH = {"some": LABELS, "all": LABELS.clamp(min=0), "none": torch.full((N,), -1)}
ADAM, FAST = partial(torch.optim.Adam, lr=0.02), partial(torch.optim.Adam, lr=0.1)
SCORE = 4.5  # standard errors; of 54 numbers, one beyond has probability 4e-4


def made(num_covariates=0, latent_dim=1, num_data=N):
    """A mixture in double precision with unequal p(y), away from its start, its guide near the prior, with data."""
    pyro.set_rng_seed(4)
    parts = {"likelihood": partial(NormalLikelihood, scale=1.5), "prior": ConditionalNormalPrior}
    blueprint = Blueprint(DIMS, latent_dim, num_covariates, network=partial(MLP, hidden=[5]), **parts)
    vae = MixtureVAE(blueprint, num_classes=CLASSES).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        vae.model.logits.copy_(torch.tensor([0.5, -1.0, 0.2]))
    x = torch.randn(num_data, DIMS, dtype=torch.float64)
    kwargs = {"covariates": torch.randn(num_data, num_covariates, dtype=torch.float64)} if num_covariates else {}
    return vae, x, kwargs


@torch.no_grad()
def by_hand(vae, x, labels, mask=None, covariates=None):
    """log p(x, y) of labelled data and log p(x) of the others, by the trapezoid rule over z from -30 to 30."""
    network, prior = vae.model.likelihood.network, vae.model.prior
    z = torch.linspace(-30, 30, 3001, dtype=torch.float64)[:, None, None].expand(-1, len(x), 1)
    observed = torch.ones_like(x) if mask is None else mask.double().reshape(len(x), -1).expand_as(x)
    joint = []
    for y in torch.eye(CLASSES, dtype=torch.float64):
        given = y.expand(len(x), CLASSES) if covariates is None else torch.cat([y.expand(len(x), -1), covariates], 1)
        loc, scale = prior(given).base_dist.loc, prior(given).base_dist.scale
        log_p = (-0.5 * ((z - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        mean = network(torch.cat([z, given.expand(len(z), -1, -1)], -1))
        entries = -0.5 * ((x.nan_to_num() - mean) / 1.5).square() - math.log(1.5 * math.sqrt(2 * math.pi))
        joint.append((log_p + (entries * observed).sum(-1)).logsumexp(0) + math.log(60 / 3000))
    joint = torch.stack(joint) + (vae.model.logits.exp() / vae.model.logits.exp().sum()).log()[:, None]
    return torch.where(labels >= 0, joint[labels.clamp(min=0), torch.arange(len(x))], joint.logsumexp(0))


MASKS = {
    "whole": None,
    "entries": torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 0]]).bool(),
    "data": torch.tensor([1, 0, 0, 1, 1, 1]).bool(),
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize(("mask", "num_covariates"), [("whole", 0), ("entries", C), ("data", 0)])
@pytest.mark.thin(3)
def test_log_p_of_data_and_labels_agrees_with_a_sum_by_hand(which, mask, num_covariates):
    vae, x, kwargs = made(num_covariates)
    labels, observed = WHICH[which], MASKS[mask]
    if observed is not None:
        kwargs["mask"] = observed
        x = torch.where(observed.reshape(N, -1), x, torch.nan)
    truth = by_hand(vae, x, labels, **kwargs)
    found = exact_log_marginal(vae.model, x, labels=labels, **kwargs)
    torch.testing.assert_close(found.value, truth, rtol=0, atol=1e-6)
    estimate = log_marginal(vae.model, vae.guide, x, labels=labels, num_particles=10_000, **kwargs)
    assert estimate.std_error.max() < 0.03
    assert ((estimate.value - truth).abs() < SCORE * estimate.std_error + 1e-6).all()
    if which == "some":  # the test has power: without labels the numbers differ
        others = by_hand(vae, x, WHICH["none"], **kwargs)
        assert ((others - truth)[labels >= 0] > 0.1).all()


@pytest.mark.parametrize("proposal", [GuideProposal(), PriorProposal(), DefensiveProposal(0.5)], ids=lambda p: p.name)
def test_every_proposal_agrees_with_a_sum_by_hand(proposal):
    vae, x, _ = made()
    with torch.no_grad():
        last = vae.guide.encoder.network[-1].layers[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.5, math.log(5.0)]))  # wider than the posteriors
    estimate = log_marginal(vae.model, vae.guide, x, labels=LABELS, num_particles=20_000, proposal=proposal)
    assert estimate.std_error.max() < 0.05
    assert ((estimate.value - by_hand(vae, x, LABELS)).abs() < SCORE * estimate.std_error + 1e-6).all()


def test_enumerated_elbo_and_gradients_agree_with_a_sum_by_hand():
    vae, x, kwargs = made(C, latent_dim=2)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    pyro.set_rng_seed(1)
    elbo.differentiable_loss(vae.model, vae.guide, x, labels=LABELS, **kwargs).backward()
    pyro.set_rng_seed(1)
    loss = elbo.loss(vae.model, vae.guide, x, labels=LABELS, **kwargs)
    gradients = {name: parameter.grad for name, parameter in vae.named_parameters()}
    vae.zero_grad()

    eye, known = torch.eye(CLASSES, dtype=torch.float64), LABELS >= 0
    y = torch.where(known[:, None], eye[LABELS.clamp(min=0)], eye[:, None].expand(-1, N, -1))  # (classes, N, classes)
    conditions = torch.cat([y, kwargs["covariates"].expand(CLASSES, -1, -1)], -1)
    q_z = vae.guide.encoder(x, conditions)
    pyro.set_rng_seed(1)
    z = q_z.rsample()
    log_y = vae.model.logits.log_softmax(0)
    given_y = vae.model.prior(conditions).log_prob(z) + vae.model.likelihood(z, conditions).log_prob(x)
    given_y = given_y - q_z.log_prob(z)
    q = vae.guide.classes(x, **kwargs).logits.log_softmax(1).T
    missing = (q.exp() * (log_y[:, None] + given_y - q)).sum(0)
    labelled = log_y[LABELS.clamp(min=0)] + given_y.mean(0)  # the auxiliary class has one draw of z per value
    by_sum = -torch.where(known, labelled, missing).sum()
    assert loss == pytest.approx(by_sum.item(), rel=1e-10)
    by_sum.backward()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_importance_weights_of_labelled_data_do_not_depend_on_the_auxiliary_class():
    vae, x, _ = made()
    labels = WHICH["all"]
    log_w, draws = [], []
    for offset in (0.0, 5.0):
        with torch.no_grad():
            vae.guide.classes.network[-1].layers[-1].bias[0] += offset  # q(y|x), which labelled rows do not use
        pyro.set_rng_seed(3)
        log_w.append(log_weights(vae.model, vae.guide, x, labels=labels, num_particles=50))
        pyro.set_rng_seed(3)
        draws.append(log_weights(vae.model, vae.guide, x, num_particles=50))
    torch.testing.assert_close(*log_w)
    assert not torch.allclose(*draws)


def test_data_are_generated_from_their_labels():
    vae, _, _ = made()
    labels = torch.tensor([1, -1]).repeat(20_000)
    with torch.no_grad():
        x = vae.model(labels=labels)
        of_class = torch.cat([vae.model(labels=torch.full((20_000,), y)) for y in range(CLASSES)])
    assert x.shape == (40_000, DIMS)
    means = of_class.view(CLASSES, -1, DIMS).mean(1)
    share = vae.model.logits.softmax(0).detach()
    # Standard errors are 0.02 at most: 0.1 is five of them.
    torch.testing.assert_close(x[::2].mean(0), means[1], rtol=0, atol=0.1)
    torch.testing.assert_close(x[1::2].mean(0), share @ means, rtol=0, atol=0.1)
    assert (means[1] - share @ means).abs().max() > 0.3


def test_recorded_training_in_minibatches_equals_eager_training():
    ends, elbo = [], TraceEnum_ELBO(max_plate_nesting=1)
    for execution in ("eager", "recorded"):
        vae, x, kwargs = made(C, num_data=40)
        data = {"x": x, "labels": torch.arange(40) % 4 - 1, **kwargs, "mask": x > -1}
        pyro.set_rng_seed(0)
        history = fit(
            vae.model, vae.guide, data, elbo=elbo, epochs=3, batch_size=16, validation=data, execution=execution
        )
        assert history["validation_elbo"][-1] > history["validation_elbo"][0]
        ends.append(torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
    torch.testing.assert_close(*ends)


def test_labelled_data_train_by_vimco():
    vae, x, _ = made(num_data=40)
    data, elbo = {"x": x, "labels": torch.arange(40) % 4 - 1}, ImportanceWeightedELBO(4, "vimco")
    history = fit(vae.model, vae.guide, data, elbo=elbo, epochs=10, batch_size=16, validation=data)
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]


def test_training_raises_log_p_of_labels_to_their_shares():
    """With every label known, p(y) becomes the share of each class."""
    vae, x, _ = made(num_data=60)
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 30)
    fit(vae.model, vae.guide, {"x": x, "labels": labels}, elbo=TraceEnum_ELBO(), epochs=80, optimizer=FAST)
    share = vae.model.logits.softmax(0).detach()
    torch.testing.assert_close(share, torch.tensor([1, 2, 3], dtype=share.dtype) / 6, rtol=0, atol=0.02)


def test_elbo_lies_below_log_p_of_data_and_labels():
    vae, x, _ = made()
    bound = evidence_lower_bound(vae.model, vae.guide, x, labels=LABELS, num_particles=5000)
    assert (bound.value < by_hand(vae, x, LABELS) + 5 * bound.std_error).all()


def test_imputation_uses_the_label():
    """Of a datum without any entry the conditional mean is that of its class."""
    vae, x, _ = made(num_data=1)
    mask = torch.zeros(1, DIMS, dtype=torch.bool)
    x = torch.full_like(x, torch.nan)
    means = []
    for label in range(CLASSES):
        labels = torch.tensor([label])
        found = impute(vae.model, vae.guide, x, mask=mask, labels=labels, num_particles=20_000, num_draws=0)
        with torch.no_grad():
            torch.testing.assert_close(
                found.value[0], vae.model(labels=labels.repeat(20_000)).mean(0), rtol=0, atol=0.1
            )
        means.append(found.value[0])
    assert (means[0] - means[1]).abs().max() > 0.2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:-1], r"labels must have shape \(6,\), got \(5,\); give one code for each datum"),
        (torch.nn.functional.one_hot(LABELS.clamp(min=0), 3), r"got \(6, 3\); give labels.argmax\(1\) of one-hot"),
        (LABELS.double(), r"labels must be integer codes of classes, -1 where missing, got torch.float64"),
        (LABELS + 1, r"labels must be from 0 to 2, and -1 where missing, got 0 to 3"),
        (LABELS - 1, r"and -1 where missing, got -2 to 1"),
        (LABELS.tolist(), r"labels must be a tensor or a numpy array, got list"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    vae, x, _ = made()
    with pytest.raises(ValueError, match=message):
        log_marginal(vae.model, vae.guide, x, labels=labels, num_particles=5)
    if "from 0" not in message and "-2" not in message:  # the values are checked at the entry of functions alone
        for program in (vae.model, vae.guide):
            with pytest.raises(ValueError, match=message):
                program(x, labels=labels)


def test_labels_of_any_integer_type_are_converted():
    vae, x, _ = made(num_data=2)
    some, known = LABELS[1:3], LABELS[2:4]
    truth = exact_log_marginal(vae.model, x, labels=some).value
    for labels in (some.int(), some.numpy().astype("int8")):
        assert torch.equal(exact_log_marginal(vae.model, x, labels=labels).value, truth)
    truth = exact_log_marginal(vae.model, x, labels=known).value
    assert torch.equal(exact_log_marginal(vae.model, x, labels=known.to(torch.uint8)).value, truth)


@pytest.mark.parametrize("which", WHICH)
def test_programs_with_labels_keep_the_contract(which):
    vae, x, kwargs = made(C)
    check_contract(vae.model, vae.guide, x, labels=WHICH[which], mask=MASKS["entries"], **kwargs)


def test_a_table_with_holes_in_data_and_labels_is_classified():
    """Two groups far apart in both columns: with few labels, all rows get the class of their group.

    About half of the trainings end in a local optimum, where z tells the groups apart and the classes do not.
    """
    pyro.set_rng_seed(1)
    group = torch.arange(60) % 2
    length = (10.0 * group + torch.randn(60)).tolist()
    kind = [["a", "b"][g] for g in group]
    length[4] = kind[7] = kind[8] = None
    species = ["auk" if g else "gull" for g in group]
    rows = {"length": length, "kind": kind, "species": [s if n < 12 else None for n, s in enumerate(species)]}
    table = read_table(rows, label="species", split_seed=1)
    assert int((table.labels >= 0).sum()) == 12
    (levels,) = [column.levels for column in table.columns.of_role("label")]
    truth = torch.tensor([levels.index(one) for one in species])
    parts = {"prior": ConditionalNormalPrior, "network": partial(MLP, hidden=[16])}
    vae = MixtureVAE(Blueprint.of(table, latent_dim=1, **parts), num_classes=2)
    data = {**table.arguments(), "labels": table.labels}
    elbo = ClassificationELBO(num_data=60, num_labelled=12)
    fit(vae.model, vae.guide, data, elbo=elbo, epochs=40, optimizer=FAST)
    hidden = torch.where(table.labels < 0, truth, -1)
    found = classify(vae.model, vae.guide, **table.arguments(), labels=hidden, num_particles=100)
    assert found.error.size == 48
    assert found.error.value < 0.05


def test_other_programs_refuse_labels():
    vae = Blueprint(DIMS, 1).vae()
    assert isinstance(vae, VAE)
    with pytest.raises(ValueError, match="unexpected keyword argument 'labels'"):
        log_marginal(vae.model, vae.guide, torch.rand(N, DIMS).round(), labels=LABELS, num_particles=5)
    mixture, x, _ = made()
    with pytest.raises(ValueError, match=r"and covariates and mask and labels by name.*write x, covariates=c, mask=m"):
        log_marginal(mixture.model, mixture.guide, x, label=LABELS, num_particles=5)


def test_data_on_disk_train_with_labels_in_memory():
    vae, x, _ = made(num_data=40)
    data = {"x": Streamed(x.numpy()), "labels": torch.arange(40) % 4 - 1}
    history = fit(vae.model, vae.guide, data, elbo=ClassificationELBO(40, 30), epochs=3, batch_size=16)
    assert history["train_objective"][-1] > history["train_objective"][0]
