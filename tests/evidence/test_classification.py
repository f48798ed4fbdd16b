"""p(y|x) of mixtures against Bayes' rule with normals in closed form, and sums over a grid."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import (
    MLP,
    Blueprint,
    ConditionalNormalPrior,
    GuideProposal,
    LaplaceProposal,
    MixtureVAE,
    NormalLikelihood,
    PriorProposal,
)
from pyrovae.evidence import classify, error_rate

CLASSES, DIMS, LATENTS, N, SD = 3, 4, 2, 12, 0.7
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    """Classes with own means of z and x, and a linear decoder; data of all classes, and p(y|x) in closed form."""
    pyro.set_rng_seed(0)
    weight = torch.randn(DIMS, LATENTS, dtype=torch.float64)
    centre, shift = torch.randn(CLASSES, LATENTS).double(), 0.7 * torch.randn(CLASSES, DIMS).double()
    y = torch.arange(N) % CLASSES
    z = centre[y] + torch.randn(N, LATENTS).double()
    x = z @ weight.T + shift[y] + SD * torch.randn(N, DIMS).double()
    covariance = weight @ weight.T + SD**2 * torch.eye(DIMS, dtype=torch.float64)
    away = x[:, None] - (centre @ weight.T + shift)
    quadratic = (away @ torch.linalg.inv(covariance) * away).sum(-1)
    log_p = SHARES.log() - 0.5 * (quadratic + covariance.logdet() + DIMS * math.log(2 * math.pi))
    return weight, centre, shift, x, y, log_p


def programs(problem, kind, order="y first"):
    """Model and guide of the problem, with y one-hot or an index; the guide is rough, and draws y first or last."""
    weight, centre, shift, *_ = problem

    def draw():
        if kind == "one-hot":
            return pyro.sample("y", dist.OneHotCategorical(SHARES))
        return torch.nn.functional.one_hot(pyro.sample("y", dist.Categorical(SHARES)), CLASSES).double()

    def model(x):
        with pyro.plate("data", len(x)):
            y = draw()
            z = pyro.sample("z", dist.Normal(y @ centre, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + y @ shift, SD).to_event(1), obs=x)

    def guide(x):
        gain = torch.linalg.pinv(weight).T
        with pyro.plate("data", len(x)):
            y = draw() if order == "y first" else 0.0
            loc = x @ gain - (y @ shift @ gain if order == "y first" else 0.0)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            if order == "y last":
                draw()

    return model, guide


PROPOSALS = [None, GuideProposal(), PriorProposal(), LaplaceProposal()]


@pytest.mark.parametrize("order", ["y first", "y last", "no y"])
@pytest.mark.parametrize(("kind", "proposal"), [("one-hot", None), *(("index", proposal) for proposal in PROPOSALS)])
@pytest.mark.thin(5)
def test_probabilities_agree_with_bayes_rule(problem, kind, order, proposal):
    model, guide = programs(problem, kind, order)
    x, log_p = problem[3], problem[5]
    truth = log_p.softmax(1)
    pyro.set_rng_seed(1)
    found = classify(model, guide, x, num_particles=4000, proposal=proposal)
    # 36 numbers with one constraint a row: one beyond 4.5 errors has probability 2e-4.
    assert ((found.probabilities - truth).abs() < 4.5 * found.std_error + 1e-6).all()
    assert found.std_error.max() < 0.05
    torch.testing.assert_close(found.log_joint.logsumexp(1), log_p.logsumexp(1), rtol=0, atol=0.4)
    assert ((truth > 0.1) & (truth < 0.9)).any()  # the test has power: some classes are uncertain
    assert found.error is None


def test_a_mixture_of_normals_is_classified_exactly():
    loc, scale = torch.tensor([-1.0, 0.5, 2.0]).double(), torch.tensor([0.5, 1.0, 2.0]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(SHARES))
            pyro.sample("x", dist.Normal(loc[y], scale[y]), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(CLASSES)))

    x = torch.linspace(-3, 5, 9).double()
    density = SHARES * torch.exp(-0.5 * ((x[:, None] - loc) / scale) ** 2) / scale
    for other in (guide, None):
        for chunk_size in (None, 2):
            found = classify(model, other, x, chunk_size=chunk_size)
            torch.testing.assert_close(found.probabilities, density / density.sum(1, keepdim=True))
            assert bool((found.std_error == 0).all())
            assert bool(found.khat.isnan().all())


def test_other_discrete_latents_are_summed_out():
    """y and a hidden b: p(x|y) is a mixture over b."""
    loc = torch.tensor([[0.0, 3.0], [1.0, -2.0]]).double()
    first, second = torch.tensor([0.4, 0.6]).double(), torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(first[1]))
            b = pyro.sample("b", dist.Categorical(second[y.long()]))
            pyro.sample("x", dist.Normal(loc[y.long(), b], 1.0), obs=x)

    x = torch.linspace(-2, 4, 7).double()
    density = (first[:, None] * second * torch.exp(-0.5 * (x[:, None, None] - loc) ** 2)).sum(2)
    found = classify(model, None, x)
    torch.testing.assert_close(found.probabilities, density / density.sum(1, keepdim=True))


def test_hidden_labels_of_a_mixture_vae_are_classified_as_by_a_grid():
    pyro.set_rng_seed(5)
    parts = {"likelihood": partial(NormalLikelihood, scale=1.0), "prior": ConditionalNormalPrior}
    vae = MixtureVAE(Blueprint(DIMS, 1, network=partial(MLP, hidden=[5]), **parts), num_classes=CLASSES).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        vae.model.logits.copy_(torch.tensor([0.5, -1.0, 0.2]))
        x = 1.5 * torch.randn(N, DIMS, dtype=torch.float64)
        z, joint = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None, None].expand(-1, N, 1), []
        for y in torch.eye(CLASSES, dtype=torch.float64):
            p_z = vae.model.prior(y.expand(N, -1)).base_dist
            mean = vae.model.likelihood.network(torch.cat([z, y.expand(len(z), N, -1)], -1))
            log_p = -0.5 * ((z - p_z.loc) / p_z.scale).square().sum(-1) - p_z.scale.log().sum(-1)
            joint.append((log_p - 0.5 * (x - mean).square().sum(-1)).logsumexp(0))
        truth = (torch.stack(joint, 1) + vae.model.logits).softmax(1)
    labels = torch.arange(N) % (CLASSES + 1) - 1
    found = classify(vae.model, vae.guide, x, labels=labels, num_particles=2000)
    torch.testing.assert_close(found.probabilities, truth, rtol=0, atol=0.02)
    assert ((truth > 0.1) & (truth < 0.9)).any()
    wrong = (truth.argmax(1) != labels)[labels >= 0].double()
    assert found.error.value == pytest.approx(wrong.mean().item())
    assert found.error.size == int((labels >= 0).sum())
    again = classify(vae.model, vae.guide, x, labels=labels.flip(0), num_particles=2000)  # the labels stay hidden
    torch.testing.assert_close(again.probabilities, truth, rtol=0, atol=0.02)


def test_missing_entries_and_blocks_of_data_are_classified(problem):
    """With a mask, p(y|x_obs) is that of the observed entries; of a datum without any, the shares."""
    pyro.set_rng_seed(6)
    parts = {"likelihood": partial(NormalLikelihood, scale=1.0)}
    vae = MixtureVAE(Blueprint(DIMS, 1, network=partial(MLP, hidden=[5]), **parts), num_classes=CLASSES).double()
    with torch.no_grad():
        vae.model.logits.copy_(SHARES.log())
    x = problem[3].clone()
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[::2] = False
    found = classify(vae.model, vae.guide, torch.where(mask, x, torch.nan), mask=mask, num_particles=500)
    torch.testing.assert_close(found.probabilities[::2], SHARES.expand(N // 2, -1), rtol=0, atol=0.03)
    whole = classify(vae.model, vae.guide, x, num_particles=4000)
    parted = classify(vae.model, vae.guide, x, num_particles=4000, chunk_size=10_000)
    torch.testing.assert_close(parted.probabilities, whole.probabilities, rtol=0, atol=0.03)
    torch.testing.assert_close(found.probabilities[1::2], whole.probabilities[1::2], rtol=0, atol=0.06)


def test_standard_errors_of_the_probabilities_are_those_of_repeated_estimates(problem):
    model, guide = programs(problem, "index")
    x = problem[3][:4]
    pyro.set_rng_seed(2)
    found = classify(model, guide, x.repeat(60, 1), num_particles=200, proposal=GuideProposal())  # 60 runs at once
    spread = found.probabilities.reshape(60, 4, CLASSES).std(0)
    stated = found.std_error.reshape(60, 4, CLASSES).square().mean(0).sqrt()
    clear = spread > 0.005
    assert clear.sum() >= 4
    # A standard deviation of 60 has an error of 9 %.
    assert ((stated / spread)[clear] < 1.6).all()
    assert ((stated / spread)[clear] > 0.6).all()


def test_error_rate_counts_known_classes_and_data_without_probabilities():
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [torch.nan, torch.nan], [0.7, 0.3]])
    rate = error_rate(p, torch.tensor([0, 0, -1, 1, 0]))
    assert rate == (0.5, pytest.approx((0.25 / 4) ** 0.5), 4)
    assert error_rate(p, torch.tensor([0, 0, -1, 0, 0])).value == 0.5
    nothing = error_rate(p, torch.full((5,), -1))
    assert nothing.size == 0
    assert math.isnan(nothing.value)


def test_case_weights_weigh_the_errors_and_their_standard_error():
    """The error is that of a ratio, sqrt(N / (N - 1) sum w^2 (v - m)^2) / sum w, over known data of positive weight."""
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3], [0.8, 0.2]])
    labels, weights = torch.tensor([0, 0, -1, 1, 0, 1]), torch.tensor([3.0, 1.0, 9.0, 2.0, 4.0, 0.0])
    rate = error_rate(p, labels, weights)
    assert rate.value == pytest.approx(1 / 10)
    squares = 3**2 * 0.1**2 + 1**2 * 0.9**2 + 2**2 * 0.1**2 + 4**2 * 0.1**2
    assert rate.std_error == pytest.approx(math.sqrt(4 / 3 * squares) / 10)
    assert rate.size == 4
    nothing = error_rate(p, labels, torch.tensor([0.0, 0, 1, 0, 0, 0]))
    assert nothing.size == 0
    assert math.isnan(nothing.value)
    with pytest.raises(ValueError, match="finite and not negative"):
        error_rate(p, labels, -weights)


def test_classify_weighs_its_errors_alone_and_refuses_a_second_meaning_of_weights():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(2.0 * y, 1.0), obs=x)

    x, labels = torch.tensor([0.0, 1.5, 3.0]), torch.tensor([0, 0, 1])
    plain, weighted = (classify(model, None, x, labels=labels, weights=w) for w in (None, torch.tensor([1.0, 6, 1])))
    assert torch.equal(plain.probabilities, weighted.probabilities)
    assert (plain.error.value, weighted.error.value) == (pytest.approx(1 / 3), pytest.approx(6 / 8))

    def other(x, weights=None):
        model(x)

    with pytest.raises(ValueError, match="weights are the case weights of classify, but a program has an argument"):
        classify(other, None, x, labels=labels, weights=torch.ones(3))


def test_what_is_no_class_is_refused(problem):
    model, guide = programs(problem, "index")
    x = problem[3]
    with pytest.raises(ValueError, match=r"the model has no latent 'label' that it draws, but 'y', 'z'; give site="):
        classify(model, guide, x, site="label")
    with pytest.raises(ValueError, match=r"latent 'z' \(Normal\) has no finite list of values, so it is no class"):
        classify(model, guide, x, site="z")
    with pytest.raises(
        ValueError, match=r"labels must be integers of shape \(12,\), -1 where unknown, got torch.int64"
    ):
        classify(model, guide, x, labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be from 0 to 2, and -1 where unknown, got 0 to 3"):
        classify(model, guide, x, labels=torch.arange(N) % 4)
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(12,\)"):
        classify(model, guide, x, labels=torch.zeros(N))
    with pytest.raises(ValueError, match="latents beside 'y', which a guide must draw, got None; give the guide"):
        classify(model, None, x)

    def several(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 2, dim=-2):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x.expand(2, -1))

    with pytest.raises(ValueError, match=r"latent 'y' has \(2,\) values per datum, but a class is one value"):
        classify(several, None, x[:, 0])
