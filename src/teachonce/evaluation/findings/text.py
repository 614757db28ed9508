"""What an evaluation found as lines for people, from the JSON values that programs get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teachonce.evaluation.findings.paired import ClassChange, describe_p
from teachonce.evaluation.findings.per_class import WORST_SHOWN, ClassResult, find_worst, sort_worst
from teachonce.evaluation.findings.proportions import LEVEL
from teachonce.records.class_space import shows_top5
from teachonce.records.image_listing import known_as
from teachonce.terminal import as_text

CHANGES_SHOWN = 5
"""Classes of a comparison in each direction."""


def render_scores(scores: Mapping[str, Any]) -> str:
    """The result of ``evaluate``: a line a figure, then the worst classes, then each comparison."""
    lines = [f"model: {scores['model']}", f"split: {known_as(scores['split'])}", f"offset: {scores['offset']}"]
    lines.append(f"top1: {scores['top1']:.4f} ({LEVEL:.0%}: {scores['top1_low']:.4f} to {scores['top1_high']:.4f})")
    if shows_top5(scores["num_known_classes"]):
        lines.append(f"top5: {scores['top5']:.4f}")
    lines += [f"{name}: {scores[name]:.4f}" for name in ("balanced_accuracy", "ece")]
    lines += [f"num_records: {scores['num_records']}", f"images_per_second: {scores['images_per_second']:.4f}"]
    if scores["num_unknown_classes"]:
        lines.append(
            f"the model does not know {scores['num_unknown_classes']:,} of the classes with images: their images count "
            "as mistakes"
        )
    lines += describe_worst([ClassResult.from_json(values) for values in scores["classes"]])
    for key, kind in (("against", "model"), ("teacher", "teacher")):
        if key in scores:
            lines += _describe_comparison(scores, scores[key], kind)
    return as_text(lines)


def describe_worst(classes: Sequence[ClassResult]) -> list[str]:
    """The classes that are below the rest beyond chance, or that there is none and which is the lowest."""
    worst, lowest = find_worst(classes), sort_worst(classes)[:1]
    if worst:
        cut = "" if len(worst) <= WORST_SHOWN else f", the {WORST_SHOWN} lowest of {len(worst):,}"
        listed = (f"  {describe_class(result)}" for result in worst[:WORST_SHOWN])
        return [f"classes below the rest beyond chance{cut}:", *listed]
    if all(result.correct == result.count for result in lowest):
        return ["every answer is right"] if lowest else []
    return [f"no class is below the rest beyond chance; lowest: {describe_class(result)}" for result in lowest]


def describe_class(result: ClassResult) -> str:
    """A class as a phrase: truck: 0 of 12 right (95%: 0.00 to 0.24), 9 taken for car."""
    low, high = result.interval
    phrase = f"{result.name}: {result.correct:,} of {result.count:,} right ({LEVEL:.0%}: {low:.2f} to {high:.2f})"
    return phrase + (f", {result.wrong_count:,} taken for {result.wrong_name}" if result.wrong_count else "")


def describe_change(change: ClassChange) -> str:
    """A class that changed, as a phrase: truck -5 of 50."""
    return f"{change.name} {change.net:+,} of {change.count:,}"


def describe_changes(changes: Sequence[ClassChange], most: int) -> str:
    """The first ``most`` classes that changed as a phrase, which says of how many they are."""
    listed = ", ".join(map(describe_change, changes[:most]))
    return listed if len(changes) <= most else f"{listed} ({most} of {len(changes):,} classes)"


def _describe_comparison(scores: Mapping[str, Any], found: Mapping[str, Any], kind: str) -> list[str]:
    """Both accuracies, the difference and its test, agreement, classes gained and lost."""
    value, low, high = (100 * found["difference"][name] for name in ("value", "low", "high"))
    verdict = "beyond chance" if found["p_value"] < 1 - LEVEL else "within chance"
    other = "the teacher" if kind == "teacher" else "the other"
    lines = [
        f"{'teacher' if kind == 'teacher' else 'against'}: {found[kind]}: top1 {found['top1']:.4f}; this model "
        f"{value:+.2f} points ({LEVEL:.0%}: {low:+.2f} to {high:+.2f}), {verdict} (McNemar, {found['test']}: "
        f"{describe_p(found['p_value'])})",
        f"  same class for {found['agreement']:.4f} of the images; only this model is right on "
        f"{found['only_this_right']:,}, only {other} on {found['only_other_right']:,}",
    ]
    changes = [ClassChange(**values) for values in found["class_changes"]]
    for word, sign, ordered in (("worse", -1, changes), ("better", 1, changes[::-1])):
        beyond = [change for change in ordered if change.is_beyond_chance and sign * change.net > 0]
        if beyond:
            lines.append(f"  {word} beyond chance: {describe_changes(beyond, CHANGES_SHOWN)}")
    return lines
