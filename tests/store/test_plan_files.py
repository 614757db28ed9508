"""plan.json and those that follow: put once, each with the hash of the one before, and refused when they are others."""

import json
from dataclasses import replace

import pytest

from teachonce.errors import StoreError
from teachonce.storage.files import open_storage
from teachonce.storage.sealed_json import sealed_bytes
from teachonce.store.plan import group_views
from teachonce.store.plan_files import holds_store, plan_file, put_plan, read_plan, read_plans
from tests.support.paths import GOLDEN
from tests.support.small_stores import make_plan

PLANS = [make_plan(num_views=3), make_plan(num_views=5), make_plan(num_views=6)]
PLANS[1:] = [replace(plan, view_groups=group_views(plan.num_views, 2, PLANS[0].view_groups)) for plan in PLANS[1:]]
PLANS[2] = replace(PLANS[2], view_groups=group_views(6, 2, PLANS[1].view_groups))


@pytest.fixture
def path(tmp_path):
    for plan in PLANS:
        put_plan(tmp_path, plan, read_plans(tmp_path) if holds_store(tmp_path) else [])
    return tmp_path


def test_plans_are_read_in_their_order(path):
    assert [plan_file(number) for number in range(3)] == ["plan.json", "plan.001.json", "plan.002.json"]
    assert [sealed.plan for sealed in read_plans(path)] == PLANS and read_plan(path) == PLANS[2]
    for number, sealed in enumerate(read_plans(path)):
        value = json.loads((path / plan_file(number)).read_text())
        assert list(value)[-2:] == ["follows", "xxh3"] and value["xxh3"] == sealed.seal
        assert value["follows"] == (read_plans(path)[number - 1].seal if number else None)


def test_the_first_of_two_is_kept(path):
    before = (path / "plan.002.json").read_bytes()
    put_plan(path, make_plan(num_views=9), read_plans(path)[:2])
    assert (path / "plan.002.json").read_bytes() == before


@pytest.mark.parametrize("number", range(3))
def test_every_flipped_bit_is_refused(path, number):
    file = path / plan_file(number)
    good = file.read_bytes()
    for at in range(len(good)):
        for bit in (0, 5) if at % 7 == 0 else (at % 8,):
            file.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
            with pytest.raises(StoreError) as error:
                read_plans(path)
            assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
    file.write_bytes(good)
    assert read_plan(path) == PLANS[2]


def test_a_plan_that_follows_another_one_is_refused(path):
    """Another first plan under sound later ones, or one of them gone."""
    put_plan(path / "other", make_plan(num_views=3, codec={"name": "float32"}), [])
    good = (path / "plan.json").read_bytes()
    (path / "plan.json").write_bytes((path / "other" / "plan.json").read_bytes())
    with pytest.raises(StoreError, match=r"plan\.001\.json: follows the plan with hash \w+, expected \w+"):
        read_plans(path)
    (path / "plan.json").write_bytes(good)
    (path / "plan.001.json").write_bytes((path / "plan.002.json").read_bytes())
    with pytest.raises(StoreError, match=r"plan\.001\.json: follows the plan"):
        read_plans(path)
    (path / "plan.json").unlink()
    with pytest.raises(StoreError, match=r"is not a store \(it has no plan\.json\)"):
        read_plans(path)
    assert not holds_store(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"view_groups": ((0, 0), (1, 2), (3, 5))},
        {"view_groups": ((0, 1),)},
        {"shards": (("train-00000-of-00002", 5), ("train-00001-of-00002", 4))},
        {"shards": (("train-00000-of-00002", 5),)},
        {"num_samples": 7},
        {"codec": {"name": "float32"}},
        {"teacher": {"spec": "timm:x", "model": "timm:z"}},
    ],
)
def test_a_plan_that_does_not_continue_the_one_before_is_refused(path, changes):
    """Sound in itself, and sealed: what was made of the earlier one would be lost."""
    (path / "plan.002.json").unlink()
    put_plan(path, replace(PLANS[2], **changes), read_plans(path))
    with pytest.raises(StoreError, match=r"plan\.002\.json: does not continue the plan before it"):
        read_plans(path)


def test_a_newer_format_is_refused(tmp_path):
    value = make_plan().to_json() | {"format_version": 99, "follows": None, "whatever": 1}
    (tmp_path / "plan.json").write_bytes(sealed_bytes(value))
    with pytest.raises(StoreError, match="store format version 99, this teachonce reads 3"):
        read_plans(tmp_path)
    assert holds_store(tmp_path)


def test_an_older_store_has_one_plan():
    ((plan, seal),) = read_plans(GOLDEN / "store-v2-topk")
    assert plan.format_version == 2 and seal == ""


def test_an_edited_value_is_refused_even_where_it_is_sound(path):
    text = (path / "plan.json").read_text()
    (path / "plan.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StoreError, match=r"its bytes have the hash \w+, but it records \w+: damaged or edited"):
        read_plan(path)
    assert open_storage(path).has("plan.json")
