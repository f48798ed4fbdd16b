"""Discrete sites that the guide leaves to enumeration, against loops over their values and closed forms."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from goodness import within
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex

from pyrovae import (
    ais,
    bracket,
    exact_log_marginal,
    ladder,
    linear_schedule,
    log_joint,
    log_marginal,
    log_weights,
    refine,
)
from pyrovae.densities import TiledWarning, VectorizedProgram, check_weights, nonfinite_sites, vectorize
from pyrovae.evidence import GuideProposal, evidence_lower_bound
from pyrovae.objectives import WeightedELBO

F64 = torch.float64
SHARES = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
LOCS = torch.tensor([-2.0, 0.5, 3.0], dtype=F64)
SCALES = torch.tensor([0.5, 1.5, 1.0], dtype=F64)


def normal(value, loc, scale):
    """Log density of a normal, written out."""
    return -0.5 * ((value - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def log_sum(terms):
    largest = max(terms)
    return largest + math.log(sum(math.exp(term - largest) for term in terms))


def empty_guide(*args, **kwargs):
    pass


def mixture(x):
    """A Gaussian mixture without other latents."""
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(SHARES), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(LOCS[c], SCALES[c]), obs=x)


def of_mixture(x):
    return torch.tensor(
        [log_sum([math.log(SHARES[c]) + normal(v, LOCS[c].item(), SCALES[c].item()) for c in range(3)]) for v in x],
        dtype=F64,
    )


@pytest.mark.parametrize("hint", [None, "parallel", "sequential"])
def test_a_mixture_without_other_latents_is_summed_in_every_estimator(hint):
    model = mixture if hint is None else config_enumerate(mixture, hint)
    x = torch.linspace(-3, 5, 7, dtype=F64)
    for log_w in (log_weights(model, empty_guide, x, num_particles=2), log_joint(model, {}, x)):
        torch.testing.assert_close(log_w, of_mixture(x).expand_as(log_w))
    torch.testing.assert_close(log_marginal(model, empty_guide, x, num_particles=3).value, of_mixture(x))
    torch.testing.assert_close(evidence_lower_bound(model, empty_guide, x, num_particles=3).value, of_mixture(x))
    torch.testing.assert_close(ladder(model, empty_guide, x, num_particles=4)[-1].lower_bound, of_mixture(x))
    torch.testing.assert_close(exact_log_marginal(model, x).value, of_mixture(x))


class TestMixturePrior:
    """c ~ SHARES, z ~ N(LOCS[c], SCALES[c]), x ~ N(1.5 z + c, 0.7), of which p(z) and p(x) are mixtures of normals."""

    x = torch.tensor([-3.0, 0.0, 1.0, 6.0], dtype=F64)

    @staticmethod
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(SHARES))
            z = pyro.sample("z", dist.Normal(LOCS[c], SCALES[c]))
            pyro.sample("x", dist.Normal(1.5 * z + c, 0.7), obs=x)

    @staticmethod
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 1.3))

    def exact(self):
        scales = (2.25 * SCALES**2 + 0.49).sqrt()
        terms = [
            [math.log(SHARES[c]) + normal(v, 1.5 * LOCS[c].item() + c, scales[c].item()) for c in range(3)]
            for v in self.x.tolist()
        ]
        return torch.tensor([log_sum(each) for each in terms], dtype=F64)

    def joint(self, z, observed=True):
        def of(value, x):
            prior = [math.log(SHARES[c]) + normal(value, LOCS[c].item(), SCALES[c].item()) for c in range(3)]
            return log_sum([p + (normal(x, 1.5 * value + c, 0.7) if observed else 0) for c, p in enumerate(prior)])

        return torch.tensor([[of(v, x) for v, x in zip(row, self.x.tolist(), strict=True)] for row in z.tolist()]).to(z)

    def test_densities_are_sums_over_the_component(self):
        z = torch.randn(3, 4, dtype=F64) * 2
        torch.testing.assert_close(log_joint(self.model, {"z": z}, self.x), self.joint(z))
        model, _ = vectorize(self.model, self.guide, (self.x,), {})
        log_p, log_lik = model.trace(3, (self.x,), {}, {"z": z}).log_densities()
        torch.testing.assert_close(log_p, self.joint(z))
        torch.testing.assert_close(log_p - log_lik, self.joint(z, observed=False))

    def test_all_latents_given_are_no_longer_summed(self):
        z, c = torch.randn(2, 4, dtype=F64), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
        expected = SHARES[c].log() + dist.Normal(LOCS[c], SCALES[c]).log_prob(z)
        expected = expected + dist.Normal(1.5 * z + c, 0.7).log_prob(self.x)
        torch.testing.assert_close(log_joint(self.model, {"z": z, "c": c}, self.x), expected)

    def test_estimates_agree_with_the_closed_form(self):
        torch.testing.assert_close(exact_log_marginal(self.model, self.x).value, self.exact())
        for proposal in (None, GuideProposal()):
            found = log_marginal(self.model, self.guide, self.x, num_particles=4000, proposal=proposal)
            assert within(found, self.exact())
        for guide in (None, self.guide):
            settings = {"betas": linear_schedule(10), "num_leapfrog": 3, "num_tuning": 20}
            found = ais(self.model, self.x, guide=guide, num_particles=200, **settings)
            assert within(found, self.exact())

    def test_the_lower_bound_is_that_of_the_summed_density(self):
        found = evidence_lower_bound(self.model, self.guide, self.x, num_particles=20_000)
        nodes = torch.linspace(-12, 12, 4001, dtype=F64)
        z = 0.5 * self.x + 1.3 * nodes[:, None]
        log_q = dist.Normal(0.5 * self.x, 1.3).log_prob(z)
        expected = (log_q.exp() * (self.joint(z) - log_q)).sum(0) * 1.3 * 24 / 4000
        assert ((found.value - expected).abs() < 5 * found.std_error).all()

    def test_refinement_approaches_the_closed_form(self):
        found = refine(self.model, self.guide, self.x, log_p=self.exact(), steps=200)
        assert ((found.approximation_gap + 5 * found.approximation_error) > 0).all()
        assert (found.approximation_gap < 0.5).all()
        assert (found.amortisation_gap + 5 * found.amortisation_error > 0).all()

    @pytest.mark.parametrize("betas", [None, linear_schedule(10)])
    @pytest.mark.thin(1)
    def test_bracket_contains_the_closed_form(self, betas):
        pyro.set_rng_seed(0)
        c = dist.Categorical(SHARES).sample((4,))
        z = dist.Normal(LOCS[c], SCALES[c]).sample()
        x = dist.Normal(1.5 * z + c, 0.7).sample()
        settings = {"betas": betas, "num_leapfrog": 3, "num_tuning": 20, "num_equilibrium": 5}
        found = bracket(self.model, self.guide, {"z": z, "c": c}, x, num_particles=200, **settings)
        exact = exact_log_marginal(self.model, x).value
        assert (found.lower - 5 * found.lower_error <= exact).all()
        assert (exact <= found.upper + 5 * found.upper_error).all()

    def test_the_divergence_of_a_part_is_that_of_the_summed_prior(self):
        pyro.set_rng_seed(3)
        loss = WeightedELBO(num_particles=50)(self.model, self.guide)(self.x)
        pyro.set_rng_seed(3)
        log_w = log_weights(self.model, self.guide, self.x, num_particles=50)
        torch.testing.assert_close(-loss, log_w.mean(0).sum())


class TestHiddenMarkovModel:
    """Sequences of different lengths: values beyond the length of a sequence are masked."""

    start = torch.tensor([0.6, 0.4], dtype=F64)
    step = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=F64)
    locs = torch.tensor([-1.0, 1.5], dtype=F64)
    lengths = torch.tensor([5, 2, 4, 1, 5, 3])
    x = torch.linspace(-2, 2, 30, dtype=F64).reshape(6, 5).roll(3, 0)

    def model(self, x, lengths, markov=True):
        with pyro.plate("data", len(x), dim=-1):
            z = None
            for t in pyro.markov(range(x.shape[1])) if markov else range(x.shape[1]):
                with pyro.poutine.mask(mask=t < lengths):
                    probs = self.start if z is None else Vindex(self.step)[z]
                    z = pyro.sample(f"z{t}", dist.Categorical(probs))
                    pyro.sample(f"x{t}", dist.Normal(self.locs[z], 1.0), obs=x[:, t])

    def inside(self, x, lengths):
        """The model with its masks inside the distributions."""
        with pyro.plate("data", len(x), dim=-1):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                probs = self.start if z is None else Vindex(self.step)[z]
                z = pyro.sample(f"z{t}", dist.Categorical(probs).mask(t < lengths))
                pyro.sample(f"x{t}", dist.Normal(self.locs[z], 1.0).mask(t < lengths), obs=x[:, t])

    def exact(self):
        """The forward algorithm, one sequence and one step at a time."""
        found = []
        for row, length in zip(self.x.tolist(), self.lengths.tolist(), strict=True):
            alpha = [self.start[i].item() * math.exp(normal(row[0], self.locs[i].item(), 1.0)) for i in range(2)]
            for t in range(1, length):
                alpha = [
                    sum(alpha[i] * self.step[i, j].item() for i in range(2))
                    * math.exp(normal(row[t], self.locs[j].item(), 1.0))
                    for j in range(2)
                ]
            found.append(math.log(sum(alpha)))
        return torch.tensor(found, dtype=F64)

    @pytest.mark.parametrize("markov", [True, False])
    def test_the_sum_over_paths_is_the_forward_algorithm(self, markov):
        log_w = log_weights(self.model, empty_guide, self.x, self.lengths, num_particles=3, markov=markov)
        torch.testing.assert_close(log_w, self.exact().expand(3, -1))
        found = exact_log_marginal(self.model, self.x, self.lengths, markov=markov).value
        torch.testing.assert_close(found, self.exact())

    def test_masks_inside_distributions_count_as_those_around_sites(self):
        log_w = log_weights(self.inside, empty_guide, self.x, self.lengths, num_particles=2)
        torch.testing.assert_close(log_w, self.exact().expand(2, -1))

    def test_long_sequences_are_summed(self):
        x, lengths = self.x.repeat(1, 8), torch.full((6,), 40)
        model = TestHiddenMarkovModel()
        model.x, model.lengths = x, lengths
        torch.testing.assert_close(exact_log_marginal(model.model, x, lengths).value, model.exact())


class TestTopics:
    """Words in a plate beside the data, each with a topic, whose sum is a mixture of the topics' words."""

    words = torch.tensor([[0, 1, 3, 2, 1, 0], [2, 2, 2, 3, 0, 1], [3, 1, 0, 0, 2, 2], [0, 0, 0, 0, 0, 3]])
    topics = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1]], dtype=F64)

    def model(self, words):
        prior = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
        with pyro.plate("documents", len(words), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(prior))
            with pyro.plate("words", words.shape[1], dim=-2):
                topic = pyro.sample("topic", dist.Categorical(theta), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(self.topics[topic]), obs=words.T)

    def guide(self, words):
        with pyro.plate("documents", len(words), dim=-1):
            pyro.sample("theta", dist.Dirichlet(torch.ones(len(words), 3, dtype=F64)))

    def test_topics_are_summed_word_by_word(self):
        theta = dist.Dirichlet(torch.ones(3, dtype=F64)).sample((2, 4))
        found = log_joint(self.model, {"theta": theta}, self.words)
        expected = dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0], dtype=F64)).log_prob(theta)
        for k, n, w in product(range(2), range(4), range(6)):
            share = sum(theta[k, n, c] * self.topics[c, self.words[n, w]] for c in range(3))
            expected[k, n] += share.log()
        torch.testing.assert_close(found, expected)
        model, _ = vectorize(self.model, self.guide, (self.words,), {})
        _, log_lik = model.trace(2, (self.words,), {}, {"theta": theta}).log_densities()
        torch.testing.assert_close(
            log_lik, expected - dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0], dtype=F64)).log_prob(theta)
        )

    def test_estimates_agree_with_quadrature(self):
        exact = exact_log_marginal(self.model, self.words)
        assert (exact.error < 1e-4).all()
        assert within(log_marginal(self.model, self.guide, self.words, num_particles=4000), exact.value)

    def test_discrete_latents_alone_in_a_further_plate_are_summed(self):
        theta = torch.tensor([0.2, 0.3, 0.5], dtype=F64)

        def model(words):
            with pyro.plate("documents", len(words), dim=-1), pyro.plate("words", words.shape[1], dim=-2):
                topic = pyro.sample("topic", dist.Categorical(theta))
                pyro.sample("word", dist.Categorical(self.topics[topic]), obs=words.T)

        expected = (theta @ self.topics)[self.words].log().sum(1)
        torch.testing.assert_close(exact_log_marginal(model, self.words).value, expected)


