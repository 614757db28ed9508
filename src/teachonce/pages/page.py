"""A page without anything beside it: one HTML file to look at or to send, in light and in dark.

The frame, the style and the parts that the project's pages share: tables, large numbers, charts as SVG, pictures as
data. Nothing is loaded from anywhere and nothing runs: no script, no font, no style sheet. Charts are drawn by
matplotlib's object interface (no display, no global state) in the colours of the light page, which are then replaced by
the page's variables, so that a chart follows the reader's light or dark.

Deliberately not here: what a page says (``report`` of a run, ``inspect_page`` of a store).
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, LINE = "#1b1f24", "#59636e", "#dfe4e9"
BLUE, ORANGE, PURPLE = "#0969da", "#bc4c00", "#8250df"

_VARIABLES = {INK: "ink", QUIET: "quiet", LINE: "line", BLUE: "blue", ORANGE: "orange", PURPLE: "purple"}
_LOSSLESS_PX = 64
"""Pictures up to this side are PNG: of so few pixels each one counts, and so many blocks of JPEG's 8 x 8 show."""

_STYLE = f"""
:root {{ color-scheme: light dark; --ink: {INK}; --quiet: {QUIET}; --line: {LINE}; --paper: #fff; --card: #f6f8fa;
  --blue: {BLUE}; --orange: {ORANGE}; --purple: {PURPLE}; --good: #1a7f37; --bad: #cf222e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e3e8ee; --quiet: #98a2ad; --line: #2e353d; --paper: #0f1318;
  --card: #171c22; --blue: #5aa2f7; --orange: #e0935a; --purple: #b490f5; --good: #4cc265; --bad: #ff7b72; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin-bottom: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.75rem 0 0.25rem; }}
p.sub {{ color: var(--quiet); margin-top: 0.2rem; max-width: 62rem; }}
code {{ font-size: 0.9em; overflow-wrap: anywhere; }}
.numbers {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(7.6rem, 1fr)); gap: 0.75rem;
  margin: 1.5rem 0; }}
.numbers div {{ border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.9rem; }}
.numbers b {{ display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }}
.numbers span {{ color: var(--quiet); font-size: 0.85rem; }}
svg {{ max-width: 100%; height: auto; }}
svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: 600; }}
th, td {{ padding: 0.2rem 0.8rem 0.2rem 0; vertical-align: top; overflow-wrap: anywhere; }}
td {{ border-top: 1px solid var(--line); }}
table.facts td:first-child {{ color: var(--quiet); width: 14rem; }}
@media (max-width: 40rem) {{ table.facts td:first-child {{ width: 8rem; }} }}
table.columns {{ width: auto; max-width: 100%; }}
table.columns th, table.columns td {{ overflow-wrap: normal; }}
table.columns .number {{ text-align: right; }}
"""


def escape(value: Any) -> str:
    """A value as text of a page or of an attribute, with nothing in it that HTML would read."""
    return html.escape(str(value))


def render_page(title: str, body: str, style: str = "") -> str:
    """The whole page around ``body`` (HTML); ``title`` is plain text, ``style`` is added to the shared one."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def render_numbers(numbers: Sequence[tuple[str, str]]) -> str:
    """(value, what it is) as a row of large numbers; both are plain text."""
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in numbers)
    return f'<div class="numbers">{cells}</div>'


def render_facts(values: Mapping[str, Any]) -> str:
    """A table of two columns: name and value, None as nothing, a dict as its items."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        shown = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        lines.append(f"<tr><td>{escape(name)}</td><td>{escape(shown)}</td></tr>")
    return f'<table class="facts">{"".join(lines)}</table>'


def render_columns(header: Sequence[str], rows: Sequence[Sequence[str]], num_texts: int = 1) -> str:
    """A table with a header; its first ``num_texts`` columns are text, the others are numbers, flush right."""
    kinds = ["" if index < num_texts else ' class="number"' for index in range(len(header))]
    head = "".join(f"<th{kind}>{escape(cell)}</th>" for cell, kind in zip(header, kinds, strict=True))
    lines = ["".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) for row in rows]
    return f'<table class="columns"><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


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
    # Metadata say who drew it, and the chart's own style would be one of the whole page: what it says is in _STYLE.
    text = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Groups are named figure_1, axes_1, ..: nothing refers to them, and on a page with two charts they are twice there.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """Pixels [H, W, 3] as a data URI: PNG where they are few, else JPEG."""
    from PIL import Image

    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if max(image.size) <= _LOSSLESS_PX:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
