"""Settings of object stores: they come from the environment, so that every process of a command has the same.

``TEACHONCE_STORAGE_OPTIONS`` holds KEY=VALUE words, which ``--storage-options`` adds to: keys of obstore's
configuration (endpoint, region, skip_signature, ...), of its HTTP client (allow_http, proxy_url, ...), and two of our
own: ``retry_seconds``, how long a request is repeated that may succeed later, and ``timeout_seconds``, how long one
request may take.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from teachonce.errors import ConfigError

VARIABLE = "TEACHONCE_STORAGE_OPTIONS"
RETRY_SECONDS = 300.0
TIMEOUT_SECONDS = 600.0
"""Of a complete request: a gigabyte at the 2 MB/s of a slow link."""

_limit: ContextVar[float] = ContextVar("short_retries", default=math.inf)


class Settings(NamedTuple):
    """What is set: for the store, and how long to try."""

    options: tuple[tuple[str, str], ...]
    retry_seconds: float
    timeout_seconds: float


def read_settings() -> Settings:
    """The settings of this process; raises ConfigError for a word that is not KEY=VALUE."""
    options: dict[str, str] = {}
    for word in _split(os.environ.get(VARIABLE, "")):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--storage-options {word}: expected KEY=VALUE, such as endpoint=http://127.0.0.1:9000")
        options[key.lower()] = value
    retry_seconds = _seconds(options, "retry_seconds", RETRY_SECONDS)
    timeout_seconds = _seconds(options, "timeout_seconds", TIMEOUT_SECONDS)
    return Settings(tuple(sorted(options.items())), retry_seconds, timeout_seconds)


def retry_limit() -> float:
    """For how long a request is repeated: ``retry_seconds``, or less within ``short_retries``."""
    return min(read_settings().retry_seconds, _limit.get())


def has_short_retries() -> bool:
    """Whether this is within ``short_retries``."""
    return _limit.get() < math.inf


@contextmanager
def short_retries(seconds: float) -> Iterator[None]:
    """Within the block this thread repeats requests for so long at most, the first attempt included.

    For what nobody waits for where the server is away: what is said beside the work, and what tidies up behind it.
    """
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


def add_options(words: Iterable[str]) -> None:
    """Set KEY=VALUE words for this process and those that it starts; later ones replace earlier ones.

    Raises ConfigError as ``read_settings``.
    """
    os.environ[VARIABLE] = shlex.join([*_split(os.environ.get(VARIABLE, "")), *words])
    read_settings()


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: {error}; expected KEY=VALUE pairs") from error


def _seconds(options: dict[str, str], key: str, default: float) -> float:
    text = options.pop(key, None)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise ConfigError(f"--storage-options {key}={text}: expected seconds from 0 to 86400")
    return seconds
