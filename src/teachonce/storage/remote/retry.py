"""Requests to an object store, repeated while that may help.

A request that failed for a reason that may pass (a server that is gone or busy, a broken connection) is repeated with
growing pauses until ``retry_seconds`` are over; everything else is an error at once. A server that has never answered
this process is more likely misspelt than restarting: it gets ``FIRST_CONTACT_SECONDS``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from teachonce.storage.remote.failures import Failure, classify, client_errors
from teachonce.storage.remote.settings import read_settings

Result = TypeVar("Result")

FIRST_CONTACT_SECONDS = 20.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_WARN_AFTER_SECONDS = 5.0

_answered: set[str] = set()
"""Buckets (with their schemes) that have answered this process."""
_succeeded: set[str] = set()
"""Those of them that exist, with credentials that are right."""


class RequestFailedError(Exception):
    """A request that failed for good; ``failure`` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def request(bucket: str, do: Callable[[], Result], where: str) -> Result:
    """The result of ``do``, which asks the server of ``bucket``; raises ``RequestFailedError``.

    ``do`` may run several times: it must be one that can be repeated. ``where`` is what a warning names.
    """
    retry_seconds = read_settings().retry_seconds
    start = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    is_warned = False
    while True:
        try:
            result = do()
        except client_errors() as error:
            failure = classify(error)
            if failure.kind != "passing":
                _answered.add(bucket)
                raise RequestFailedError(failure) from error
            limit = retry_seconds if bucket in _answered else min(retry_seconds, FIRST_CONTACT_SECONDS)
            elapsed = time.monotonic() - start
            if elapsed + pause > limit:
                reason = f"{failure.reason}; tried for {elapsed:.0f} s: check the endpoint and the network"
                raise RequestFailedError(Failure("refused", reason)) from error
            if elapsed > _WARN_AFTER_SECONDS and not is_warned:
                is_warned = True
                warnings.warn(f"{where}: {failure.reason}; trying again for up to {limit:.0f} s", stacklevel=2)
            # Workers that were interrupted together must not come back together.
            time.sleep(pause * (0.5 + time.monotonic_ns() % 1000 / 1000))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        else:
            _answered.add(bucket)
            _succeeded.add(bucket)
            return result


def has_succeeded(bucket: str) -> bool:
    """Whether a request to a bucket has succeeded before: then "missing" is said of the object, not of the bucket."""
    return bucket in _succeeded
