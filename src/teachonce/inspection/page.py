"""inspect.html of a store: one page to look at before a student is trained from it.

What a person sees and numbers hide: whether the pictures are what they should be, whether policy and teacher fit, which
labels are doubtful. Pictures need the records (``--data``); everything else is computed from the store alone, of a
large one from a sample, and the page says so. The same store and records give the same page, byte for byte.

Measuring is in ``inspect_measures`` and ``inspect_costs``, pictures are in ``inspect_pictures``, cards and charts in
``inspect_cards`` and ``inspect_charts``; here they become a page.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teachonce.codecs.topk import TopKCodec
from teachonce.engine.progress import progress
from teachonce.errors import ConfigError, TeachonceError
from teachonce.inspection.cards import (
    CARD_STYLE,
    SHOWN_PX,
    render_record_briefly,
    render_suspect,
    render_view,
    render_view_briefly,
)
from teachonce.inspection.charts import draw_agreement, draw_calibration, draw_confidences, draw_entropies
from teachonce.inspection.costs import CodecError, ColumnBytes, measure_bytes, measure_codec
from teachonce.inspection.gallery import Gallery, describe_preprocessing
from teachonce.inspection.measures import Measures, ShardMeasures, choose_rows, measure_store
from teachonce.inspection.store import describe_entry, describe_store
from teachonce.pages.page import escape, render_columns, render_facts, render_numbers, render_page
from teachonce.records.discovery import open_records
from teachonce.storage.files import atomic_write, locate
from teachonce.store.store import Store
from teachonce.views.policy import CenterPolicy, CropPolicy

PAGE_NAME = "inspect.html"
NUM_PICTURES = 24
NUM_VIEWS_SHOWN = 8
MAX_ROWS = 250_000
"""(record, view) rows measured: of 1000 classes about 10 s."""
STANDING_OUT = 4.0
"""Standard errors from the median at which a shard's accuracy is shown; by chance 1 in 16,000."""
SHARDS_SHOWN = 12

_STYLE = (
    CARD_STYLE
    + """
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; font-size: 0.9rem; }
a { color: var(--blue); text-decoration: none; } a:hover { text-decoration: underline; }
.notice { border-left: 3px solid var(--orange); background: var(--card); padding: 0.5rem 0.9rem; margin: 0.6rem 0; }
.charts { display: grid; gap: 1.5rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.charts svg { width: 100%; max-width: 34rem; }
.stack { display: flex; height: 1.1rem; border-radius: 4px; overflow: hidden; margin: 0.8rem 0; max-width: 46rem; }
.stack span { min-width: 1px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.kind { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 2px; margin-right: 0.4em; }
.codec { background: var(--blue); } .view { background: var(--orange); } .record { background: var(--purple); }
.sample { background: var(--good); } .file { background: var(--quiet); }
"""
)

_KINDS = {"codec": "logits", "view": "views", "record": "records", "sample": "samples", "file": "files"}


