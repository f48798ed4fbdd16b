"""The check at the entry of public functions: what converts is converted, the rest is refused in one line."""

import inspect
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import pyrovae
from pyrovae import (
    MLP,
    BinomialLikelihood,
    Blueprint,
    GuideProposal,
    MixtureVAE,
    NormalEncoder,
    NormalLikelihood,
    Streamed,
    TwoLayerVAE,
    Whole,
    fit,
    linear_schedule,
)
from pyrovae.diagnostics import unit_activity
from pyrovae.evidence import evaluate
from pyrovae.training.validation import validate

SMALL = partial(MLP, hidden=[8])
D, C, N = 6, 3, 5


def blueprint(num_covariates=0, **options):
    return Blueprint(D, 2, num_covariates=num_covariates, network=SMALL, **options)


@pytest.fixture(scope="module")
def vae():
    pyro.set_rng_seed(0)
    return blueprint().vae()


@pytest.fixture(scope="module")
def conditional():
    pyro.set_rng_seed(0)
    return blueprint(C).vae()


@pytest.fixture(scope="module")
def x():
    pyro.set_rng_seed(1)
    return torch.bernoulli(torch.full((N, D), 0.5))


@pytest.fixture(scope="module")
def c():
    pyro.set_rng_seed(2)
    return torch.randn(N, C)


