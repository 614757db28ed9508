"""What is in a folder of records: counts by shard and class, sizes, features, and the logits if there are any.

Every record is read once, with its checksums; a damaged one ends it, with its name: nothing behind it can be trusted.
Images are opened for their size and not decoded: those that are none, whose end is missing, or whose file cannot be
read are named at the end. Shards are read in parallel. It answers the questions before hours of a teacher are spent:
are all classes there, are there duplicate images, within a split or in train and validation, does ``image/logit`` have
the width of the classes and agree with the labels?
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.jobs import run_jobs
from teachonce.engine.machine import num_cores
from teachonce.engine.options import Engine
from teachonce.engine.progress import Advance, progress
from teachonce.errors import ImageError, RecordError
from teachonce.inspection.duplicates import SplitKeys, find_shared, key_of_unreadable
from teachonce.pixels.decode import check_end, exif_orientation, image_size
from teachonce.records.discovery import named_splits, open_records
from teachonce.records.image_listing import known_as
from teachonce.records.options import RecordOptions
from teachonce.records.selection import SelectedSource
from teachonce.records.source import NO_LABEL, Buffer, RecordSource
from teachonce.records.tfrecord.framing import describe_record, read_tfrecords
from teachonce.records.tfrecord.source import TFRecordSource, image_and_label, keys_of
from teachonce.records.tfrecord.tf_example import Feature, decode_example
from teachonce.terminal import as_text, plural

LINES_SHOWN = 16


@dataclass
class _Tally:
    """What was counted in some records."""

    num_records: int = 0
    num_read: int = 0
    """Of these the ones whose bytes could be read, be they an image or not."""
    labels: Counter[int] = field(default_factory=Counter)
    features: Counter[tuple[str, str]] = field(default_factory=Counter)
    image_bytes: list[int] = field(default_factory=lambda: [2**63 - 1, 0, 0])  # least, sum, most
    width_px: list[int] = field(default_factory=lambda: [2**63 - 1, 0])
    height_px: list[int] = field(default_factory=lambda: [2**63 - 1, 0])
    num_turned: int = 0
    logit_widths: Counter[int] = field(default_factory=Counter)
    num_logit_hits: int = 0
    num_bad_logits: int = 0
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of a shard, to find equal images."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(where, why) of files that cannot be read and images that are none, or whose end is missing; they count as
    records, and in no size."""


def summarize_records(
    data: Path, split: str | None = None, num_workers: int = 0, options: RecordOptions | None = None
) -> dict[str, Any]:
    """A folder of records as JSON values, one entry a split; ``num_workers`` 0 is one process a core.

    Raises ConfigError where there are no records, RecordError with the place of one that is damaged, other than in its
    image or as an image file.
    """
    options = options or RecordOptions()
    # Where there are no records, opening says what was expected.
    splits = [split] if split is not None else named_splits(data, options) or ["train"]
    sources = [open_records(data, name, options, keeps_unreadable=True) for name in splits]
    summaries, keys = zip(*(_summarize_split(source, num_workers or num_cores()) for source in sources), strict=True)
    return {"kind": "records", "path": str(data), "splits": list(summaries), "shared": find_shared(keys)}