def test_a_component_above_a_plate_multiplies_over_the_plate():
    # The component of a datum is common to its four entries; a switch per entry is summed inside.
    x = torch.linspace(-2, 3, 12, dtype=F64).reshape(3, 4)

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            c = pyro.sample("c", dist.Categorical(SHARES))
            with pyro.plate("entries", 4, dim=-1):
                s = pyro.sample("s", dist.Bernoulli(torch.tensor([0.1, 0.5, 0.7], dtype=F64)[c]))
                pyro.sample("x", dist.Normal(LOCS[c] + s, 1.0), obs=x)

    switch = (0.1, 0.5, 0.7)
    expected = [
        log_sum(
            [
                math.log(SHARES[c])
                + sum(
                    log_sum(
                        [
                            math.log(switch[c] if s else 1 - switch[c]) + normal(v, LOCS[c].item() + s, 1.0)
                            for s in range(2)
                        ]
                    )
                    for v in row
                )
                for c in range(3)
            ]
        )
        for row in x.tolist()
    ]
    for log_p in (log_weights(model, empty_guide, x, num_particles=2)[1], exact_log_marginal(model, x).value):
        torch.testing.assert_close(log_p, torch.tensor(expected, dtype=F64))


def test_sums_do_not_underflow_if_two_sites_favour_different_components():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.5])))
            for name, sign in (("a", 1), ("b", -1)):
                pyro.sample(name, dist.Normal(sign * 40.0 * c, 1.0), obs=x if name == "a" else -40 + x)

    x = torch.zeros(3)  # a favours c = 0 and b favours c = 1, each by 800 nats
    log_w = log_weights(model, empty_guide, x)
    torch.testing.assert_close(log_w, torch.full((1, 3), -800 - math.log(2 * math.pi)))


