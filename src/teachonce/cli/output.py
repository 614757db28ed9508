"""How the results of programs are shown on the command line, each with the exit code that it means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from teachonce.evaluation.config import EvaluateConfig, PredictConfig
from teachonce.extraction.config import PlanConfig, VerifyConfig
from teachonce.inspection.config import InspectConfig
from teachonce.terminal import as_text, plural, print_line, print_text, print_written

if TYPE_CHECKING:
    from teachonce.evaluation.predict import Predicted
    from teachonce.extraction.verify import Verdict
    from teachonce.inspection.inspect import Inspection


def show_nothing(result: Any, config: Any) -> int:
    """Of a program that leaves files behind."""
    return 0


def show_text(text: str, config: Any) -> int:
    """Of a program whose result is what it has to say."""
    print_text(text)
    return 0


def show_plan(text: str, config: PlanConfig) -> int:
    """Of ``plan``: its table or JSON, and where its files are."""
    print_text(text)
    if config.out is not None:
        from teachonce.extraction.planning.estimate import FILE_NAMES

        print_written(*(config.out / name for name in FILE_NAMES), is_json=config.json)
    return 0


def show_inspection(inspection: Inspection, config: InspectConfig) -> int:
    """Of ``inspect``: 1 where images cannot be read."""
    print_text(inspection.text)
    return 0 if inspection.is_sound else 1


def show_verdict(verdict: Verdict, config: VerifyConfig) -> int:
    """Of ``verify``: 1 where the store is not sound."""
    checked = (
        f"{plural(verdict.num_files, 'file')}, {plural(verdict.num_keys, 'key')}, top-1 of "
        f"{plural(verdict.num_top1, 'block')}, pixels of {verdict.num_pixels:,} and logits of "
        f"{plural(verdict.num_logits, 'view')}"
    )
    if verdict.num_absent:
        are = "is" if verdict.num_absent == 1 else "are"
        checked += f" ({plural(verdict.num_absent, 'image')} of the store {are} missing from the data)"
    if config.json:
        print_text(json.dumps(verdict.to_json()))
    elif verdict.is_sound:
        error = "" if verdict.largest_error is None else f"; largest logit error {verdict.largest_error:.4g}"
        print_text(f"{config.store}: sound: {checked}{error}")
    else:
        reason = _without_store(verdict.reason, str(config.store))
        print_text(as_text(f"{config.store}: NOT sound after {checked}: {reason}".splitlines()))
    return 0 if verdict.is_sound else 1


def _without_store(reason: str, store: str) -> str:
    """A reason behind the store's name, which it need not say again: of its files the names within it are enough."""
    reason = reason.removeprefix(f"{store}: ").removeprefix(f"{store.rstrip('/')}/")
    return reason.replace(f" the store {store} ", " the store ").replace(f" the store {store}:", " the store:")


def show_predicted(predicted: Predicted, config: PredictConfig) -> int:
    """Of ``predict``, which has printed its results: 1 where an image has none."""
    if predicted.num_failed:
        print_line(
            f"teachonce: {plural(predicted.num_failed, 'image')} of {predicted.num_images:,} without a result, each "
            "named above; the results of the others are complete"
        )
    return 1 if predicted.num_failed else 0


def show_scores(scores: dict[str, Any], config: EvaluateConfig) -> int:
    """Of ``evaluate``: lines for people, or JSON; and where its files are."""
    from teachonce.evaluation.findings.text import render_scores

    print_text(json.dumps(scores) if config.json else render_scores(scores))
    print_written(*(path for path in (config.html, config.csv) if path is not None), is_json=config.json)
    return 0
