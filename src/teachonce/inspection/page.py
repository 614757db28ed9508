"""inspect.html of a store: one page to read before a student is trained from it.

What a person sees and numbers hide: first what needs a decision (labels that the teacher contradicts, shards that stand
out), then whether the pictures are what they should be, and whether policy and teacher fit. Pictures need the records
(``--data``); everything else is computed from the store alone, of a large one from a sample, and the page says so. The
same store and records give the same page, byte for byte.

Measuring is in ``measures`` and ``costs``, pictures are in ``gallery``, cards and charts in ``cards`` and ``charts``;
here they become the values of ``templates/store.html.jinja``, which has the words.
"""

from __future__ import annotations

import shlex
from math import log
from pathlib import Path
from typing import Any

from teachonce.engine.progress import progress
from teachonce.errors import TeachonceError
from teachonce.inspection.cards import SHOWN_PX, SuspectCard, prepare_picture, prepare_suspect, prepare_view
from teachonce.inspection.charts import draw_agreement, draw_calibration, draw_confidences, draw_entropies
from teachonce.inspection.costs import measure_bytes, measure_codec
from teachonce.inspection.gallery import Gallery, describe_preprocessing
from teachonce.inspection.measures import CONTRADICTED_RATIO, Measures, ShardMeasures, choose_rows, measure_store
from teachonce.inspection.store import describe_store, describe_usable
from teachonce.pages.page import render_page
from teachonce.records.class_space import shows_top5
from teachonce.records.class_table import brief_names
from teachonce.records.discovery import open_records
from teachonce.records.image_listing import known_as
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL
from teachonce.storage.files import atomic_write, check_free, locate
from teachonce.store.card import describe_entry
from teachonce.store.plan_files import OTHERS_NOT_HERE
from teachonce.store.store import Store
from teachonce.terminal import plural

PAGE_NAME = "inspect.html"
NUM_PICTURES = 24
NUM_VIEWS_SHOWN = 8
MAX_ROWS = 250_000
"""(record, view) rows measured: of 1000 classes about 10 s."""
STANDING_OUT = 4.0
"""Standard errors from the median at which a shard's accuracy is shown; by chance 1 in 16,000."""
SHARDS_SHOWN = 12

_TEMPLATE = "inspection/templates/store.html.jinja"
_KINDS = {"codec": "logits", "view": "views", "record": "records", "sample": "samples", "file": "files"}


def write_page(
    path: Path,
    data: Path | None = None,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    trust: bool = False,
    options: RecordOptions | None = None,
) -> Path:
    """Write the page of the store at ``path``, with pictures where its records are given; returns where it is.

    Raises StoreError for a store without a complete view, or that is not of these records; ImageError for a record
    shown that does not decode; ConfigError for an ``out`` that exists and is not to be overwritten; TeachonceError
    where the page cannot be written.
    """
    target = path / PAGE_NAME if out is None else out
    _check_target(target, is_default=out is None, overwrite=overwrite)
    summary, store = describe_store(path, trust=trust)
    store = store or Store(path, trust=trust)  # raises, and says what is missing
    options = options or RecordOptions()
    gallery = Gallery(store, None if data is None else open_records(data, store.plan.data["split"], options))
    selection = choose_rows(store.num_records, store.num_views, MAX_ROWS)
    with progress("inspect", selection.num_rows, unit="views") as advance:
        measures = measure_store(store, selection, advance)
    page = render_page(
        _TEMPLATE,
        **_describe_page(store, gallery, summary),
        numbers=_numbers(store, measures),
        measures=measures,
        sheet=_show_sheet(gallery),
        views=_show_views(gallery),
        suspects=_show_suspects(gallery, measures),
        contradicted_ratio=CONTRADICTED_RATIO,
        charts=_draw_charts(measures),
        shards=_compare_shards(measures),
        bytes=_list_bytes(store),
        codec=_list_codec_errors(store),
        facts=_list_facts(store, summary),
    )
    with atomic_write(target) as file:
        file.write(page.encode())
    return target


