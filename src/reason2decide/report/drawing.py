"""Draw plots for the page, with colours and font from the CSS, and as separate files.

For the page, sentinel colours are drawn and then replaced by CSS variables, so one drawing is readable on light and
dark; text remains text. The same plot gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from markupsafe import Markup, escape

from reason2decide.errors import require

PNG_DPI = 200  # ours: sharp at column width in print


@dataclass(frozen=True)
class Colours:
    """The colours of a plot: text, guides, frame lines, areas behind the data, and the series."""

    ink: str
    muted: str
    rule: str
    tint: str
    series: tuple[str, str, str, str]


SENTINELS = Colours("#010101", "#010201", "#020202", "#030203", ("#030301", "#030302", "#030303", "#030304"))
# The light colours of templates/style.css; a test asserts that they are equal.
LIGHT = Colours("#1f2a30", "#5c6a72", "#d5dad8", "#c9d7dd", ("#1d6480", "#b4632a", "#55813b", "#7d5191"))
CSS_COLOURS = {
    SENTINELS.ink: "currentColor",
    SENTINELS.muted: "var(--muted)",
    SENTINELS.rule: "var(--rule)",
    SENTINELS.tint: "var(--tint)",
} | {colour: f"var(--series-{i})" for i, colour in enumerate(SENTINELS.series, 1)}

Format = Literal["svg", "png"]
Paint = Callable[[Any, Colours], None]


@dataclass(frozen=True)
class Plot:
    """A plot: its file name, heading, a caption on what it shows, how to draw it, and its size in inches.

    `paint` gets a matplotlib figure and the colours to use. Names must be unique on a page, since ids are built from
    them.
    """

    name: str
    title: str
    caption: str
    paint: Paint
    size: tuple[float, float] = (4.4, 2.7)

    @cached_property
    def svg(self) -> Markup:
        """The plot as an SVG element for a page.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return _for_page(self._drawn(SENTINELS, "svg", titled=False).decode(), self.name, self.title)

    def file(self, kind: Format) -> bytes:
        """The plot, with its heading, as a file in the light colours.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return self._drawn(LIGHT, kind, titled=True)

    def _drawn(self, colours: Colours, kind: Format, *, titled: bool) -> bytes:
        matplotlib = require("matplotlib", "report")
        figure_module = require("matplotlib.figure", "report")
        stream = io.BytesIO()
        with matplotlib.rc_context(_style(colours)), warnings.catch_warnings():
            # Labels may be in any script; if this font lacks a glyph, the reader's often has it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure = figure_module.Figure(figsize=self.size, layout="constrained")
            if titled:
                figure.suptitle(printable(self.title), fontsize=10, x=0.01, ha="left")
            self.paint(figure, colours)
            # No date and no version: the same plot gives the same bytes.
            omitted = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
            ground = "white" if titled else "none"
            figure.savefig(stream, format=kind, dpi=PNG_DPI, facecolor=ground, metadata=omitted)
        return stream.getvalue()


def printable(text: str) -> str:
    """The text with a replacement character for each control character, which XML and thus SVG do not allow."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _style(colours: Colours) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "reason2decide",  # otherwise matplotlib makes random ids
        "text.parse_math": False,  # a dollar sign in a label is literal
        "font.size": 9,
        "text.color": colours.ink,
        "axes.facecolor": "none",
        "axes.edgecolor": colours.rule,
        "axes.labelcolor": colours.ink,
        "xtick.color": colours.rule,
        "ytick.color": colours.rule,
        "xtick.labelcolor": colours.ink,
        "ytick.labelcolor": colours.ink,
        "grid.color": colours.rule,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "path.simplify": True,
    }


def _for_page(svg: str, name: str, title: str) -> Markup:
    """Strip what only a separate file needs, make ids unique to this plot, and take colours from the page's CSS."""
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r'(?<=<g) id="[^"]*"'):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    # matplotlib's fonts would override the page's wherever they are installed.
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    opening = f'<svg {view_box[0]} role="img" aria-label="{escape(title)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip())
