"""How many images have another label than in the store is said, and from where on it is no relabeling."""

import warnings

import numpy as np
import pytest

from teachonce.errors import StoreError
from teachonce.records.discovery import open_records
from teachonce.store.join import StoreJoin
from teachonce.store.relabeling.labels import LABEL_SAMPLE, MOST_RELABELED, LabelSample, compare_labels
from tests.support.small_data import example, write_shards, write_store

NUM_RECORDS = 160
SIZES = (80, 80)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    payloads = [example(index, 1 + index % 3) for index in range(NUM_RECORDS)]
    return write_store(folder / "store", open_records(write_shards(folder / "data", SIZES, payloads=payloads), "train"))


def relabeled(folder, indices):
    """The data of the store, of which these records have the next class."""
    changed = set(indices)
    payloads = [example(index, 1 + (index + (index in changed)) % 3) for index in range(NUM_RECORDS)]
    return open_records(write_shards(folder, SIZES, payloads=payloads), "train")


def draw(share):
    return np.random.default_rng(0).permutation(NUM_RECORDS)[: round(share * NUM_RECORDS)].tolist()


def test_a_few_are_a_relabeling_and_their_share_is_said(tmp_path, store):
    source = relabeled(tmp_path / "data", draw(0.1))
    sample = compare_labels(store, source)
    assert sample.num_compared == LABEL_SAMPLE and 1 <= sample.num_different <= 16
    share = f"about {100 * sample.num_different / LABEL_SAMPLE:.0f} % of all"
    with pytest.warns(UserWarning) as seen:
        join = StoreJoin(store, source)
    (message,) = (str(warning.message) for warning in seen)
    assert message.startswith(f"{store.path}: {sample.num_different} of 64 sampled images ({share}) have another label")
    assert message.count("record ") == 1, "one example"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        locations = source.locate_all(np.arange(NUM_RECORDS))
        join.locate(locations, source.read_batch(locations))
    assert len(join.relabeled) == 16


@pytest.mark.parametrize("share", [0.4, 0.5, 1.0])
def test_a_large_share_is_refused(tmp_path, store, share):
    """40 % trained with one warning of one image when one half was the limit."""
    source = relabeled(tmp_path / "data", draw(share))
    with pytest.raises(StoreError, match=r"\d+ of 64 sampled images \(about \d+ % of all\) .*expected at most 25 %"):
        StoreJoin(store, source)


def test_classes_in_turn_do_not_hide_which_differ(tmp_path, store):
    """Records a fixed step apart would all be of one class, here of one that keeps its labels."""
    indices = [index for index in range(NUM_RECORDS) if index % 5]
    sample = compare_labels(store, relabeled(tmp_path / "data", indices))
    assert abs(sample.num_different / sample.num_compared - 0.8) < 0.2  # 4 standard errors


def test_one_that_the_sample_has_not_is_said_when_it_is_read(tmp_path, store):
    source = relabeled(tmp_path / "none", [])
    locations = source.locate_all(np.arange(NUM_RECORDS))
    for index in range(NUM_RECORDS):
        other = relabeled(tmp_path / "one", [index])
        if not compare_labels(store, other).num_different:
            break
        for path in (tmp_path / "one").iterdir():
            path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        join = StoreJoin(store, other)
    with pytest.warns(
        UserWarning, match="none of 64 sampled images differs, so probably fewer than 5 % of all"
    ) as seen:
        join.locate(locations, other.read_batch(locations))
    assert len(seen) == 1 and len(join.relabeled) == 1


@pytest.mark.parametrize(("compared", "most"), [(1, 0), (4, 2), (31, 15), (32, 8), (64, 16)])
def test_where_the_limit_is(compared, most):
    """Of few records a quarter is passed by chance, so one half counts."""
    assert LabelSample("store", compared, most, "").is_relabeling
    assert not LabelSample("store", compared, most + 1, "").is_relabeling


def test_the_limit_is_as_far_from_a_relabeling_as_from_shuffled_labels():
    errors = [abs(share - MOST_RELABELED) / (share * (1 - share) / LABEL_SAMPLE) ** 0.5 for share in (0.1, 0.5)]
    assert errors == pytest.approx([4.0, 4.0])
