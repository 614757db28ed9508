"""A plan as a picture: distortion, the tail, when the extraction has paid for itself, and what limits it.

Drawn by matplotlib's object interface: no display, no global state; as one SVG in two rows, and panel by panel for the
page. The same plan is the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from teachonce.extraction.planning.costs import MAX_WORST_VARIATION, TEMPERATURES
from teachonce.extraction.planning.table import format_hours
from teachonce.pages.charts import BLUE, INK, LINE, ORANGE, PURPLE, QUIET, draw_svg
from teachonce.terminal import plural

_COLORS = (BLUE, PURPLE, ORANGE)
"""One for each of ``TEMPERATURES``."""
PANEL_INCHES = (4.0, 3.8)
"""So that text of ``FONT_POINTS`` is legible where a panel is as wide as a phone."""
FONT_POINTS = 9
_TITLE_PAD = 36
"""Points above a panel, for what its data are annotated with there."""
_LEAST_VARIATION = 1e-5
"""Total variations below this, the 0 of float32 among them, are drawn here: the axis is logarithmic."""


class Panel(NamedTuple):
    """A chart, and what it is of."""

    title: str
    draw: Callable[[Any, Mapping[str, Any]], None]
    """Fills axes from a summary."""


def draw_estimate(summary: Mapping[str, Any]) -> str:
    """The SVG of a summary of ``estimate.build_estimate``, as text; a browser scales it to the window."""
    import matplotlib

    text = io.StringIO()
    # Text stays text: smaller, and it can be searched. A fixed salt makes the same plan the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "teachonce", "font.size": FONT_POINTS}):
        build_figure(summary).savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)


def draw_panels(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, SVG element) of each panel, for a page that says the titles itself."""

    def draw(panel: Panel) -> str:
        def fill(figure: Any) -> None:
            panel.draw(figure.subplots(), summary)

        return draw_svg(fill, size_inches=PANEL_INCHES, name=panel.draw.__name__, description=panel.title)

    return [(panel.title, draw(panel)) for panel in _panels(summary)]


def build_figure(summary: Mapping[str, Any]) -> Any:
    """The figure of four panels, or of three where there are too few classes for a tail, to save in any format."""
    from matplotlib.figure import Figure

    shown = _panels(summary)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(2 * width, 2 * height), layout="constrained")
    for place, panel in enumerate(shown, 1):
        axes = figure.add_subplot(2, 2, place)
        panel.draw(axes, summary)
        axes.set_title(panel.title, pad=_TITLE_PAD, fontweight="bold", fontsize=FONT_POINTS + 1)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _panels(summary: Mapping[str, Any]) -> list[Panel]:
    return [
        Panel("Distortion by codec", _draw_codecs),
        *([Panel("Probability outside the k most likely", _draw_tails)] if summary["tail_mass"] else []),
        Panel("The teacher's time, offline and online", _draw_break_even),
        Panel("Bottleneck", _draw_lanes),
    ]