def write_page(path: Path, data: Path | None = None, out: Path | None = None) -> Path:
    """Write the page of the store at ``path``, with pictures where its records are given; returns where it is.

    Raises StoreError for a store of which no view is whole, or that is not of these records; ImageError for a record
    shown that does not decode; TeachonceError where the page cannot be written.
    """
    target = path / PAGE_NAME if out is None else out
    _check_place(target, is_default=out is None)
    summary = describe_store(path)
    store = Store(path)
    gallery = Gallery(store, None if data is None else open_records(data, store.plan.data["split"]))
    selection = choose_rows(store.num_records, store.num_views, MAX_ROWS)
    with progress("inspect", selection.num_rows, unit="views") as advance:
        measures = measure_store(store, selection, advance)
    sections = [
        ("sheet", "As the teacher saw it", _render_sheet(gallery)),
        ("views", "One record in several views", _render_views(gallery)),
        ("suspects", "Labels that the teacher contradicts", _render_suspects(gallery, measures)),
        ("sure", "How sure it is, and how right", _render_charts(measures)),
        ("shards", "Shard by shard", _render_shards(measures)),
        ("bytes", "Where the bytes go", _render_bytes(store, measure_bytes(store))),
        ("codec", "What the codec costs", _render_codec(store, measure_codec(store))),
        ("facts", "What this store is", _render_facts(store, summary)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    body = "\n".join(
        [
            f"<h1>{escape(path.resolve().name)}</h1>",
            f'<p class="sub">what {escape(_teacher_name(store))} said of {store.num_records:,} records of split '
            f"{escape(summary['split'])}, policy {escape(store.policy.name)}, codec {escape(store.codec.name)}</p>",
            f"<nav>{links}</nav>",
            *[
                f'<p class="notice">{notice}</p>'
                for notice in _notices(store, summary, measures, has_data=data is not None)
            ],
            render_numbers(_numbers(store, measures)),
            *[f'<section id="{name}"><h2>{escape(title)}</h2>{part}</section>' for name, title, part in shown],
        ]
    )
    with atomic_write(target) as file:
        file.write(render_page(f"{path.resolve().name}: teachonce store", body, _STYLE).encode())
    return target


def _check_place(target: Path, *, is_default: bool) -> None:
    """Raise before anything is measured, where it is plain that the page cannot be written."""
    storage, name = locate(target)
    if storage.is_folder(name):
        raise ConfigError(f"{target}: is a folder; give with --out a file for the page")
    if is_default and not storage.is_writable():
        raise TeachonceError(f"{target}: the store's folder cannot be written; give with --out a file for the page")


def _teacher_name(store: Store) -> str:
    """The SPEC without its options: of a run the model alone would not say which one it is."""
    spec = str(store.plan.teacher["spec"]).partition(",")[0]
    return "a teacher that is not here (imported logits)" if spec == "none" else spec


def _notices(store: Store, summary: dict[str, Any], measures: Measures, *, has_data: bool) -> list[str]:
    """What a reader must know before any number, as HTML."""
    notices = []
    if not summary["is_finished"]:
        notices.append(
            f"Usable for {summary['num_views']} of {summary['num_views_planned']} views: the others are not whole yet "
            f"({summary['files_present']} of {summary['files_planned']} files are there). This page is about these "
            f"{summary['num_views']}; the same extract again makes the rest."
        )
    if measures.num_rows < store.num_records * store.num_views:
        notices.append(
            f"Numbers and suspects are of a sample, spread evenly over the store: {measures.num_records:,} of "
            f"{store.num_records:,} records in {len(measures.views)} of {store.num_views} views, "
            f"{measures.num_rows:,} of {store.num_records * store.num_views:,} altogether."
        )
    if measures.num_plain < measures.num_rows:
        num_mixed = measures.num_rows - measures.num_plain
        notices.append(
            f"{num_mixed:,} of {measures.num_rows:,} views are mixed with another record and have no one label: "
            "accuracy, calibration, agreement and suspects leave them out; entropy and confidence have them."
        )
    if not has_data:
        command = f"teachonce inspect {shlex.quote(str(store.path))} --html --data RECORDS"
        notices.append(
            "Without the records there are no pictures and no class names here, only label numbers. With them: "
            f"<code>{escape(command)}</code>"
        )
    return notices


def _numbers(store: Store, measures: Measures) -> list[tuple[str, str]]:
    top1, top5, ece = measures.top1, measures.top5, measures.ece
    return [
        (f"{store.num_records:,}", "records"),
        (f"{store.num_views:,}", "views each"),
        ("-" if top1 is None else f"{top1:.2%}", "top-1"),
        ("-" if top5 is None else f"{top5:.2%}", "top-5"),
        ("-" if ece is None else f"{ece:.4f}", "ECE, 15 bins"),
        (f"{measures.entropy_nats:.3f}", "entropy in nats"),
        (f"{store.num_bytes() / (store.num_records * store.num_views):,.0f}", "bytes a view"),
        (_format_bytes(store.num_bytes()), "altogether"),
    ]


def _render_sheet(gallery: Gallery) -> str:
    seen = [gallery.read_view(*place) for place in gallery.choose_places(NUM_PICTURES)]
    cards = "".join(render_view(view, gallery) for view in seen)
    agreed = f"{sum(view.is_agreed for view in seen)} of {len(seen)}"
    mixed = ", or of a mixed view the one with the larger share" if any(len(view.labels) > 1 for view in seen) else ""
    return (
        f'<p class="sub">{len(seen)} stored views, spread evenly over the records by a fixed seed. '
        f"{_describe_look(gallery)} In {agreed} the teacher's choice is the label{mixed}.</p>"
        f'<div class="cards">{cards}</div>'
    )


def _describe_look(gallery: Gallery) -> str:
    preprocessing = gallery.preprocessing
    if preprocessing is None:
        whole = "" if gallery.source is None else ": shown is the whole image"
        return f"The logits came without a teacher, so its preprocessing is not known{whole}."
    if isinstance(gallery.store.policy, CenterPolicy):
        return f"The teacher looks at every record in one way: {escape(describe_preprocessing(preprocessing))}."
    scaled = f"; here at most {SHOWN_PX} px" if gallery.source is not None and preprocessing.size_px > SHOWN_PX else ""
    return (
        f"The teacher sees each at {preprocessing.size_px} x {preprocessing.size_px} px "
        f"({preprocessing.interpolation}){scaled}."
    )


def _render_views(gallery: Gallery) -> str:
    """The record that the middle picture of the sheet is of, in its first views; nothing where there is one view."""
    store = gallery.store
    if store.num_views < 2 or not isinstance(store.policy, CropPolicy):
        return ""
    places = gallery.choose_places(NUM_PICTURES)
    shard, row, _ = places[len(places) // 2]
    seen = [gallery.read_view(shard, row, number) for number in range(min(store.num_views, NUM_VIEWS_SHOWN))]
    label = gallery.class_text(seen[0].label)
    whole = render_record_briefly(gallery.read_record(shard, row), label, seen[0].filename)
    cards = "".join(render_view_briefly(view, gallery) for view in seen)
    return (
        f'<p class="sub">What policy {escape(store.policy.name)} does to {escape(seen[0].filename)}, labelled '
        f"{escape(label)}, and what the teacher then says: views 0 to {len(seen) - 1} of {store.num_views}.</p>"
        f'<div class="strip">{whole}{cards}</div>'
    )


def _render_suspects(gallery: Gallery, measures: Measures) -> str:
    if not measures.num_plain:
        return '<p class="sub">All views are mixed, and a mix has no one label: nothing to say here.</p>'
    if not measures.suspects:
        return '<p class="sub">None: the teacher agrees with every label.</p>'
    filenames = [gallery.store.read_filenames(suspect.shard)[suspect.row] for suspect in measures.suspects]
    cards = "".join(
        render_suspect(number, suspect, filename, gallery)
        for number, (suspect, filename) in enumerate(zip(measures.suspects, filenames, strict=True), start=1)
    )
    is_sparse = isinstance(gallery.store.codec, TopKCodec)
    tail = " A class that the codec did not keep counts with the mean of its tail." if is_sparse else ""
    return (
        f'<p class="sub">Suspected mislabels: the {len(measures.suspects)} of {measures.num_records:,} records whose '
        "label is farthest below the teacher's choice, by mean log-probability over the views without a mix; the bars "
        f"are mean probabilities, the label's is the lower one.{tail} A place to look first, not a verdict: it may be "
        "the teacher that is wrong; and if it was trained on these very records, it has learnt some of their "
        "mistakes.</p>"
        f'<div class="cards">{cards}</div>'
    )


def _render_charts(measures: Measures) -> str:
    charts = [draw_entropies(measures), draw_confidences(measures)]
    if measures.num_plain:
        charts.append(draw_calibration(measures))
    if measures.agreement[2:].any():
        charts.append(draw_agreement(measures))
    return (
        f'<p class="sub">Of {measures.num_rows:,} views, at temperature 1. Calibration: of the views with this '
        "confidence, how many are right (bars: one standard error); on the dashed line the teacher is as right as it "
        f'is sure.</p><div class="charts">{"".join(charts)}</div>'
    )


def _render_shards(measures: Measures) -> str:
    judged = [shard for shard in measures.shards if shard.top1 is not None]
    if len(judged) < 2:
        return ""
    rates = sorted(shard.top1 or 0.0 for shard in judged)
    # Not the mean: one bad shard of a few would make the good ones stand out as well.
    median = rates[len(rates) // 2]
    spread = f"top-1 from {rates[0]:.2%} to {rates[-1]:.2%} in {len(judged):,} shards, median {median:.2%}"
    deviations = sorted(((_deviation(shard, median), shard) for shard in judged), key=lambda item: -abs(item[0]))
    unusual = [item for item in deviations if abs(item[0]) > STANDING_OUT]
    if not unusual:
        return f'<p class="sub">No shard stands out: {spread}.</p>'
    rows = [
        [shard.name, f"{shard.num_measured:,}", f"{shard.top1:.2%}", f"{deviation:+.1f}"]
        for deviation, shard in unusual[:SHARDS_SHOWN]
    ]
    more = f" The {SHARDS_SHOWN} farthest:" if len(unusual) > SHARDS_SHOWN else ""
    return (
        f'<p class="notice">{len(unusual):,} of {len(judged):,} shards stand out by more than {STANDING_OUT:g} '
        f"standard errors: shards that are sorted by class, of other images, or damaged. In all: {spread}.{more}</p>"
        + render_columns(["shard", "records", "top-1", "standard errors from the median"], rows)
    )


def _deviation(shard: ShardMeasures, median: float) -> float:
    """Of a shard's accuracy from the median, in standard errors; a record counts once, as its views are alike."""
    # At least the error of one record more or less, for a median of 100 %.
    error = (max(median * (1 - median), 1 / shard.num_measured) / shard.num_measured) ** 0.5
    return ((shard.top1 or 0.0) - median) / error


def _render_bytes(store: Store, columns: Sequence[ColumnBytes]) -> str:
    total = sum(column.bytes_per_view for column in columns)
    stack = "".join(
        f'<span class="{column.kind}" style="flex:{max(column.bytes_per_view, 0):.2f}"></span>' for column in columns
    )
    rows = [
        [column.name, _KINDS[column.kind], f"{column.bytes_per_view:,.1f}", f"{column.bytes_per_view / total:.1%}"]
        for column in columns
    ]
    legend = "".join(
        f'<span><span class="kind {kind}"></span>{_KINDS[kind]}</span>'
        for kind in dict.fromkeys(column.kind for column in columns)
    )
    return (
        f'<p class="sub">{total:,.1f} bytes a view of a record, {store.num_bytes():,} altogether. What belongs to a '
        "record is kept once for all its views; samples are a fixed number a shard, so they count for less the larger "
        "it is.</p>"
        f'<div class="stack" aria-hidden="true">{stack}</div><p class="sub legend">{legend}</p>'
        + render_columns(["column", "of", "bytes a view", "part"], rows, num_texts=2)
    )


def _render_codec(store: Store, codec: CodecError | None) -> str:
    if codec is None:
        return (
            '<p class="sub">Not known: the store keeps no samples of logits before the codec (its format is version 1, '
            "or its logits were imported).</p>"
        )
    has_tail = bool(codec.tail_mass)
    header = ["temperature", "mean", "largest", *(["mean mass of the tail"] if has_tail else [])]
    rows = [
        [f"T = {t}", _format_small(mean), _format_small(codec.largest[t])]
        + ([_format_small(codec.tail_mass[t])] if has_tail else [])
        for t, mean in codec.mean.items()
    ]
    tail = " The tail is the classes that it does not keep: how much mass they have is stored, not which has it."
    return (
        f'<p class="sub">Total variation (half of the sum of |p - q| over the classes) between the softened softmax of '
        f"what the teacher said and of what {escape(describe_entry(store.plan.codec))} keeps of it, on "
        f"{codec.num_samples:,} samples that the store has of logits before the codec.{tail if has_tail else ''}</p>"
        + render_columns(header, rows)
    )


def _render_facts(store: Store, summary: dict[str, Any]) -> str:
    teacher = dict(summary["teacher"])
    preprocessing = teacher.pop("preprocessing", None)
    facts = {f"teacher {key.replace('_', ' ')}": value for key, value in teacher.items()}
    facts |= {
        "preprocessing": preprocessing,
        "classes": f"{summary['num_classes']:,}, the first is label {summary['offset']}",
        "policy": describe_entry(summary["policy"]),
        "codec": describe_entry(summary["codec"]),
        "records": f"{summary['num_records']:,} of split {summary['split']} in {summary['num_shards']:,} shards",
        "views": f"{summary['num_views']:,} of {summary['num_views_planned']:,} planned",
        "coverage": f"{summary['files_present']:,} of {summary['files_planned']:,} files",
        "format": f"version {store.plan.format_version}",
        "fingerprint": store.fingerprint,
        "made with": store.manifest.get("versions"),
    }
    return render_facts(facts)


def _format_small(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 or value == 0 else f"{value:.0e}"


def _format_bytes(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
