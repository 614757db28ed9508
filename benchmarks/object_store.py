"""Extraction from and into an object store against local folders: ratios within one run.

    python -m benchmarks.object_store --at s3://BUCKET/FOLDER --images imagenet-sample.tar \\
        --weights tf_efficientnet_lite0-imagenet.safetensors [--views N] [--rounds N] [--out FILE]

The bucket exists, and the environment says how to reach it (docs/guide/object-stores.md). The records of an archive of
TRAIN/SYNSET/*.JPEG are put there and into a local folder; then the same extraction runs in turn with records and store
here, and with both there. A run is the program from its start to the last manifest, with the teacher loaded anew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import tarfile
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks.extraction import timed
from teachonce.engine.machine import num_cores
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.interop.config import RecordsConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.imagenet import imagenet_synsets
from teachonce.records.discovery import open_records
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage
from teachonce.versions import library_versions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", required=True, help="where in an object store, such as s3://BUCKET/FOLDER")
    parser.add_argument("--images", type=Path, required=True, help="an archive of TRAIN/SYNSET/*.JPEG")
    parser.add_argument("--weights", type=Path, required=True, help="of timm's tf_efficientnet_lite0")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        table = measure(Path(folder), to_location(flags.at) / uuid.uuid4().hex[:8], flags)
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


def measure(here: Path, there: Path, flags: argparse.Namespace) -> str:
    """The table as Markdown; what was put into the object store is removed."""
    labels = here / "labels.txt"
    labels.write_text("\n".join(imagenet_synsets()) + "\n")
    with tarfile.open(flags.images) as archive:
        archive.extractall(here / "images", filter="data")
    for place in (here, there):
        convert_records(RecordsConfig(images=here / "images", labels=labels, out=place / "records", shards=8))
    num_records = open_records(here / "records", "train").num_records
    teacher = f"timm:tf_efficientnet_lite0,weights={flags.weights}"

    def extraction(place: Path) -> Callable[[], int]:
        def run() -> int:
            out = place / f"store-{uuid.uuid4().hex[:8]}"
            config = ExtractConfig(
                data=place / "records",
                teacher=teacher,
                offset=1,
                out=out,
                policy="crop",
                views=flags.views,
                gate_samples=0,
                device="cpu",
            )
            extract(config)
            return num_records * flags.views

        return run

    try:
        rows = compare(extraction(there), extraction(here), flags.rounds)
    finally:
        storage = open_storage(there)
        for name in list(storage.walk()):
            storage.delete(name)
    versions = library_versions()
    lines = [
        f"# Extraction from and into an object store, {platform.machine()}, {num_cores()} cores",
        "",
        f"`python -m benchmarks.object_store --views {flags.views} --rounds {flags.rounds} ...`, pairs in turn, "
        "teacher tf_efficientnet_lite0.",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        "| views/s there | views/s here | ratio |",
        "|---|---|---|",
        *(f"| {there:.1f} | {here:.1f} | {there / here:.3f} |" for there, here in rows),
    ]
    ratios = sorted(there / here for there, here in rows)
    lines += ["", f"Median of the ratios {ratios[len(ratios) // 2]:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})."]
    return "\n".join(lines) + "\n"


def compare(there: Callable[[], int], here: Callable[[], int], rounds: int) -> list[tuple[float, float]]:
    """(rate there, rate here) of each round, measured in turn, in the other order every second time."""
    here()
    rows = []
    for number in range(rounds):
        rates = {}
        for name, work in (("there", there), ("here", here)) if number % 2 else (("here", here), ("there", there)):
            count, seconds = timed(work)
            rates[name] = count / seconds
        rows.append((rates["there"], rates["here"]))
    return rows


if __name__ == "__main__":
    main()
