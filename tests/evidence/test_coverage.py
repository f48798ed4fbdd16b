"""Coverage of the intervals of `log_marginal`: the table of scripts/studies/coverage.py with fewer pairs."""

import importlib.util
import math
import sys

import pyro
import pytest
import torch
from script_helpers import path_of

_SPEC = importlib.util.spec_from_file_location("coverage_script", path_of("coverage"))
study = importlib.util.module_from_spec(_SPEC)
sys.modules["coverage_script"] = study  # where its dataclass looks for itself
_SPEC.loader.exec_module(study)

PAIRS = 500
PROBLEMS = {
    "linear": lambda: study.linear(16, 6, 0.7, 100),  # 50 s
    "plane": lambda: study.linear(16, 2, 0.7, 100),
    "bernoulli": lambda: study.curved("bernoulli", "mixture", 1, 100),
    "poisson": lambda: study.curved("poisson", "heavy", 2, 100),
    "student-t": lambda: study.curved("student-t", "normal", 1, 100),
}


def check_cell(guide, cell):
    assert 0.909 < cell.coverage <= 0.991, (guide, cell)
    # The lower bound's bias is half the squared error; 4.5 standard errors of a mean over the pairs beyond it.
    assert abs(cell.bias + cell.std_error**2 / 2) < 4.5 * cell.rmse / PAIRS**0.5 + cell.std_error**2, (guide, cell)
    assert cell.std_error < 0.1, (guide, cell)


def test_the_intervals_of_a_guide_cover_the_exact_log_p():
    cell = study.measure(PROBLEMS["bernoulli"](), "sd x 0.8", pairs=PAIRS, num_particles=1000)
    check_cell("sd x 0.8", cell)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_intervals_of_every_guide_cover_the_exact_log_p(name):
    # 500 pairs know a coverage of 0.95 to 0.0097: a right cell leaves the band of 4.2 of those in 3 of 100,000, once,
    # since the seed is fixed; one at 0.87, as the guide alone often has, stays in 3 of 1,000. The five cells of a
    # problem together, 2,500 pairs, know it to 0.0044: the band of 0.02 is 4.6 of those, and one at 0.91 stays in 4 of
    # 10,000.
    problem, cells = PROBLEMS[name](), {}
    for guide in study.GUIDES:
        cells[guide] = study.measure(problem, guide, pairs=PAIRS, num_particles=1000)
        check_cell(guide, cells[guide])
    assert 0.93 <= sum(cell.coverage for cell in cells.values()) / len(cells) <= 0.97, cells


@pytest.mark.slow
def test_the_intervals_cover_log_p_for_three_latents_with_heavy_tails():
    # The hardest cell of the table: with the mode alone and three more places it is at 0.93, and k-hat finds nothing.
    problem = study.curved("poisson", "heavy", 3, 40)
    cell = study.measure(problem, "sd x 0.8", pairs=400, num_particles=1000)
    assert 0.907 < cell.coverage <= 0.985, cell  # four standard errors of 400 pairs, 0.0109
    assert cell.rmse < 0.06, cell


def test_the_intervals_of_a_guide_that_is_too_narrow_do_not_cover_log_p():
    # What the study is to find: 0.82 and less, however small k-hat is.
    cell = study.measure(PROBLEMS["linear"](), "sd x 0.8", pairs=PAIRS, num_particles=1000, proposal="guide")
    assert cell.coverage < 0.9


@pytest.mark.parametrize(
    ("size", "num_data", "bound"),
    [
        (1, 60, 1e-9),
        pytest.param(2, 30, 1e-4, marks=pytest.mark.slow),
        pytest.param(3, 3, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_more_quadrature_points_do_not_change_the_exact_log_p(size, num_data, bound):
    # The hardest problem: rates reach hundreds, and posteriors are a hundred times narrower than p(z).
    made = []
    for rough_above in (math.inf, 0.005, 0.0):
        pyro.set_rng_seed(0)
        made.append(study.curved("poisson", "heavy", size, num_data, rough_above=rough_above).log_p)
    assert not torch.equal(made[0], made[2])
    assert (made[1] - made[2]).abs().max() < bound


def test_the_coverage_script_prints_a_line_for_every_guide(monkeypatch, capsys):
    argv = ["coverage.py", "--only", "linear, D = 5", "--pairs", "40", "--num_data", "20", "--num_particles", "50"]
    monkeypatch.setattr(sys, "argv", argv)
    assert study.main() in (0, 1)  # 40 pairs say little
    lines = capsys.readouterr().out.splitlines()
    assert [line[37:47].strip() for line in lines[1:-1]] == list(study.GUIDES)
    assert lines[-1].endswith("cells outside [0.93, 0.97]")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "gamma"], "--only must be part of a problem's name, got 'gamma'"),
        (["--num_data", "50", "--pairs", "40"], "--num_data must be at most --pairs 40, got 50"),
    ],
)
def test_the_coverage_script_refuses_flags_without_effect(monkeypatch, flags, message):
    monkeypatch.setattr(sys, "argv", ["coverage.py", *flags])
    with pytest.raises(ValueError, match=message):
        study.main()


def test_data_whose_quadrature_is_refused_are_computed_again_with_more_points_and_else_left_out(monkeypatch, capsys):
    found, calls = study.exact_log_marginal, []

    def refusing(*args, **kwargs):
        exact = found(*args, **kwargs)
        calls.append(len(exact.value))
        for values in exact[:4]:
            values[0] = torch.nan  # the second time the first of those that were refused before
            if len(calls) == 1:
                values[3] = torch.nan
        return exact

    monkeypatch.setattr(study, "exact_log_marginal", refusing)
    problem = study.curved("bernoulli", "normal", 1, 20)
    assert calls == [20, 2]
    assert len(problem.x) == len(problem.log_p) == len(problem.loc) == len(problem.covariance) == 19
    assert problem.posterior("exact")[1].isfinite().all()
    assert "1 of 20 data are left out" in capsys.readouterr().out