def render_records(summary: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{summary['path']}: records"]
    for split in summary["splits"]:
        lines += ["", *_render_split(split)]
    lines += _render_shared(summary.get("shared", []))
    return as_text(lines)


def _summarize_split(source: RecordSource, num_workers: int) -> tuple[dict[str, Any], SplitKeys]:
    total, shard_keys = _Tally(), {}
    # Of a part of the records the shards' files hold the others too.
    is_part = isinstance(source, SelectedSource)
    shard_bytes = [shard.num_bytes for shard in source.shards]
    with progress(f"inspect {known_as(source.split)}", source.num_records, unit="records") as advance:
        for shard, tally in run_jobs(
            partial(_ShardReader, source),
            range(len(source.shards)),
            engine=Engine(num_workers=num_workers),
            report=advance,
        ):
            _add(total, tally)
            shard_keys[shard] = tally.keys
            if is_part:
                shard_bytes[shard] = tally.image_bytes[1]
    table = source.classes
    names = table.names if table is not None else ()
    num_unlabeled = total.labels.pop(NO_LABEL, 0)
    labels = sorted(set(total.labels) | set(range(len(names))))
    keys = SplitKeys(source, shard_keys)
    num_logits = sum(total.logit_widths.values())
    widths = sorted(total.logit_widths)
    summary = {
        "split": source.split,
        "format": source.format,
        "num_records": total.num_records,
        "num_bytes": sum(shard_bytes),
        "bytes_of": "images" if is_part else "shards",
        "num_doubled": keys.num_doubled,
        "num_turned": total.num_turned,
        "num_unlabeled": num_unlabeled,
        "unreadable": [{"where": where, "why": why} for where, why in total.unreadable],
        "num_classes": len(names) if table is not None else None,
        "has_background": None if table is None else table.has_background,
        "image_bytes": {
            "least": min(total.image_bytes[0], total.image_bytes[2]),
            "mean": total.image_bytes[1] / max(total.num_read, 1),
            "most": total.image_bytes[2],
        },
        "width_px": _bounds(total.width_px),
        "height_px": _bounds(total.height_px),
        "features": [
            {"name": name, "kind": kind, "num_records": count} for (name, kind), count in sorted(total.features.items())
        ],
        "logits": None
        if not num_logits
        else {
            "num_records": num_logits,
            "num_classes": widths[0] if len(widths) == 1 else widths,
            "num_not_finite": total.num_bad_logits,
            "top1": total.num_logit_hits / num_logits,
        },
        "classes": [
            {"label": label, "name": names[label] if label < len(names) else None, "num_records": total.labels[label]}
            for label in labels
        ],
        "shards": [
            {"name": shard.name, "num_records": shard.num_records, "num_bytes": num_bytes}
            for shard, num_bytes in zip(source.shards, shard_bytes, strict=True)
        ],
    }
    return summary, keys


class _ShardReader:
    def __init__(self, source: RecordSource, worker_index: int) -> None:
        self.source = source

    def __call__(self, shard: int, report: Advance) -> _Tally:
        tally = _Tally()
        keys = []
        for row, (where, label, encoded, features, why) in enumerate(self._read(shard)):
            report(1)
            tally.num_records += 1
            tally.labels[label] += 1
            if why:
                tally.unreadable.append((where, why))
                keys.append(key_of_unreadable(self.source.split, shard, row))
                continue
            key, _ = keys_of(features, encoded, where)
            tally.num_read += 1
            tally.features.update((name, _kind(value)) for name, value in features.items())
            try:
                width, height = image_size(encoded)
                check_end(encoded)
            except ImageError as error:
                tally.unreadable.append((where, str(error)))
                key = key_of_unreadable(self.source.split, shard, row)
            else:
                tally.num_turned += exif_orientation(encoded) != 1
                _widen(tally.width_px, width)
                _widen(tally.height_px, height)
            least, total, most = tally.image_bytes
            tally.image_bytes = [min(least, len(encoded)), total + len(encoded), max(most, len(encoded))]
            keys.append(key)
            logits = features.get("image/logit")
            if isinstance(logits, np.ndarray) and len(logits):
                tally.logit_widths[len(logits)] += 1
                tally.num_logit_hits += int(logits.argmax()) == label
                tally.num_bad_logits += bool((np.isnan(logits) | np.isposinf(logits)).any())
        tally.keys = np.array(keys, np.uint64)
        return tally

    def _read(self, shard: int) -> Iterator[tuple[str, int, Buffer, dict[str, Feature], str]]:
        """Place, label, image and features of each record, and why there is no image, where its file is unreadable."""
        path = self.source.shards[shard].path
        if path is None or type(self.source) is not TFRecordSource:
            for record in self.source.iter_shard(shard):
                yield record.where, record.label, record.encoded, {}, record.unreadable
            return
        num_classes = None if self.source.classes is None else len(self.source.classes.names)
        for row, (offset, payload) in enumerate(read_tfrecords(path)):
            where = describe_record(path, row, offset)
            try:
                features = decode_example(payload)
            except RecordError as error:
                raise error.at(where) from error
            encoded, label = image_and_label(payload, features, where, num_classes)
            yield where, label, encoded, features, ""


def _add(total: _Tally, part: _Tally) -> None:
    total.num_records += part.num_records
    total.num_read += part.num_read
    total.labels += part.labels
    total.features += part.features
    least, both, most = total.image_bytes
    total.image_bytes = [min(least, part.image_bytes[0]), both + part.image_bytes[1], max(most, part.image_bytes[2])]
    for ours, theirs in ((total.width_px, part.width_px), (total.height_px, part.height_px)):
        # Apart: of a shard without a readable image they are the bounds of nothing, the least above the most.
        ours[:] = min(ours[0], theirs[0]), max(ours[1], theirs[1])
    total.num_turned += part.num_turned
    total.logit_widths += part.logit_widths
    total.num_logit_hits += part.num_logit_hits
    total.num_bad_logits += part.num_bad_logits
    total.unreadable += part.unreadable


def _widen(bounds: list[int], value: int) -> None:
    bounds[:] = min(bounds[0], value), max(bounds[1], value)


def _bounds(values: list[int]) -> dict[str, int]:
    least, most = values
    return {"least": min(least, most), "most": most}  # both 0 where no image can be read


def _kind(value: Feature) -> str:
    if isinstance(value, list):
        return "bytes"
    return "float" if value.dtype == np.float32 else "int64"


def _span(sizes: dict[str, int]) -> str:
    least, most = sizes["least"], sizes["most"]
    return f"{least:,}" if least == most else f"{least} to {most}"


def _render_split(split: dict[str, Any]) -> list[str]:
    sizes = split["image_bytes"]
    duplicates = f"; {plural(split['num_doubled'], 'DUPLICATE image')}" if split["num_doubled"] else ""
    of_images = " of images, those of these records" if split["bytes_of"] == "images" else ""
    lines = [
        f"{known_as(split['split'])}: {plural(split['num_records'], 'record')} in "
        f"{plural(len(split['shards']), 'shard')} "
        f"({split['format']}), {split['num_bytes']:,} bytes{of_images}{duplicates}",
        f"  images    {sizes['mean']:,.0f} bytes (minimum {sizes['least']:,}, maximum {sizes['most']:,}), "
        f"{_span(split['width_px'])} px wide, {_span(split['height_px'])} px high",
        *_render_unreadable(split),
        *_render_turned(split),
        f"  classes   {_render_classes(split)}",
        f"  logits    {_render_logits(split)}",
    ]
    if split["features"]:
        lines += ["", "  feature                       kind   records"]
        lines += [f"  {f['name']:<28}  {f['kind']:<5} {f['num_records']:>9,}" for f in split["features"]]
    column = "bytes of images" if split["bytes_of"] == "images" else "bytes"
    lines += ["", f"  shard                      records {column:>15}"]
    shards = split["shards"]
    lines += [f"  {s['name']:<26} {s['num_records']:>7,} {s['num_bytes']:>15,}" for s in shards[:LINES_SHOWN]]
    if len(shards) > LINES_SHOWN:
        counts = sorted(shard["num_records"] for shard in shards)
        lines.append(
            f"  ... {len(shards) - LINES_SHOWN} more (--json shows all); records {counts[0]:,} to {counts[-1]:,}"
        )
    present = [entry for entry in split["classes"] if entry["num_records"]]
    if len(present) <= LINES_SHOWN:
        lines += ["", "  label  records  class"]
        lines += [f"  {c['label']:>5}  {c['num_records']:>7,}  {c['name'] or ''}".rstrip() for c in present]
    return lines


def _render_unreadable(split: dict[str, Any]) -> list[str]:
    unreadable = split["unreadable"]
    if not unreadable:
        return []
    advice = "replace or remove, as records, extract and train stop there"
    lines = [f"  UNREADABLE  {plural(len(unreadable), 'image')}; {advice}:"]
    lines += [f"    {item['where']}: {item['why']}" for item in unreadable[:LINES_SHOWN]]
    if len(unreadable) > LINES_SHOWN:
        lines.append(f"    ... {len(unreadable) - LINES_SHOWN:,} more (--json shows all)")
    return lines


def _render_shared(shared: list[dict[str, Any]]) -> list[str]:
    lines = []
    for pair in shared:
        count, (first, second) = pair["num_records"], map(known_as, pair["splits"])
        if count:
            here, there = pair["example"]
            are, them = ("is", "it") if count == 1 else ("are", "them")
            lines += [
                "",
                f"SHARED  {plural(count, 'image')} of {first} {are} in {second} too, byte for byte: {here} is {there}; "
                f"remove {them} from one of the two, as accuracy on {second} counts what was trained on",
            ]
    return lines


def _render_turned(split: dict[str, Any]) -> list[str]:
    if not split["num_turned"]:
        return []
    count = split["num_turned"]
    return [
        f"  turned    {plural(count, 'image')} {'has' if count == 1 else 'have'} an EXIF rotation, which is ignored"
    ]


def _render_classes(split: dict[str, Any]) -> str:
    present = sorted(entry["num_records"] for entry in split["classes"] if entry["num_records"])
    if not present:
        return "none: the images have no labels"
    median = present[len(present) // 2]
    counts = f"{present[0]:,} to {present[-1]:,} records each, median {median:,}"
    if split["num_unlabeled"]:
        have = "has" if split["num_unlabeled"] == 1 else "have"
        counts += f"; {plural(split['num_unlabeled'], 'record')} {have} no label"
    if split["num_classes"] is None:
        labels = [entry["label"] for entry in split["classes"]]
        return f"{plural(len(present), 'label')}, {labels[0]} to {labels[-1]} (no classes.json); {counts}"
    background = " and background" if split["has_background"] else ""
    num_classes = split["num_classes"] - bool(split["has_background"])
    return f"{len(present)} of {num_classes} present{background}; {counts}"


def _render_logits(split: dict[str, Any]) -> str:
    logits = split["logits"]
    if logits is None:
        return "none"
    bad = f"; {logits['num_not_finite']:,} NOT FINITE" if logits["num_not_finite"] else ""
    return (
        f"of {logits['num_classes']} {'class' if logits['num_classes'] == 1 else 'classes'} in "
        f"{plural(logits['num_records'], 'record')}, "
        f"top-1 {logits['top1']:.4f} against the labels{bad}"
    )