# Each public function of programs and data, called with a model, a guide, data and conditions.
FUNCTIONS = {
    "log_joint": lambda m, g, *x, **k: pyrovae.log_joint(m, {"z": torch.zeros(1, N, 2)}, *x, **k),
    "log_weights": lambda m, g, *x, **k: pyrovae.log_weights(m, g, *x, num_particles=3, **k),
    "weighted_draws": lambda m, g, *x, **k: pyrovae.weighted_draws(m, g, *x, num_particles=3, **k).log_weights,
    "log_marginal": lambda m, g, *x, **k: pyrovae.log_marginal(m, g, *x, num_particles=10, **k).value,
    "ladder": lambda m, g, *x, **k: pyrovae.ladder(m, g, *x, num_particles=10, chunk_size=50, **k)[0].lower_bound,
    "evidence_lower_bound": lambda m, g, *x, **k: pyrovae.evidence_lower_bound(m, g, *x, num_particles=3, **k).value,
    "exact_log_marginal": lambda m, g, *x, **k: pyrovae.exact_log_marginal(m, *x, num_points=8, **k).value,
    "ais": lambda m, g, *x, **k: (
        pyrovae.ais(m, *x, guide=g, num_particles=2, betas=linear_schedule(2), num_tuning=2, num_leapfrog=1, **k).value
    ),
    "adaptive_schedule": lambda m, g, *x, **k: pyrovae.adaptive_schedule(4, m, *x, guide=g, num_particles=4, **k),
    "bracket": lambda m, g, *x, **k: pyrovae.bracket(m, g, {"z": torch.zeros(N, 2)}, *x, num_particles=9, **k).lower,
    "refine": lambda m, g, *x, **k: pyrovae.refine(m, g, *x, log_p=torch.zeros(N), steps=2, num_particles=10, **k).elbo,
    "evaluate": lambda m, g, *x, **k: evaluate(m, g, *x, num_particles=3, proposal=GuideProposal(), **k).elbo,
    "validate": lambda m, g, *x, **k: torch.tensor(validate(m, g, *x, **k).elbo),
    "elbo_parts": lambda m, g, *x, **k: pyrovae.elbo_parts(m, g, *x, **k).reconstruction,
    "unit_activity": lambda m, g, *x, **k: unit_activity(m, g, *x, **k).activity,
    "fit": lambda m, g, *x, **k: torch.tensor(
        fit(m, g, {"x": x[0], **k}, elbo=Trace_ELBO(), epochs=1, optimizer=partial(torch.optim.SGD, lr=0.0)).rows[0][
            "train_elbo"
        ]
    ),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


def seeded(function, *args, **kwargs):
    pyro.set_rng_seed(5)
    return function(*args, **kwargs)


def refusal(function, *args, **kwargs):
    with pytest.raises((ValueError, RuntimeError), match=r"\w") as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert "Trace Shapes" not in message
    return message


CONVERSIONS = {
    "float64": lambda x: x.double(),
    "integers": lambda x: x.long(),
    "bool": lambda x: x.bool(),
    "array": lambda x: x.numpy(),
    "float64 array": lambda x: x.numpy().astype(np.float64),
    "read-only array": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "reversed array": lambda x: x.numpy()[::-1][::-1],
}


class TestConversion:
    @pytest.mark.parametrize("kind", ["float64", "float64 array", "integers"])
    @pytest.mark.thin(7)
    def test_every_function_converts_data_of_our_programs(self, function, vae, x, kind):
        expected = seeded(function, vae.model, vae.guide, x)
        assert torch.equal(seeded(function, vae.model, vae.guide, CONVERSIONS[kind](x)), expected)

    @pytest.mark.parametrize("kind", CONVERSIONS)
    def test_log_marginal_converts_all_numbers(self, vae, x, kind):
        expected = seeded(FUNCTIONS["log_marginal"], vae.model, vae.guide, x)
        found = seeded(FUNCTIONS["log_marginal"], vae.model, vae.guide, CONVERSIONS[kind](x))
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("make", [TwoLayerVAE, MixtureVAE])
    def test_other_models_convert_too(self, make, x, c):
        pyro.set_rng_seed(0)
        pair = make(blueprint(C))
        expected = seeded(FUNCTIONS["log_weights"], pair.model, pair.guide, x, covariates=c)
        found = seeded(FUNCTIONS["log_weights"], pair.model, pair.guide, x.numpy(), covariates=c.double().numpy())
        assert torch.equal(found, expected)

    @pytest.mark.thin(4)
    def test_covariates_are_converted(self, function, conditional, x, c):
        if function is FUNCTIONS["adaptive_schedule"]:
            return
        expected = seeded(function, conditional.model, conditional.guide, x, covariates=c)
        found = seeded(function, conditional.model, conditional.guide, x, covariates=c.numpy())
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("convert", [torch.Tensor.float, torch.Tensor.long, torch.Tensor.numpy])
    def test_masks_of_zero_and_one_are_converted(self, vae, x, convert):
        mask = x > 0
        expected = seeded(FUNCTIONS["log_weights"], vae.model, vae.guide, x, mask=mask)
        assert torch.equal(seeded(FUNCTIONS["log_weights"], vae.model, vae.guide, x, mask=convert(mask)), expected)

    def test_a_float64_model_takes_float32_data(self, x):
        double = blueprint().vae().double()
        assert FUNCTIONS["log_weights"](double.model, double.guide, x).dtype == torch.float64

    def test_handlers_around_our_programs_keep_the_conversion(self, vae, x):
        model = poutine.mask(vae.model, mask=True)
        assert FUNCTIONS["log_weights"](model, vae.guide, x.double()).shape == (3, N)

    def test_random_states_and_modes_stay(self, vae, x):
        pyro.set_rng_seed(0)
        fresh = blueprint(encoder=NormalEncoder).vae().train()
        before = torch.get_rng_state()
        pyrovae.densities.prepare_arguments("log_marginal", (fresh.model, fresh.guide), (x.double(),), {})
        assert torch.equal(torch.get_rng_state(), before)
        assert fresh.training
        assert all(module.training for module in fresh.modules())

    def test_own_programs_get_their_data_untouched(self):
        seen = []

        def model(x, labels):
            seen.append((x, labels))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z.double(), 1.0), obs=x)

        def guide(x, labels):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.float() / 2 + labels, 1.0))

        x, labels = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
        pyrovae.log_weights(model, guide, x, labels)
        assert {(given.dtype, label.dtype) for given, label in seen} == {(torch.float64, torch.long)}


