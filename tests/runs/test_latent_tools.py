"""The study of tools for latent space."""

import pytest
from script_helpers import TINY, run

from pyrovae.diagnostics import RHAT_LIMIT


def test_a_run_without_labelled_images_is_refused(place):
    run("train", "--data", "bits.npy", *TINY, "--epochs", 1, "--out", "bits", cwd=place)
    error = run("latent_tools", "bits", cwd=place, check=False).stderr
    assert error == "latent_tools.py: error: bits has no images with labels; choose a run on digits or MNIST\n"


@pytest.mark.slow
def test_the_study_of_tools_prints_what_each_found(place):
    run("train", "--epochs", 15, "--latent_dim", 2, "--num_particles", 10, "--out", "digits", cwd=place)
    out = run("latent_tools", "digits", "--num_samples", 100, "--figure", "x.png", cwd=place).stdout
    numbers = {line[:57].strip(): float(line[57:]) for line in out.splitlines()[1:9]}
    assert 0 < numbers["angle of the balanced to the unbalanced vector, degrees"] < 180
    assert numbers["ink gained by the ascent, measured"] > 0.01
    mixed = numbers["its largest R-hat under NUTS"] < RHAT_LIMIT  # not where the posterior has two modes
    assert ("R-hat" in out.splitlines()[9]) != mixed
    assert (place / "x.png").read_bytes().startswith(b"\x89PNG")
