"""Case weights of `fit`: a datum of weight 2 is two equal rows, one of weight 0 is none, for every objective."""

from copy import deepcopy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions.normal
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyrovae import (
    GECO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Blueprint,
    Capacity,
    ClassificationELBO,
    CombinedImportanceWeightedELBO,
    FreeBits,
    ImportanceWeightedELBO,
    LinearWarmup,
    MixtureVAE,
    MultiplyImportanceWeightedELBO,
    NormalEncoder,
    PartiallyImportanceWeightedELBO,
    RenyiELBO,
    StandardNormalPrior,
    Streamed,
    WeightedELBO,
    fit,
)
from pyrovae.objectives import KLControl, TensorELBO, check_weighable
from pyrovae.runs.registry import known_parts
from pyrovae.training.batches import epoch_order

D = 4
WEIGHTS = torch.tensor([2.0, 1.0, 0.0, 3.0, 0.0, 0.0])
ROWS = torch.tensor([0, 0, 1, 3, 3, 3])  # the rows that the weights stand for, as many, so that the mean weight is 1

WEIGHABLE = {
    "Trace_ELBO": [Trace_ELBO(), Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)],
    "TraceMeanField_ELBO": [TraceMeanField_ELBO()],
    "TraceEnum_ELBO": [TraceEnum_ELBO(max_plate_nesting=1)],
    "ImportanceWeightedELBO": [ImportanceWeightedELBO(3, g) for g in ("pathwise", "stl", "dreg", "vimco")],
    "RenyiELBO": [RenyiELBO(0.5, 3), RenyiELBO(1.0, 3), RenyiELBO(0.3, 3, "dreg")],
    "MultiplyImportanceWeightedELBO": [MultiplyImportanceWeightedELBO(2, 2, g) for g in ("pathwise", "stl")],
    "PartiallyImportanceWeightedELBO": [PartiallyImportanceWeightedELBO(2, 2)],
    "CombinedImportanceWeightedELBO": [CombinedImportanceWeightedELBO(0.3, 3)],
    "WeightedELBO": [WeightedELBO(1.0, 0.5), WeightedELBO(analytic=False, num_particles=2)],
}
REFUSED = {"BetaTCELBO", "DIPVAEELBO", "FactorVAEELBO", "InfoVAEELBO"}
CASES = [pytest.param(elbo, id=f"{name} {i}") for name, elbos in WEIGHABLE.items() for i, elbo in enumerate(elbos)]


class Remembered(nn.Module):
    """Network that notes its input, from which the noise of the draws is made."""

    seen = None

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        Remembered.seen = inputs[0]
        return self.network(*inputs)


def noise_of_rows(shape, dtype, device):
    """Noise that is a function of each row, so that equal rows have equal draws."""
    if len(shape) == 1:
        return noise_of_rows((1, *shape), dtype, device)[0]
    x, (*leading, size, dims) = Remembered.seen, shape
    phase = (x * torch.arange(1.0, 1 + x.shape[-1], dtype=x.dtype)).sum(-1)
    phase = phase.reshape(-1, size)[0, :, None] * torch.arange(1.0, 1 + dims, dtype=x.dtype)
    particle = torch.arange(1.0, 1 + torch.Size(leading).numel(), dtype=x.dtype).reshape(*leading, 1, 1)
    return (1.5 * torch.sin(7.0 * phase * particle + particle)).expand(shape).to(dtype)


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", noise_of_rows)