class TestRefusedData:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (lambda x: x[0], ["x must have shape (N, 6)", "got (6,)", "give x.unsqueeze(0)"]),
            (lambda x: x[:, :5], ["x must have shape (N, 6)", "got (5, 5)", "num_outputs(5) outputs"]),
            (lambda x: x.unsqueeze(1), ["x must have shape (N, 6)", "got (5, 1, 6)", "give x.flatten(1)"]),
            (lambda x: x.reshape(5, 2, 3), ["x must have shape (N, 6)", "got (5, 2, 3)", "give x.flatten(1)"]),
            (lambda x: x.repeat(1, 2).reshape(5, 2, 6), ["got (5, 2, 6)", "x.flatten(1), and build", "12 dimensions"]),
            (lambda x: x.tolist(), ["x must be a tensor or a numpy array", "got list", "torch.as_tensor(x)"]),
            (lambda x: x.to(torch.complex64), ["x must be real", "got torch.complex64", "as columns"]),
            (lambda x: x[:0], ["data are empty", "got (0, 6)", "give at least one datum"]),
            (lambda x: np.array([["a"] * 6] * 5), ["array of numbers", "got one of <U1", "x.astype(float)"]),
            (lambda x: Streamed(x[:, :4].numpy()), ["x must have shape (N, 6)", "got (5, 4)", "data of this shape"]),
            (lambda x: Whole(x), ["x must be a tensor", "got Whole", "torch.as_tensor(x)"]),
        ],
        ids=["1-D", "narrow", "extra", "image", "wide image", "list", "complex", "empty", "text", "streamed", "whole"],
    )
    def test_x_of_other_shapes_and_types_is_refused(self, vae, x, bad, words):
        for name in ("log_marginal", "exact_log_marginal", "ais", "elbo_parts", "evaluate", "fit"):
            message = refusal(FUNCTIONS[name], vae.model, vae.guide, bad(x))
            assert all(word in message for word in words), (name, message)

    def test_every_function_refuses_narrow_data(self, function, vae, x):
        message = refusal(function, vae.model, vae.guide, x[:, :5])
        assert "(5, 5)" in message
        assert "6" in message

    def test_one_column_needs_two_dimensions(self):
        one = Blueprint(1, 1, network=SMALL, likelihood=NormalLikelihood).vae()
        message = refusal(FUNCTIONS["log_marginal"], one.model, one.guide, torch.zeros(4))
        assert "x must have shape (N, 1), got (4,); give x.unsqueeze(-1)" in message

    def test_the_guide_alone_names_the_number_of_its_inputs(self, vae, x):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        message = refusal(unit_activity, model, vae.guide, x[:, :4])
        assert "take 6 numbers per datum" in message
        assert "got 4, from x of shape (5, 4) and no covariates" in message
        assert "give both with the widths" in message

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (lambda c: None, ["covariates of shape (5, 3)", "got no covariates", "give covariates of 3 columns"]),
            (lambda c: c[:, :2], ["covariates of shape (5, 3)", "of shape (5, 2)", "give covariates of 3 columns"]),
            (lambda c: c[:4], ["shape (5, C)", "got (4, 3)", "give one row for each of the 5 data"]),
            (lambda c: c[:, 0], ["shape (5, C)", "got (5,)", "give covariates.unsqueeze(-1)"]),
            (lambda c: c.unsqueeze(1), ["shape (5, C)", "got (5, 1, 3)", "give covariates.flatten(1)"]),
            (lambda c: c.tolist(), ["covariates must be a tensor", "got list", "torch.as_tensor(covariates)"]),
        ],
        ids=["none", "narrow", "short", "1-D", "extra", "list"],
    )
    def test_other_covariates_are_refused(self, conditional, x, c, bad, words):
        for name in ("log_marginal", "elbo_parts", "fit"):
            message = refusal(FUNCTIONS[name], conditional.model, conditional.guide, x, covariates=bad(c))
            assert all(word in message for word in words), (name, message)

    def test_a_model_without_covariates_refuses_them(self, vae, x, c):
        message = refusal(FUNCTIONS["log_marginal"], vae.model, vae.guide, x, covariates=c)
        assert message == "Model takes no covariates, got covariates of shape (5, 3); leave covariates out"

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (lambda m: m[:4], ["shape (5,) for whole data or (5, 6) for entries", "got (4, 6)", "~x.isnan()"]),
            (lambda m: m[:, :4], ["shape (5,) for whole data or (5, 6) for entries", "got (5, 4)", "~x.isnan()"]),
            (lambda m: m[:, :1], ["got (5, 1)", "give mask.squeeze(1)"]),
            (lambda m: m * 0.5, ["mask must be boolean", "got torch.float32 with values other", "mask > 0.5"]),
            (lambda m: True, ["mask must be a tensor", "got bool", "torch.as_tensor(mask)"]),
        ],
        ids=["short", "narrow", "column", "weights", "number"],
    )
    def test_other_masks_are_refused(self, vae, x, bad, words):
        for name in ("log_marginal", "elbo_parts", "fit"):
            message = refusal(FUNCTIONS[name], vae.model, vae.guide, x, mask=bad(x > 0))
            assert all(word in message for word in words), (name, message)

    def test_unknown_and_positional_arguments_are_refused(self, vae, x, c):
        message = refusal(FUNCTIONS["log_marginal"], vae.model, vae.guide, x, maks=x > 0)
        assert "covariates and mask by name" in message
        assert "by name maks" in message
        assert "write x, covariates=c, mask=m" in message
        assert "got 2 arguments by position" in refusal(FUNCTIONS["log_marginal"], vae.model, vae.guide, x, c)

    def test_missing_data_are_refused(self, vae):
        message = refusal(FUNCTIONS["log_marginal"], vae.model, vae.guide)
        assert "needs data x of shape (N, D), got none; give x first" in message


