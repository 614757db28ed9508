"""A plan: whatever stands in it is a plan, or one line that names the field."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teachonce.errors import RecordError, StoreError
from teachonce.records.discovery import open_records
from teachonce.records.source import NO_LABEL, Record
from teachonce.store.plan import Part, Plan, describe_data, group_views, teacher_name
from teachonce.views.policy import CropPolicy, RandAugment, RandomMix, policy_to_json
from tests.store.test_legacy import FREE, OPTIONAL, OTHER_VALUES, edited, nodes
from tests.support.small_data import write_shards
from tests.support.small_stores import make_plan

FULL = make_plan(
    num_views=3,
    class_names=tuple("abcdefgh"),
    num_samples=2,
    parts=(Part(0, 0), Part(1, 3)),
    teacher=make_plan().teacher | {"num_parameters": 5, "preprocessing": {"mean": [0.5]}},
)
DEFAULTS = {"signal", "class_names", "num_samples", "parts", "num_classes"}


def content() -> Any:
    return json.loads(json.dumps(FULL.to_json()))


def refused(value: Any) -> str:
    with pytest.raises(StoreError) as error:
        Plan.from_json(value, "WHERE")
    line = str(error.value)
    assert line.startswith("WHERE: ") and "\n" not in line
    return line


def test_it_comes_back_as_it_was() -> None:
    assert Plan.from_json(content(), "x") == FULL
    assert Plan.from_json(make_plan().to_json(), "x") == make_plan()
    assert next(iter(content())) == "format_version" and content()["format_version"] == 3


def test_any_other_value_anywhere_gives_a_plan_or_one_line() -> None:
    for path, _ in nodes(content()):
        for other in OTHER_VALUES:
            changed = edited(content(), path, lambda container, key, other=other: container.__setitem__(key, other))
            try:
                Plan.from_json(changed, "WHERE")
            except StoreError as error:
                assert str(error).startswith("WHERE: ") and "\n" not in str(error), (path, other)


def test_values_of_another_type_are_refused_with_their_field() -> None:
    for path, value in nodes(content()):
        if not path or any(key in FREE for key in path[:-1]):
            continue
        key = next(key for key in reversed(path) if isinstance(key, str))
        wrong = [{}, [], "text"] if isinstance(value, int | float) else [1, 1.5] if isinstance(value, str) else ["text"]
        for other in [*wrong, *([] if isinstance(value, bool) else [True])]:
            changed = edited(content(), path, lambda container, key, other=other: container.__setitem__(key, other))
            line = refused(changed)
            words = {"format_version": "store format version", "name": "codec "}
            assert key in line or words.get(key, key) in line, (path, other)


def test_missing_and_unknown_keys_and_numbers_that_are_none() -> None:
    for path, value in nodes(content()):
        if isinstance(value, dict) and not (path and path[-1] in FREE):
            changed = edited(content(), path, lambda container, key: container[key].update(newest=1))
            assert "newest: unknown here" in refused(changed), path
        if path and isinstance(path[-1], str) and path[-1] not in OPTIONAL | DEFAULTS and path[0] != "policy":
            changed = edited(content(), path, lambda container, key: container.pop(key))
            if not (path[0] == "teacher" and len(path) > 2):
                assert path[-1] in refused(changed) or path[-1] in ("format_version", "name"), path
        if path and isinstance(value, int | float):
            changed = edited(content(), path, lambda container, key: container.__setitem__(key, math.nan))
            refused(changed)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "none, expected at least one"),
        ([[1, 2]], "views 1 to 2, expected those from 0 on"),
        ([[0, 1], [3, 4]], "views 3 to 4, expected those from 2 on"),
        ([[0, 1], [1, 2]], "views 1 to 2, expected those from 2 on"),
        ([[0, 1], [2, 1]], "views 2 to 1, expected those from 2 on"),
    ],
)
def test_groups_of_views_follow_each_other(groups: list[list[int]], message: str) -> None:
    assert f"view_groups: {message}" in refused(content() | {"view_groups": groups})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": [["a", 1], ["a", 2]]}, "shards: a name occurs twice"),
        ({"shards": [["../a", 1], ["b", 2]]}, "shards: '../a' leads to another folder"),
        ({"shards": [["a\nb", 1], ["b", 2]]}, r"shards: 'a\nb' has a control character"),
        ({"shards": []}, "parts: begin with the shards [0, 1], expected rising numbers from 0 below 0"),
        ({"parts": []}, "parts: begin with the shards []"),
        ({"parts": [[0, 1]]}, "parts: the first has min_views, expected [0, 0]"),
        ({"shards": [[".tmp-1", 1], ["b", 2]]}, "shards: '.tmp-1' begins as files in the making do"),
        ({"data_classes": 0}, "data_classes: expected `int` >= 1"),
        ({"parts": [[1, 0]]}, "parts: begin with the shards [1]"),
        ({"parts": [[0, 0], [0, 0]]}, "parts: begin with the shards [0, 0]"),
        ({"parts": [[0, 0], [2, 0]]}, "parts: begin with the shards [0, 2]"),
        ({"class_names": ["a", "b"]}, "class_names: expected one for each of data_classes"),
    ],
)
def test_shards_parts_and_names_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    assert message in refused(content() | changes)


POLICY = policy_to_json(CropPolicy(randaugment=RandAugment(), mix=RandomMix(mixup_alpha=1.0))) | {"seed": 0}


@pytest.mark.parametrize("path", ["scale", "ratio", "flip_prob", "seed", "randaugment.magnitude_std", "mix.prob"])
def test_a_policy_has_all_of_its_parameters(path: str) -> None:
    """A default would be one of this version; the older formats, which had them, may lack some."""
    value = content() | {"policy": json.loads(json.dumps(POLICY))}
    Plan.from_json(value, "WHERE")
    outer, _, inner = path.rpartition(".")
    del (value["policy"][outer] if outer else value["policy"])[inner]
    assert f"policy: object missing required field `{path}`" in refused(value)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"name": "center", "seed": 0}, "policy: seed: unknown here, center draws nothing"),
        (POLICY | {"erasing": None}, "policy: erasing: expected `object`, got `null`"),
    ],
)
def test_a_policy_has_nothing_that_means_nothing(policy: dict[str, Any], message: str) -> None:
    assert message in refused(content() | {"policy": policy})


def test_the_known_fields_are_all_that_there_may_be() -> None:
    plan, teacher, policy = content() | {"newest": 1}, content(), content()
    teacher["teacher"]["newest"] = policy["policy"]["newest"] = 1
    assert ", shards, parts, follows)" in refused(plan)
    assert "preprocessing, lines, csv_xxh3, drop)" in refused(teacher)
    assert "erasing, mix, seed)" in refused(policy)


def test_a_split_that_is_no_name_is_refused() -> None:
    value = content()
    value["data"]["split"] = "a/b"
    assert "data.split: 'a/b' leads to another folder" in refused(value)


def test_the_identity_is_that_of_the_numbers() -> None:
    """The same for each plan of a store, and wherever the weights lie; another one for whatever changes a number."""
    moved = replace(FULL, teacher=FULL.teacher | {"spec": "timm:x,weights=/elsewhere"})
    longer = replace(FULL, view_groups=group_views(9, 2, FULL.view_groups), shards=(*FULL.shards, ("c", 1)))
    assert FULL.identity == moved.identity == longer.identity == Plan.from_json(content(), "x").identity
    others = [
        replace(FULL, codec={"name": "float32"}),
        replace(FULL, teacher=FULL.teacher | {"weights_sha256": "cd"}),
        replace(FULL, policy=FULL.policy | {"seed": 1}),
        replace(FULL, data_classes=9, class_names=None),
    ]
    assert len({plan.identity for plan in [FULL, *others]}) == 5


def test_the_files_of_a_plan() -> None:
    plan = make_plan(num_views=3, num_samples=1)
    a, b = (name for name, _ in plan.shards)
    assert list(plan.files()) == [
        *(f"{a}.records.arrow", f"{b}.records.arrow"),
        *(f"{a}.v000-001.sample.arrow", f"{a}.v000-001.arrow", f"{b}.v000-001.sample.arrow", f"{b}.v000-001.arrow"),
        *(f"{a}.v002-002.sample.arrow", f"{a}.v002-002.arrow", f"{b}.v002-002.sample.arrow", f"{b}.v002-002.arrow"),
    ]
    assert plan.group_of(1) == (0, 1) and plan.group_of(2) == (2, 2)
    assert FULL.part_shards(0) == range(1) and FULL.part_shards(1) == range(1, 2)


def test_labels_of_records_are_those_of_the_data() -> None:
    for label in (0, 7, NO_LABEL):
        FULL.check_label(Record(b"", label, "a.jpg", 1, "here"))
    for label in (8, -2):
        with pytest.raises(RecordError, match=rf"here: label {label}, expected 0 to 7"):
            FULL.check_label(Record(b"", label, "a.jpg", 1, "here"))


@pytest.mark.parametrize(
    "num_classes, advice", [(None, "if labels count from 1, give --label-offset -1, else "), (8, "")]
)
def test_a_label_one_too_high_is_of_labels_from_1(num_classes: int | None, advice: str) -> None:
    """Unless the data has names for them: their positions count from 0."""
    plan = replace(FULL, data={**FULL.data, "num_classes": num_classes})
    with pytest.raises(RecordError, match=f"expected 0 to 7; {advice or 'give '}--num-classes or --offset that fit"):
        plan.check_label(Record(b"", 8, "a.jpg", 1, "here"))


def test_what_a_plan_says_of_data(tmp_path: Path) -> None:
    source = open_records(write_shards(tmp_path / "data"), "train")
    described = describe_data(source, 4)
    assert described["shards"] == (("train-00000-of-00002", 5), ("train-00001-of-00002", 3))
    assert described["class_names"] == ("background", "class0", "class1", "class2")
    assert described["data"] == source.describe()
    assert describe_data(source)["class_names"] is not None and describe_data(source, 5)["class_names"] is None
    source.classes = None
    assert describe_data(source, 4)["class_names"] is None


@pytest.mark.parametrize(
    "spec, name",
    [
        ("run:a/b,size=64", "run:a/b"),
        ("run:a/b,epoch=best,size=64", "run:a/b,epoch=best"),
        ("run:a,epoch=last", "run:a"),
    ],
)
def test_the_best_epochs_teacher_has_a_name_of_its_own(spec: str, name: str) -> None:
    assert teacher_name({"model": "run", "spec": spec}) == name
