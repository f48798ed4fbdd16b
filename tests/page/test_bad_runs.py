"""Three deliberately bad fits, and a right one: the verdict names what is wrong."""

from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from page_helpers import small_network
from pyro.infer import TraceMeanField_ELBO

from pyrovae import Beta, Blueprint, NormalLikelihood, PoissonLikelihood, fit
from pyrovae.baselines import Comparison
from pyrovae.data import Data
from pyrovae.page import CHECKS, Diagnosis, Fit
from pyrovae.page import diagnostic_checks as checks
from pyrovae.page.checks import approximation_gap


def data_of(x, sizes=(600, 100, 300)):
    parts = dict(zip(("train", "validation", "test"), x.split(sizes), strict=True))
    indices = {f"{split}_index": torch.arange(len(part)) for split, part in parts.items()}
    return Data("made", **parts, shape=x.shape[1:], binarize="none", sha256="0", labels=None, **indices)


def counts(*, dispersed):
    """Draw four columns of counts with one latent; dispersed ones have a variance of m + m^2 at mean m."""
    torch.manual_seed(0)
    rate = torch.exp(1 + 0.3 * torch.randn(1000, 1) * torch.ones(4))
    return dist.NegativeBinomial(1.0, logits=rate.log()).sample() if dispersed else torch.poisson(rate)


def blueprint(x, latent_dim, likelihood):
    pyro.set_rng_seed(0)
    return Blueprint(x.shape[1], latent_dim, likelihood=likelihood, x=x, network=small_network).vae()


def trained(vae, data, epochs, **options):
    """Train a VAE, without the evaluation, which these checks do not need."""
    options = {"elbo": TraceMeanField_ELBO(), "validation": data.validation, "batch_size": 50, **options}
    history = fit(vae.model, vae.guide, data.train, epochs=epochs, **options)
    nothing = torch.zeros(len(data.test), dtype=torch.float64)
    return Fit("bad", vae, data, history, {"split": "test"}, nothing, nothing, Comparison({}, "", {}), planned=epochs)


def verdict(made, functions):
    return Diagnosis.of(made, functions)


@pytest.mark.slow
def test_a_collapsed_fit_is_named_with_the_decoder_at_fault():
    x = counts(dispersed=False)
    made = trained(
        blueprint(x, 2, PoissonLikelihood),
        data_of(x),
        20,
        kl_weight=Beta(1e4),
        optimizer=partial(torch.optim.Adam, lr=0.02),
    )
    found = verdict(made, [checks.collapsed_latents])
    assert found.headline == "Do not believe this model yet: all latents collapsed."
    assert found.checks[0].value == 2


def test_an_undertrained_fit_is_named():
    x = counts(dispersed=False)
    made = trained(blueprint(x, 2, PoissonLikelihood), data_of(x), 1)
    found = verdict(made, [CHECKS[1]])
    assert found.headline.startswith("Do not believe this model yet: still rising")


@pytest.mark.slow
def test_poisson_for_overdispersed_counts_is_named():
    x = counts(dispersed=True)
    made = trained(blueprint(x, 1, PoissonLikelihood), data_of(x), 10)
    found = verdict(made, [checks.predictive_checks, checks.randomised_pit])
    assert [check.passed for check in found.checks] == [False, False]
    assert "predictive checks" in found.headline
    assert "(PIT)" in found.headline
    assert "predicted too narrow" in found.checks[1].sentence
    assert any(name in found.checks[0].sentence for name in ("dispersion", "zeros", "max", "total sd"))


def test_a_normal_for_binary_pixels_is_named():
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((1000, 4), 0.3))
    made = trained(blueprint(x, 1, NormalLikelihood), data_of(x), 10)
    found = verdict(made, [checks.randomised_pit])
    assert found.headline == "Do not believe this model yet: wrong distribution of columns (PIT)."
    assert "4 of 4 columns" in found.checks[0].sentence


