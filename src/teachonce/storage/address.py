"""Addresses: locations elsewhere than on this machine, such as s3://BUCKET/data, as paths.

An ``Address`` is a Path, so that options, joins (``/``), names and parents are the same for every location; only its
text keeps both slashes. It never reaches the operating system: whatever would open, list or look for a local file of
this name raises. ``files.open_storage`` opens it.
"""

from __future__ import annotations

import re
from pathlib import Path, PosixPath
from typing import Self
from urllib.parse import unquote

from teachonce.errors import ConfigError

SCHEMES = {
    "s3": "Amazon S3 and compatible servers",
    "gs": "Google Cloud Storage",
    "az": "Azure Blob Storage",
    "http": "a web server, for reading",
    "https": "a web server, for reading",
    "hf": "a data set of the Hugging Face hub, for reading",
}
_WEB_SERVER = "a web server is read-only; write to a local path or a bucket, and serve that"
READ_ONLY = {
    "http": _WEB_SERVER,
    "https": _WEB_SERVER,
    "hf": "the Hugging Face hub is read-only; write to a local path or a bucket",
}
"""By scheme: why nothing is written there, and what to do."""
_PATTERN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""A Path has one slash of the two. A single letter is a drive, and no scheme."""
_WRITTEN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WEB_SCHEMES = ("http", "https")
_WEB_ESCAPES = str.maketrans({character: f"%{ord(character):02X}" for character in "%?#"})
"""What has a meaning in an address of a web server, and is written so in one where a name has it."""


class Address(PosixPath):
    """A location with a scheme: ``SCHEME://BUCKET/KEY``."""

    @property
    def scheme(self) -> str:
        """What is in front of "://"."""
        return self.parts[0].removesuffix(":") if self.parts else ""

    @property
    def bucket(self) -> str:
        """The bucket, the container (az), the server with its port (http) or the kind of what the hub has (hf)."""
        return self.parts[1] if len(self.parts) > 1 else ""

    @property
    def key(self) -> str:
        """What comes behind the bucket, without a slash in front."""
        return "/".join(self.parts[2:])

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        if scheme in _WEB_SCHEMES:
            server, slash, path = rest.partition("/")
            rest = f"{server}{slash}{path.translate(_WEB_ESCAPES)}"
        return f"{scheme}://{rest}"

    def __fspath__(self) -> str:
        raise TypeError(f"{self}: is not a local path: it can only be read through teachonce.storage")

    def resolve(self, strict: bool = False) -> Self:
        """The address itself."""
        return self

    def absolute(self) -> Self:
        """The address itself."""
        return self

    def expanduser(self) -> Self:
        """The address itself."""
        return self


def has_scheme(text: str) -> bool:
    """Whether a text is an address as people write it, of a known scheme or not: where only a path can be meant."""
    return _WRITTEN.match(text) is not None


def to_location(location: Path | str) -> Path:
    """An ``Address`` of a text (or a Path made of one) with a scheme, else the Path.

    Of a web server's it is what a browser would ask for: ``%20`` is a space. Raises ConfigError for an unknown scheme,
    for an address without a bucket, and for one of a web server with a query or a fragment.
    """
    if isinstance(location, Address):
        return location
    match = _PATTERN.match(str(location))
    if match is None:
        if (scheme := str(location).partition(":")[0].lower()) in SCHEMES and ":" in str(location):
            rest = str(location)[len(scheme) + 1 :]
            raise ConfigError(f"{location}: expected {scheme}://BUCKET/FOLDER; did you mean {scheme}://{rest}?")
        return Path(location)
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(
            f"{match[1]}://{match[2]}: unknown scheme {match[1]}, expected {known} or a local path; a mounted "
            "bucket is given as a local path"
        )
    address = Address(f"{scheme}:/{_decode(scheme, match[2]) if scheme in _WEB_SCHEMES else match[2]}")
    if not address.bucket:
        raise ConfigError(f"{scheme}://: no bucket, expected {scheme}://BUCKET/FOLDER")
    return address


def _decode(scheme: str, rest: str) -> str:
    if mark := next((character for character in rest if character in "?#"), None):
        raise ConfigError(
            f"{scheme}://{rest}: expected the address of a folder or a file, without {mark!r} and what follows; "
            f"a {mark} in a name is written {mark.translate(_WEB_ESCAPES)}"
        )
    server, slash, path = rest.partition("/")
    try:
        return f"{server}{slash}{unquote(path, errors='strict')}"
    except UnicodeDecodeError as error:
        raise ConfigError(f"{scheme}://{rest}: expected escapes of UTF-8, such as %C3%A9 for é") from error


def read_only_error(address: Address, option: str = "") -> ConfigError:
    """What is said of an address to write to, of a scheme in ``READ_ONLY``, and of the option that it was given to."""
    return ConfigError(f"{f'{option} {address}'.strip()}: {READ_ONLY[address.scheme]}")


def is_remote(location: Path | str) -> bool:
    """Whether a location is an address; raises as ``to_location``."""
    return isinstance(to_location(location), Address)
