"""How records are found in data that does not say all of it itself: the options of every command that reads records."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from teachonce.options import (
    Condition,
    FractionBelowOne,
    InData,
    Label,
    Seed,
    check_values,
    given_options,
    only_with,
    option_arguments,
)

_HELD_OUT = Condition("--val-fraction above 0", lambda options: options.val_fraction > 0)


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """What is said of data beside its place and split."""

    val_fraction: InData[FractionBelowOne] = 0.0
    """Data without a validation split: hold about this part of its images out as one. An image is in it by a hash of
    its bytes, so it stays there as data grow, and equal images are on one side. Give it alike to every command that
    has it."""
    val_seed: InData[Seed] = only_with(0, _HELD_OUT)
    """--val-fraction: another seed holds other images out."""
    labels: InData[Path | None] = None
    """Class names, one a line; line N, counted from 0, is label N. For data of some of a teacher's classes: give all of
    the teacher's, in its order. Default: the names that the data has, sorted where they are folders or texts."""
    image_feature: InData[str | None] = None
    """Feature, column or field that holds the image; of a table, its path. Default: image/encoded in TFRecords, the
    usual names elsewhere."""
    label_feature: InData[str | None] = None
    """Feature, column or field that holds the label, a name or a number. Default: image/class/label in TFRecords, the
    usual names elsewhere."""
    label_offset: InData[Label] = 0
    """Added to labels that are numbers, such as -1 where the data counts from 1."""

    def __post_init__(self) -> None:
        check_values(self)


def given_record_options(config: RecordOptions) -> str:
    """The first of these options that a configuration was given, as it is typed; "": none of them."""
    given = given_options(config)
    names = (field.name for field in fields(RecordOptions) if field.name in given)
    return next((" ".join(option_arguments(name, given[name])) for name in names), "")
