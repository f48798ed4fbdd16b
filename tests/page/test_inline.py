"""Pictures inside the page: the same pixels as the files, every definition once."""

import re
from xml.etree import ElementTree

import pytest
import torch

from pyrovae.page.inline import inline_svg, share_definitions
from pyrovae.plots import figure_of, new_axes, to_svg

LABEL = '<b> "the line rises" & ends'


def curve(scatter=False):
    axes = new_axes()
    x = torch.arange(5.0)
    axes.scatter(x, x, label="many") if scatter else axes.plot(x, x**2, label="one")
    axes.legend()
    return inline_svg(to_svg(figure_of(axes)), LABEL)


def names(text):
    return re.findall(r'\bid="([^"]+)"', text)


def used(text):
    return set(re.findall(r'(?:href="|url\()#([^")]+)', text))


def test_a_picture_is_an_element_with_its_label_and_without_styles():
    root = ElementTree.fromstring(curve())
    assert (root.tag, root.get("role"), root.get("aria-label")) == ("svg", "img", LABEL)
    assert not any("style" in element.attrib or element.tag in ("style", "metadata") for element in root.iter())
    lines = [element for element in root.iter("path") if element.get("stroke") == "#1f77b4"]
    assert lines  # the colour of the first curve survives
    assert all(element.get("fill") == "none" for element in lines)


def test_all_pictures_share_their_definitions():
    text = share_definitions("\n".join([curve(), curve(scatter=True), curve(scatter=True)]))
    assert text.count("<defs>") == 1
    assert len(names(text)) == len(set(names(text)))
    assert used(text) <= set(names(text))
    assert len(text) < 0.8 * sum(map(len, (curve(), curve(scatter=True), curve(scatter=True))))


def test_points_lie_where_the_file_has_them():
    axes = new_axes()
    axes.scatter([0.0, 1.0, 2.0], [2.0, 0.0, 1.0], c=["#112233", "#445566", "#114477"])
    svg = to_svg(figure_of(axes))
    expected = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: (#[14]\w+)', svg.decode())
    found = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill="(#[14]\w+)"', inline_svg(svg, LABEL))
    assert len(found) == 3
    for (*place, colour), (*right, name) in zip(found, expected, strict=True):
        assert [float(part) for part in place] == pytest.approx([float(part) for part in right], abs=0.051)
        assert colour in (name, name[:2] + name[3] + name[5])  # "#112233", or "#123"


def test_a_page_without_pictures_stays_as_it_is():
    assert share_definitions("<p>x</p>") == "<p>x</p>"
