"""Shorter writing of the elements of a picture: relative paths, rounded places, grey pixels."""

import base64
import io
import re
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

_PARTS = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_SIZES = {"M": 2, "L": 2, "Q": 4, "C": 6}
_DOUBLED = re.compile(r"#([0-9a-f])\1([0-9a-f])\2([0-9a-f])\3")
_UNTURNED = re.compile(r"rotate\(-?0(\.0*)?[ )].*")
_SHIFT = re.compile(r"translate\([^)]*\)")
_LONG = re.compile(r"-?\d+\.\d{2,}")


def shorten(element: Element) -> None:
    """Write an element of a picture in fewer letters; it looks the same to a tenth of a point."""
    if _UNTURNED.fullmatch(element.get("transform", "")):
        del element.attrib["transform"]
    for name, value in list(element.attrib.items()):
        if name in ("fill", "stroke"):
            element.set(name, _DOUBLED.sub(r"#\1\2\3", value))
        elif name in ("x", "y") and element.tag in ("text", "tspan", "use"):
            element.set(name, _LONG.sub(_tenth, value))
        elif name == "transform":
            element.set(name, _SHIFT.sub(lambda shift: _LONG.sub(_tenth, shift[0]), value))
    if element.tag == "path" and "d" in element.attrib:
        element.set("d", short_path(element.attrib["d"]))
    if element.tag == "image":
        element.set("href", grey_image(element.attrib["href"]))


def short_path(path: str) -> str:
    """Write a path with relative places: lines to a tenth of a unit, curves to a hundredth.

    Each place is rounded by itself, so that errors do not add up.

    Args:
        path: Path with the commands M, L, Q, C and z. Others stay as they are.
    """
    parts = _PARTS.findall(path)
    if not set(filter(str.isalpha, parts)) <= {*_SIZES, "z", "Z"}:
        return path
    digits = 2 if {"Q", "C"} & set(parts) else 1
    text, last, command = "", "", ""
    here = start = (0.0, 0.0)
    place = 0
    while place < len(parts):
        if parts[place].isalpha():
            command, place = parts[place], place + 1
            if command in "zZ":
                text, here, last = f"{text}z", start, "z"
            continue
        numbers = [round(float(number), digits) for number in parts[place : place + _SIZES[command]]]
        place += _SIZES[command]
        first = command == "M" and not text
        base = (0.0, 0.0) if first else here
        moves = [_number(value - base[axis % 2], digits) for axis, value in enumerate(numbers)]
        here = numbers[-2], numbers[-1]
        letter = "M" if first else command.lower()
        start = here if command == "M" else start
        text += _join(moves, "" if letter == last and letter != "m" else letter)
        last = letter
    return text


def _join(numbers: list[str], letter: str) -> str:
    """Join numbers with spaces where they need one; without a letter they go on after others."""
    text = letter
    for place, number in enumerate(numbers):
        glued = number.startswith("-") or (place == 0 and letter)
        text += number if glued else f" {number}"
    return text


def _tenth(found: re.Match[str]) -> str:
    return _number(float(found[0]), 1)


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    text = re.sub(r"^(-?)0\.", r"\1.", text)
    return "0" if text in ("-0", "", "-") else text


def grey_image(source: str) -> str:
    """Return the data URL of an image of pixels; opaque grey ones in PNG with one byte per pixel."""
    before, comma, content = source.partition("base64,")
    if not comma:
        return source
    return f"{before}{comma}{base64.b64encode(grey_png(base64.b64decode(content))).decode()}"


def grey_png(content: bytes) -> bytes:
    """Write a PNG with one byte per pixel if all its pixels are opaque and grey, with a palette of at most 256 colours.

    Images of more colours stay as they are.
    """
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    pixels, buffer = np.asarray(image), io.BytesIO()
    opaque = bool((pixels[..., 3] == 255).all())
    if opaque and bool((pixels[..., :1] == pixels[..., :3]).all()):
        Image.fromarray(np.ascontiguousarray(pixels[..., 0])).save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="PNG", optimize=True)
    return min(content, buffer.getvalue(), key=len)
