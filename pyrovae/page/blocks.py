"""Blocks of the page: each writes its own HTML, and escapes every text in it.

To add a kind of block, write a class with a method `html`.
"""

import base64
import html
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.page.inline import inline_svg
from pyrovae.page.shorter import grey_png
from pyrovae.plots import figure_of, to_png, to_svg


class Block(Protocol):
    """Part of a section."""

    def html(self) -> str:
        """Return the block as HTML."""
        ...


@dataclass(frozen=True)
class Words:
    """Paragraph.

    Attributes:
        text: Text.
        kind: Class of the paragraph in page.css; "" for none.
    """

    text: str
    kind: str = ""

    def html(self) -> str:
        """Return the block as HTML."""
        return f"<p{_class(self.kind)}>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Command:
    """Command for a terminal, in one line.

    Attributes:
        text: Command.
    """

    text: str

    def html(self) -> str:
        """Return the block as HTML."""
        return f'<pre tabindex="0"><code>{html.escape(self.text)}</code></pre>'


@dataclass(frozen=True)
class Number:
    """Cell of a table: a number, perhaps with its spread.

    Attributes:
        value: Number.
        text: The number as the page shows it.
        spread: Standard error or deviation that the text gives after a ±; None without.
    """

    value: float
    text: str
    spread: float | None = None

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> float | list[float | None] | None:
        """Return the number in full precision, in a pair with its spread; None in place of NaN and infinity."""
        value = _finite(self.value)
        return value if self.spread is None else [value, _finite(self.spread)]


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """Table whose first column names its rows.

    Attributes:
        caption: Caption.
        header: Names of the columns; the first may be empty.
        rows: Cells.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def to_dict(self) -> dict[str, Any]:
        """Return the table for JSON, with numbers in full precision."""
        rows = [[cell.to_json() if isinstance(cell, Number) else cell for cell in row] for row in self.rows]
        return {"caption": self.caption, "header": list(self.header), "rows": rows}

    def html(self) -> str:
        """Return the block as HTML. A table wider than the page scrolls in its own frame."""
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' if name else "<td></td>" for name in self.header)
        body = "".join(
            f'<tr><th scope="row">{html.escape(str(first))}</th>'
            + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in rest)
            + "</tr>"
            for first, *rest in self.rows
        )
        caption = html.escape(self.caption)
        return (
            f'<div><p class="caption">{caption}</p>'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
            f'<table aria-label="{caption}">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
        )


@dataclass(frozen=True)
class Items:
    """Definitions: terms, each with a text.

    Attributes:
        pairs: Terms and texts.
    """

    pairs: Sequence[tuple[str, str]]

    def html(self) -> str:
        """Return the block as HTML."""
        parts = (f"<div><dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd></div>" for term, text in self.pairs)
        return f"<dl>{''.join(parts)}</dl>"


@dataclass(frozen=True)
class Picture:
    """Picture with its caption.

    Attributes:
        title: Title.
        image: Axes or figure.
        caption: What it is, how it was made, and how to read it.
        alt: What is seen: direction, extremes, groups. It does not repeat the caption.
        pixels: Whether the picture is made of pixels, such as images, and not of lines.
        wide: Whether the picture needs the whole width.
        small: Whether its pixels should take few bytes (`to_png`).
    """

    title: str
    image: Axes | Figure
    caption: str
    alt: str
    pixels: bool = False
    wide: bool = False
    small: bool = False

    @property
    def figure(self) -> Figure:
        """The figure of the image."""
        return self.image if isinstance(self.image, Figure) else figure_of(self.image)

    def html(self) -> str:
        """Return the block as HTML."""
        if self.pixels:
            png = to_png(self.figure, small=self.small)
            source = f"data:image/png;base64,{base64.b64encode(png if self.small else grey_png(png)).decode()}"
            image = f'<img src="{source}" alt="{html.escape(self.alt)}">'
        else:
            image = inline_svg(to_svg(self.figure, paths=False), self.alt)
        if self.wide:  # scrolls in its own frame where the page is narrow
            image = (
                f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(self.title)}">{image}</div>'
            )
        return (
            f"<figure{_class('wide' if self.wide else '')}>{image}"
            f"<figcaption><strong>{html.escape(self.title)}.</strong> {html.escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, as many as the page is wide.

    Attributes:
        blocks: Pictures, and words between them.
    """

    blocks: Sequence[Block]

    def html(self) -> str:
        """Return the block as HTML."""
        inside = "\n".join(block.html() for block in self.blocks)
        return f'<div class="pictures">{inside}</div>'


@dataclass(frozen=True)
class Folded:
    """Blocks behind a summary, which a click or a print unfolds.

    Attributes:
        summary: Text of the summary.
        blocks: Blocks.
    """

    summary: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """Return the block as HTML."""
        inside = "\n".join(block.html() for block in self.blocks)
        return f"<details><summary>{html.escape(self.summary)}</summary>\n{inside}\n</details>"


@dataclass(frozen=True)
class Group:
    """Blocks under a heading of the second order.

    Attributes:
        title: Heading.
        blocks: Blocks.
    """

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    def html(self) -> str:
        """Return the block as HTML."""
        return f"<h3>{html.escape(self.title)}</h3>\n" + "\n".join(block.html() for block in self.blocks)


@dataclass(frozen=True)
class Interactive:
    """Place where page.js builds an interactive part from JSON.

    Attributes:
        name: Name of the part in page.js.
        content: Content of the JSON.
        label: What the part is, for screen readers and for browsers without scripts.
    """

    name: str
    content: Any
    label: str

    def html(self) -> str:
        """Return the block as HTML."""
        return (
            f'<div class="interactive" data-part="{html.escape(self.name)}" role="group" '
            f'aria-label="{html.escape(self.label)}">'
            f'<script type="application/json">{to_json(self.content)}</script>'
            f"<noscript><p>{html.escape(self.label)} It needs a browser with scripts.</p></noscript></div>"
        )


def to_json(content: Any) -> str:
    """Write JSON that may stand inside a script element: no `<`, `>` or `&`, and none of JavaScript's line ends."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _class(name: str) -> str:
    return f' class="{html.escape(name)}"' if name else ""


def leaves(blocks: Iterable[Block], title: str = "") -> Iterator[tuple[str, Block]]:
    """Iterate over blocks and the blocks inside of them, each with the title of the innermost group around it."""
    for block in blocks:
        if isinstance(block, Pictures | Folded | Group):
            yield from leaves(block.blocks, block.title if isinstance(block, Group) else title)
        else:
            yield title, block


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