class TestPlaces:
    """Objects in the places of others."""

    @pytest.mark.parametrize(
        ("call", "written"),
        [
            (lambda v, x: pyrovae.log_marginal(v, x, num_particles=2), "log_marginal(vae.model, vae.guide, x, ...)"),
            (lambda v, x: fit(v, x, elbo=Trace_ELBO(), epochs=1), "fit(vae.model, vae.guide, data, ...)"),
            (lambda v, x: pyrovae.exact_log_marginal(v, x), "exact_log_marginal(vae.model, x, ...)"),
            (
                lambda v, x: pyrovae.ais(v, x, num_particles=2, betas=linear_schedule(2)),
                "ais(vae.model, x, guide=vae.guide, ...)",
            ),
            (lambda v, x: unit_activity(v, x), "unit_activity(vae.model, vae.guide, x, ...)"),
            (lambda v, x: pyrovae.bracket(v, {}, x), "bracket(vae.model, vae.guide, latents, x, ...)"),
            (lambda v, x: evaluate(v, x, num_particles=2), "evaluate(vae.model, vae.guide, x, ...)"),
        ],
    )
    def test_a_vae_in_the_place_of_model_and_guide_names_both(self, vae, x, call, written):
        message = refusal(call, vae, x)
        assert "needs a Pyro program as" in message
        assert "got a VAE, which holds the two programs model and guide" in message
        assert message.endswith(f"write {written}")

    @pytest.mark.parametrize("name", ["log_marginal", "fit", "evaluate", "elbo_parts"])
    def test_a_forgotten_guide_is_named(self, vae, x, name):
        functions = {"log_marginal": pyrovae.log_marginal, "fit": fit, "evaluate": evaluate}
        message = refusal(functions.get(name, pyrovae.elbo_parts), vae.model, x)
        assert "needs a Pyro program as guide, got a tensor of shape (5, 6)" in message
        assert f"write {name}(vae.model, vae.guide, " in message

    def test_a_superfluous_guide_is_named(self, vae, x):
        message = refusal(pyrovae.exact_log_marginal, vae.model, vae.guide, x)
        assert "needs data after model, got a Guide; write exact_log_marginal(vae.model, x, ...)" in message
        message = refusal(pyrovae.ais, vae.model, vae.guide, x, num_particles=2, betas=linear_schedule(2))
        assert "write ais(vae.model, x, guide=vae.guide, ...)" in message

    def test_a_class_is_refused(self, x):
        message = refusal(pyrovae.log_marginal, pyrovae.Model, pyrovae.Guide, x, num_particles=2)
        assert "got the class Model; write log_marginal(vae.model, vae.guide, x, ...)" in message

    def test_signatures_and_examples_of_public_functions_stay(self):
        assert list(inspect.signature(fit).parameters)[:3] == ["model", "guide", "data"]
        assert fit.__globals__["__name__"] == "pyrovae.training.svi"  # so that doctest finds its examples
        assert "Example" in pyrovae.exact_log_marginal.__doc__


