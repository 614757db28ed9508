"""What columns of Hugging Face data hold the image and the label, by their schema and the features noted in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from teachonce.errors import ConfigError, RecordError
from teachonce.records.class_table import describe_other_names
from teachonce.records.containers.labels import IMAGE_COLUMNS, LABEL_COLUMNS, choose_column, warn_without_label
from teachonce.records.options import RecordOptions

if TYPE_CHECKING:
    import pyarrow as pa


class ImageColumns(NamedTuple):
    """The columns of image and label (None: there is none), and the names of the labels, where the schema has them."""

    image: str
    label: str | None
    names: tuple[str, ...] | None


def find_columns(schema: pa.Schema, options: RecordOptions, where: str) -> ImageColumns:
    """The columns that options, features or types tell; raises ConfigError where they do not tell of an image."""
    features = _read_features(schema)
    kinds = ("Image", "ClassLabel")
    of_kind = {kind: [name for name in features if features[name].get("_type") == kind] for kind in kinds}
    image = options.image_feature and choose_column(schema.names, options.image_feature, (), "--image-feature", where)
    if image is None:
        found_images = of_kind["Image"] or [field.name for field in schema if holds_images(field.type)]
        image = choose_column(found_images, None, ("image", "img", *IMAGE_COLUMNS), "", where)
        if image is None and len(found_images) > 1:
            raise ConfigError(f"{where}: has the images {', '.join(found_images)}; name one with --image-feature")
        image = image or next(iter(found_images), None)
    if image is None or not holds_images(schema.field(image).type):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ConfigError(
            f"{where}: has the columns {found}, expected one of "
            "encoded images (bytes, or a struct of bytes and path); name it with --image-feature"
        )
    usual: Sequence[str] = of_kind["ClassLabel"]
    if options.label_feature is None and len(usual) > 1:
        raise ConfigError(f"{where}: has the labels {', '.join(usual)}; name one with --label-feature")
    label = choose_column(schema.names, options.label_feature, usual or LABEL_COLUMNS, "--label-feature", where)
    names = features.get(label or "", {}).get("names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return ImageColumns(image, label, tuple(names) if is_list and names else None)


def find_common_columns(schemas: Mapping[str, pa.Schema], options: RecordOptions) -> ImageColumns:
    """The same of several files, by their places: a number is one class in all of them.

    A file without names is of those of the others. Raises RecordError where two files have other columns, or other
    names of the labels.
    """
    (first, like), *others = schemas.items()
    found = {first: find_columns(like, options, first)}
    for where, schema in others:
        is_same = schema.equals(like, check_metadata=True)
        found[where] = found[first] if is_same else find_columns(schema, options, where)
    named = next((where for where in found if found[where].names is not None), first)
    for where, columns in found.items():
        _check_same(where, columns, first, found[first])
        if columns.names is not None and columns.names != found[named].names:
            differs = describe_other_names(columns.names, found[named].names or ())
            raise RecordError(f"{where}: has {differs} as in {named}; write both again with the classes in one order")
    return found[first]._replace(names=found[named].names)


def warn_where_unlabeled(columns: ImageColumns, schema: pa.Schema, where: str) -> None:
    """Warn where none of a file's columns is known to be the label, of those that it has beside the image."""
    if columns.label is None:
        warn_without_label([field.name for field in schema if not holds_images(field.type)], where)


def _check_same(where: str, found: ImageColumns, first: str, expected: ImageColumns) -> None:
    for what, ours, theirs in (("image", found.image, expected.image), ("label", found.label, expected.label)):
        if ours != theirs:
            has, other = ("none" if name is None else f"the column {name}" for name in (ours, theirs))
            raise RecordError(f"{where}: has {has} as the {what}, {first} has {other}; expected the same in all files")


def is_of_images(schema: pa.Schema, options: RecordOptions) -> bool:
    """Whether a file holds encoded images, and not their paths beside other bytes."""
    import pyarrow as pa

    images = [field.name for field in schema if holds_images(field.type)]
    if options.image_feature is not None:
        return options.image_feature in images
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    if any(feature.get("_type") == "Image" for feature in _read_features(schema).values()):
        return bool(images)
    has_usual, has_paths = (choose_column(names, None, IMAGE_COLUMNS, "", "") is not None for names in (images, texts))
    return bool(images) and (has_usual or not has_paths)


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and holds_images(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    content = (schema.metadata or {}).get(b"huggingface")
    try:
        found = json.loads(content)["info"]["features"] if content else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}
