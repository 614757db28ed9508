"""JSON files that are written once and prove themselves: their last entry is a hash of all their bytes.

    {
      ...
      "xxh3": "0f343b0931126a20f133d67c2b018a3b"
    }

The hash is xxh3 (128 bits, 32 hexadecimal digits) of the file's bytes with these digits as zeros. So a flipped bit, an
edited number and another indentation are all noticed, and what was read is what was written. It protects against
damage and against manual edits, not against someone who recomputes it.

Such a file is immutable: it is put under a name that is free, and the first of several writers wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import xxhash

from teachonce.errors import TeachonceError
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import parse_strict_json

SEAL = "xxh3"
ZEROS = "0" * 32
SEALED_END = re.compile(rb'"xxh3": "([0-9a-f]{32})"\n}\n\Z')


def sealed_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON object as the bytes of a file whose last entry is their hash."""
    assert SEAL not in value
    return seal(json.dumps({**value, SEAL: ZEROS}, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")


def seal(text: bytes) -> bytes:
    """A JSON object that ends with ``SEAL`` and ``ZEROS`` on a line of their own, with the hash in their place."""
    end = len(text) - len(b'"\n}\n')
    return text[: end - len(ZEROS)] + xxhash.xxh3_128_hexdigest(text).encode() + text[end:]


def write_sealed(storage: Storage, name: str, value: Mapping[str, Any]) -> None:
    """Put the object where there is no file of this name yet."""
    with storage.put_if_absent(name) as file:
        file.write(sealed_bytes(value))


def read_sealed(storage: Storage, name: str, error: type[TeachonceError], advice: str) -> tuple[dict[str, Any], str]:
    """The object without its hash, and the hash; raises ``error`` with ``advice`` where it does not hold."""
    return parse_sealed(_read(storage, name, error, advice), storage.describe(name), error, advice)


def parse_sealed(content: bytes, where: str, error: type[TeachonceError], advice: str) -> tuple[dict[str, Any], str]:
    """As ``read_sealed``, of a file's bytes; ``where`` is its name in messages."""
    found = _check_seal(content, where, error, advice)
    try:
        value = parse_strict_json(content)
    except ValueError as problem:
        raise error(f"{where}: is not JSON: {problem}; {advice}") from problem
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object; {advice}")
    del value[SEAL]
    return value, found


def read_seal(storage: Storage, name: str, error: type[TeachonceError], advice: str) -> str:
    """The hash alone, which identifies the content; raises as ``read_sealed``."""
    return _check_seal(_read(storage, name, error, advice), storage.describe(name), error, advice)


def _read(storage: Storage, name: str, error: type[TeachonceError], advice: str) -> bytes:
    try:
        return storage.read(name)
    except TeachonceError as problem:
        raise error(f"{problem}; {advice}") from problem


def _check_seal(content: bytes, where: str, error: type[TeachonceError], advice: str) -> str:
    match = SEALED_END.search(content)
    if match is None:
        raise error(f"{where}: does not end with its hash: damaged or truncated; {advice}")
    found = match[1].decode()
    computed = xxhash.xxh3_128_hexdigest(content[: match.start(1)] + ZEROS.encode() + content[match.end(1) :])
    if found != computed:
        raise error(f"{where}: its bytes have the hash {computed}, but it records {found}: damaged or edited; {advice}")
    return found
