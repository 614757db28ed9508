"""What the cards of a store's page show, as plain data: a picture, its label, and the teacher's prediction.

Their layout is in ``templates/cards.html.jinja``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teachonce.inspection.gallery import Gallery, GalleryView, describe_view, format_share, shrink
from teachonce.inspection.measures import Suspect
from teachonce.pages.pictures import picture_uri
from teachonce.records.source import NO_LABEL
from teachonce.terminal import one_line
from teachonce.views.view import CENTER

SHOWN_PX = 160
"""Longest side of a picture on the page."""


@dataclass(frozen=True)
class Picture:
    """Pixels as data, and the size at which they are shown."""

    uri: str
    width: int
    height: int
    is_enlarged: bool


@dataclass(frozen=True)
class Bar:
    """A class with its probability."""

    text: str
    prob: float | None
    """None where the teacher has no such class."""
    kind: str
    """``label``, ``wrong`` (the teacher's choice, where it is not the label), ``rest`` (not among the most likely)."""


@dataclass(frozen=True)
class ViewCard:
    """A stored view."""

    picture: Picture | None
    """None without the records."""
    filename: str
    shard: str
    row: int
    number: int
    """Of the view."""
    labels: list[tuple[str, str]]
    """(share, class); no share where there is one label. Empty where there is none."""
    is_agreed: bool | None
    """None without a label."""
    choice: str
    choice_prob: float
    bars: list[Bar]
    steps: list[str]
    """What was done to the record; empty where every card would say the same."""


@dataclass(frozen=True)
class SuspectCard:
    """A record whose label the teacher contradicts."""

    picture: Picture | None
    """The full image; None without the records."""
    filename: str
    shard: str
    row: int
    label: str
    choice: str
    bars: list[Bar]
    """Of both classes, mean probabilities."""
    nats_apart: float
    num_views: int


def prepare_view(gallery_view: GalleryView, gallery: Gallery) -> ViewCard:
    """The card of a stored view."""
    choice, choice_prob = gallery_view.top[0]
    has_one_label = len(gallery_view.labels) == 1
    # Where nothing was drawn, in the one view that there is, nothing was done that the page does not say above.
    is_plain = gallery_view.view == CENTER and gallery.store.num_views == 1
    return ViewCard(
        picture=None if gallery_view.pixels is None else prepare_picture(gallery_view.pixels),
        filename=one_line(gallery_view.filename),
        shard=gallery.store.shards[gallery_view.shard][0],
        row=gallery_view.row,
        number=gallery_view.number,
        labels=[
            ("" if has_one_label else format_share(share), gallery.label_text(label))
            for label, share in gallery_view.labels
            if not has_one_label or label != NO_LABEL
        ],
        is_agreed=gallery_view.is_agreed,
        choice=gallery.class_text(choice),
        choice_prob=choice_prob,
        bars=_prepare_bars(gallery_view, gallery),
        steps=[] if is_plain else [f"view {gallery_view.number}", *describe_view(gallery_view, gallery)],
    )


def prepare_suspect(suspect: Suspect, gallery: Gallery) -> SuspectCard:
    """The card of a suspect."""
    label, choice = gallery.class_text(suspect.label), gallery.class_text(suspect.choice)
    pixels = gallery.read_record(suspect.shard, suspect.row)
    return SuspectCard(
        picture=None if pixels is None else prepare_picture(pixels),
        filename=one_line(gallery.store.read_filenames(suspect.shard)[suspect.row]),
        shard=gallery.store.shards[suspect.shard][0],
        row=suspect.row,
        label=label,
        choice=choice,
        bars=[Bar(choice, suspect.choice_prob, "wrong"), Bar(label, suspect.label_prob, "label")],
        nats_apart=-suspect.margin,
        num_views=suspect.num_views,
    )


def prepare_picture(pixels: NDArray[np.uint8]) -> Picture:
    """At most SHOWN_PX; a small picture is enlarged by an integer factor, so that each of its pixels is a square."""
    pixels = shrink(pixels)
    height, width = pixels.shape[:2]
    factor = SHOWN_PX // max(width, height) or SHOWN_PX / max(width, height)
    return Picture(picture_uri(pixels), round(width * factor), round(height * factor), is_enlarged=factor > 1)


def _prepare_bars(gallery_view: GalleryView, gallery: Gallery) -> list[Bar]:
    """The most likely classes, most likely first, and the label where it is none of them."""
    labels = {label for label, _ in gallery_view.labels if label != NO_LABEL}
    bars = []
    for index, (label, prob) in enumerate(gallery_view.top):
        kind = "label" if label in labels else "" if index or not labels else "wrong"
        bars.append(Bar(gallery.class_text(label), prob, kind))
    if gallery_view.label != NO_LABEL and gallery_view.label not in dict(gallery_view.top):
        kind = "rest" if gallery_view.label_prob is None else "label rest"
        bars.append(Bar(gallery.class_text(gallery_view.label), gallery_view.label_prob, kind))
    return bars