class TestRefusals:
    x = torch.linspace(-3, 5, 6, dtype=F64)

    def test_a_site_that_can_be_neither_drawn_nor_summed_is_named(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Poisson(torch.ones((), dtype=F64)))
                pyro.sample("x", dist.Normal(c, 1.0), obs=x)

        with pytest.raises(ValueError, match=r"guide does not draw site 'c'.*or sum it out: by a distribution that"):
            log_weights(model, empty_guide, self.x)

    def test_a_subsampling_plate_around_a_summed_site_is_refused(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1), pyro.plate("entries", 4, subsample_size=2, dim=-2):
                c = pyro.sample("c", dist.Categorical(SHARES))
                pyro.sample("x", dist.Normal(LOCS[c], 1.0), obs=x.expand(2, -1))

        with pytest.raises(ValueError, match="carries scale 2"):
            log_weights(model, empty_guide, self.x)

    def test_a_program_that_indexes_by_position_is_tiled_or_refused(self):
        x = torch.randn(6, 3, dtype=F64, generator=torch.Generator().manual_seed(0))

        def gathers(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                pyro.sample("x", dist.Normal(LOCS.repeat(len(x), 1)[torch.arange(len(x)), c], 1.0), obs=x[:, 0])

        def stacks(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                loc = torch.nn.functional.one_hot(c.reshape(-1), 3).to(F64) @ LOCS
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])

        expected = (SHARES.log() + dist.Normal(LOCS, 1.0).log_prob(x[:, :1])).logsumexp(1)
        torch.testing.assert_close(log_weights(gathers, empty_guide, x)[0], expected)

        def normalizes(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                probs = torch.softmax(torch.diag(LOCS)[c], dim=1)
                pyro.sample("x", dist.Normal(probs @ LOCS, 1.0), obs=x[:, 0])

        for model in (stacks, normalizes):
            refused = r"sites \['c'\] of the model, which the guide does not draw, cannot be summed out"
            with pytest.raises(ValueError, match=refused):
                log_weights(model, empty_guide, x)

    def test_sites_that_are_not_finite_are_named(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                pyro.sample("x", dist.Normal(torch.where(x > 4, torch.nan, LOCS[c]), 1.0), obs=x)

        assert nonfinite_sites(model, empty_guide, (self.x,), {}) == ["site 'x' of the model"]
        with pyro.validation_enabled(False):
            log_w = log_weights(model, empty_guide, self.x)
        with pytest.raises(ValueError, match=r"datum 5 are NaN.*site 'x' of the model"):
            check_weights(log_w, model, empty_guide, self.x)


class TestKindsOfSites:
    """Each summed site against a loop over its values, for single data and draws too."""

    weights = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-1.0, 1.0]], dtype=F64)

    def sites(self):
        values = torch.arange(3.0, dtype=F64)
        return {
            "categorical": (dist.Categorical(SHARES), torch.arange(3), lambda c: self.weights[c]),
            "one-hot": (dist.OneHotCategorical(SHARES), torch.eye(3, dtype=F64), lambda c: c @ self.weights),
            "bernoulli": (dist.Bernoulli(SHARES[0]), values[:2], lambda c: c.unsqueeze(-1) * self.weights[0]),
            "binomial": (dist.Binomial(2, SHARES[1]), values, lambda c: c.unsqueeze(-1) * self.weights[1]),
            "masked": (dist.Categorical(SHARES).mask(True), torch.arange(3), lambda c: self.weights[c]),
        }

    @pytest.mark.parametrize("num_data", [1, 4])
    @pytest.mark.parametrize("num_particles", [1, 3])
    @pytest.mark.parametrize("kind", ["categorical", "one-hot", "bernoulli", "binomial", "masked"])
    def test_a_site_is_summed(self, kind, num_particles, num_data):
        fn, values, loc = self.sites()[kind]
        x = torch.linspace(-1, 2, 2 * num_data, dtype=F64).reshape(num_data, 2)

        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
                c = pyro.sample("c", fn)
                pyro.sample("x", dist.Normal(loc(c) + z.unsqueeze(-1), 1.0).to_event(1), obs=x)

        z = torch.randn(num_particles, num_data, dtype=F64)
        terms = [
            fn.log_prob(value) + dist.Normal(loc(value) + z[..., None], 1.0).log_prob(x).sum(-1) for value in values
        ]
        expected = torch.stack(terms).logsumexp(0) + dist.Normal(0.0, 1.0).log_prob(z)
        torch.testing.assert_close(log_joint(model, {"z": z}, x), expected)

    def test_a_support_that_depends_on_a_summed_site_bounds_the_latent(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(SHARES))
                z = pyro.sample("z", dist.Exponential(1.0 + c))
                shift = pyro.sample("shift", dist.Uniform(0.0, 1.0 + c))
                pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

        x = torch.tensor([0.3, 2.0], dtype=F64)
        z, shift = torch.tensor([[0.5, 1.0]], dtype=F64), torch.tensor([[0.5, 2.5]], dtype=F64)
        expected = dist.Normal(z + shift, 1.0).log_prob(x)
        prior = [
            [
                sum(
                    SHARES[c].item() * (1 + c) * math.exp(-(1 + c) * z[0, n].item()) / (1 + c)
                    for c in range(3)
                    if shift[0, n] <= 1 + c
                )
                for n in range(2)
            ]
        ]
        with pyro.validation_enabled(False):  # torch refuses a value that one of the components does not have
            found = log_joint(model, {"z": z, "shift": shift}, x)
        torch.testing.assert_close(found, expected + torch.tensor(prior, dtype=F64).log())

    def test_rows_are_repeated_for_a_program_that_uses_the_latent_by_position(self):
        x = torch.linspace(-1, 2, 6, dtype=F64)

        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
                c = pyro.sample("c", dist.Categorical(SHARES))
                pyro.sample("x", dist.Normal(LOCS[c] + z.sum(1), 1.0), obs=x)

        z = torch.randn(3, 6, 2, dtype=F64)
        terms = [SHARES[c].log() + dist.Normal(LOCS[c] + z.sum(2), 1.0).log_prob(x) for c in range(3)]
        expected = torch.stack(terms).logsumexp(0) + dist.Normal(0.0, 1.0).log_prob(z).sum(2)
        with pytest.warns(TiledWarning):
            found = log_joint(model, {"z": z}, x)
        torch.testing.assert_close(found, expected)

    def test_recorded_estimates_are_those_of_eager_runs(self):
        of = TestMixturePrior
        eager, recorded = (
            log_marginal(of.model, of.guide, of.x, num_particles=30, chunk_size=40, execution=execution)
            for execution in ("eager", "recorded")
            if pyro.set_rng_seed(0) is None
        )
        torch.testing.assert_close(eager.value, recorded.value)


def test_sites_in_the_data_plate_are_summed_for_the_whole_data_set():
    x = torch.linspace(-3, 4, 5, dtype=F64)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(SHARES))
            pyro.sample("x", dist.Normal(mu + LOCS[c], 1.0), obs=x)

    program = VectorizedProgram(model, "model", "whole", 1, None, summed=frozenset({"c"}))
    mu = torch.tensor([[-0.5], [1.0]], dtype=F64)
    log_p, log_lik = program.trace(2, (x,), {}, {"mu": mu}).log_densities()
    prior = dist.Normal(0.0, 1.0).log_prob(mu)
    terms = SHARES.log() + dist.Normal(mu[..., None] + LOCS, 1.0).log_prob(x[:, None])
    torch.testing.assert_close(log_p, prior + terms.logsumexp(-1).sum(-1, keepdim=True))
    torch.testing.assert_close(log_p - log_lik, prior)