X = torch.tensor(
    [[0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=torch.float64
)


def vae():
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    small = partial(MLP, hidden=[5], activation="tanh")
    encoder = NormalEncoder(Remembered(small(D, 4)))
    return VAE(StandardNormalPrior(2), BernoulliLikelihood(small(2, D)), encoder).double()


def mixture():
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    found = MixtureVAE(Blueprint(D, 2, network=partial(MLP, hidden=[5], activation="tanh")), 3).double()
    classes = found.guide.classes
    classes.network = Remembered(classes.network)
    return found


def trained(make, x, elbo, weights=None, lr=0.02, **options):
    """The parameters and the history after four steps of gradient descent on all data."""
    pair = make()
    options = {"epochs": 4, "batch_size": len(x), "execution": "eager", **options}
    history = fit(pair.model, pair.guide, x, elbo=elbo, optimizer=partial(torch.optim.SGD, lr=lr), weights=weights,
                  skip_support_check=True, **options)  # fmt: skip
    return {name: value.detach().clone() for name, value in pair.named_parameters()}, history


def assert_same(found, expected):
    for name, value in expected[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(found[1]["train_objective"], expected[1]["train_objective"], rtol=1e-11, atol=0)


@pytest.mark.parametrize("execution", ["eager", "recorded"])
@pytest.mark.parametrize("elbo", CASES)
@pytest.mark.thin(4)
def test_weights_train_as_repeated_and_removed_rows(noise, elbo, execution):
    make = mixture if isinstance(elbo, TraceEnum_ELBO) else vae
    expected = trained(make, X[ROWS], elbo)
    assert_same(trained(make, X, elbo, WEIGHTS, execution=execution), expected)
    plain = trained(make, X, elbo)
    assert any(not torch.allclose(plain[0][name], value) for name, value in expected[0].items())


@pytest.mark.parametrize("execution", ["eager", "recorded"])
@pytest.mark.thin(1)
def test_weights_of_labelled_data_train_as_repeated_and_removed_rows(noise, execution):
    """The weights multiply the ELBO and the term of the labels, of which M is the labelled share of the weights."""
    labels = torch.tensor([1, -1, 0, 2, -1, 1])
    size = len(X)
    data, repeated = ({"x": X[rows], "labels": labels[rows]} for rows in (torch.arange(size), ROWS))
    counted = float(size * WEIGHTS[labels >= 0].sum() / WEIGHTS.sum())
    assert counted == (labels[ROWS] >= 0).sum() == 5
    elbo, options = ClassificationELBO(size, counted, 0.7), {"batch_size": size, "epochs": 2}
    expected = trained(mixture, repeated, elbo, validation=repeated, **options)
    weighed = {"execution": execution, "validation": data, "validation_weights": WEIGHTS}
    found = trained(mixture, data, elbo, WEIGHTS, **options, **weighed)
    assert_same(found, expected)
    assert found[1]["validation_objective"] == pytest.approx(expected[1]["validation_objective"], rel=1e-10)


def test_every_objective_of_the_registry_is_weighed_or_refused():
    assert set(known_parts("elbo")) == WEIGHABLE.keys() | REFUSED | {"ClassificationELBO"}


KL_WEIGHTS = [LinearWarmup(2), FreeBits(0.3, per="dimension"), Capacity(0.1, 1.0, 2), GECO(1.0)]


@pytest.mark.parametrize("kl_weight", KL_WEIGHTS, ids=lambda kl_weight: type(kl_weight).__name__)
def test_weights_train_as_repeated_rows_under_a_kl_weight(noise, kl_weight):
    expected = trained(vae, X[ROWS], TraceMeanField_ELBO(), kl_weight=deepcopy(kl_weight))
    assert_same(trained(vae, X, TraceMeanField_ELBO(), WEIGHTS, kl_weight=deepcopy(kl_weight)), expected)


def discrete_latents():
    """Two Bernoulli latents per datum, whose uniform numbers are a function of the datum."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    net, decoder = nn.Linear(D, 2).double(), nn.Linear(2, D).double()

    class Coins(dist.Bernoulli):
        def sample(self, sample_shape=()):
            x = Remembered.seen
            shape = self._extended_shape(sample_shape)
            return (noise_of_rows(shape, x.dtype, x.device) / 3 + 0.5 < self.probs).to(x.dtype)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((2,), 0.4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        Remembered.seen = x
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", Coins(logits=net(x)).to_event(1))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.decoder, self.programs = net, decoder, (model, guide)

        model = property(lambda self: self.programs[0])
        guide = property(lambda self: self.programs[1])

    return Pair()


@pytest.mark.parametrize("elbo", [Trace_ELBO(), ImportanceWeightedELBO(3, "vimco")], ids=["Trace_ELBO", "vimco"])
def test_weights_train_draws_without_a_gradient_as_repeated_rows(elbo):
    expected = trained(discrete_latents, X[ROWS], elbo)
    assert_same(trained(discrete_latents, X, elbo, WEIGHTS), expected)


class Local(nn.Module):
    """One latent per datum, in a plate or a loop, and perhaps one of all data."""

    def __init__(self, plate=None, loop=False, outside=False):
        super().__init__()
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        self.net, self.decoder = nn.Linear(D, 2).double(), nn.Linear(1, D).double()
        self.loop, self.outside, self.plate = loop, outside, plate or (lambda x: pyro.plate("rows", len(x), dim=-1))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        shift = pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0)) if self.outside else 0.0
        if self.loop:
            for n in pyro.plate("rows", len(x)):
                z = pyro.sample(f"z_{n}", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                pyro.sample(f"x_{n}", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x[n])
            return
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z) + shift, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("net", self.net)
        Remembered.seen = x
        if self.outside:
            loc = pyro.param("loc", x.new_zeros(()))
            pyro.sample("shift", dist.Delta(loc))
        loc, scale = self.net(x).chunk(2, -1)
        if self.loop:
            for n in pyro.plate("rows", len(x)):
                Remembered.seen = x[n : n + 1]
                pyro.sample(f"z_{n}", dist.Normal(loc[n], scale[n].exp()).to_event(1))
            return
        with self.plate(x):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


PLATES = {
    "subsampled": lambda x: pyro.plate("rows", 60, subsample=x, dim=-1),
    "without a size": lambda x: pyro.plate("rows", dim=-1),
}


@pytest.mark.parametrize("plate", PLATES.values(), ids=PLATES)
def test_weights_multiply_the_sites_of_a_plate_with_another_size(noise, plate):
    expected = trained(lambda: Local(plate), X[ROWS], Trace_ELBO())
    assert_same(trained(lambda: Local(plate), X, Trace_ELBO(), WEIGHTS), expected)


def test_weights_multiply_a_latent_of_each_datum_and_not_those_of_all(noise):
    """The latent outside the plate counts once for as many data as there are rows."""
    expected = trained(lambda: Local(outside=True), X[ROWS], Trace_ELBO())
    assert_same(trained(lambda: Local(outside=True), X, Trace_ELBO(), WEIGHTS), expected)


class Grid(Local):
    """Data at dim -2 of a grid, with as many columns as rows, and a latent in each cell."""

    def model(self, x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", len(X), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.sum(-1, keepdim=True).expand(z.shape))

    def guide(self, x):
        pyro.module("net", self.net)
        Remembered.seen = x
        loc, scale = self.net(x).chunk(2, -1)
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", len(X), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale.exp()))


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()], ids=lambda elbo: type(elbo).__name__)
def test_weights_multiply_the_rows_of_a_grid_with_as_many_columns(noise, elbo):
    assert_same(trained(Grid, X, elbo, WEIGHTS, lr=1e-3), trained(Grid, X[ROWS], elbo, lr=1e-3))


def test_weights_multiply_the_sites_of_a_loop_over_the_data(noise):
    expected = trained(lambda: Local(loop=True), X[ROWS], Trace_ELBO())
    assert_same(trained(lambda: Local(loop=True), X, Trace_ELBO(), WEIGHTS), expected)


def test_a_datum_of_weight_zero_does_not_move_its_own_row_of_parameters():
    """A guide with rows of parameters for single data runs on all of them alone."""
    pyro.clear_param_store()
    model = Local().model
    guide = AutoNormal(poutine.block(model, hide=["x"]))
    history = fit(model, guide, X, elbo=Trace_ELBO(), epochs=3, batch_size=6, weights=WEIGHTS)
    moved = (guide.locs.z.detach() != 0).any(-1)
    assert torch.equal(moved, WEIGHTS > 0)
    assert len(history) == 3


def test_a_batch_without_weight_says_nothing_to_a_learned_kl_weight():
    pair, elbo = vae(), KLControl(GECO(1.0), TraceMeanField_ELBO(), torch.device("cpu")).elbo
    elbo.weighted_loss(WEIGHTS, pair.model, pair.guide, X)
    before = elbo.parts.clone()
    loss = elbo.weighted_loss(torch.zeros(6), pair.model, pair.guide, X)
    assert loss == 0
    assert (before != 0).all()
    assert torch.equal(elbo.parts, before)


def test_the_scale_of_the_weights_is_immaterial(noise):
    expected = trained(vae, X, Trace_ELBO(), WEIGHTS)
    assert_same(trained(vae, X, Trace_ELBO(), 1e6 * WEIGHTS.numpy()), expected)
    equal = trained(vae, X, Trace_ELBO(), torch.full((6,), 4.0))
    assert_same(equal, trained(vae, X, Trace_ELBO()))


@pytest.mark.parametrize("execution", ["eager", pytest.param("recorded", marks=pytest.mark.slow)])
def test_the_weights_follow_the_data_through_shuffled_batches(noise, execution):
    """Against descent by hand on the batches of each epoch, with the weighted mean of the losses of single data."""
    elbo, weights = TraceMeanField_ELBO(), WEIGHTS[:5].double()
    found, history = trained(vae, X[:5], elbo, weights, batch_size=2, seed=5, execution=execution)
    pair, objectives = vae(), []
    descent = torch.optim.SGD(pair.parameters(), lr=0.02)
    for epoch in range(4):
        objectives.append(0.0)
        for rows in epoch_order(5, epoch=epoch, seed=5).split(2):
            losses = [elbo.differentiable_loss(pair.model, pair.guide, X[n : n + 1]) for n in rows.tolist()]
            loss = sum(weights[n] / weights.mean() * each for n, each in zip(rows.tolist(), losses, strict=True))
            descent.zero_grad()
            loss.backward()
            descent.step()
            objectives[-1] -= loss.item() / 5
    assert_same((found, history), (dict(pair.named_parameters()), {"train_objective": objectives}))


@pytest.mark.parametrize("elbo", [Trace_ELBO(), ImportanceWeightedELBO(3)], ids=["ELBO", "bound"])
def test_the_weights_follow_data_on_disk_and_data_along_another_dim(noise, elbo):
    expected = trained(vae, X, elbo, WEIGHTS, batch_size=2)
    on_disk = trained(vae, Streamed(X.numpy()), elbo, WEIGHTS, batch_size=2, transform=torch.Tensor.double)
    assert_same(on_disk, expected)

    def transposed():
        pair, found = vae(), nn.Module()
        found.vae, found.model, found.guide = pair, lambda y: pair.model(y.T), lambda y: pair.guide(y.T)
        found.named_parameters = pair.named_parameters
        return found

    along = trained(transposed, X.T.contiguous(), elbo, WEIGHTS, batch_size=2, plate="data")
    assert_same(along, expected)


def test_a_run_with_weights_resumes_bit_identically():
    options = {"batch_size": 2, "epochs": 6, "execution": "recorded"}
    states = []
    whole = trained(vae, X, Trace_ELBO(), WEIGHTS, **options, commit=lambda state: states.append(deepcopy(state)))
    resumed = trained(vae, X, Trace_ELBO(), WEIGHTS, **options, resume=states[2])
    for name, value in whole[0].items():
        assert torch.equal(resumed[0][name], value)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), ImportanceWeightedELBO(3)], ids=["ELBO", "bound"])
def test_held_out_data_are_weighed_as_repeated_rows(noise, elbo):
    held_out = {"validation": X[ROWS], "epochs": 2}
    _, expected = trained(vae, X, elbo, **held_out)
    _, found = trained(vae, X, elbo, **{**held_out, "validation": X}, validation_weights=5 * WEIGHTS)
    for key in ("validation_elbo", "validation_reconstruction", "validation_kl", "validation_objective"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=1e-6)
    _, plain = trained(vae, X, elbo, **{**held_out, "validation": X})
    assert abs(plain["validation_elbo"][0] - expected["validation_elbo"][0]) > 1e-3


BAD_WEIGHTS = {
    r"weights must have shape \(6,\), one for each datum, got \(5,\)": torch.ones(5),
    "weights must be finite and not negative, got -1 for datum 2": torch.tensor([1.0, 1, -1, 1, 1, 1]),
    "weights must be finite and not negative, got nan for datum 0": torch.tensor([torch.nan, 1, 1, 1, 1, 1]),
    "weights must have a positive sum": torch.zeros(6),
}


@pytest.mark.parametrize("message", BAD_WEIGHTS)
def test_bad_weights_are_refused(message):
    with pytest.raises(ValueError, match=message):
        trained(vae, X, Trace_ELBO(), BAD_WEIGHTS[message])
    with pytest.raises(ValueError, match=f"validation_{message}"):
        trained(vae, X, Trace_ELBO(), validation=X, validation_weights=BAD_WEIGHTS[message])


def test_weights_without_their_data_are_refused():
    with pytest.raises(ValueError, match="validation_weights need validation data, got none"):
        trained(vae, X, Trace_ELBO(), validation_weights=WEIGHTS)
    pair = vae()
    with pytest.raises(ValueError, match="weights cannot follow the order of a DataLoader"):
        fit(pair.model, pair.guide, DataLoader(TensorDataset(X)), elbo=Trace_ELBO(), epochs=1, weights=WEIGHTS)


class OwnBound(ImportanceWeightedELBO):
    def differentiable_loss(self, model, guide, *args, **kwargs):
        return 2 * super().differentiable_loss(model, guide, *args, **kwargs)


class OwnTrace(Trace_ELBO):
    pass


class OwnObjective(TensorELBO):
    def differentiable_loss(self, model, guide, *args, **kwargs):
        return ImportanceWeightedELBO(3).differentiable_loss(model, guide, *args, **kwargs)


class OwnTerms(OwnObjective):
    def weighted_loss(self, weights, model, guide, *args, **kwargs):
        return ImportanceWeightedELBO(3).weighted_loss(weights, model, guide, *args, **kwargs)


@pytest.mark.parametrize("elbo", [OwnBound(3), OwnTrace(), OwnObjective()], ids=lambda elbo: type(elbo).__name__)
def test_an_objective_without_terms_per_datum_is_refused(elbo):
    with pytest.raises(ValueError, match=rf"but {type(elbo).__name__} gives no term per datum; use an objective such"):
        trained(vae, X, elbo, WEIGHTS)


def test_an_objective_of_the_user_may_give_its_terms(noise):
    assert_same(trained(vae, X, OwnTerms(), WEIGHTS), trained(vae, X, ImportanceWeightedELBO(3), WEIGHTS))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_objectives_of_a_whole_batch_are_refused(name):
    elbo = known_parts("elbo")[name](*{"BetaTCELBO": (6,), "FactorVAEELBO": (2,)}.get(name, ()))
    with pytest.raises(ValueError, match=f"but {name} combines the data of a batch"):
        check_weighable(elbo)


def one_plate(x):
    return pyro.plate("rows", len(x), dim=-1)


def joint(x):
    pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0).to_event(1))
    with one_plate(x):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([D]).to_event(1), obs=x)


def joint_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("a", x.new_zeros(())).expand(len(x)), 1.0).to_event(1))


def observed_outside(x):
    pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x)


def summed(x):
    a = pyro.param("a", x.new_zeros(()))
    with one_plate(x):
        y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.5)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal((y + a).unsqueeze(-1), 1.0).expand([*y.shape[:-1], len(x), D]).to_event(1), obs=x)


def no_latents(x):
    pyro.param("a", x.new_zeros(()))


def local_model(x):
    with one_plate(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) + torch.zeros_like(x), 1.0).to_event(1), obs=x)


REFUSED_PROGRAMS = {
    "'z' of the model has a row for each datum outside a plate": lambda: (joint, joint_guide, Trace_ELBO()),
    "'x' of the model is observed outside a plate": lambda: (observed_outside, no_latents, Trace_ELBO()),
    "sums out 'y' in the model": lambda: (summed, no_latents, TraceEnum_ELBO(max_plate_nesting=1)),
    "of the guide lies outside a plate over the data, and the model has no such latent": lambda: (
        local_model,
        AutoDiagonalNormal(local_model),
        Trace_ELBO(),
    ),
}


@pytest.mark.parametrize("message", REFUSED_PROGRAMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_programs_without_terms_per_datum_are_refused(message):
    pyro.clear_param_store()
    model, guide, elbo = REFUSED_PROGRAMS[message]()
    with pytest.raises(ValueError, match=message):
        fit(model, guide, X, elbo=elbo, epochs=1, weights=WEIGHTS)


def test_a_latent_summed_out_of_the_model_is_weighed_by_the_bound_of_one_draw():
    results = []
    for rows, weights in ((X, WEIGHTS), (X[ROWS], None)):
        pyro.clear_param_store()
        history = fit(summed, no_latents, rows, elbo=ImportanceWeightedELBO(1), epochs=3, weights=weights)
        results.append((dict(pyro.get_param_store().items()), history))
    assert_same(*results)
