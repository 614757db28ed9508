"""A plan as a page: the figures that decide, the charts, and the codecs beside each other.

The words are in ``templates/plan.html.jinja``; charts are those of ``picture``, each by itself, so that they flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachonce.extraction.planning.costs import TEMPERATURES, first_cheaper
from teachonce.extraction.planning.picture import draw_panels
from teachonce.extraction.planning.table import describe_variation, format_bytes, format_hours, planned_codec
from teachonce.pages.page import render_page
from teachonce.records.image_listing import known_as
from teachonce.store.plan import teacher_name
from teachonce.terminal import plural

_TEMPLATE = "extraction/planning/templates/plan.html.jinja"


def render_plan(summary: Mapping[str, Any], text: str) -> str:
    """The HTML of a summary of ``estimate.build_estimate``; ``text`` is what the command prints of it."""
    advice, work = summary["recommendation"], summary["workload"]
    return render_page(
        _TEMPLATE,
        teacher=teacher_name(summary["teacher"]),
        data=summary["data"],
        split=known_as(summary["split"]),
        num_records=work["num_records"],
        policy=summary["policy"]["name"],
        num_views=work["num_views"],
        num_sampled=summary["sample"]["num_records"],
        device=summary["device"],
        busy=summary["measurement"]["busy"],
        numbers=_numbers(summary),
        option=f"--codec {advice['codec']}" + ("" if advice["k"] is None else f" --topk {advice['k']}"),
        reason=advice["reason"].rstrip("."),
        charts=draw_panels(summary),
        codec_header=["codec", "bytes a view", "store", *(f"T = {t}" for t in TEMPERATURES), "read back"],
        codecs=[_codec_row(entry) for entry in summary["codecs"]],
        text=text,
    )


def _numbers(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    hours, even, planned = summary["hours"], summary["break_even"], planned_codec(summary)
    found = [(format_hours(hours["hours_here"]), "of extraction here")]
    if hours["devices_used"] > 1:
        found.append((format_hours(hours["hours_on_devices"]), f"on {plural(hours['devices_used'], 'device')}"))
    if hours["cost"] is not None:
        found.append((f"{hours['cost']:,.2f}", "at --price"))
    if planned["refused"] is None:
        found.append((format_bytes(planned["store_bytes"]), f"of store, {planned['label']}"))
    epochs = even["epochs"]
    found.append(
        ("never", "cheaper than an online teacher")
        if epochs is None
        else (f"{first_cheaper(epochs):,}", "epochs, and an online teacher costs more")
    )
    if summary["sample"]["top1"] is not None:
        found.append((f"{summary['sample']['top1']:.3f}", "top-1 of the teacher on the sample"))
    return found


def _codec_row(entry: Mapping[str, Any]) -> list[str]:
    name = entry["label"] + (" (planned)" if entry["is_planned"] else "")
    if entry["refused"] is not None:
        return [name, "rejects the sample", *("-" for _ in range(2 + len(TEMPERATURES)))]
    return [
        name,
        f"{entry['codec_bytes']:,}",
        format_bytes(entry["store_bytes"]),
        *(f"{describe_variation(entry, t, 'mean')} / {describe_variation(entry, t, 'worst')}" for t in TEMPERATURES),
        f"{entry['read_back_seconds'] * 1e6:.1f} us a row",
    ]
