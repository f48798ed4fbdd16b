"""A table in grams and in kilograms, with holes: the same model, and log p(x) that differs by the Jacobian alone."""

import math
from functools import partial

import numpy as np
import pyro
import pytest
import sklearn.datasets
import torch

from pyrovae import (
    Blueprint,
    Column,
    Columns,
    ImportanceWeightedELBO,
    LogNormalLikelihood,
    NormalLikelihood,
    fit,
    log_marginal,
    read_table,
)

N = 120
FACTOR = 1000.0


def rows(factor):
    rng = np.random.default_rng(0)
    z = rng.normal(size=N)
    numbers = {
        "mass": 70 + 9 * z + 3 * rng.normal(size=N),
        "dose": np.exp(1 + 0.5 * z + 0.3 * rng.normal(size=N)),
    }
    found = {name: [round(value, 3) * factor for value in values.tolist()] for name, values in numbers.items()}
    found["steps"] = [round(value) * factor for value in (40 + 5 * z + rng.normal(size=N)).tolist()]
    found["visits"] = rng.poisson(np.exp(1 + 0.4 * z)).tolist()
    found["sex"] = ["FM"[int(value > 0)] for value in z]
    for name in found:
        for row in rng.choice(N, 20, replace=False):
            found[name][row] = None
    return found


COLUMNS = Columns(
    (
        Column("mass", "real"),
        Column("dose", "positive"),
        Column("steps", "real", likelihood="RoundedNormalLikelihood"),
        Column("visits", "count"),
        Column("sex", "binary"),
    )
)


def scores(factor):
    table = read_table(rows(factor), columns=COLUMNS)
    pyro.set_rng_seed(1)
    vae = Blueprint.of(table, latent_dim=2).vae()
    fit(vae.model, vae.guide, table.arguments("train"), elbo=ImportanceWeightedELBO(5), epochs=3, seed=0)
    pyro.set_rng_seed(2)
    found = log_marginal(vae.model, vae.guide, **table.arguments("test"), num_particles=2000)
    return table, found


def test_only_the_densities_of_observed_cells_change_by_the_logarithm_of_the_unit():
    kilograms, in_kilograms = scores(1.0)
    _, in_grams = scores(FACTOR)
    mask = kilograms.part("test").mask
    places = [place for place, column in enumerate(kilograms.columns.data) if column.name in ("mass", "dose")]
    densities = mask[:, places].sum(1)
    assert len(set(densities.tolist())) > 1
    expected = in_kilograms.value - densities * math.log(FACTOR)
    errors = torch.hypot(in_grams.std_error, in_kilograms.std_error)
    assert bool(((in_grams.value - expected).abs() < 5 * errors + 0.01).all())
    assert errors.max() < 0.1
    assert kilograms.columns["steps"].resolution == 1


@pytest.mark.slow
def test_a_floor_below_the_resolution_does_not_move_log_p_of_the_diabetes_data():
    data = sklearn.datasets.load_diabetes(scaled=False)
    cells = dict(zip(data.feature_names, data.data.T.tolist(), strict=True))
    table = read_table(cells)
    assert table.columns["sex"].kind == "binary"
    found = []
    for low in (1e-3, 1e-8):
        pyro.set_rng_seed(0)
        parts = {
            "real": partial(NormalLikelihood, scale="network", scale_bounds=(low, 1e6)),
            "positive": partial(LogNormalLikelihood, scale="network"),
        }
        vae = Blueprint.of(table, latent_dim=4, parts=parts).vae()
        given, validation = table.arguments("train"), table.arguments("validation")
        elbo = ImportanceWeightedELBO(10)
        fit(vae.model, vae.guide, given, elbo=elbo, epochs=300, validation=validation, patience=40, seed=0)
        pyro.set_rng_seed(1)
        found.append(log_marginal(vae.model, vae.guide, **table.arguments("test"), num_particles=2000).value.mean())
    assert abs(found[0] - found[1]) < 0.05