@pytest.mark.parametrize(("shape", "word"), [("too narrow", "too narrow"), ("shifted up", "shifted")])
def test_the_fault_of_a_guide_is_in_the_headline(shape, word):
    verb = {"too narrow": "is too narrow", "shifted up": "lies too high"}[shape]
    made = SimpleNamespace(calibration=SimpleNamespace(words=(f"the guide {verb} in z",), p_value=1e-9))
    check = checks.calibration_of_the_guide(made)
    assert (check.passed, check.fault, check.measured) == (False, f"guide {word} (SBC)", "p < 0.0001")


def test_an_elbo_above_log_p_says_that_log_p_is_too_low():
    def check(mean, sd):
        gaps = mean + sd * torch.linspace(-1, 1, 40, dtype=torch.float64)
        return approximation_gap(SimpleNamespace(refined=SimpleNamespace(approximation_gap=gaps), split="test"))

    low = check(-0.5, 0.2)
    assert (low.passed, low.subject, low.fault) == (False, "number", "log p(x) below an ELBO")
    assert "0.50 nats above log p(x)" in low.sentence
    assert check(-0.05, 0.01).passed  # no more than the bias of an estimate
    assert check(-0.5, 3.0).passed  # no more than its error
    assert check(0.5, 0.2).passed
    wide = check(1.5, 0.2)
    assert (wide.passed, wide.subject) == (False, "guide")


def test_a_test_of_columns_that_images_do_not_have_says_so_in_a_sentence():
    class Images:
        @property
        def pit(self):
            raise ValueError("images of 784 pixels are not tested pixel by pixel")

    check = checks.randomised_pit(Images())
    assert (check.passed, check.name) == (None, "distribution of columns (PIT)")
    assert check.sentence == "images of 784 pixels are not tested pixel by pixel"


def test_codes_outside_the_prior_need_more_than_a_tenth_of_a_nat_beyond_the_error():
    def check(kl, error):
        values = [torch.tensor(one, dtype=torch.float64) for one in (kl, error)]
        found = SimpleNamespace(
            dimension_kl=values[0], dimension_kl_error=values[1], labels=("z[0]", "z[1]"), skipped=()
        )
        return checks.aggregate_posterior(SimpleNamespace(information=found))

    assert check([0.02, 0.5], [0.01, 0.3]).passed
    failed = check([0.02, 0.5], [0.01, 0.1])
    assert (failed.passed, failed.value, failed.error) == (False, 0.5, 0.1)
    assert "leave the prior in z[1]" in failed.sentence
    assert check([float("nan")] * 2, [float("nan")] * 2).passed is None


@pytest.mark.parametrize(("noise", "passed"), [((0.9, 0.02), True), ((0.45, 0.03), True), ((0.2, 0.03), False)])
def test_foreign_data_above_test_data_are_named(noise, passed):
    kinds = {"noise": noise, "shuffled columns": (0.6, 0.03)}
    made = SimpleNamespace(
        split="test",
        foreign={name: SimpleNamespace(auc=SimpleNamespace(value=a, std_error=b)) for name, (a, b) in kinds.items()},
    )
    check = checks.foreign_data_above(made)
    assert check.passed is passed
    assert passed or "larger log p(x) to noise than to test data" in check.sentence


def test_whose_fault_a_collapse_is():
    def check(collapsed, ignored, kl=(1.0, 1.0)):
        codes = SimpleNamespace(names=("z[0]", "z[1]"), activity=torch.tensor([0.5, 0.5]))
        collapse = SimpleNamespace(
            labels=("z[0]", "z[1]"),
            kl=torch.tensor(kl),
            collapsed=torch.tensor(collapsed),
            ignored=torch.tensor(ignored),
        )
        return checks.collapsed_latents(SimpleNamespace(collapse=collapse, codes=codes))

    assert check([False, False], [False, False]).passed
    guide = check([True, False], [False, False])
    assert (guide.passed, guide.subject, guide.fault) == (False, "guide", "collapsed latents")
    assert "by the guide's fault, since the decoder uses them: z[0]" in guide.sentence
    assert check([True, True], [True, True]).fault == "all latents collapsed"
    assert check([False, False], [True, False]).fault == "ignored latents"
    assert check([False, False], [False, False], (float("nan"), 1.0)).passed
