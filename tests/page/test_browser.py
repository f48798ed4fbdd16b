"""The page in headless Chromium: no error, no violation of its policy, no sideways scroll, and keys move the plane."""

import pytest
from page_helpers import HOSTILE, PROBE, browse, make_fit, needs_chromium

from pyrovae.page import make_page
from pyrovae.page.write import script_of

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page():
    return make_page(make_fit(), script=script_of() + PROBE).text


def test_a_page_with_hostile_labels_works_at_390_pixels_without_an_error(page, tmp_path):
    seen, console = browse(page, tmp_path)
    assert console == []
    assert seen["images"] == 0
    assert seen["width"] == 390
    assert seen["page"] <= 390  # less by a scroll bar
    assert seen["after"] != seen["before"]
    assert seen["pixelsAfter"] != seen["pixelsBefore"]
    assert seen["before"].startswith("z[0] = ")
    assert "test datum: row " in seen["chosen"]
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