def _check_target(target: Path, *, is_default: bool, overwrite: bool) -> None:
    """Raise before anything is measured, where it is plain that the page cannot be written."""
    check_free(target, overwrite=is_default or overwrite)
    if is_default and not locate(target)[0].is_writable():
        raise TeachonceError(f"{target}: the store's folder is not writable; give a file for the page with --out")


def _describe_page(store: Store, gallery: Gallery, summary: dict[str, Any]) -> dict[str, Any]:
    """What the store is, as the sentences of several sections need it."""
    preprocessing = gallery.preprocessing
    return {
        "name": store.path.resolve().name,
        "teacher": _teacher_name(store),
        "policy": store.policy.name,
        "is_center": not store.policy.is_random,
        "codec_name": store.codec.name,
        "split": known_as(summary["split"]),
        "is_sparse": store.codec.num_kept is not None,
        "num_records": store.num_records,
        "num_views": store.num_views,
        "num_rows": store.num_records * store.num_views,
        "summary": summary,
        "usable": describe_usable(summary),
        "others_not_here": OTHERS_NOT_HERE,
        "has_data": gallery.source is not None,
        "has_names": gallery.has_names,
        "command": f"teachonce inspect {shlex.quote(str(store.path))} --html --data RECORDS",
        "preprocessing": preprocessing,
        "preprocessing_text": None if preprocessing is None else describe_preprocessing(preprocessing),
        "picture_px": SHOWN_PX,
    }


def _teacher_name(store: Store) -> str:
    """The SPEC without its options: of a run the model alone would not say which one it is."""
    spec = str(store.plan.teacher["spec"]).partition(",")[0]
    return "no teacher (imported logits)" if spec == "none" else spec


def _numbers(store: Store, measures: Measures) -> list[tuple[str, str]]:
    top1, top5, ece = measures.top1, measures.top5, measures.ece
    return [
        (f"{store.num_records:,}", "records"),
        (f"{store.num_views:,}", "views each"),
        ("-" if top1 is None else f"{top1:.2%}", "top-1"),
        *([] if top5 is None or not shows_top5(measures.num_classes) else [(f"{top5:.2%}", "top-5")]),
        ("-" if ece is None else f"{ece:.4f}", "ECE, 15 bins"),
        (f"{measures.entropy_nats:.3f}", "entropy in nats"),
        (f"{store.num_bytes() / (store.num_records * store.num_views):,.0f}", "bytes a view"),
        (_format_bytes(store.num_bytes()), "altogether"),
    ]


def _show_sheet(gallery: Gallery) -> dict[str, Any]:
    """Views of records from all over the store."""
    gallery_views = [gallery.read_view(*position) for position in gallery.choose_positions(NUM_PICTURES)]
    return {
        "cards": [prepare_view(gallery_view, gallery) for gallery_view in gallery_views],
        "num_agreed": sum(gallery_view.is_agreed or False for gallery_view in gallery_views),
        "num_labeled": sum(gallery_view.is_agreed is not None for gallery_view in gallery_views),
        "has_mixed": any(len(gallery_view.labels) > 1 for gallery_view in gallery_views),
    }