def _draw_codecs(axes: Any, summary: Mapping[str, Any]) -> None:
    entries = [entry for entry in summary["codecs"] if entry["refused"] is None]
    entries = sorted(entries, key=lambda entry: entry["codec_bytes"])
    for color, temperature, shift in zip(_COLORS, TEMPERATURES, (0.95, 1, 1.05), strict=True):
        sizes = [entry["codec_bytes"] * shift for entry in entries]
        variations = [entry["total_variation"][str(temperature)] for entry in entries]
        means = [max(variation["mean"], _LEAST_VARIATION) for variation in variations]
        worst = [max(variation["worst"], _LEAST_VARIATION) for variation in variations]
        axes.plot(sizes, means, color=color, linestyle="none", marker="o", markersize=4.5, label=f"T = {temperature}")
        axes.plot(sizes, worst, color=color, linestyle="none", marker="_", markersize=6)
        axes.vlines(sizes, means, worst, color=color, linewidth=0.8)
    axes.axhline(MAX_WORST_VARIATION, color=QUIET, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(_LEAST_VARIATION * 0.6, 1.6)
    ticks = [10.0**power for power in range(-5, 1)]
    axes.set_yticks(ticks, ["0", *(f"{tick:g}" for tick in ticks[1:])])
    axes.minorticks_off()
    # Not powers of ten: there may be none between them, and their exponents would be too small to read.
    ends = sorted({entry["codec_bytes"] for entry in (entries[0], entries[-1])})
    axes.set_xticks(ends, [f"{end:,}" for end in ends])
    axes.margins(x=0.12)
    for index, entry in enumerate(entries):
        axes.annotate(
            entry["label"],
            (entry["codec_bytes"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 11 * (index % 3)),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontweight="bold" if entry["is_planned"] else "normal",
        )
    axes.set_xlabel("bytes a view (without the view's parameters)")
    axes.set_ylabel("total variation against the dense softmax")
    axes.grid(axis="y", color=LINE)
    # Below the panel: the points may be anywhere in it.
    axes.legend(
        frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16), title="dot: mean, bar: worst view"
    )


def _draw_tails(axes: Any, summary: Mapping[str, Any]) -> None:
    tails = summary["tail_mass"]
    ks = [entry["k"] for entry in tails]
    for color, temperature in zip(_COLORS, TEMPERATURES, strict=True):
        masses = [entry["mass"][str(temperature)]["mean"] for entry in tails]
        axes.plot(ks, masses, color=color, marker="o", markersize=4, label=f"T = {temperature}")
        axes.annotate(f"{masses[-1]:.2g}", (ks[-1], masses[-1]), xytext=(5, 3), textcoords="offset points", color=color)
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.margins(x=0.1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("k")
    axes.set_ylabel("softened probability, mean")
    axes.grid(axis="y", color=LINE)
    # Above the panel: the curves may be anywhere, and searching for a free place takes time.
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.1)


def _draw_break_even(axes: Any, summary: Mapping[str, Any]) -> None:
    even, work, hours = summary["break_even"], summary["workload"], summary["hours"]
    steps = work["epochs"] * work["students"]
    last = max(steps, 1.5 * even["epochs"] if even["epochs"] is not None else 0)
    offline_a_step = (even["offline_hours"] - hours["hours_here"]) / steps
    online_a_step = even["online_hours"] / steps
    ends = {
        "online": (0.0, online_a_step * last),
        "offline": (hours["hours_here"], hours["hours_here"] + offline_a_step * last),
    }
    unit, factor = _time_unit(max(value for pair in ends.values() for value in pair))
    for name, color in (("online", ORANGE), ("offline", BLUE)):
        values = [value * factor for value in ends[name]]
        axes.plot([0, last], values, color=color, label=name)
        axes.annotate(name, (last, values[1]), xytext=(-4, 5), textcoords="offset points", ha="right", color=color)
    if even["epochs"] is not None:
        axes.axvline(even["epochs"], color=QUIET, linestyle=":", linewidth=1)
        axes.plot(even["epochs"], online_a_step * even["epochs"] * factor, color=INK, marker="o", markersize=5)
        # At the top, on the side where the online line is not: the crossing itself is often in a corner.
        is_left = even["epochs"] > 0.35 * last
        axes.annotate(
            f"break-even: epoch {even['epochs']:.1f}",
            (even["epochs"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if is_left else 5, -9),
            textcoords="offset points",
            ha="right" if is_left else "left",
        )
    for student in range(1, min(work["students"], 20)):
        axes.axvline(student * work["epochs"], color=LINE, zorder=0)
    axes.set_xlim(0, last)
    axes.set_ylim(0, None)
    all_students = f", {work['students']} students one after another" if work["students"] > 1 else ""
    axes.set_xlabel(f"epochs{all_students}")
    axes.set_ylabel(f"{unit} on this device")
    axes.grid(axis="y", color=LINE)


def _draw_lanes(axes: Any, summary: Mapping[str, Any]) -> None:
    hours = summary["hours"]
    lanes = hours["lanes"]
    names = list(lanes)
    milliseconds = [lanes[name] * 1e3 for name in names]
    colors = [ORANGE if name == hours["bottleneck"] else BLUE for name in names]
    axes.barh(names, milliseconds, color=colors, height=0.6)
    for position, value in enumerate(milliseconds):
        axes.annotate(f"{value:.3g}", (value, position), xytext=(4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.18)
    used = hours["devices_used"]
    text = f"{format_hours(hours['hours_on_devices'])} on {plural(used, 'device')}"
    text += f"\n{hours['device_hours']:,.3g} device hours"
    if hours["cost"] is not None:
        text += f": {hours['cost']:,.2f}"
    # Above the panel, where the codecs' panel has its labels.
    axes.annotate(text, (0.5, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points", ha="center")
    if summary["measurement"]["busy"]:
        axes.annotate(
            "measured on a busy machine",
            (1, 0),
            xycoords="axes fraction",
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            color=ORANGE,
        )
    beside = summary["timings"]["has_accelerator"]
    axes.set_xlabel(f"ms a view,\n{'at the same time' if beside else 'one after another, the network beside'}")


def _time_unit(most_hours: float) -> tuple[str, float]:
    if most_hours < 0.05:
        return "seconds", 3600.0
    return ("minutes", 60.0) if most_hours < 3 else ("hours", 1.0)
