"""Images and lines, one to one: whatever is doubled, missing or foreign is found and named."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.errors import LogitsError
from teachonce.interop.csv_join import LineClaims
from teachonce.interop.csv_lines import CsvLines


def write_csv(folder: Path, names: list[str]) -> CsvLines:
    (folder / "train-0.csv").write_text("".join(f"{name},1,2\n" for name in names))
    return CsvLines(folder, "train")


def claim(lines: CsvLines, names: list[str], block: int) -> None:
    claims = LineClaims(lines, "data", names.__getitem__)
    for first in range(0, len(names), block):
        claims.claim(names[first : first + block], first)
    claims.check_all()


@given(
    lines=st.sets(st.sampled_from("abcdefgh"), min_size=1),
    images=st.lists(st.tuples(st.sampled_from(["x/", "y/", ""]), st.sampled_from("abcdefgh")), min_size=1, max_size=9),
    block=st.integers(1, 4),
)
def test_it_passes_exactly_where_both_are_one_to_one(tmp_path_factory, lines, images, block):
    """Against the plain definition, over sets of names."""
    found = write_csv(tmp_path_factory.mktemp("csv"), sorted(lines))
    names = [folder + name for folder, name in images]
    basenames = [name for _, name in images]
    if set(basenames) == lines and len(set(basenames)) == len(basenames):
        claim(found, names, block)
        return
    with pytest.raises(LogitsError) as error:
        claim(found, names, block)
    message = str(error.value)
    doubled = [name for name in names if basenames.count(name.rpartition("/")[2]) > 1]
    missing = [name for name in names if name.rpartition("/")[2] not in lines]
    foreign = [f"({name})" for name in lines - set(basenames)]
    if "two images have the same basename" in message:
        assert sum(message.count(f"{name} ") > 0 for name in doubled) >= 1
        first, _, rest = message.partition(" and ")
        assert {first, rest.partition(" of ")[0]} <= set(doubled)
    elif "no line in" in message:
        assert message.partition(": ")[0] in missing
    else:
        assert any(name in message for name in foreign) and not doubled and not missing


def test_it_takes_eight_bytes_a_line(tmp_path):
    names = [f"ILSVRC2012_{index:08d}.JPEG" for index in range(20_000)]
    lines = write_csv(tmp_path, names)
    tracemalloc.start()
    try:
        claims = LineClaims(lines, "data", names.__getitem__)
        for first in range(0, len(names), 500):
            claims.claim(names[first : first + 500], first)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 8 * len(names) + 20_000
    claims.check_all()
    with pytest.raises(LogitsError, match=r"ILSVRC2012_00000007\.JPEG and x/ILSVRC2012_00000007\.JPEG of data"):
        claims.claim(["x/ILSVRC2012_00000007.JPEG"], 20_000)


def test_lines_are_found_together_as_one_by_one(tmp_path):
    names = [f"{index}.jpg" for index in np.random.default_rng(0).permutation(300)]
    lines = write_csv(tmp_path, names)
    asked = [f"folder/{index}.jpg" for index in range(300)]
    assert lines.find_all(asked).tolist() == [lines.find(name) for name in asked]
    assert [lines.read(at)[0] for at in lines.find_all(asked).tolist()] == [name[7:] for name in asked]
    assert lines.find_all([]).tolist() == []
    for name in ("zzz.jpg", "", "0.jpg2"):
        with pytest.raises(LogitsError, match=f"^{name or 'an image without a name'}: no line in"):
            lines.find_all([*asked, name])
