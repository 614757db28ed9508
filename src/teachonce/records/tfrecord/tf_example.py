"""``tf.train.Example`` to and from bytes, without TensorFlow or a protobuf library.

An Example is a map from names to lists of bytes, floats or integers (tensorflow/core/example/feature.proto). What is
written has its entries sorted by name and its numbers packed, byte for byte as protobuf's deterministic serialization.
What is read may be in any order, packed or not; of two entries with one name the last counts, as in protobuf.

The image is nearly all of a record, so reading walks the wire format and copies only the features requested, once;
``replace_feature`` changes one feature and copies the rest as it is. Only what Example needs is here: this is no
general protobuf reader.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import RecordError
from teachonce.records.source import Buffer

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
"""A decoded feature; one whose kind is not set decodes as an empty list of bytes."""
FeatureValue = bytes | int | Sequence[bytes] | Sequence[int] | NDArray[np.floating] | NDArray[np.integer]
"""What can be encoded; an empty list must be an array, because only that says of which kind."""

_Entry = tuple[bytes, int, int, tuple[tuple[int, int], ...]]
"""An entry of the map: name, start and end, and the spans of the value's parts (one, but protobuf allows more)."""

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_KNOWN_BYTES = 64
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def encode_example(features: Mapping[str, FeatureValue]) -> bytes:
    """The serialized Example; floating point is stored as float32, integers as int64."""
    parts: list[bytes] = []
    for name in sorted(features):
        value = features[name]
        if isinstance(value, np.ndarray) and len(value) == 0:
            parts.append(_encode_known_entry(name, value.dtype.kind))
        elif isinstance(value, int) or (isinstance(value, bytes) and len(value) <= _KNOWN_BYTES):
            parts.append(_encode_known_entry(name, value))
        else:
            parts += _encode_entry(name, value)
    return b"".join([*_header(1, sum(map(len, parts))), *parts])


def decode_example(payload: Buffer, names: Collection[str] | None = None) -> dict[str, Feature]:
    """The features called ``names`` (all by default) that are there; raises RecordError where the bytes are no Example.

    Unsigned 64-bit values above 2^63 - 1 are the negative numbers that protobuf means by them.
    """
    view = memoryview(payload)
    wanted = None if names is None else {name.encode() for name in names}
    features: dict[str, Feature] = {}
    for key, _, _, values in _entries(view):
        if wanted is not None and key not in wanted:
            continue
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise RecordError(f"not a tf.train.Example: the feature name {key!r} is not UTF-8") from None
        features[name] = _decode_feature(view, values)
    return features


def replace_feature(payload: Buffer, name: str, value: FeatureValue) -> bytes:
    """The same Example with the feature ``name`` set to ``value``, whether it was there or not.

    The other entries are copied as they are; a sorted Example stays sorted.
    """
    view = memoryview(payload)
    wanted = name.encode()
    before: list[Buffer] = []
    after: list[Buffer] = []
    for key, start, end, _ in _entries(view):
        if key != wanted:
            entry: list[Buffer] = [*_header(1, end - start), view[start:end]]
            (after if after or key > wanted else before).extend(entry)
    parts: list[Buffer] = [*before, *_encode_entry(name, value), *after]
    return b"".join([*_header(1, sum(map(len, parts))), *parts])


@lru_cache(4096)  # of a record's entries all but the image and its name are the same as in records before it
def _encode_known_entry(name: str, value: int | bytes | str) -> bytes:
    """The entry of an integer or a short string, or of an empty array given by its dtype's kind."""
    return b"".join(_encode_entry(name, np.empty(0, f"{value}4") if isinstance(value, str) else value))


def splice_entry(
    payload: Buffer, body: tuple[int, int], splice: tuple[int, int], entry: tuple[bytes, bytes]
) -> list[Buffer]:
    """The parts of the same Example with a feature's ``entry`` put in the place of the bytes ``splice``.

    ``body`` are the entries of its map (``native_examples.find_features`` says both). The bytes of ``replace_feature``,
    without reading the other entries or copying the image, which a sorted map has before.
    """
    view = memoryview(payload)
    size = body[1] - body[0] - (splice[1] - splice[0]) + sum(map(len, entry))
    return [b"".join(_header(1, size)), view[body[0] : splice[0]], b"".join((*entry, view[splice[1] : body[1]]))]


def encode_float_entries(name: str, values: NDArray[np.float32]) -> list[tuple[bytes, bytes]]:
    """The entries of N Examples for the feature ``name``, of C > 0 floats each [N, C]: what all begin with, numbers."""
    rows = [row.tobytes() for row in values.astype("<f4", copy=False)]
    head = b"".join(_encode_entry(name, values[0]))[: -len(rows[0])] if rows else b""
    return [(head, row) for row in rows]


def _encode_entry(name: str, value: FeatureValue) -> list[bytes]:
    feature = _encode_feature(name, value)
    feature_bytes = sum(map(len, feature))
    key = name.encode()
    head = [*_header(1, len(key)), key, *_header(2, feature_bytes)]
    return [*_header(1, sum(map(len, head)) + feature_bytes), *head, *feature]