class TestOwnPrograms:
    @staticmethod
    def programs():
        pyro.set_rng_seed(0)
        decoder, encoder = torch.nn.Linear(2, D), torch.nn.Linear(D, 2)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

        return model, guide

    def test_data_that_do_not_fit_give_one_line(self, function, x):
        message = refusal(function, *self.programs(), x[:, :5])
        assert "cannot run the programs on float32 tensors of shape (5, 5)" in message

    def test_the_line_names_shape_type_and_reason(self, x):
        message = refusal(pyrovae.log_marginal, *self.programs(), x.double(), num_particles=2)
        assert "cannot run the programs on float64 tensors of shape (5, 6) (mat1 and mat2 must have" in message
        assert message.endswith("give data of the type and shape that the programs take")

    def test_arrays_are_refused_at_every_place(self, x):
        model, guide = self.programs()
        pair = (lambda x, labels: model(x)), (lambda x, labels: guide(x))
        for programs, data in (((model, guide), [x.numpy()]), (pair, [x, x[:, 0].numpy()])):
            message = refusal(pyrovae.log_marginal, *programs, *data, num_particles=2)
            assert "got a numpy array; give torch.as_tensor(x)" in message

    def test_other_arguments_than_those_of_the_program_are_refused(self, x):
        message = refusal(pyrovae.log_marginal, *self.programs(), x, mask=x > 0, num_particles=2)
        assert "takes the arguments (x), got 1 by position and mask by keyword" in message
        assert "give model and guide the same arguments" in message


class TestBlueprint:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"likelihood": BinomialLikelihood},
                "also needs total_count; write likelihood=partial(BinomialLikelihood, total_count=...)",
            ),
            (
                {"likelihood": lambda network: NormalLikelihood(network)},
                ".<lambda>; for further arguments write likelihood=partial(NormalLikelihood, ...)",
            ),
            (
                {"encoder": lambda network: NormalEncoder(network)},
                ".<lambda>; for further arguments write encoder=partial(NormalEncoder, ...)",
            ),
            ({"likelihood": "NormalLikelihood"}, "must be a class such as NormalLikelihood"),
            ({"likelihood": NormalLikelihood(MLP(2, 6))}, "got an object of NormalLikelihood"),
        ],
        ids=["without total", "lambda", "lambda encoder", "text", "object"],
    )
    def test_makers_without_their_arguments_or_sizes_are_refused(self, options, message):
        assert message in refusal(blueprint, **options)

    def test_a_partial_with_the_argument_is_accepted(self):
        vae = blueprint(likelihood=partial(BinomialLikelihood, total_count=3)).vae()
        assert vae.model(size=2).shape == (2, D)


def test_warnings_of_arguments_that_may_be_cut_by_mistake_come_once():
    def model(x, offset):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + offset, 1.0).to_event(1), obs=x)

    x, offset = torch.randn(33, 33), torch.randn(33)
    refused = pytest.raises(ValueError, match=r"depends on which other data .* pass such a tensor as Whole\(tensor\)")
    with refused, pytest.warns(UserWarning, match=r"number 2 of leading length 33, .* give Whole\(argument\)"):
        pyrovae.exact_log_marginal(model, x, offset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused:
            pyrovae.exact_log_marginal(model, x, offset)
        pyrovae.exact_log_marginal(lambda x, offset: model(x, offset), x, Whole(offset))


def test_an_argument_that_a_function_does_not_have_is_refused_by_the_name_of_the_function():
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'lr'"):
        fit(lambda x: None, lambda x: None, torch.zeros(3, 1), elbo=None, epochs=1, lr=0.1)
