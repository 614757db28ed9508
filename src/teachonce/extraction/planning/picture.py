"""A plan as a picture: distortion, the tail, when the extraction has paid for itself, and what limits it.

One SVG, drawn by matplotlib's object interface: no display, no global state. The same plan is the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from teachonce.extraction.planning.costs import MAX_WORST_VARIATION, TEMPERATURES
from teachonce.extraction.planning.table import format_hours
from teachonce.pages.charts import BLUE, INK, LINE, ORANGE, PURPLE, QUIET
from teachonce.terminal import plural

_COLORS = (BLUE, PURPLE, ORANGE)
"""One for each of ``TEMPERATURES``."""
_LEAST_VARIATION = 1e-5
"""Total variations below this, the 0 of float32 among them, are drawn here: the axis is logarithmic."""


def draw_estimate(summary: Mapping[str, Any]) -> str:
    """The SVG of a summary of ``estimate.build_estimate``, as text."""
    import matplotlib

    text = io.StringIO()
    # Text stays text: smaller, and it can be searched. A fixed salt makes the same plan the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "teachonce", "font.size": 9}):
        build_figure(summary).savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def build_figure(summary: Mapping[str, Any]) -> Any:
    """The figure of four panels, or of three where there are too few classes for a tail, to save in any format."""
    from matplotlib.figure import Figure

    has_tail = bool(summary["tail_mass"])
    figure = Figure(figsize=(17 if has_tail else 13, 4), layout="constrained")
    panels = figure.subplots(1, 4 if has_tail else 3, squeeze=False)[0]
    _draw_codecs(panels[0], summary)
    if has_tail:
        _draw_tails(panels[1], summary)
    _draw_break_even(panels[-2], summary)
    _draw_lanes(panels[-1], summary)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontweight("bold")
    return figure


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
    axes.margins(x=0.12)
    for index, entry in enumerate(entries):
        axes.annotate(
            entry["label"],
            (entry["codec_bytes"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 9 * (index % 2)),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=INK,
            fontweight="bold" if entry["is_planned"] else "normal",
        )
    axes.set_title("distortion by codec", pad=24)
    axes.set_xlabel("bytes a view (without the view's parameters)")
    axes.set_ylabel("total variation against the dense softmax")
    axes.grid(axis="y", color=LINE)
    axes.legend(frameon=False, fontsize=8, loc="lower left", title="dot: mean, bar: worst view", alignment="left")


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
    axes.set_title("probability outside the k most likely classes, mean", pad=24)
    axes.set_xlabel("k")
    axes.set_ylabel("softened probability")
    axes.grid(axis="y", color=LINE)
    # Above the panel: the curves may be anywhere, and searching for a free place takes time.
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.1)


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
    axes.set_title("teacher's time, offline and online", pad=24)
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
    text += f", {hours['device_hours']:,.3g} device hours"
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
    axes.set_title("bottleneck", pad=24)
    beside = summary["timings"]["has_accelerator"]
    axes.set_xlabel(f"ms a view, {'at the same time' if beside else 'one after another, the network beside'}")


def _time_unit(most_hours: float) -> tuple[str, float]:
    if most_hours < 0.05:
        return "seconds", 3600.0
    return ("minutes", 60.0) if most_hours < 3 else ("hours", 1.0)
