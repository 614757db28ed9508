"""Beginning a store: the same plan goes on, more views and records follow it, and everything else is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from teachonce.errors import PlanMismatchError, StoreError
from teachonce.store.begin import begin_store, check_store_folder
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Part
from teachonce.store.plan_files import read_plan, read_plans
from teachonce.store.store import Store
from tests.support.paths import GOLDEN
from tests.support.small_stores import Today, fill, make_plan, read_tree
from tests.support.trainings import PROCESSES


def test_another_plan_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "store"
    begin_store(path, make_plan(), views_per_file=2)
    begin_store(path, make_plan(), views_per_file=2)
    before = read_tree(path)
    assert list(before) == ["plan.json"]
    other = make_plan(
        teacher={"spec": "timm:y", "model": "timm:y", "weights_sha256": "cd", "precision": "float32"},
        codec={"name": "float32"},
    )
    with pytest.raises(PlanMismatchError) as error:
        begin_store(path, other, views_per_file=2)
    for phrase in (
        "teacher.model was timm:x, now timm:y",
        "the teacher's weights (--teacher): not the same then and now",
        "codec.name was int8",
    ):
        assert phrase in str(error.value)
    assert read_tree(path) == before


def test_shards_that_changed_are_named(tmp_path):
    """Where a store cannot grow, as one of imported logits."""
    plan = make_plan()
    name, *rest = plan.data["shards"][0]
    begin_store(tmp_path / "store", plan, views_per_file=2)
    shards = [[name, rest[0], rest[1] + 1], ["new", 1, 2], ["newer", 1, 2], *plan.data["shards"][2:]]
    with pytest.raises(
        PlanMismatchError, match=rf"2 added \(first: new\), 1 removed .*, 1 changed \(first: {name}\); choose"
    ):
        begin_store(tmp_path / "store", make_plan(data=plan.data | {"shards": shards}), views_per_file=2)


def test_moved_weights_are_the_same_teacher(tmp_path):
    path = tmp_path / "store"
    begin_store(path, make_plan(), views_per_file=2)
    moved = dict(make_plan().teacher, spec="timm:x,weights=/elsewhere/w.safetensors")
    begin_store(path, make_plan(teacher=moved), views_per_file=2)
    assert len(read_plans(path)) == 1


def test_more_views_leave_the_first_ones_untouched(finished):
    path, *_ = finished
    before = read_tree(path)
    plan = begin_store(path, make_plan(num_views=6), views_per_file=2)
    assert plan.view_groups == ((0, 1), (2, 2), (3, 4), (5, 5))
    # Until the new views are complete, readers see the old number.
    assert Store(path).num_views == 3
    fill(path, plan, groups=plan.view_groups[2:])
    assert finalize_store(path) == 6
    assert Store(path).num_views == 6 and Store(path).check_files() == 11
    after = read_tree(path)
    assert {name: after[name] for name in before} == before
    # Asking for fewer views again is no other plan.
    assert begin_store(path, make_plan(num_views=2), views_per_file=2) == plan
    assert read_tree(path) == after


def test_names_that_the_data_did_not_have_are_no_other_plan(tmp_path):
    path = tmp_path / "store"
    names = tuple("abcdefgh")
    begin_store(path, make_plan(), views_per_file=2)
    assert begin_store(path, make_plan(class_names=names), views_per_file=2).class_names is None
    begin_store(tmp_path / "named", make_plan(class_names=names), views_per_file=2)
    begin_store(tmp_path / "named", make_plan(), views_per_file=2)
    with pytest.raises(PlanMismatchError, match="class_names was"):
        begin_store(tmp_path / "named", make_plan(class_names=names[::-1]), views_per_file=2)


def test_a_number_of_classes_that_the_data_did_not_say_is_no_other_plan(tmp_path):
    """As where classes.json is added beside TFRecords whose --num-classes was given before."""
    path = tmp_path / "store"
    plan = make_plan()
    unnamed, named = (
        replace(plan, data=plan.data | {"num_classes": None}),
        plan.data | {"num_classes": plan.data_classes},
    )
    begin_store(path, unnamed, views_per_file=2)
    names = tuple(map(str, range(plan.data_classes)))
    begin_store(path, replace(plan, data=named, class_names=names), views_per_file=2)
    other = tmp_path / "other"
    begin_store(other, replace(plan, data=named), views_per_file=2)
    with pytest.raises(PlanMismatchError, match="num_classes was"):
        begin_store(other, replace(plan, data=named | {"num_classes": 99}), views_per_file=2)


def grown(plan, *added):
    data = plan.data | {"shards": [*plan.data["shards"], *([name, count, 50] for name, count in added)]}
    return replace(plan, data=data, shards=(*plan.shards, *added))


def test_other_data_is_refused_where_nobody_says_what_it_has_more(tmp_path):
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(), views_per_file=2)
    with pytest.raises(
        PlanMismatchError, match=r"the shards of the data changed since: 1 added \(first: more\); choose"
    ):
        begin_store(path, grown(plan, ("more", 2)), views_per_file=2)


def test_records_that_were_added_are_a_part_of_their_own(finished):
    path, *_ = finished
    before = read_tree(path)
    today = Today(("more", 2), ("train-00000-of-00002", 1))
    first = read_plan(path)
    plan = begin_store(path, grown(make_plan(num_views=3), ("more", 2)), 2, today)
    assert today.asked == [first]
    assert plan.shards == (*first.shards, ("more.p001", 2), ("train-00000-of-00002.p001", 1))
    assert plan.parts == (Part(0, 0), Part(2, 3)) and plan.view_groups == first.view_groups
    assert plan.identity == first.identity
    # Until the part has as many views as the store had, readers do not see it.
    assert Store(path).num_records == 8
    fill(path, plan, groups=plan.view_groups[:1], shards=[2, 3])
    assert finalize_store(path) == 3 and Store(path).num_records == 8
    fill(path, plan, groups=plan.view_groups[1:], shards=[2, 3])
    assert finalize_store(path) == 3
    store = Store(path)
    assert (store.num_records, store.num_views, store.check_files()) == (11, 3, 14)
    assert store.locations_of(int(store.read_keys(3)[0])) == [(3, 0)]
    after = read_tree(path)
    assert {name: after[name] for name in before} == before
    # The same data again adds nothing.
    assert begin_store(path, grown(make_plan(num_views=3), ("more", 2)), 2, today) == plan and len(today.asked) == 1


def test_data_in_other_shards_with_no_new_records_is_no_new_plan(finished):
    path, *_ = finished
    before = read_tree(path)
    plan = make_plan(num_views=3)
    other = replace(plan, data=plan.data | {"format": "folder", "shards": [["all", 8, 1]]}, shards=(("all", 8),))
    assert begin_store(path, other, 2, Today()) == read_plan(path)
    assert read_tree(path) == before


def test_more_views_and_records_at_once(finished):
    path, *_ = finished
    plan = begin_store(path, grown(make_plan(num_views=4), ("more", 2)), 2, Today(("more", 2)))
    assert plan.num_views == 4 and plan.parts == (Part(0, 0), Part(2, 3))
    fill(path, plan, groups=plan.view_groups[2:], shards=[0, 1])
    assert finalize_store(path) == 4 and (Store(path).num_views, Store(path).num_records) == (4, 8)
    fill(path, plan, groups=plan.view_groups[:2], shards=[2])
    # Readers see all records in the views that all have: none that they saw is taken away.
    assert finalize_store(path) == 3 and (Store(path).num_views, Store(path).num_records) == (3, 10)


def extend(path, num_views, start=None):
    """One of several workers: the plan that it ends with."""
    if start is not None:
        start.wait()
    return begin_store(path, make_plan(num_views=num_views), views_per_file=2)


def test_threads_that_extend_at_once_end_with_one_plan(finished):
    path, *_ = finished
    with ThreadPoolExecutor(8) as threads:
        plans = list(threads.map(lambda number: extend(path, 4 + number % 5), range(24)))
    latest = read_plan(path)
    assert latest.num_views == 8
    for plan in plans:
        # Each is a plan of the one line of plans: nobody's groups were written over.
        assert plan.view_groups == latest.view_groups[: len(plan.view_groups)]
    assert [sealed.plan for sealed in read_plans(path)][-1] == latest


@pytest.mark.parametrize("_round", range(2))
def test_processes_that_begin_at_once_end_with_one_plan(tmp_path, _round):
    start = PROCESSES.Event()
    path = tmp_path / "store"
    workers = [PROCESSES.Process(target=extend, args=(path, 2 + number % 3, start)) for number in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    plans = [sealed.plan for sealed in read_plans(path)]
    assert plans[-1].num_views == 4
    assert [file.name for file in sorted(path.glob("[!.]*"))] == sorted(
        ["plan.json", *(f"plan.{number:03d}.json" for number in range(1, len(plans)))]
    )


def test_an_older_format_is_not_extended():
    plan = make_plan(num_views=3)
    with pytest.raises(PlanMismatchError, match=r"format version 2, this teachonce writes 3.*teachonce upgrade"):
        begin_store(GOLDEN / "store-v2-topk", plan, views_per_file=2)


def test_what_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        with pytest.raises(StoreError, match="exists and is not a store"):
            begin_store(tmp_path / name, make_plan(), views_per_file=2)
        with pytest.raises(StoreError, match="exists and is not a store"):
            check_store_folder(tmp_path / name)
    (tmp_path / "free").mkdir()
    for name in ("free", "not-there"):
        check_store_folder(tmp_path / name)
    assert not list((tmp_path / "free").iterdir()) and not (tmp_path / "not-there").exists()
