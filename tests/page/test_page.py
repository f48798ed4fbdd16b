"""The page as text: its policy, its bytes, its words; and the checks of a fit."""

import base64
import dataclasses
import hashlib
import html
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from page_helpers import HOSTILE, make_fit, with_results

from pyrovae import VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
from pyrovae.baselines import Comparison
from pyrovae.page import CHECKS, Diagnosis, make_page, sections
from pyrovae.page import checks as checks_module
from pyrovae.page.blocks import Interactive, Table, Words
from pyrovae.training import History


@pytest.fixture(scope="module")
def made():
    return make_fit()


@pytest.fixture(scope="module")
def page(made):
    return make_page(made)


def test_the_page_allows_its_own_script_and_style_alone(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page.text, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    without_json = re.sub(r'<script type="application/json">.*?</script>', "", page.text, flags=re.S)
    assert not re.search(
        r"""(src|href)="(?!data:|#)|style=|\son\w+=|@import|url\((?!#)""",
        without_json.replace(html.escape(HOSTILE), ""),
    )


def test_the_same_fit_gives_the_same_bytes(made, page):
    again = make_page(with_results(dataclasses.replace(made), like=made))
    assert again.text == page.text
    assert again.diagnosis == page.diagnosis


def test_hostile_names_are_escaped_everywhere(page):
    assert "<img src=x" not in page.text
    assert page.text.count("<script") == page.text.count("</script>") == 2
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', page.text, flags=re.S)
    assert "<" not in content
    assert json.loads(content)["points"]["labelNames"][0] == HOSTILE


def figures_of(text):
    """List title, alt text and caption of each picture."""
    image = r'(?:<div class="scroll"[^>]*>)?<(?:img [^>]*alt|svg role="img" [^>]*aria-label)="([^"]*)"'
    caption = r"<figcaption><strong>(.*?)\.</strong> (.*?)</figcaption>"
    found = re.findall(rf"<figure[^>]*>{image}.*?{caption}", text, flags=re.S)
    return [(title, alt, words) for alt, title, words in found]


PICTURES_OF_IMAGES = (
    ["Training", "Cost of the code", "Codes, means", "Codes, draws", "Decoded grid", "Traversals", "Interpolation"],
    ["One datum, many codes", "Posteriors of single data", "Data and reconstructions", "Samples"],
    ["Predictive checks", "PIT of columns", "Typicality", "Foreign data: noise", "Foreign data: shuffled columns"],
    ["KL by dimension", "Collapse", "Information", "Bits of the code", "Calibration of the guide (SBC)"],
    ["Calibration of the weights", "Worst data", "k-hat", "k-hat over latent space"],
)


def test_the_page_of_images_with_two_latents_shows_all_its_pictures(page):
    titles = [title for part in PICTURES_OF_IMAGES for title in part]
    assert [title for title, _, _ in figures_of(page.text)] == titles


def test_every_picture_has_an_alt_text_of_its_own(page):
    figures = figures_of(page.text)
    assert len(figures) == page.text.count("<figure")
    for _, alt, caption in figures:
        assert re.search(r"\d", alt)
        assert alt not in caption


def test_sections_come_in_order_and_the_verdict_first(page):
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", page.text)
    assert titles[:4] == ["Verdict", "What was run", "Numbers", "Warnings"]
    assert titles[-1] == "How each number is defined"
    assert "Do not believe this model yet: below a baseline" in page.text
    assert page.diagnosis["headline"].startswith("Do not believe this model yet: below a baseline")
    assert "Not shown" not in page.text
    assert len(page.diagnosis["checks"]) == len(CHECKS)
    json.dumps(page.diagnosis)


def test_the_json_holds_every_table_of_the_page_in_full_precision(made, page):
    tables = page.diagnosis["tables"]
    shown = re.findall(r"<table.*?</table>", page.text, flags=re.S)
    assert len(tables) == len(shown) > 10
    for table, text in zip(tables, shown, strict=True):
        assert len(table["rows"]) == text.count('<th scope="row">')
        for row, cells in zip(table["rows"], re.findall(r'<tr><th scope="row".*?</tr>', text, flags=re.S), strict=True):
            texts = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", cells)]
            for value, cell in zip(row, texts, strict=True):
                check_same(value, cell)
    (latents,) = [table for table in tables if table["title"] == "Latent dimensions"]
    assert {row[0]: row[1] for row in latents["rows"]} == dict(zip(made.codes.names, made.kl.tolist(), strict=True))


def check_same(value, text):
    """Check that a cell shows a value of the JSON, rounded."""
    if isinstance(value, list):
        for each, part in zip(value, text.split(" ± "), strict=True):
            check_same(each, part)
    elif value is None:
        assert text in ("-", "nan", "inf")
    elif isinstance(value, str):
        assert text == value
    elif text != "< 0.001":
        percent, number = text.endswith("%"), text.removesuffix(" %")
        rounding = 0.51 * 10.0 ** -len(number.partition(".")[2])  # half of the last decimal
        value = 100 * value if percent else value
        assert abs(float(number) - value) <= max(rounding, 0.005 * abs(value))


def test_a_reason_why_something_is_not_shown_stands_once():
    def broken(fit):
        """Some picture. Of something."""
        raise ValueError("no latents")

    reasons = set()
    (words,) = sections._tried(broken, None, reasons)
    assert words.text.startswith("Not shown: Some picture (ValueError: no latents (")
    assert not sections._tried(broken, None, reasons)


def test_blocks_escape_their_texts():
    for block in (
        Words(HOSTILE),
        Table(HOSTILE, ["", HOSTILE], [[HOSTILE, HOSTILE]]),
        Interactive(HOSTILE, [HOSTILE], HOSTILE),
    ):
        text = block.html()
        assert "<img" not in text
        assert text.count("</script>") == text.count("<script")


def history(elbo, train=None, best=None):
    rows = [
        {"epoch": n + 1, "validation_elbo": value, "train_elbo": value if train is None else train[n]}
        for n, value in enumerate(elbo)
    ]
    return History(rows, len(rows) if best is None else best)


def fit_with(elbo, *, planned=None, train=None, best=None, held_out=(-100.0, 1.0), **other):
    summary = {"elbo": {"mean": held_out[0], "std_error": held_out[1]}}
    planned = len(elbo) if planned is None else planned
    return SimpleNamespace(history=history(elbo, train, best), planned=planned, summary=summary, split="test", **other)


def test_the_rise_of_the_last_fifth_is_that_of_least_squares():
    noise = np.random.default_rng(0).normal(size=10)
    values = list(np.r_[np.linspace(-300, -100, 40), -100 + 0.5 * np.arange(10) + 0.1 * noise])
    (slope, _), covariance = np.polyfit(np.arange(10), values[-10:], 1, cov=True)
    check = checks_module.still_rising(fit_with(values))
    np.testing.assert_allclose((check.value, check.error), (9 * slope, 9 * covariance[0, 0] ** 0.5), rtol=1e-9)
    assert check.passed is False


@pytest.mark.parametrize(
    ("elbo", "planned", "passed"),
    [
        ([-200.0, -150.0], 2, False),  # two epochs
        ([-200.0, *[-100.0] * 20], 21, True),  # flat
        ([-200 + n for n in range(20)], 40, True),  # ended by its patience
        ([], 0, None),
    ],
)
def test_convergence_needs_a_flat_end_or_an_early_stop(elbo, planned, passed):
    assert checks_module.still_rising(fit_with(elbo, planned=planned)).passed is passed


def test_overfit_needs_an_early_peak_and_a_gap():
    early = [-120.0, -101.0, -100.0, *[-104.0 - n for n in range(10)]]
    train = [-120.0 + 4 * n for n in range(13)]
    for elbo, best, held_out, passed in (
        (early, 13, (-114.0, 1.0), False),  # kept the last epoch
        (early, 3, (-100.0, 1.0), False),  # train at -112: below, no gap
        (train, 13, (-114.0, 1.0), True),  # the best epoch is the last
    ):
        check = checks_module.overfit(fit_with(elbo, train=train, best=best, held_out=held_out))
        gap = train[best - 1] - held_out[0]
        assert check.value == gap
        assert check.passed is (passed if gap > 2 else True)


@pytest.mark.parametrize(
    ("differences", "passed"),
    [
        ({}, None),
        ({"a": (3.0, 0.1), "b": (-0.1, 0.2)}, True),
        ({"a": (3.0, 0.1), "b": (-0.5, 0.2)}, False),
        ({"a": (-np.inf, 0.0)}, False),
    ],
)
def test_a_model_two_errors_below_a_baseline_is_warned_of(differences, passed):
    check = checks_module.below_a_baseline(SimpleNamespace(baselines=Comparison({}, "", differences)))
    assert check.passed is passed
    assert passed is not False or "BELOW" in check.sentence


@pytest.mark.parametrize(("share", "draws", "passed"), [(0.0, 100, True), (0.02, 100, False), (0.5, 5, None)])
def test_weights_need_a_small_share_of_large_khats(share, draws, passed):
    summary = {"log_marginal": {"khat": {"share_above_0.7": share}, "num_particles": draws}}
    assert checks_module.unreliable_weights(SimpleNamespace(summary=summary)).passed is passed


@pytest.mark.parametrize("choice", ["dimension", "network", 0.5])
def test_scales_at_their_lower_bound_are_warned_of(choice):
    likelihood = NormalLikelihood(torch.nn.Linear(1, 6 if choice == "network" else 3), scale=choice)
    vae = VAE(StandardNormalPrior(1), likelihood, NormalEncoder(torch.nn.Linear(3, 2)))
    made = SimpleNamespace(vae=vae, seed=0, arguments=lambda rows: ((torch.zeros(4, 3),), {}))
    check = checks_module.scales_at_their_floor(made)
    assert (check.value, check.passed) == ((None, None) if choice == 0.5 else (0.0, True))
    if choice == "dimension":
        likelihood.scale.raw.data[1] = -1e3
    elif choice == "network":
        torch.nn.init.zeros_(likelihood.network.weight)
        likelihood.network.bias.data[4] = -1e3
    check = checks_module.scales_at_their_floor(made)
    if choice != 0.5:
        assert (check.value, check.passed) == (pytest.approx(1 / 3), False)
        assert "33.3 % of the learned scales lie at their lower bound" in check.sentence


def test_a_check_that_raises_is_not_measured():
    def broken(fit):
        raise RuntimeError("a program of the user failed")

    (check,) = Diagnosis.of(None, [broken]).checks
    assert check.passed is None
    assert "a program of the user failed" in check.sentence
    assert Diagnosis((check,)).headline.startswith("None of 0 checks")
