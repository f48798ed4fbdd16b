"""Axes of single pictures, their colours, and their bytes."""

import io
import re
from functools import cache

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

# "Muted", of Paul Tol's palettes for all kinds of colour vision (https://personal.sron.nl/~pault/), and a grey.
COLOURS = (
    *("#332288", "#88CCEE", "#CC6677", "#117733", "#DDCC77", "#AA4499", "#44AA99", "#882255", "#999933", "#777777"),
)
_PLACES, _DECIMALS = re.compile(rb' (?:d|x|y)="[^"]*"'), re.compile(rb"(\.\d\d)\d+")
_INDEX = re.compile(r"\[[^\[\]]{1,5}\]$")
_BETWEEN = re.compile(rb">(?:\s|<!--[^>]*-->)+<")
_SMALL_DPI = 84
MOST_MARKS = 400  # of an SVG, from which pixels take less room
WIDTH = 4.4  # inches: letters of 10 points stay readable on a page of 360 pixels


def new_axes(height: float = 3.2, width: float = WIDTH) -> Axes:
    """Make the axes of a picture in a figure of their own, of a size in inches, without pyplot."""
    axes: Axes = Figure(figsize=(width, height), layout="constrained").subplots()
    return axes


def short_name(name: str, most: int = 20) -> str:
    """Return a name as text of a picture: at most so many letters, on one line, and no mathematics between dollars.

    A name that is too long keeps its index, such as "[12]", at the end.
    """
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
    if len(name) > most:
        found = _INDEX.search(name)
        index = found[0] if found and len(found[0]) < most - 1 else ""
        name = f"{name[: most - 1 - len(index)]}…{index}"
    return name.replace("$", r"\$")


def figure_of(axes: Axes) -> Figure:
    """Return the figure of axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def p_text(p_value: float) -> str:
    """Write a p-value with two digits, or as below 0.001."""
    return f"p = {p_value:.2g}" if p_value >= 0.001 else "p < 0.001"


def legend_above(axes: Axes, *, columns: int = 2) -> None:
    """Put the legend above the axes, where it hides nothing; to the left it may reach over the labels of the axis."""
    axes.legend(
        frameon=False,
        ncols=columns,
        fontsize=9,
        columnspacing=1.2,
        handlelength=1.6,
        borderaxespad=0.2,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
    )


def to_png(figure: Figure, *, small: bool = False) -> bytes:
    """Render a figure as PNG, with equal bytes for equal figures.

    Args:
        figure: Figure.
        small: Whether to make the file smaller, by fewer pixels, and by a palette of `COLOURS` and 16 greys.
    """
    before, buffer = figure.canvas, io.BytesIO()
    FigureCanvasAgg(figure)
    try:
        figure.savefig(buffer, format="png", dpi=_SMALL_DPI if small else 150, metadata={"Software": None})
    finally:
        figure.set_canvas(before)  # the other one holds the pixels, up to 40 MB
    if not small:
        return buffer.getvalue()
    picture = Image.open(buffer).convert("RGB").quantize(palette=_palette(), dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


@cache
def _palette() -> Image.Image:
    """Make a palette of the colours, of their edges on white, and of greys."""
    rows = [np.array(to_rgb(colour)) for colour in COLOURS]
    rows += [(row + 1) / 2 for row in rows]
    rows += [np.full(3, grey) for grey in np.linspace(0, 1, 16)]
    image = Image.new("P", (1, 1))
    image.putpalette((255 * np.stack(rows)).round().astype(np.uint8).tobytes())
    return image


def to_pdf(figure: Figure) -> bytes:
    """Render a figure as PDF with fonts inside that can be edited, with equal bytes for equal figures."""
    before, buffer = figure.canvas, io.BytesIO()
    FigureCanvasPdf(figure)
    try:
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    finally:
        figure.set_canvas(before)
    return buffer.getvalue()


def to_svg(figure: Figure, *, dpi: int = 96, paths: bool = True) -> bytes:
    """Render a figure as SVG, with equal bytes for equal figures, letters as paths or as text, points as pixels.

    Text is shorter by far, and is drawn in a font of the reader. DejaVu Sans, of which the sizes are, is a wide one.
    Places have two decimals, a hundredth of a pixel, where matplotlib writes six; comments and spaces are left out.
    """
    before, buffer = figure.canvas, io.BytesIO()
    FigureCanvasSVG(figure)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "pyrovae", "svg.fonttype": "path" if paths else "none"}):
            figure.savefig(buffer, format="svg", dpi=dpi, metadata={"Date": None, "Creator": None})
    finally:
        figure.set_canvas(before)
    short = _PLACES.sub(lambda found: _DECIMALS.sub(rb"\1", found[0]).replace(b" \n", b" "), buffer.getvalue())
    return _BETWEEN.sub(b"><", short)
