"""The page of an evaluation: ``evaluate --html``, one file with everything in it.

What a single accuracy hides: which classes fail, what they are taken for, whether confidence means anything, and what
the mistakes look like. Pictures are the records' own, made small; there are at most some hundred, whatever the data.
The same findings and records give the same page, byte for byte. Here values are prepared, the words are in
``templates/evaluation.html.jinja``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from teachonce.evaluation.findings.answers import Answer
from teachonce.evaluation.findings.charts import CHART_INCHES, draw_class_accuracies
from teachonce.evaluation.findings.paired import ClassChange, PairedResult, describe_p, format_p
from teachonce.evaluation.findings.per_class import (
    WORST_SHOWN,
    class_name,
    find_worst,
    sort_worst,
)
from teachonce.evaluation.findings.proportions import LEVEL
from teachonce.evaluation.findings.tally import Findings
from teachonce.inspection.cards import SHOWN_PX, Bar, Picture, prepare_picture
from teachonce.inspection.charts import draw_reliability
from teachonce.inspection.gallery import whole_image
from teachonce.models.spec import parse_model_spec
from teachonce.pages.page import render_page
from teachonce.pixels.decode import decode_record
from teachonce.records.class_space import shows_top5
from teachonce.records.image_listing import known_as
from teachonce.records.source import RecordSource
from teachonce.terminal import one_line

MATRIX_CLASSES = 20
"""Classes up to which the confusion matrix is shown; of more it is mostly zeros, and wider than a screen."""
CLASSES_SHOWN = 20
"""Classes up to which the table of all of them is open."""
PAIRS_SHOWN = 8
"""Confusions with pictures."""
PAIRS_LISTED = 30
CHANGES_SHOWN = 10
"""Classes of a comparison in each direction."""

_TEMPLATE = "evaluation/findings/templates/evaluation.html.jinja"


@dataclass(frozen=True)
class Card:
    """An image with what was said of it."""

    picture: Picture
    filename: str
    position: str
    label: str
    bars: list[Bar]
    """The model's choice, and the label."""
    other_bars: list[Bar]
    """The same of the other; empty where there is none."""


class _Pictures:
    """Cards of images of a source, each read and decoded once."""

    def __init__(self, source: RecordSource, names: Sequence[str] | None) -> None:
        self._source = source
        self._names = names
        self._cards: dict[int, tuple[Picture, str, str]] = {}

    def card(self, answer: Answer, other: Answer | None = None) -> Card:
        picture, filename, position = self._read(answer.index)
        return Card(
            picture=picture,
            filename=filename,
            position=position,
            label=class_name(self._names, answer.label),
            bars=self._bars(answer),
            other_bars=[] if other is None else self._bars(other),
        )

    def _read(self, index: int) -> tuple[Picture, str, str]:
        if index not in self._cards:
            shard, row = self._source.locate(index)
            record = self._source.read_record(shard, row)
            picture = prepare_picture(whole_image(decode_record(record), SHOWN_PX))
            self._cards[index] = picture, one_line(record.filename), f"{self._source.shards[shard].name} row {row}"
        return self._cards[index]

    def _bars(self, answer: Answer) -> list[Bar]:
        label = Bar(class_name(self._names, answer.label), answer.label_prob, "label")
        if answer.choice == answer.label:
            return [label]
        return [Bar(class_name(self._names, answer.choice), answer.confidence, "wrong"), label]


def render_findings(findings: Findings, source: RecordSource, *, model: str, data: str) -> str:
    """The HTML; raises ImageError for an image that does not decode."""
    pictures = _Pictures(source, findings.names)
    judged = sort_worst(findings.classes)
    worst = find_worst(findings.classes)
    empty = [result for result in findings.classes if not result.count]
    return render_page(
        _TEMPLATE,
        title=parse_model_spec(model).title,
        model=model,
        data=data,
        split=known_as(source.split),
        num_records=findings.num_records,
        num_judged=len(judged),
        num_empty=len(empty),
        num_unknown=findings.num_unknown_classes,
        level=f"{LEVEL:.0%}",
        numbers=_numbers(findings),
        worst=worst[:WORST_SHOWN],
        num_worst=len(worst),
        all_classes=judged,
        is_open=len(judged) <= CLASSES_SHOWN,
        is_worst={result.label for result in worst},
        matrix=_matrix(findings),
        pairs=[
            {
                "label": class_name(findings.names, pair.label),
                "choice": class_name(findings.names, pair.choice),
                "count": pair.count,
                "of": findings.classes[pair.label].count,
                "cards": [pictures.card(answer) for answer in pair.examples],
            }
            for pair in findings.confusions[:PAIRS_SHOWN]
        ],
        more_pairs=[
            [
                class_name(findings.names, pair.label),
                class_name(findings.names, pair.choice),
                f"{pair.count:,}",
                f"{pair.count / findings.classes[pair.label].count:.1%}",
            ]
            for pair in findings.confusions[PAIRS_SHOWN:PAIRS_LISTED]
        ],
        num_pairs=findings.num_pairs,
        charts=_draw_charts(findings, len(judged)),
        calibration=_describe_calibration(findings),
        mistakes=[pictures.card(answer) for answer in findings.mistakes],
        comparisons=[_compare(comparison, findings, pictures) for comparison in findings.comparisons],
        picture_px=SHOWN_PX,
    )


