"""A plan as text: a table that says what was measured, what follows, and which codec the figures suggest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from teachonce.engine.progress import format_seconds
from teachonce.extraction.planning.costs import TEMPERATURES, first_cheaper
from teachonce.records.image_listing import known_as
from teachonce.store.plan import teacher_name
from teachonce.terminal import as_text, plural

_STAGES = {
    "read": "reading, checks and key",
    "decode": "decoding the image",
    "look": "the view: crop, resize, operations",
    "teacher": "the teacher",
    "write": "encoding and writing",
}


def render_estimate(summary: Mapping[str, Any]) -> str:
    """The summary of ``estimate.build_estimate`` as text."""
    blocks = [
        _render_head(summary),
        _render_measurement(summary),
        _render_time(summary),
        _render_cluster(summary),
        _render_codecs(summary),
        _render_tails(summary),
        _render_break_even(summary),
        _render_recommendation(summary),
    ]
    return "\n\n".join(as_text(lines) for lines in blocks if lines)


def _render_head(summary: Mapping[str, Any]) -> list[str]:
    work, sample = summary["workload"], summary["sample"]
    taken = f"{sample['num_records']:,} records, one view per record, drawn by seed {sample['seed']}"
    if sample["num_records"] < sample["asked_for"]:
        taken = f"all {sample['num_records']:,} records (of {sample['asked_for']:,} requested), one view per record"
    policy = summary["policy"]
    parameters = ", ".join(f"{key} {value}" for key, value in policy.items() if key != "name")
    return [
        f"{summary['data']}: plan for split {known_as(summary['split'])}, {work['num_records']:,} records x "
        f"{plural(work['num_views'], 'view')} in {plural(work['num_shards'], 'shard')}",
        f"  teacher   {teacher_name(summary['teacher'])}, {summary['num_classes']} classes, offset "
        f"{summary['offset']}, {summary['teacher']['preprocessing']['size_px']} px, {summary['teacher']['precision']}",
        f"  policy    {policy['name']}" + (f" ({parameters})" if parameters else ""),
        f"  sample    {taken}; {_describe_top1(summary)}",
        f"  device    {summary['device']}; {plural(summary['timings']['num_threads'], 'decode thread')}, batches of "
        f"{summary['batch_size']}",
    ]


def _render_measurement(summary: Mapping[str, Any]) -> list[str]:
    found, sample = summary["measurement"], summary["sample"]
    notes = [f"{plural(found['num_batches'], 'batch', 'batches')} of the teacher"]
    if found["batch_spread"] is not None:
        notes[-1] += f", which differed by {found['batch_spread']:.0%} of their median"
    if found["other_cores"] is not None:
        notes.append(f"others used {found['other_cores']:.1f} of {found['machine_cores']} cores")
    if found["steal"] is not None:
        notes.append(f"steal {found['steal']:.0%}")
    if found["load_average"] is not None:
        notes.append(f"load average before {found['load_average']:.1f}")
    lines = [
        f"  measured  in {format_seconds(found['seconds'])} on {sample['num_records']:,} records: {'; '.join(notes)}",
    ]
    if found["busy"]:
        lines.append("  BUSY      the machine was busy, so these figures are too slow: measure again when it is idle")
        lines += [f"            {sign}" for sign in found["busy"]]
    return lines


def _render_time(summary: Mapping[str, Any]) -> list[str]:
    timings, hours, work = summary["timings"], summary["hours"], summary["workload"]
    stages = hours["seconds_per_view"]
    views_a_decode = work["num_views"] / work["num_groups"]
    threads = timings["num_threads"]
    lines = ["  time                                  ms a view"]
    for name, label in _STAGES.items():
        notes = []
        if name in ("read", "decode") and views_a_decode > 1:
            notes.append(f"{timings[f'{name}_seconds'] * 1e3:.3g} per record, once for {views_a_decode:.3g} views")
        if name in ("decode", "look") and threads > 1:
            notes.append(f"by {threads} threads")
        if name == "write":
            notes.append(planned_codec(summary)["label"])
        note = f"   {', '.join(notes)}" if notes else ""
        lines.append(f"    {label:<35} {stages[name] * 1e3:>8.3f}{note}")
    rule = "the sum: all stages share the cores"
    if timings["has_accelerator"]:
        rule = f"the slowest of three concurrent stages: {hours['bottleneck']}"
    lines.append(f"    {'together':<35} {hours['pipeline_seconds'] * 1e3:>8.3f}   {rule}")
    views = work["num_records"] * work["num_views"]
    lines.append(f"  extraction of {views:,} views: {format_hours(hours['hours_here'])} here")
    used = hours["devices_used"]
    on = plural(used, "device") if used == work["num_devices"] else f"{used} of {plural(work['num_devices'], 'device')}"
    several = f"{format_hours(hours['hours_on_devices'])} on {on} like this one"
    if hours["hours_sharing_cores"] is not None and used > 1:
        several += f", {format_hours(hours['hours_sharing_cores'])} if they share this machine's cores"
    if used < work["num_devices"]:
        several += " (more than one per shard and file of views would be idle)"
    if used > 1 or work["num_devices"] > 1:
        lines[-1] += f", {several}"
    lines.append(
        f"  memory for the logits of a unit (a shard x a file's views): {format_bytes(summary['unit_logits_bytes'])}"
    )
    return lines


def _render_cluster(summary: Mapping[str, Any]) -> list[str]:
    hours, work, traffic = summary["hours"], summary["workload"], summary["traffic"]
    used = hours["devices_used"]
    paid = f"{hours['device_hours']:,.3g} device hours"
    if hours["cost"] is not None:
        paid += f", {hours['cost']:,.2f} at {summary['price']:g} per device (--price)"
    lanes = hours["lanes"]
    # Of concurrent stages the share of the time that each is busy; else the share of the sum.
    shares = {name: seconds / hours["pipeline_seconds"] for name, seconds in lanes.items()}
    others = [f"{name} {shares[name]:.0%}" for name in lanes if name != hours["bottleneck"]]
    gbps = summary["network_gbps"]
    network = f"{traffic['device_gbps']:.3g} Gbit/s per device, {used * traffic['device_gbps']:.3g} in total"
    network += f"; links have {gbps:g}" if gbps is not None else "; give the bandwidth with --network-gbps"
    num_groups = work["num_groups"]
    again = f": all data {num_groups} times, once per file of views" if num_groups > 1 else ""
    return [
        f"  on {plural(used, 'device')} (--devices){', each' if used > 1 else ''} with its own cores and link",
        f"    time      {format_hours(hours['hours_on_devices'])}; {paid}",
        f"    limit     {hours['bottleneck']}, {shares[hours['bottleneck']]:.0%} of the time; {', '.join(others)}",
        f"    network   {network}",
        f"    read      {format_bytes(traffic['read_bytes'])}, {traffic['num_gets']:,} GET{again}",
        f"    written   {format_bytes(traffic['written_bytes'])}, {traffic['num_puts']:,} PUT for "
        f"{traffic['num_files']:,} files, {traffic['heartbeat_puts']:,} for heartbeats",
        "    GET and PUT apply if data and store are in an object store; they are not part of the cost",
    ]


def _render_codecs(summary: Mapping[str, Any]) -> list[str]:
    view_bytes = next(entry["view_bytes"] for entry in summary["codecs"] if entry["refused"] is None)
    lines = [
        "  codec       bytes a view      store    total variation, mean / worst view             read back",
        f"              {f'+ {view_bytes:,} for the view' if view_bytes else '':<31}"
        + "".join(f"{f'T = {t}':<17}" for t in TEMPERATURES)
        + "us a row",
    ]
    for entry in summary["codecs"]:
        name = entry["label"] + (" <" if entry["is_planned"] else "")
        if entry["refused"] is not None:
            lines.append(f"    {name:<12} rejects the sample: {entry['refused']}")
            continue
        variations = "".join(
            f"{describe_variation(entry, t, 'mean') + ' / ' + describe_variation(entry, t, 'worst'):<17}"
            for t in TEMPERATURES
        )
        lines.append(
            f"    {name:<12}{entry['codec_bytes']:>8,} {format_bytes(entry['store_bytes']):>11}    {variations}"
            f"{entry['read_back_seconds'] * 1e6:>8.1f}"
        )
    promised = planned_codec(summary).get("promised_temperatures")
    if promised is not None:
        least, largest = promised
        lines.append(
            f"    {planned_codec(summary)['label']} is bounded only for T = {least:g} to {largest:g}; outside, train "
            "warns, and float16 is accurate at any"
        )
    lines.append("    < the planned codec; store: all files, with keys, names and samples for verify")
    return lines


def _render_tails(summary: Mapping[str, Any]) -> list[str]:
    if not summary["tail_mass"]:
        return []
    lines = [
        "  probability outside the k most likely classes, mean / worst view",
        "         k    " + "".join(f"{f'T = {t}':<17}" for t in TEMPERATURES).rstrip(),
    ]
    for entry in summary["tail_mass"]:
        cells = [f"{entry['mass'][str(t)]['mean']:.3f} / {entry['mass'][str(t)]['worst']:.3f}" for t in TEMPERATURES]
        lines.append(f"    {entry['k']:>6}    " + "".join(f"{cell:<17}" for cell in cells).rstrip())
    return lines


def _render_break_even(summary: Mapping[str, Any]) -> list[str]:
    even, work = summary["break_even"], summary["workload"]
    students = f"{plural(work['students'], 'student')} of {plural(work['epochs'], 'epoch')}"
    offline, online = format_hours(even["offline_hours"]), format_hours(even["online_hours"])
    lines = [
        "  break-even against an online teacher, run at every step (hours of this device)",
        f"    offline   {even['offline_forwards']:>15,} forwards {'once':<24}{offline}, including reading back",
        f"    online    {even['online_forwards']:>15,} for {students:<29}{online}",
    ]
    if even["epochs"] is None:
        return [*lines, "    never: reading a stored row takes longer than running this teacher"]
    epoch, student = first_cheaper(even["epochs"]), first_cheaper(even["students"])
    lines.append(
        f"    offline costs less from epoch {epoch:,} of one student on ({even['epochs']:.1f}; by the number of "
        f"forwards alone {work['num_views']}),"
    )
    lines.append(f"    or from student {student:,} of {plural(work['epochs'], 'epoch')} on ({even['students']:.2g})")
    if even["saved_hours"] > 0:
        saved = f"saves {format_hours(even['saved_hours'])}: online takes {even['ratio']:.3g} times as long"
    else:
        saved = (
            f"would cost {format_hours(-even['saved_hours'])} more: use an online teacher, or train more students or "
            "epochs"
        )
    return [*lines, f"    for {students} offline {saved}"]


def _render_recommendation(summary: Mapping[str, Any]) -> list[str]:
    advice, planned = summary["recommendation"], planned_codec(summary)
    option = f"--codec {advice['codec']}" + ("" if advice["k"] is None else f" --topk {advice['k']}")
    lines = [f"  recommendation: {option}", *(f"    {part}" for part in advice["reason"].split("; "))]
    if planned["refused"] is not None:
        lines.append(f"    {planned['label']}, which was requested, would make the extraction fail")
    work, policy = summary["workload"], summary["policy"]["name"]
    views = "" if policy == "center" else f" --views {work['num_views']}"
    lines.append(f"    as planned: teachonce extract --policy {policy}{views} {option} and the other options as above")
    return lines


def format_hours(hours: float) -> str:
    """A human-readable duration: 3.2 s, 4 min 05 s, 2 h 07 min, 1,234 h."""
    return format_seconds(hours * 3600) if hours < 100 else f"{hours:,.0f} h"


def format_bytes(num_bytes: float) -> str:
    """Decimal units, three digits: 812 B, 1.01 kB, 15.4 GB."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    power = min(int(math.log10(num_bytes) // 3), 4)
    value = num_bytes / 1000**power
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {('', 'k', 'M', 'G', 'T')[power]}B"


def describe_variation(entry: Mapping[str, Any], temperature: int, which: str) -> str:
    """The ``which`` (mean or worst) total variation of a codec at a temperature."""
    value = entry["total_variation"][str(temperature)][which]
    return "0" if value == 0 else "<.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.0995 else f"{value:.3f}"


def planned_codec(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of the codec that the extraction would have."""
    entry: Mapping[str, Any] = next(entry for entry in summary["codecs"] if entry["is_planned"])
    return entry


def _describe_top1(summary: Mapping[str, Any]) -> str:
    top1, is_mixed = summary["sample"]["top1"], summary["policy"].get("mix") is not None
    if top1 is None:
        return f"no {'unmixed views with ' if is_mixed else ''}labels to score the teacher by"
    return f"the teacher's top-1 on these views{' without a mix' if is_mixed else ''} {top1:.3f}"
