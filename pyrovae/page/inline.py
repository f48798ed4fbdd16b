"""Pictures of matplotlib as elements of the page.

Markers and clips stand once on the page, for all pictures. Styles become attributes, since the page's policy
allows no other styles than its own.
"""

import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pyrovae.page.shorter import shorten

_DEFINITIONS = re.compile(r"<defs>(.*?)</defs>", re.DOTALL)
_DEFINED = re.compile(r'<(\w+) id="([^"]+)"(?:[^>]*/>|.*?</\1>)', re.DOTALL)
_USED = re.compile(r'((?:href="|url\()#)([^")]+)')
_INHERITED = ("fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-linecap", "stroke-linejoin")
_LETTERS = "10"  # size of text that says no other
_DRAWN = {"circle", "ellipse", "g", "image", "line", "path", "polygon", "polyline", "rect", "text", "use"}


def inline_svg(svg: bytes, label: str) -> str:
    """Turn a picture of matplotlib into an element `svg` of a page.

    Args:
        svg: Picture, as `to_svg` writes it.
        label: What is seen, for screen readers.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        _simplify(element)
        shorten(element)
    _move_definitions(root)
    _drop_defined(root)
    _share(root)
    _flatten(root)
    size = root.get("viewBox", "")
    content = "".join(ElementTree.tostring(child, encoding="unicode").replace(" />", "/>") for child in root)
    return (
        f'<svg role="img" viewBox="{size}" stroke-linejoin="round" stroke-linecap="butt" font-size="{_LETTERS}" '
        f'aria-label="{html.escape(label)}">{content}</svg>'
    )


def share_definitions(text: str) -> str:
    """Give the pictures of a page their definitions once, in an invisible picture at its end, under short names.

    Args:
        text: HTML of all parts of the page, in which only pictures have definitions.
    """
    found: dict[str, str] = {}
    for block in _DEFINITIONS.findall(text):
        for match in _DEFINED.finditer(block):
            found.setdefault(match[2], match[0])
    if not found:
        return text
    short = {name: f"s{place}" for place, name in enumerate(found)}
    text = _USED.sub(lambda use: use[1] + short.get(use[2], use[2]), _DEFINITIONS.sub("", text))
    shared = "".join(content.replace(f'id="{name}"', f'id="{short[name]}"', 1) for name, content in found.items())
    return f'{text}\n<svg class="shared" width="0" height="0" aria-hidden="true"><defs>{shared}</defs></svg>'


def _simplify(element: Element) -> None:
    """Take namespaces and styles away, and the names of groups, which nothing uses."""
    element.tag = element.tag.rpartition("}")[2]
    element.text = element.text if element.tag in ("text", "tspan") else None
    element.tail = None
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for rule in attributes.pop("style", "").split(";"):
        name, colon, value = rule.partition(":")
        if colon and name.strip() == "font":  # the page's style names the family
            attributes.update(_font(value))
        elif colon and name.strip() != "font-family":
            attributes[name.strip()] = value.strip().removesuffix("px")
    if element.tag == "g":
        attributes.pop("id", None)
    if element.tag == "text" and attributes.get("font-size") == _LETTERS:
        del attributes["font-size"]
    element.attrib = attributes


def _font(value: str) -> Iterator[tuple[str, str]]:
    """Yield size and weight of a font, without its family."""
    words = value.partition('"')[0].partition("'")[0].split()
    for word in words:
        if word.endswith("px"):
            yield "font-size", word.removesuffix("px")
        elif word in ("bold", "italic") or word.isdigit():
            yield ("font-style" if word == "italic" else "font-weight"), word


def _move_definitions(root: Element) -> None:
    """Gather what has a name, wherever it stands, in one element at the start."""
    defined = Element("defs")
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
            elif child.tag == "defs":
                parent.remove(child)
                defined.extend(part for part in child if "id" in part.attrib)
    root.insert(0, defined)


def _drop_defined(root: Element) -> None:
    """Leave out what a use says of its look if its definition says the same, which holds anyhow."""
    definitions = {f"#{element.get('id')}": element for element in root.iter() if "id" in element.attrib}
    for element in root.iter("use"):
        defined = definitions.get(element.get("href", ""))
        for name in _INHERITED:
            if defined is not None and name in element.attrib and element.get(name) == defined.get(name):
                del element.attrib[name]


def _flatten(element: Element) -> None:
    """Replace groups that say nothing by their parts."""
    for child in list(element):
        _flatten(child)
        if child.tag == "g" and not child.attrib:
            place = list(element).index(child)
            element.remove(child)
            for part in reversed(child):
                element.insert(place, part)


def _share(element: Element) -> None:
    """Write on a group what all its parts have in common, from the inside out, and leave groups without parts out."""
    for child in list(element):
        if child.tag == "g":
            _share(child)
            if not len(child):
                element.remove(child)
    drawn = [child for child in element if child.tag in _DRAWN]
    if element.tag != "g" or len(drawn) < 2 or len(drawn) < len(element):
        return
    for name, value in _common(drawn):
        element.set(name, value)
        for child in drawn:
            del child.attrib[name]


def _common(elements: list[Element]) -> Iterator[tuple[str, str]]:
    """Yield the inherited attributes that all elements have with the same value."""
    first = elements[0]
    for name in _INHERITED:
        value = first.get(name)
        if value is not None and all(element.get(name) == value for element in elements):
            yield name, value
