"""Going on with the same plan, and saying what differs where it is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from teachonce.errors import ConfigError, PlanMismatchError, TeachonceError
from teachonce.storage.resume import PlanFile, plan_differences

PLAN: dict[str, Any] = {"seed": 0, "teacher": {"spec": "a", "size": 224}, "shards": [["a", 1], ["b", 2]]}


def plan_file(folder: Path, **options: Any) -> PlanFile:
    return PlanFile(folder=folder, name="plan.json", foreign=ConfigError("not ours"), **options)


def test_the_first_call_writes_and_the_next_ones_agree(tmp_path: Path) -> None:
    file = plan_file(tmp_path / "deep" / "out")
    assert file.read() is None and file.check(PLAN) is None and not file.folder.exists()
    assert file.begin(PLAN) == PLAN
    assert json.loads((file.folder / "plan.json").read_text()) == PLAN
    as_tuples = PLAN | {"shards": (("a", 1), ("b", 2))}
    assert file.begin(as_tuples) == file.check(as_tuples) == file.read() == PLAN


def test_another_plan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = plan_file(tmp_path, what="thing", advice="go elsewhere")
    file.begin(PLAN)
    with pytest.raises(PlanMismatchError) as caught:
        file.begin(PLAN | {"seed": 1, "teacher": {"spec": "a", "size": 300}, "new": True})
    assert str(caught.value) == (
        f"{tmp_path}: was started with a different thing: seed was 0, now 1; teacher.size was 224, now 300; "
        "new was None, now True; go elsewhere"
    )
    assert file.read() == PLAN


def test_what_may_differ_and_what_an_old_plan_lacks(tmp_path: Path) -> None:
    file = plan_file(tmp_path, may_differ=frozenset({"teacher.spec", "seed"}), defaults={"speed": 3, "other": 1})
    file.begin(PLAN)
    moved = PLAN | {"seed": 9, "speed": 3, "teacher": {"spec": "b", "size": 224}}
    assert file.begin(moved) == PLAN, "the first one's plan counts"
    with pytest.raises(PlanMismatchError, match="a different plan: speed was 3, now 4; choose another --out"):
        file.begin(moved | {"speed": 4})


def test_the_first_of_two_at_once_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one wrote between the look and the writing."""
    file, find = plan_file(tmp_path), PlanFile.check_folder

    def write_meanwhile(self: PlanFile) -> None:
        find(self)
        (tmp_path / "plan.json").write_text(json.dumps(PLAN | {"seed": 5}))

    monkeypatch.setattr(PlanFile, "check_folder", write_meanwhile)
    with pytest.raises(PlanMismatchError, match="seed was 5, now 0"):
        file.begin(PLAN)
    assert file.read() == PLAN | {"seed": 5}


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"^not ours$"):
        plan_file(tmp_path).begin(PLAN)
    with pytest.raises(ConfigError, match=r"^not ours$"):
        plan_file(tmp_path / "thesis.tex").check_folder()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    mine = plan_file(tmp_path, is_foreign=lambda names: "thesis.tex" not in names)
    assert mine.begin(PLAN) == PLAN
    plan_file(tmp_path).check_folder()  # with a plan it is ours, whatever lies beside it


def test_hidden_files_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    assert plan_file(tmp_path).begin(PLAN) == PLAN


@pytest.mark.parametrize("content", ["[]", "3"])
def test_a_plan_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(TeachonceError, match=r"plan\.json: is not a plan; expected a JSON object"):
        plan_file(tmp_path).begin(PLAN)


def test_long_values_are_cut_and_long_lists_counted() -> None:
    (phrase,) = plan_differences({"a": "x" * 500}, {"a": "y"})
    assert phrase.startswith("a was xxx") and phrase.endswith("..., now y") and len(phrase) < 120
    long = [[f"shard-{index}", index] for index in range(100)]
    assert plan_differences({"a": {"b": long}}, {"a": {"b": long[:50]}}) == ["a.b: 50 of 100 entries differ"]
    assert plan_differences({"a": {"b": long}}, {"a": {"b": [*long[:99], 0]}}) == ["a.b: 1 of 100 entries differ"]
    assert plan_differences({"a": [1, 2]}, {"a": [1]}) == ["a was [1, 2], now [1]"]
    assert plan_differences({"a": {"b": 1}}, {"a": None}) == ["a.b was 1, now None"]


def test_hashes_are_never_shown_but_what_they_are_of() -> None:
    """People cannot compare them: what differs is said by name, of a setting that nobody named by its own."""
    one, other = "ab" * 16, "cd" * 16
    hashes = {"store": "the store (--store)", "data.shards": lambda old, new: f"{old['n']} then, {new['n']} now"}
    old = {"store": one, "data": {"shards": one, "n": 1}, "x": "12" * 8, "y": None, "both": f"{one}+{other}", "lr": 1}
    new = {"store": other, "data": {"shards": other, "n": 2}, "x": "34" * 8, "y": one, "both": one, "lr": 2}
    assert plan_differences(old, new, frozenset({"data.n"}), hashes=hashes) == [
        "the store (--store): not the same then and now",
        "1 then, 2 now",
        "x: not the same then and now",
        "y: none then",
        "both: not the same then and now",
        "lr was 1, now 2",
    ]
    assert plan_differences({"a": one}, {"a": other}, words=("there", "here")) == ["a: not the same there and here"]
    assert plan_differences({"a": one}, {}) == ["a: none now"]


def test_inputs_that_changed_are_no_other_settings(tmp_path: Path) -> None:
    hashes = {"store": "the store (--store)"}
    file = plan_file(tmp_path, hashes=hashes, advice_on_inputs="restore it")
    file.begin(PLAN | {"store": "ab" * 16})
    with pytest.raises(PlanMismatchError) as error:
        file.begin(PLAN | {"store": "cd" * 16})
    found = "the store (--store): not the same then and now"
    assert str(error.value) == f"{tmp_path}: was started with other inputs: {found}; restore it"
    with pytest.raises(
        PlanMismatchError, match=r"a different plan: seed was 0, now 1; the store .* and now; choose another"
    ):
        file.begin(PLAN | {"store": "cd" * 16, "seed": 1})