def _numbers(findings: Findings) -> list[tuple[str, str]]:
    low, high = findings.top1_interval
    found = [
        (f"{findings.top1:.2%}", f"top-1 ({LEVEL:.0%}: {low:.2%} to {high:.2%})"),
        (f"{findings.balanced_accuracy:.2%}", "balanced accuracy: each class counts the same"),
    ]
    if shows_top5(findings.num_known_classes):
        found.append((f"{findings.top5:.2%}", "top-5"))
    return [
        *found,
        (f"{findings.ece:.4f}", "ECE, 15 bins"),
        (f"{findings.num_records:,}", "images"),
        (f"{sum(result.count > 0 for result in findings.classes):,}", "classes with images"),
    ]


def _matrix(findings: Findings) -> dict[str, Any] | None:
    """Rows of the confusion matrix: (class, cells of (count, part of the row)); None of more than MATRIX_CLASSES.

    Classes that no image has and none was taken for, such as a background class, are left out.
    """
    if findings.num_pairs > len(findings.confusions):
        return None  # more than so many classes can have
    counts = {(result.label, result.label): result.correct for result in findings.classes}
    counts |= {(pair.label, pair.choice): pair.count for pair in findings.confusions}
    seen = sorted(
        {result.label for result in findings.classes if result.count} | {pair.choice for pair in findings.confusions}
    )
    if len(seen) > MATRIX_CLASSES:
        return None
    rows = []
    for label in seen:
        total = findings.classes[label].count
        cells = [(counts.get((label, choice), 0), counts.get((label, choice), 0) / max(total, 1)) for choice in seen]
        rows.append({"label": label, "name": class_name(findings.names, label), "cells": cells})
    return {"labels": seen, "rows": rows}


def _draw_charts(findings: Findings, num_judged: int) -> list[str]:
    charts = [draw_reliability(findings.reliability, findings.ece, unit="images", size_inches=CHART_INCHES)]
    if num_judged > CLASSES_SHOWN:
        charts.append(draw_class_accuracies(findings.classes, findings.balanced_accuracy))
    return charts


def _describe_calibration(findings: Findings) -> dict[str, Any]:
    counts, confidences, _ = findings.reliability.sum(axis=0).tolist()
    sure, _, right = findings.reliability[-1].tolist()
    return {
        "confidence": confidences / counts,
        "accuracy": findings.top1,
        "num_sure": int(sure),
        "sure_from": 1 - 1 / len(findings.reliability),
        "sure_right": right / sure if sure else None,
    }


def _compare(found: PairedResult, findings: Findings, pictures: _Pictures) -> dict[str, Any]:
    both, only_model, only_other, neither = found.totals
    changes = found.changes(findings.names)
    return {
        "id": found.kind,
        "name": found.name,
        "detail": found.detail,
        "is_teacher": found.kind == "teacher",
        "other": "the teacher" if found.kind == "teacher" else "the other",
        "numbers": _comparison_numbers(found),
        "num_records": found.num_records,
        "p_text": describe_p(found.p_value),
        "test": found.test,
        "is_beyond_chance": found.p_value < 1 - LEVEL,
        "is_better": found.difference.value > 0,
        "num_discordant": only_model + only_other,
        "table": [(both, only_model), (only_other, neither)],
        "lost": _list_changes([change for change in changes if change.net < 0]),
        "gained": _list_changes([change for change in reversed(changes) if change.net > 0]),
        "only_other": [pictures.card(own, other) for own, other in found.only_other],
        "only_model": [pictures.card(own, other) for own, other in found.only_model],
        "num_only_other": only_other,
        "num_only_model": only_model,
    }


def _comparison_numbers(found: PairedResult) -> list[tuple[str, str]]:
    value, low, high = found.difference
    return [
        (f"{found.top1:.2%}", "top-1 of this model"),
        (f"{found.other_top1:.2%}", "top-1 of the teacher" if found.kind == "teacher" else "top-1 of the other"),
        (f"{100 * value:+.2f}", f"points apart ({LEVEL:.0%}: {100 * low:+.2f} to {100 * high:+.2f})"),
        (format_p(found.p_value), f"McNemar's p ({found.test})"),
        (f"{found.agreement:.2%}", "same class, right or wrong"),
    ]


def _list_changes(changes: Sequence[ClassChange]) -> dict[str, Any]:
    """Classes of one direction, those beyond chance first; all are counted, and CHANGES_SHOWN of them are rows."""
    # A frequent class changes by many images by chance: it is not to push out a rare one that really changed.
    ordered = sorted(changes, key=lambda change: not change.is_beyond_chance)
    return {
        "num_classes": len(changes),
        "num_beyond": sum(change.is_beyond_chance for change in changes),
        "rows": [
            [
                change.name,
                f"{change.net:+,}",
                f"{change.count:,}",
                format_p(change.p_value) + (" *" if change.is_beyond_chance else ""),
            ]
            for change in ordered[:CHANGES_SHOWN]
        ],
    }