def _encode_feature(name: str, value: FeatureValue) -> list[bytes]:
    if isinstance(value, bytes):
        value = [value]
    elif isinstance(value, int):
        value = np.array([value], np.int64)
    if isinstance(value, np.ndarray):
        assert value.ndim == 1 and value.dtype.kind in "fiu", f"{name}: {value.dtype} array of shape {value.shape}"
        if value.dtype.kind == "f":
            kind, packed = _FLOAT_LIST, value.astype("<f4").tobytes()
        else:
            kind, packed = _INT64_LIST, b"".join([_varint(number) for number in value.tolist()])
        values = [*_header(1, len(packed)), packed] if packed else []
    else:
        assert len(value), f"{name}: the type of an empty list is unknown; give an empty array"
        if isinstance(value[0], int):
            return _encode_feature(name, np.array(value, np.int64))
        kind, values = _BYTES_LIST, []
        for item in value:
            assert isinstance(item, bytes), f"{name}: {type(item).__name__} among bytes"
            values += [*_header(1, len(item)), item]
    return [*_header(kind, sum(map(len, values))), *values]


def _header(field: int, length: int) -> tuple[bytes, bytes]:
    return bytes([field << 3 | _LENGTH]), _varint(length)


def _varint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= 0xFFFF_FFFF_FFFF_FFFF
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _entries(view: memoryview) -> Iterator[_Entry]:
    for field, wire, start, end in _fields(view, 0, len(view)):
        if field == 1 and wire == _LENGTH:
            yield from _map_entries(view, start, end)


def _map_entries(view: memoryview, start: int, end: int) -> Iterator[_Entry]:
    # Every writer known lays an entry out as: key of under 128 bytes, then value. Taking that apart here is four times
    # as fast as the general walk, which any other layout still gets (test_example holds the two together).
    position = start
    while position < end:
        begin = position
        if end - begin > 4 and view[begin] == 0x0A:
            size, position = view[begin + 1], begin + 2
            if size > 0x7F:
                size, position = _read_varint(view, begin + 1, end)
            entry_end = position + size
            if size > 4 and entry_end <= end and view[position] == 0x0A:
                key_end = position + 2 + view[position + 1]
                if key_end + 2 <= entry_end and view[position + 1] < 0x80 and view[key_end] == 0x12:
                    length, value = view[key_end + 1], key_end + 2
                    if length > 0x7F:
                        length, value = _read_varint(view, key_end + 1, entry_end)
                    if value + length == entry_end:
                        yield bytes(view[position + 2 : key_end]), position, entry_end, ((value, entry_end),)
                        position = entry_end
                        continue
        position = yield from _next_entry(view, begin, end)


def _next_entry(view: memoryview, start: int, end: int) -> Generator[_Entry, None, int]:
    """The same for one field of any layout; returns where the next field begins."""
    field, wire, entry, entry_end = next(_fields(view, start, end))
    if field == 1 and wire == _LENGTH:
        key = b""
        values = []
        for inner, inner_wire, value, value_end in _fields(view, entry, entry_end):
            if inner_wire == _LENGTH and inner == 1:
                key = bytes(view[value:value_end])
            elif inner_wire == _LENGTH and inner == 2:
                values.append((value, value_end))
        yield key, entry, entry_end, tuple(values)
    return entry_end


def _decode_feature(view: memoryview, spans: tuple[tuple[int, int], ...]) -> Feature:
    kind = _BYTES_LIST
    lists: list[tuple[int, int]] = []
    for span in spans:
        for field, wire, start, end in _fields(view, *span):
            if wire == _LENGTH and field in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
                # Another kind replaces what was set, the same kind extends it: protobuf's rule for a oneof.
                lists = [*lists, (start, end)] if field == kind else [(start, end)]
                kind = field
    if kind == _BYTES_LIST:
        return [
            bytes(view[start:end])
            for span in lists
            for field, wire, start, end in _fields(view, *span)
            if field == 1 and wire == _LENGTH
        ]
    return _decode_floats(view, lists) if kind == _FLOAT_LIST else _decode_integers(view, lists)


def _decode_floats(view: memoryview, lists: list[tuple[int, int]]) -> NDArray[np.float32]:
    parts = [view[:0]]
    for span in lists:
        for field, wire, start, end in _fields(view, *span):
            if field == 1 and wire in (_LENGTH, _FIXED32):
                if (end - start) % 4:
                    raise RecordError(f"not a tf.train.Example: {end - start} bytes of packed floats at byte {start}")
                parts.append(view[start:end])
    return np.frombuffer(b"".join(parts), "<f4").astype(np.float32)


def _decode_integers(view: memoryview, lists: list[tuple[int, int]]) -> NDArray[np.int64]:
    numbers = []
    for span in lists:
        for field, wire, start, end in _fields(view, *span):
            if field == 1 and wire in (_LENGTH, _VARINT):
                position = start
                while position < end:
                    number, position = _read_varint(view, position, end)
                    numbers.append(number)
    return np.array(numbers, np.uint64).view(np.int64)


def _fields(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field as (number, wire type, start and end of its value)."""
    position = start
    while position < end:
        tag = view[position]
        position += 1
        if tag > 0x7F:
            tag, position = _read_varint(view, position - 1, end)
        wire = tag & 7
        value_start = position
        if wire == _LENGTH:
            # Most lengths are of one byte; the call for the others costs more than all else here.
            length = view[position] if position < end else 0x80
            if length < 0x80:
                value_start = position + 1
            else:
                length, value_start = _read_varint(view, position, end)
            position = value_start + length
        elif wire == _VARINT:
            _, position = _read_varint(view, position, end)
        elif wire == _FIXED32:
            position += 4
        elif wire == _FIXED64:
            position += 8
        else:
            raise RecordError(f"not a tf.train.Example: wire type {wire} at byte {value_start}")
        if position > end:
            raise RecordError(
                f"not a tf.train.Example: a field at byte {value_start} extends {position - end} bytes past the end"
            )
        yield tag >> 3, wire, value_start, position


def _read_varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift > 63:
            break
    raise RecordError(f"not a tf.train.Example: an unterminated number at byte {position}")
