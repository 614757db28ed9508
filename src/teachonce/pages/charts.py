"""Charts of a page: SVG elements that follow the reader's light or dark.

Drawn by matplotlib's object interface (no display, no global state) in the colors of the light page, which are then
replaced by the page's variables.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, LINE = "#1b1f24", "#59636e", "#dfe4e9"
BLUE, ORANGE, PURPLE = "#0969da", "#bc4c00", "#8250df"

COLORS = {"ink": INK, "quiet": QUIET, "line": LINE, "blue": BLUE, "orange": ORANGE, "purple": PURPLE}
"""By the name of the page's variable; of the light page."""


def draw_svg(draw: Callable[[Figure], None], *, size_inches: tuple[float, float], name: str, description: str) -> str:
    """What ``draw`` draws on an empty figure, as one SVG element; ``description`` is for those who cannot see it.

    ``name`` is another one for each chart of a page: the ids inside the element are made from it. The same drawing
    gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text: smaller, and it can be searched.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": f"teachonce {name}", "font.size": 9, "axes.titlesize": 10}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK)
    settings |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), QUIET)
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "grid.color": LINE}
    settings |= {"figure.facecolor": "none", "axes.facecolor": "none", "axes.axisbelow": True}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size_inches, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    # Metadata say who drew it, and the chart's own style would be one of the whole page: it is in style.css.jinja.
    text = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Groups are named figure_1, axes_1, ..: nothing refers to them, and on a page with two charts they are twice there.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for variable, color in COLORS.items():
        text = text.replace(color, f"var(--{variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
