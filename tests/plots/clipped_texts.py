"""Texts of a figure that do not lie inside it."""

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text


def clipped_texts(figure: Figure) -> list[str]:
    """Lay a figure out, and list the texts of axes and legends that reach beyond it by more than a pixel."""
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    texts = [text for axes in figure.axes for text in texts_of(axes)]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]
    return [text for text, box in boxes if min(box.x0, box.y0) < -1 or box.x1 > width + 1 or box.y1 > height + 1]


def texts_of(axes) -> list[Text]:
    """List the titles, labels, ticks and legend of axes."""
    if not axes.axison:
        return []
    texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    legend = axes.get_legend()
    return [*texts, *ticks_of(axes.xaxis), *ticks_of(axes.yaxis), *(legend.get_texts() if legend else ())]


def ticks_of(axis: Axis) -> list[Text]:
    """List the labels of the ticks in view."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
