"""Two editions of one data set, as docs/guide/imagenet-editions.md has it: which records differ, how logits move."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from teachonce.cli.main import main
from teachonce.errors import RecordError, StoreError
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from tests.support.paths import DOCS
from tests.support.small_data import build_dataset, write_image_folder, write_store

PAGE = (DOCS / "guide" / "imagenet-editions.md").read_text()


@pytest.fixture
def editions(tmp_path, monkeypatch):
    """In the working directory: raw, with one PNG among its 12 images; records, where it is a JPEG; kept."""
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "raw")
    image = tmp_path / "raw/train/class1/train_1_2.jpg"
    decode_image(image.read_bytes()).save(image, "PNG")
    for out, keep in (("records", []), ("kept", ["--keep"])):
        run("records", "--images", "raw", "--out", out, "--shards", "2", *keep)
    return tmp_path


def run(*words):
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert not end.value.code


def test_the_pages_code_names_the_records_that_differ(editions):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for name, expected in (("records", "train_1_2.jpg"), ("kept", "")):
        code = block.replace('keys("records")', f'keys("{name}")')
        printed = subprocess.run([sys.executable, "-c", code], cwd=editions, capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == expected


def read_all(records, store):
    dataset = build_dataset(open_records(records, "train"), size=8, store=Store(store))
    return {index: dataset.read_batch([index], 0)["teacher_logits"] for index in range(len(dataset))}


def test_fixed_logits_move_to_another_edition_through_csv(editions):
    write_store(editions / "store", open_records(editions / "records", "train"))
    shutil.copytree("kept", "other-edition")
    with pytest.raises((RecordError, StoreError)):
        read_all(editions / "other-edition", editions / "store")
    (block,) = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) if "import" in block]
    for line in block.splitlines():
        run(*line.split()[1:])
    moved = read_all(editions / "other-edition", editions / "store-of-the-other")
    own = read_all(editions / "records", editions / "store")
    # The two have one order, so an index is one image.
    assert moved.keys() == own.keys()
    for index, logits in own.items():
        # A float32 as decimal digits.
        np.testing.assert_allclose(moved[index], logits, rtol=1e-7)
