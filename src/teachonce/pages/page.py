"""A self-contained page: one HTML file to open or to send, in light and in dark.

Pages are jinja2 templates, each in the ``templates/`` of the package that fills it; all extend
``pages/templates/page.html.jinja``, the frame and the style that they share, and take tables and large numbers from
``parts.html.jinja`` beside it. Python prepares plain data, the words are in the template. Nothing is loaded from
anywhere and nothing runs: no script, no font, no style sheet; charts are SVG elements (``charts``), pictures are data
(``pictures``).

Every value is escaped except where a template says ``safe``, as of charts. A name that was not given is an error.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from teachonce.pages.charts import COLORS
from teachonce.terminal import plural, shorten_words, visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(template: str, **values: Any) -> str:
    """The HTML of a template, by its path in the package teachonce: ``inspection/templates/store.html.jinja``."""
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    """Where templates find each other, and what all know: ``colors``, ``plural``, and the filter ``formatted``."""
    # For those who want a page.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("teachonce", ""),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["formatted"] = format
    found.globals["colors"] = COLORS
    found.globals["plural"] = plural
    return found


def _finalize(value: Any) -> Any:
    if hasattr(value, "__html__"):
        # Charts, and what macros have joined: names within it are escaped as HTML already.
        return type(value)(visible(value, keep="\n\t"))
    if type(value) is not str or value.startswith("data:"):
        return value
    return shorten_words(visible(value, keep="\n\t"))
