"""Shorter writing of pictures: the same places and pixels in fewer bytes."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from pyrovae.page.shorter import grey_png, short_path


def absolute(path):
    """Follow a path with relative commands, and list the places where it goes."""
    here, start, found = np.zeros(2), np.zeros(2), []
    for letter, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        values = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", numbers)]
        if letter == "z":
            here = start
        for place in range(0, len(values), {"q": 4, "c": 6}.get(letter, 2)):
            points = np.reshape(values[place : place + {"q": 4, "c": 6}.get(letter, 2)], (-1, 2))
            points = points if letter == "M" else points + here
            here = points[-1]
            start = here if letter in "Mm" and place == 0 else start
            found.extend(points)
    return np.array(found)


def test_lines_stay_within_a_tenth_after_a_thousand_steps():
    places = np.random.default_rng(0).uniform(-200, 200, (1000, 2)).cumsum(0)
    long = "M " + " L ".join(f"{x:.6f} {y:.6f}" for x, y in places) + " z M 5 5 L 6 7"
    short = short_path(long)
    expected = np.concatenate([places, [[5, 5], [6, 7]]])
    np.testing.assert_allclose(absolute(short), expected, atol=0.0501)
    assert len(short) < 0.6 * len(long)


def test_curves_stay_within_a_hundredth():
    long = "M 1.234 -0.567 Q 0.004 2.345 3.456 -0.789 C 1 2 3.331 4 -5.123 0.256 z"
    expected = [[1.234, -0.567], [0.004, 2.345], [3.456, -0.789], [1, 2], [3.331, 4], [-5.123, 0.256]]
    np.testing.assert_allclose(absolute(short_path(long)), expected, atol=0.00501)


def test_paths_with_other_commands_stay_as_they_are():
    assert short_path("M 0 0 A 1 1 0 0 1 2.345678 3") == "M 0 0 A 1 1 0 0 1 2.345678 3"


@pytest.mark.parametrize("grey", [True, False])
def test_pixels_stay_the_same_in_fewer_bytes(grey):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    if grey:
        pixels[..., 1:3] = pixels[..., :1]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    short = grey_png(buffer.getvalue())
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(short)).convert("RGBA")), pixels)
    assert len(short) < (0.5 if grey else 1.01) * len(buffer.getvalue())
