"""The page in headless Chromium: no error, no violation of its policy, no sideways scroll; keys and pointer work."""

import base64
import io
import re

import numpy as np
import pyro
import pytest
import torch
from page_helpers import HOSTILE, PROBE, browse, fit_of, make_fit, needs_chromium, with_results
from PIL import Image

from pyrovae import BernoulliLikelihood, Blueprint
from pyrovae.page import make_page, sections, write
from pyrovae.page.plane import plane
from pyrovae.page.write import script_of

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def made():
    return make_fit()


@pytest.fixture(scope="module")
def page(made):
    return make_page(made, script=script_of() + PROBE).text


def test_a_page_with_hostile_labels_works_at_390_pixels_without_an_error(made, page, tmp_path):
    seen, console = browse(page, tmp_path)
    assert console == []
    assert seen["images"] == 0
    assert seen["width"] == 390
    assert seen["page"] <= 390  # less by a scroll bar
    assert seen["after"] != seen["before"]
    assert seen["pixelsAfter"] != seen["pixelsBefore"]
    assert seen["before"].startswith("z[0] = ")
    assert "test datum: row " in seen["chosen"]
    (first, decoded), (second, other) = seen["moved"]
    assert first != second
    assert decoded != other
    assert len(seen["clicked"]) > 1
    for row, (place, picture) in seen["clicked"].items():
        n = made.data.test_index.tolist().index(int(row))
        z = [float(number) for number in re.findall(r"= (-?[\d.]+)", place.replace("\N{MINUS SIGN}", "-"))]
        assert z == pytest.approx(made.codes.mean[n].tolist(), abs=0.006)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("L"))
        assert pixels.flatten().tolist() == (255 * made.data.test[n]).tolist()
    assert HOSTILE in page.replace("&lt;", "<").replace("&gt;", ">")


def test_a_planted_image_from_the_network_a_script_and_a_wide_element_are_seen(page, tmp_path):
    plant = (
        '<img src="http://localhost:9/x.png"><script>console.log(1)</script><pre><br>' + 200 * "x" + "</pre></main>"
    )  # the style is another now, and is refused as well
    seen, console = browse(page.replace("overflow-x: auto; border", "border").replace("</main>", plant), tmp_path)
    assert seen["page"] > 390
    refused = [line for line in console if "Content Security Policy" in line]
    assert any("localhost" in line for line in refused)
    assert any("script" in line for line in refused)


# Appended to page.js: moves each slider to three places and tells the window around it the pixels that it saw.
SLIDERS = """
(async () => {
  for (let k = 0; k < 200 && !document.querySelector(".slider input"); k += 1) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const canvas = document.querySelector(".decoded canvas");
  const pixels = () => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return Array.from({ length: data.length / 4 }, (_, k) => data[4 * k]);
  };
  const seen = { rows: [] };
  document.querySelectorAll("button")[1].click();
  document.querySelectorAll(".slider input").forEach((input, slider) => {
    for (const share of [0.2, 0.5, 0.83]) {
      input.value = Number(input.min) + share * (input.max - input.min);
      input.dispatchEvent(new Event("input"));
      seen.rows.push({ slider, value: Number(input.value), pixels: pixels() });
    }
  });
  seen.place = document.querySelector(".place").textContent;
  window.parent.postMessage(seen, "*");
})();
"""


class Product(torch.nn.Module):
    """A network that is no chain of layers, so that the page blends means that were decoded before."""

    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(num_inputs, num_outputs) for _ in range(2))

    def forward(self, z):
        return self.layers[0](z) * self.layers[1](z)


def test_sliders_show_the_means_along_lines_through_the_code_of_a_datum(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SECTIONS", (sections.explore,))  # the others take seconds
    like = make_fit()
    pyro.set_rng_seed(0)
    vae = Blueprint(12, 3, likelihood=BernoulliLikelihood, x=like.data.train, network=Product).vae()
    made = with_results(fit_of(vae, like.data), like)
    content = plane(made)
    assert content["live"] is content["sheet"] is None
    seen, console = browse(make_page(made, script=script_of() + SLIDERS).text, tmp_path, width=800)
    assert [line for line in console if "getImageData" not in line] == []  # of which the test makes many
    assert len(seen["rows"]) == 9
    base = made.codes.mean[content["traversals"]["data"][1]]  # the second, by the button
    assert f"row {int(made.data.test_index[content['traversals']['data'][1]])}" in seen["place"]
    low, high = (np.array(content["scale"][end]) for end in ("low", "high"))
    for row in seen["rows"]:
        j, nodes = content["sliders"][row["slider"]], content["traversals"]["nodes"][row["slider"]]
        z = base.repeat(len(nodes), 1)
        z[:, j] = torch.tensor(nodes)
        means = made.decode(z).numpy()
        expected = [np.interp(row["value"], nodes, means[:, d]) for d in range(12)]
        assert np.abs((np.array(expected) - low) / (high - low) * 255 - row["pixels"]).max() < 2
