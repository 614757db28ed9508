"""Bad input around stored views, as a user meets it: one line, exit code 1 or 2, nothing guessed."""

import re
import shutil
import warnings

import numpy as np
import pytest

from teachonce.cli.main import main
from teachonce.store.store import Store
from tests.support.paths import GOLDEN
from tests.support.small_data import change_image, forge_views, remove_manifests
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.system.test_bad_input import extract, fails, train, tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("views")


@pytest.fixture(scope="module")
def data(folder):
    """Read by all tests: who changes something has a copy."""
    return write_color_shards(folder / "data", sizes=(9, 6))


@pytest.fixture(scope="module")
def teacher(folder):
    return write_color_teacher(folder / "teacher.onnx")


def run(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


@pytest.fixture(scope="module")
def extracted(folder, data, teacher):
    """Four views in two groups, half of them mixed."""
    views = ["--policy", "crop", "--views", 4, "--views-per-file", 2, "--mixup-alpha", 1, "--mix-prob", 0.5]
    run(*extract(data, teacher, folder / "store", *views))
    return folder / "store"


@pytest.fixture
def store(tmp_path, extracted):
    """A copy of it, which a test may change."""
    return shutil.copytree(extracted, tmp_path / "store")


def test_a_store_whose_views_are_incomplete(tmp_path, capsys, data, store):
    """Missing later views leave the earlier ones usable; a missing first group leaves nothing."""
    remove_manifests(store)
    (store / "train-00001-of-00002.v002-003.arrow").unlink()
    words = train(data, tmp_path / "run", "--store", store)
    fails(capsys, words, 1, "is not finished: 9 of 10 files are there; run the same extract command to resume")
    from teachonce.store.manifests import finalize_store

    assert finalize_store(store) == 2 and Store(store).num_views == 2
    fails(capsys, [*words, "--views", 4], 1, "4 views requested, the store has 2 complete ones")
    (store / "train-00000-of-00002.v000-001.arrow").unlink()
    remove_manifests(store)
    assert finalize_store(store) == 0
    fails(capsys, words, 1, "8 of 10 files are there")


def test_a_view_beyond_v(tmp_path, capsys, data, store):
    fails(
        capsys,
        train(data, tmp_path / "run", "--store", store, "--views", 5),
        1,
        "5 views requested, .* 4 complete ones",
    )
    fails(
        capsys, ["merge", store, "--data", data, "--out", tmp_path / "m", "--view", 4], 2, "--view 4: expected 0 to 3"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more, phrase",
    [
        (["--crop-scale", 0.5, 1], r"policy\.scale was \[0\.08, 1\.0\], now \[0\.5, 1\.0\]"),
        (["--policy", "crop+randaugment"], r"policy\.name was crop, now crop\+randaugment"),
        (["--mix-prob", 0.25], r"policy\.mix\.prob was 0\.5, now 0\.25"),
        (["--cutmix-alpha", 1], r"policy\.mix\.cutmix_alpha was 0\.0, now 1\.0"),
        (["--seed", 3], r"policy\.seed was 0, now 3"),
        (["--size-of-teacher"], r"preprocessing\.size_px was 16, now 20"),
    ],
)
def test_another_policy_seed_or_size(capsys, data, teacher, store, more, phrase):
    before = tree(store)
    if more == ["--size-of-teacher"]:
        teacher, more = teacher.replace("size=16,resize=16", "size=20,resize=20"), []
    views = ["--policy", "crop", "--views", 4, "--mixup-alpha", 1, "--mix-prob", 0.5]
    fails(capsys, extract(data, teacher, store, *views, *more), 1, "was started with a different plan: ", phrase)
    assert tree(store) == before


def test_views_of_another_store(tmp_path, capsys, data, teacher, store):
    out = tmp_path / "second"
    fails(capsys, extract(data, teacher, out, "--views-of", tmp_path / "nothing"), 1, "no such folder")
    run(*extract(data, teacher, tmp_path / "center"))
    capsys.readouterr()
    fails(capsys, extract(data, teacher, out, "--views-of", tmp_path / "center"), 1, "center has no random views")
    other = write_color_shards(tmp_path / "other", sizes=(9, 7))
    fails(capsys, extract(other, teacher, out, "--views-of", store), 1, "15 of 16 records are in the store; 1 are not")
    fails(capsys, extract(data, teacher, out, "--views-of", store, "--views", 9), 1, "9 views requested")
    for words in (["--policy", "crop"], ["--seed", 3], ["--flip-prob", 0.1], ["--mixup-alpha", 0.2]):
        fails(capsys, extract(data, teacher, out, "--views-of", store, *words), 2, words[0], "not given together with")
    changed = shutil.copytree(data, tmp_path / "changed")
    change_image(changed / "train-00000-of-00002", 3)
    words = extract(changed, teacher, out, "--views-of", store, "--gate-samples", 0)
    fails(capsys, words, 1, "train-0000", "the image has changed since extraction, or this is other data")
    assert not list(out.glob("train-00000-*.arrow"))


def test_an_image_that_changed_since_extraction(tmp_path, capsys, data, store):
    changed = shutil.copytree(data, tmp_path / "changed")
    change_image(changed / "train-00000-of-00002", 3)
    fails(
        capsys, train(changed, tmp_path / "run", "--store", store), 1, "record .*the image has changed since extraction"
    )


@pytest.mark.parametrize("cut", [1, 200, 100_000])
def test_a_truncated_view_file(tmp_path, capsys, data, store, cut):
    path = store / "train-00000-of-00002.v000-001.arrow"
    path.write_bytes(path.read_bytes()[: -min(cut, path.stat().st_size)])
    fails(
        capsys,
        train(data, tmp_path / "run", "--store", store),
        1,
        r"train-00000-of-00002\.v000-001\.arrow: ",
        "damaged",
    )


def test_a_store_of_an_older_format(tmp_path, capsys, teacher, data):
    """It is read (test_compat), and not extended."""
    old = tmp_path / "old"
    shutil.copytree(GOLDEN / "store-v1-int8", old)
    before = tree(old)
    words = extract(data, teacher, old, "--policy", "crop", "--views", 3)
    fails(
        capsys, words, 1, "format version 1, this teachonce writes 3: it can be read and trained from, but not extended"
    )
    assert tree(old) == before


def test_a_mix_with_a_record_that_is_not_there(tmp_path, capsys, data, store):
    """Partners are found wherever they lie; one that the data does not have is named."""
    from teachonce.views.view import Mix, View

    opened = Store(store)
    logits = np.stack([opened.read_logits(0, view, slice(None)) for view in range(2)])
    for number, partner in enumerate((int(opened.read_keys(1)[0]), 0xABC)):
        views = [[View((0, 0, 9, 9), mix=Mix(partner, 0.5))] * 9] * 2
        forge_views(store, 0, logits, views)
        words = train(data, tmp_path / f"run-{number}", "--store", store)
        if number == 0:
            run(*words)
        else:
            fails(capsys, words, 1, f"record {partner:016x} of the store .* is not in the data")


def test_boxes_that_no_crop_can_be_drawn_by(tmp_path, capsys, teacher):
    data = write_color_shards(tmp_path / "boxes", sizes=(4,), boxes=[[0.0, 0.0, 640.0, 480.0]])
    views = ["--policy", "crop", "--object-covered", 0.1, "--gate-samples", 0]
    phrases = ["train-00000-of-00001.* record 0", "a side at 640.0, expected 0 to 1", "--object-boxes image"]
    fails(capsys, extract(data, teacher, tmp_path / "store", *views), 1, *phrases)
    fails(capsys, train(data, tmp_path / "run", "--object-covered", 0.1), 1, phrases[1])
    run(*extract(data, teacher, tmp_path / "store-image", *views, "--object-boxes", "image"))
    run(*train(data, tmp_path / "run-image", "--object-covered", 0.1, "--object-boxes", "image"))


def test_options_that_cannot_be_meant(tmp_path, capsys, data, teacher, store):
    center = extract(data, teacher, tmp_path / "s")
    for words in (
        ["--mixup-alpha", 0.2],
        ["--erase-prob", 0.2],
        ["--object-covered", 0.1],
        ["--crop-scale", 0.2, 1],
        ["--flip-prob", 0],
    ):
        fails(capsys, [*center, *words], 2, f"{words[0]} ", "applies only with a --policy that draws views", "center")
    fails(capsys, [*center, "--policy", "crop", "--object-covered", 2], 2, "--object-covered 2.0: expected a prob")
    fails(capsys, [*center, "--policy", "crop", "--erase-prob", 1.5], 2, "--erase-prob 1.5: expected a probability")
    words = train(data, tmp_path / "run", "--store", store)
    fails(capsys, [*words, "--teacher", teacher], 2, "--teacher .*: expected not given together with --store")
    fails(capsys, [*words, "--cutmix-alpha", 1], 2, "--cutmix-alpha 1.0: expected 0 without --teacher")
    fails(capsys, [*words, "--store", store, "--store-weights", "1"], 2, "--store-weights 1: expected 2 finite weights")


def test_several_stores(tmp_path, capsys, teacher, data, store):
    """The same one twice, one with more views, weights said otherwise, another seed: each is said."""
    shutil.copytree(store, tmp_path / "copy")
    words = train(data, tmp_path / "run", "--store", store)
    fails(capsys, [*words, "--store", tmp_path / "copy"], 2, "copy: is the same store as .*store; give each")
    more = tmp_path / "more"
    run(*extract(data, teacher + ",mean=0.5", more, "--views-of", store, "--views", 1))
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run(*words, "--store", more, "--store-weights", "7,3")
    shown = capsys.readouterr().err
    assert re.search(r"warning: the stores differ in views \(.* has 4, .* has 1\): the first 1 of each", shown)
    run(*words, "--store", more, "--views", 1, "--store-weights", "0.7,0.3")
    again = [*words, "--store", more, "--views", 1, "--store-weights"]
    fails(capsys, [*again, "3,7"], 1, "store_weights was 7,3, now 3,7")
    other = tmp_path / "other"
    run(*extract(data, teacher, other, "--policy", "crop", "--views", 2, "--seed", 9))
    line = fails(
        capsys,
        [*words, "--store", other],
        1,
        r"classes differ from .*policy\.seed there 0, here 9.*they cannot be averaged",
    )
    assert "{" not in line
