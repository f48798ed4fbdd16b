"""Checks of hand-written programs without a configuration, the parts that are used, and the keys of config.yaml."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml

from pyrovae import MLP, Blueprint, ConvNet, NormalLikelihood
from pyrovae.data import load_data
from pyrovae.programs import RecordedMaker
from pyrovae.runs import (
    build_objective,
    check_contract,
    check_reparameterised,
    check_site_order,
    parse_training,
    resolve,
)
from pyrovae.runs.flags import FLAGS
from pyrovae.runs.parse import config_to_yaml

X = torch.zeros(5, 3)
NORMAL = dist.Normal(torch.zeros(2), 1.0).to_event(1)


def model(x):
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("high", NORMAL)
        low = pyro.sample("low", NORMAL)
        pyro.sample("x", dist.Normal(low.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def guide(x, order=("high", "low"), distribution=NORMAL):
    with pyro.plate("rows", len(x), dim=-1):
        for name in order:
            pyro.sample(name, distribution)


def test_programs_that_fit_together_pass_the_checks_before_training():
    check_contract(model, guide, X)
    check_reparameterised(guide, X)
    check_site_order(model, guide, X)


def test_check_contract_names_the_error_and_its_line():
    with pytest.raises(ValueError, match=r"do not work together: KeyError: 'weight' \(test_build.py, line \d+\)"):
        check_contract(model, lambda x: {}["weight"], X)


def test_check_reparameterised_names_the_latent_and_its_distribution():
    def discrete(x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("low", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))

    with pytest.raises(ValueError, match=r"latent 'low' \(Independent\) has none; use --elbo TraceEnum_ELBO"):
        check_reparameterised(discrete, X)


def test_check_site_order_states_both_orders():
    with pytest.raises(ValueError, match="the model's order, high, low, but it draws low, high; use --elbo Trace_ELBO"):
        check_site_order(model, partial(guide, order=("low", "high")), X)


def test_checks_leave_the_random_state_as_it_was():
    before = torch.get_rng_state()
    check_contract(model, guide, X)
    check_reparameterised(guide, X)
    check_site_order(model, guide, X)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_recorded_maker_records_what_a_program_makes_through_the_mirror_of_a_network_as_well():
    used = set()
    makers = {
        "likelihood": partial(NormalLikelihood, scale="dimension"),
        "network": partial(ConvNet, channels=(2, 3)),
    }
    recorded = {kind: RecordedMaker(maker, partial(used.add, kind)) for kind, maker in makers.items()}
    blueprint = Blueprint(64, 2, **recorded, encoder=RecordedMaker(Blueprint.encoder, partial(used.add, "encoder")))
    assert not used
    torch.manual_seed(0)
    likelihood = blueprint.make_likelihood()
    assert used == {"likelihood", "network"}
    torch.manual_seed(0)
    same = Blueprint(64, 2, **makers).make_likelihood()
    assert all(torch.equal(a, b) for a, b in zip(likelihood.parameters(), same.parameters(), strict=True))
    blueprint.encoder(MLP(64, 4))
    assert "encoder" in used


def test_config_yaml_has_the_keys_of_the_flags_in_their_order():
    text = config_to_yaml(resolve(parse_training([]), load_data("digits")))
    once = ("help_parts", "config", "out", "resume", "trust_imports", "describe")
    assert list(yaml.safe_load(text)) == [flag.name for flag in FLAGS if flag.name not in once]
    assert text.startswith(
        b"data: digits\ndata_dir: null\nbinarize: none\ncovariates: null\ncolumns: null\nna_values: []\n"
    )


@pytest.mark.parametrize(
    ("flags", "kind", "option", "value"),
    [
        (["--elbo", "BetaTCELBO"], "elbo", "num_data", 1439),
        (["--elbo", "BetaTCELBO", "--elbo.num_data", "77"], "elbo", "num_data", 77),
        (["--elbo", "FactorVAEELBO", "--latent_dim", "4"], "elbo", "latent_dim", 4),
        (["--likelihood", "BinomialLikelihood"], "likelihood", "total_count", 16),
        (["--likelihood", "CategoricalLikelihood"], "likelihood", "num_classes", 17),
    ],
)
def test_the_script_gives_parts_what_it_knows_itself(flags, kind, option, value):
    config = resolve(parse_training(flags), load_data("digits"))
    assert config[kind].init_args[option] == value
    build_objective(config)