def _show_views(gallery: Gallery) -> dict[str, Any] | None:
    """The record that the middle picture of the sheet is of, in its first views; None where there is one view."""
    store = gallery.store
    if store.num_views < 2 or not store.policy.is_random:
        return None
    positions = gallery.choose_positions(NUM_PICTURES)
    shard, row, _ = positions[len(positions) // 2]
    gallery_views = [gallery.read_view(shard, row, number) for number in range(min(store.num_views, NUM_VIEWS_SHOWN))]
    pixels = gallery.read_record(shard, row)
    return {
        "filename": gallery_views[0].filename,
        "label": None if gallery_views[0].label == NO_LABEL else gallery.class_text(gallery_views[0].label),
        "picture": None if pixels is None else prepare_picture(pixels),
        "cards": [prepare_view(gallery_view, gallery) for gallery_view in gallery_views],
    }


def _show_suspects(gallery: Gallery, measures: Measures) -> list[SuspectCard]:
    contradicted = [suspect for suspect in measures.suspects if suspect.margin <= -log(CONTRADICTED_RATIO)]
    return [prepare_suspect(suspect, gallery) for suspect in contradicted]


def _draw_charts(measures: Measures) -> list[str]:
    charts = [draw_entropies(measures), draw_confidences(measures)]
    if measures.num_labeled:
        charts.append(draw_calibration(measures))
    if measures.agreement[2:].any():
        charts.append(draw_agreement(measures))
    return charts


def _compare_shards(measures: Measures) -> dict[str, Any] | None:
    """Which shards' accuracy is far from the median; None where there are not two to compare."""
    judged = [shard for shard in measures.shards if shard.sums.top1 is not None]
    if len(judged) < 2:
        return None
    rates = sorted(shard.sums.top1 or 0.0 for shard in judged)
    # Not the mean: one bad shard of a few would make the good ones stand out as well.
    median = rates[len(rates) // 2]
    deviations = sorted(((_deviation(shard, median), shard) for shard in judged), key=lambda item: -abs(item[0]))
    unusual = [item for item in deviations if abs(item[0]) > STANDING_OUT]
    return {
        "num_judged": len(judged),
        "num_unusual": len(unusual),
        "lowest": rates[0],
        "median": median,
        "highest": rates[-1],
        "standing_out": STANDING_OUT,
        "rows": [
            [shard.name, f"{shard.num_labeled:,}", f"{shard.sums.top1:.2%}", f"{deviation:+.1f}"]
            for deviation, shard in unusual[:SHARDS_SHOWN]
        ],
    }


def _deviation(shard: ShardMeasures, median: float) -> float:
    """Of a shard's accuracy from the median, in standard errors; a record counts once, as its views are alike."""
    # At least the error of one record more or less, for a median of 100 %.
    error = (max(median * (1 - median), 1 / shard.num_labeled) / shard.num_labeled) ** 0.5
    return ((shard.sums.top1 or 0.0) - median) / error


def _list_bytes(store: Store) -> dict[str, Any]:
    columns = measure_bytes(store)
    total = sum(column.bytes_per_view for column in columns)
    return {
        "bytes_per_view": total,
        "num_bytes": store.num_bytes(),
        "columns": columns,
        "kinds": {column.kind: _KINDS[column.kind] for column in columns},
        "rows": [
            [column.name, _KINDS[column.kind], f"{column.bytes_per_view:,.1f}", f"{column.bytes_per_view / total:.1%}"]
            for column in columns
        ],
    }


def _list_codec_errors(store: Store) -> dict[str, Any] | None:
    """None where the store keeps no samples of logits before the codec."""
    codec = measure_codec(store)
    if codec is None:
        return None
    has_tail = bool(codec.tail_mass)
    return {
        "text": describe_entry(store.plan.codec),
        "num_samples": codec.num_samples,
        "has_tail": has_tail,
        "rows": [
            [f"T = {t}", _format_small(mean), _format_small(codec.largest[t])]
            + ([_format_small(codec.tail_mass[t])] if has_tail else [])
            for t, mean in codec.mean.items()
        ],
    }


def _list_facts(store: Store, summary: dict[str, Any]) -> dict[str, Any]:
    teacher = dict(summary["teacher"])
    preprocessing = teacher.pop("preprocessing", None)
    facts = {f"teacher {key.replace('_', ' ')}": value for key, value in teacher.items()}
    return facts | {
        "preprocessing": preprocessing,
        "classes": f"{summary['num_classes']:,}, the first is label {summary['offset']}",
        "class names": brief_names(store.plan.class_names or ()) or None,
        "policy": describe_entry(summary["policy"]),
        "codec": describe_entry(summary["codec"]),
        "records": f"{summary['num_records']:,} of split {known_as(summary['split'])} in "
        f"{plural(summary['num_shards'], 'shard')}",
        "views": f"{summary['num_views']:,} of {summary['num_views_planned']:,} planned",
        "coverage": f"{summary['files_present']:,} of {plural(summary['files_planned'], 'file')}",
        "format": f"version {store.plan.format_version}",
        "fingerprint": store.fingerprint,
        "made with": store.versions,
    }


def _format_small(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 or value == 0 else f"{value:.0e}"


def _format_bytes(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
