"""scikit-learn's own checks of an estimator."""

import contextlib
from functools import partial
from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from pyrovae import MLP
from pyrovae.sklearn import EXPECTED_FAILED_CHECKS, VAEDensity


def make_density():
    return VAEDensity(2, epochs=1, batch_size=64, network=partial(MLP, hidden=(4,)), num_particles=5)


def test_every_fourth_check_of_scikit_learn_passes_but_for_those_with_a_reason():
    checks = list(estimator_checks_generator(make_density()))
    assert len(checks) > 40
    for density, check in checks[::4]:
        if check.func.__name__ not in EXPECTED_FAILED_CHECKS:
            with contextlib.suppress(SkipTest):
                check(density)


@pytest.mark.slow
def test_the_checks_of_scikit_learn_pass_but_for_those_with_a_reason():
    found = check_estimator(make_density(), expected_failed_checks=EXPECTED_FAILED_CHECKS, on_skip=None, on_fail=None)
    failed = {check["check_name"]: check["exception"] for check in found if check["status"] == "failed"}
    assert failed == {}
    assert {check["check_name"] for check in found if check["status"] == "xfail"} == set(EXPECTED_FAILED_CHECKS)
    assert len(EXPECTED_FAILED_CHECKS) <= 5
    assert len(found) > 40
