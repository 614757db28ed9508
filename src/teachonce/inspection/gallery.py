"""Stored views as pictures: what the teacher saw, what it predicted, and how the view was made from the record.

A ``Gallery`` reads a store and, where they are there, the records: pixels come through ``render``, as in training and
in ``verify``, at the teacher's size and with its interpolation, and every record's key and label are checked. Without
the records everything but the pixels is there. Class names are those of the records; labels are the data's.

Drawn views are chosen by a fixed seed, so the same store gives the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teachonce.codecs.softmax import log_softmax
from teachonce.errors import StoreError
from teachonce.inspection.measures import num_known, spread_evenly, top_classes
from teachonce.pixels.decode import decode_record, resize_image
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import ViewReader, render_views
from teachonce.records.source import NO_LABEL, Location, RecordSource
from teachonce.rng import generator
from teachonce.store.join import StoreJoin, invert_labels
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.terminal import one_line
from teachonce.views.operations import Operation
from teachonce.views.view import RELATIVE_ONE, Box, View

MAX_PICTURE_PX = 256
"""Longest side of a picture in the page: sharp at 160 px on a screen of fine pixels, and 15 kB as JPEG."""


@dataclass(frozen=True)
class GalleryView:
    """One stored view of a record: how it was made, the picture, and the prediction."""

    shard: int
    row: int
    number: int
    """Of the view."""
    filename: str
    label: int
    """``NO_LABEL`` where the record has none."""
    top: list[tuple[int, float]]
    """The most likely labels with their probabilities at temperature 1, most likely first."""
    label_prob: float | None
    """The teacher's probability of the label; None where the teacher has no such class."""
    view: View
    partner_label: int | None
    """Of the mix's partner."""
    image_size: tuple[int, int] | None
    """Width and height of the record's image; None without the records."""
    pixels: NDArray[np.uint8] | None
    """[S, S, 3] at the teacher's size; None where it is not in the records."""

    @property
    def labels(self) -> list[tuple[int, float]]:
        """The labels of the view with their shares: one, or two where it is mixed with a record of another class."""
        if self.view.mix is None or self.partner_label in (None, self.label):
            return [(self.label, 1.0)]
        return [(self.label, self.view.mix.share), (self.partner_label, 1 - self.view.mix.share)]

    @property
    def is_agreed(self) -> bool | None:
        """Whether the teacher's choice is the label, or of two the one with the larger share; None without a label."""
        label = max(self.labels, key=lambda item: item[1])[0]
        return None if label == NO_LABEL else self.top[0][0] == label


class Gallery:
    """Pictures of a store's views and records; raises StoreError where the records are not the store's."""

    def __init__(self, store: Store, source: RecordSource | None) -> None:
        self.store = store
        self.source = source
        views = StoredViews(store)
        self.reader = None if source is None else ViewReader(source, views)
        self.join: StoreJoin | None = None if source is None else views.join(source)[0]
        self._own_labels = invert_labels(store, None if self.join is None else self.join.labels)
        entry = store.plan.teacher.get("preprocessing")
        self.preprocessing = None if entry is None else Preprocessing.from_json(entry)
        """None where the teacher is not known, as for imported logits."""

    def class_text(self, label: int) -> str:
        """Human text of a label of the store, by the records; else its name by the store, else the number."""
        classes = None if self.source is None else self.source.classes
        # The records may number their classes otherwise.
        own = int(self._own_labels[label]) if 0 <= label < len(self._own_labels) else -1
        if classes is not None and 0 <= own < len(classes.texts):
            return one_line(classes.texts[own])
        names = self.store.plan.class_names
        return one_line(names[label]) if names is not None and 0 <= label < len(names) else f"label {label}"

    def label_text(self, label: int) -> str:
        """As ``class_text``, of a record's label, which it may not have."""
        return "no label" if label == NO_LABEL else self.class_text(label)

    @property
    def has_names(self) -> bool:
        """Whether labels have names, by the records or by the store."""
        classes = None if self.source is None else self.source.classes
        return classes is not None or self.store.plan.class_names is not None

    def choose_positions(self, count: int) -> list[tuple[int, int, int]]:
        """(shard, row, view) of ``count`` records spread evenly over the store, each in a view drawn for it."""
        rng = generator(0, "inspect", "pictures")
        records = spread_evenly(self.store.num_records, count, rng)
        views = rng.integers(0, self.store.num_views, len(records))
        return [(*self._position(int(record)), int(view)) for record, view in zip(records, views, strict=True)]

    def read_view(self, shard: int, row: int, number: int) -> GalleryView:
        """One stored view, with its pixels where the records are there."""
        store = self.store
        log_probs = log_softmax(store.read_logits(shard, number, [row]))
        probs = np.exp(log_probs[0])
        offset = store.class_space.offset
        label = int(store.read_labels(shard)[row])
        has_class = label != NO_LABEL and 0 <= label - offset < len(probs)
        image_size, pixels, partner_label = None, None, None
        (view,) = store.read_views(shard, number, [row])
        if view.mix is not None:
            partner_label = int(self._partner_label(view.mix.partner))
        location = self._locate(shard, row)
        if self.reader is not None and location is not None:
            (record_view,) = self.reader.read([location], number)
            image = decode_record(record_view.record)
            image_size = image.size
            # Imported logits come without a teacher, and so without its preprocessing.
            if self.preprocessing is None:
                pixels = whole_image(image)
            else:
                pixels = _to_bytes(render_views([record_view], self.preprocessing)[0])
        return GalleryView(
            shard=shard,
            row=row,
            number=number,
            filename=store.read_filename(shard, row),
            label=label,
            top=[(int(at) + offset, float(probs[at])) for at in top_classes(log_probs, num_known(store, 5))[0]],
            label_prob=float(probs[label - offset]) if has_class else None,
            view=view,
            partner_label=partner_label,
            image_size=image_size,
            pixels=pixels,
        )

    def read_record(self, shard: int, row: int) -> NDArray[np.uint8] | None:
        """The record's full image, its longest side at most MAX_PICTURE_PX; None where it is not in the records."""
        location = self._locate(shard, row)
        if self.source is None or self.join is None or location is None:
            return None
        record = self.source.read_record(*location)
        self.join.locate([location], [record])
        return whole_image(decode_record(record))

    def _locate(self, shard: int, row: int) -> Location | None:
        """Where the source has a record of the store; None where it does not have it."""
        return None if self.join is None else self.join.find_in_source(int(self.store.read_keys(shard)[row]))

    def _partner_label(self, key: int) -> int:
        found = self.store.locations_of(key)
        if not found:
            raise StoreError(
                f"{self.store.path}: a view is mixed with record {key:016x}, which is not in the store: damaged; "
                "extract again"
            )
        shard, row = found[0]
        return int(self.store.read_labels(shard)[row])

    def _position(self, record: int) -> tuple[int, int]:
        for shard, (_, num_records) in enumerate(self.store.shards):
            if record < num_records:
                return shard, record
            record -= num_records
        raise AssertionError(record)


def shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] with a longest side of at most MAX_PICTURE_PX."""
    return pixels if max(pixels.shape[:2]) <= MAX_PICTURE_PX else whole_image(Image.fromarray(pixels))


def describe_view(gallery_view: GalleryView, gallery: Gallery) -> list[str]:
    """What was done to the record, in the order of doing, one phrase a step; nothing for policy center."""
    view = gallery_view.view
    if view.box is None:
        return []
    left, top, right, bottom = view.box
    crop = f"crop {right - left}×{bottom - top} px at ({left}, {top})"
    if gallery_view.image_size is not None:
        width, height = gallery_view.image_size
        area = (right - left) * (bottom - top) / (width * height)
        crop += f" of {width}×{height}: {area:.0%}"
    done = [crop]
    if view.flip:
        done.append("flipped")
    done += [describe_operation(operation) for operation in view.operations]
    done += [f"erased {_relative_area(erasing.box):.0%}" for erasing in view.erasings]
    if view.mix is not None and gallery_view.partner_label is not None:
        kind = "mixup" if view.mix.box is None else "cutmix"
        done.append(f"{kind} with {format_share(1 - view.mix.share)} {gallery.label_text(gallery_view.partner_label)}")
    return done


def format_share(share: float) -> str:
    """A fraction as an integer percentage; 0 % and 100 % only where they are exact."""
    return ">99%" if 0.995 <= share < 1 else "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def describe_operation(operation: Operation) -> str:
    """An operation with its magnitude in its own unit."""
    name, magnitude = operation.name.replace("_", " "), operation.magnitude
    if operation.name == "rotate":
        return f"rotate {magnitude:+.0f}°"
    if operation.name.startswith("translate"):
        return f"{name} {magnitude:+.0%}"
    if operation.name.startswith("shear"):
        return f"{name} {magnitude:+.2f}"
    if operation.name == "solarize":
        return f"solarize from {magnitude:.0f}"
    if operation.name == "posterize":
        return f"posterize to {magnitude:.0f} bits"
    # What knows no magnitude is stored with 0; a factor of 0 is the far end of the scale and is worth saying.
    if operation.name in ("color", "contrast", "brightness", "sharpness"):
        return f"{name} ×{magnitude:.2f}"
    return name if magnitude == 0 else f"{name} {magnitude:g}"


def describe_preprocessing(preprocessing: Preprocessing) -> str:
    """How policy center takes the square from an image, as a phrase."""
    size = f"{preprocessing.size_px} px"
    if preprocessing.geometry == "central":
        return f"the central {preprocessing.crop_frac:.1%} of each side, at {size} ({preprocessing.interpolation})"
    what = "the full image squashed to" if preprocessing.geometry == "squash" else "the shorter side at"
    middle = (
        ""
        if preprocessing.resize_px == preprocessing.size_px and preprocessing.geometry == "squash"
        else (f", then the central {size}")
    )
    return f"{what} {preprocessing.resize_px} px ({preprocessing.interpolation}){middle}"


def _relative_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) / RELATIVE_ONE**2


def whole_image(image: Image.Image, most_px: int = MAX_PICTURE_PX) -> NDArray[np.uint8]:
    """A full image as pixels [H, W, 3], its longest side at most ``most_px``."""
    scale = min(1.0, most_px / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return _to_bytes(resize_image(image, width, height, interpolation="bicubic"))


def _to_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels in 0..255 as uint8; a geometry without antialiasing gives fractions."""
    return pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
