"""What ``start`` looks at: splits, classes, counts, and the sizes of some images, read by their headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from teachonce.cli.config import StartConfig
from teachonce.errors import ConfigError, ImageError
from teachonce.pixels.decode import image_size
from teachonce.records.discovery import find_split, named_splits, open_records
from teachonce.records.image_listing import VALIDATION_NAMES
from teachonce.records.options import RecordOptions
from teachonce.records.sample import sample_locations
from teachonce.records.source import NO_LABEL, Record, RecordSource

SAMPLE = 512
"""Images whose sizes are looked at."""
READ_AT_ONCE = 64
LEAST_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is there of the split to train on, before a validation split is held out."""

    num_records: int
    format: str
    has_validation: bool
    """Whether the data has a validation split of its own."""
    labeled: Literal["all", "some", "none"]
    class_names: tuple[str, ...]
    """() where the data does not name them."""
    has_background: bool
    counts: tuple[int, ...]
    """Images of each label that occurs, fewest first; of the sample alone where not ``is_counted``."""
    is_counted: bool
    largest_label: int
    """NO_LABEL where no label was seen."""
    sides_px: tuple[int, int, int]
    """Least, median and most of the images' shorter sides."""
    mean_bytes: int
    num_sampled: int
    num_odd: int
    """Files of the sample that are no image."""

    @property
    def num_classes(self) -> int:
        """Classes without background, as well as known."""
        return len(self.class_names) or self.largest_label + 1


def find_out(config: StartConfig) -> Findings:
    """Open the data and read a sample; raises what ``open_records`` does, ConfigError where there is too little."""
    if config.val_fraction:
        # Refused where there is a validation split, as the commands would be.
        find_split(config.data, VALIDATION_NAMES[0], config)
    options = RecordOptions(
        **{name: getattr(config, name) for name in ("labels", "image_feature", "label_feature", "label_offset")}
    )
    source = open_records(config.data, config.split, options)
    if source.num_records < LEAST_IMAGES:
        raise ConfigError(
            f"{config.data}: {source.num_records} images in split {config.split}, expected at least {LEAST_IMAGES}"
        )
    sides, sizes, sampled, num_odd = [], [], Counter[int](), 0
    for record in _sample(source):
        sampled[record.label] += 1
        sizes.append(len(record.encoded))
        try:
            sides.append(min(image_size(record.encoded)))
        except ImageError:
            num_odd += 1
    if not sides:
        raise ConfigError(f"{config.data}: none of {len(sizes)} files of split {config.split} is an image")
    known = _count_known(source)
    counts = sampled if known is None else known
    counts.pop(NO_LABEL, None)
    table = source.classes
    return Findings(
        num_records=source.num_records,
        format=source.format,
        has_validation=_has_validation(config, options),
        labeled=source.labeled,
        class_names=() if table is None else table.names[int(table.has_background) :],
        has_background=table is not None and table.has_background,
        counts=tuple(sorted(counts.values())),
        is_counted=known is not None,
        largest_label=max(counts, default=NO_LABEL),
        sides_px=(min(sides), int(np.median(sides)), max(sides)),
        mean_bytes=sum(sizes) // len(sizes),
        num_sampled=len(sizes),
        num_odd=num_odd,
    )


def _has_validation(config: StartConfig, options: RecordOptions) -> bool:
    return any(name.lower() in VALIDATION_NAMES for name in named_splits(config.data, options))


def _sample(source: RecordSource) -> Iterator[Record]:
    locations = sample_locations(source, SAMPLE, 0)
    for start in range(0, len(locations), READ_AT_ONCE):
        yield from source.read_batch(locations[start : start + READ_AT_ONCE])


def _count_known(source: RecordSource) -> Counter[int] | None:
    """Labels of all records, where they are known without reading these."""
    counts = Counter[int]()
    for shard in range(len(source.shards)):
        labels = source.known_labels(shard)
        if labels is None:
            return None
        counts.update(labels.tolist())
    return counts
