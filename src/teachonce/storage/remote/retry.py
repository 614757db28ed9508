"""Requests to an object store, repeated while that may help.

A request that failed for a reason that may pass (a server that is gone or busy, a broken connection) is repeated with
growing pauses until ``retry_seconds`` after its first failure; everything else is an error at once. A server that has
never answered, not even that it is busy, is more likely misspelt than restarting: it gets ``FIRST_CONTACT_SECONDS``.
That it has answered is also known to the processes that this one starts, which may do so while it restarts.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from teachonce.storage.remote.failures import Failure, classify, client_errors
from teachonce.storage.remote.settings import has_short_retries, retry_limit

Result = TypeVar("Result")

FIRST_CONTACT_SECONDS = 20.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_WARN_AFTER_SECONDS = 5.0
_ANSWERED_VARIABLE = "TEACHONCE_STORAGE_ANSWERED"


class RequestFailedError(Exception):
    """A request that failed for good; ``failure`` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Pauses:
    """The pauses between the attempts of one request, and when there are to be no more."""

    def __init__(self, where: str, limit_seconds: float) -> None:
        self._where = where
        self.limit_seconds = limit_seconds
        self._pause = _FIRST_PAUSE_SECONDS
        self._failed_at: float | None = None
        self._is_warned = False

    def wait(self, reason: str, began: float, *, first_contact: bool = False) -> bool:
        """Pause before the next attempt, after one that began at ``began``; False where the time is over."""
        now = time.monotonic()
        if self._failed_at is None:
            self._failed_at = began if first_contact else now
        elapsed = now - self._failed_at
        # An attempt that took long will take as long again.
        if elapsed + max(self._pause, now - began if first_contact else 0) > self.limit_seconds:
            return False
        if elapsed > _WARN_AFTER_SECONDS and not self._is_warned:
            self._is_warned = True
            warnings.warn(f"{self._where}: {reason}; trying again for up to {self.limit_seconds:.0f} s", stacklevel=3)
        # Workers that were interrupted together must not come back together.
        time.sleep(self._pause * random.uniform(0.5, 1.5))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return True


def request(bucket: str, do: Callable[[], Result], where: str, *, may_exist: bool = False) -> Result:
    """The result of ``do``, which asks the server of ``bucket``; raises ``RequestFailedError``.

    ``do`` may run several times: it must be one that can be repeated. ``where`` is what a warning names. ``may_exist``:
    "exists" is an answer; elsewhere it is a conflict, which will pass.
    """
    is_known, is_short = has_answered(bucket), has_short_retries()
    pauses = Pauses(where, _limit(is_known=is_known))
    while True:
        began = time.monotonic()
        try:
            result = do()
        except client_errors() as error:
            failure = classify(error)
            if failure.is_answer:
                note_answer(bucket)
            if not is_known and has_answered(bucket):
                # By this answer or, meanwhile, by one to another thread: it is not misspelt.
                is_known = True
                pauses.limit_seconds = _limit(is_known=True)
            if not _may_pass(failure, is_known=is_known, may_exist=may_exist):
                if not failure.is_general:
                    note_answer(bucket)
                raise RequestFailedError(failure) from error
            if not pauses.wait(failure.reason, began, first_contact=not is_known or is_short):
                reason = f"{failure.reason}; tried for {pauses.limit_seconds:.0f} s: {failure.advice}"
                raise RequestFailedError(Failure("refused", reason, is_general=True)) from error
        else:
            note_answer(bucket)
            return result


def _limit(*, is_known: bool) -> float:
    return retry_limit() if is_known else min(retry_limit(), FIRST_CONTACT_SECONDS)


def _may_pass(failure: Failure, *, is_known: bool, may_exist: bool) -> bool:
    if failure.kind == "unidentified":
        return is_known
    return failure.kind == "passing" or (failure.kind == "exists" and not may_exist)


def note_answer(bucket: str) -> None:
    """Remember that the server of a bucket (with its scheme) is there, for the processes too that this one starts."""
    if not has_answered(bucket):
        os.environ[_ANSWERED_VARIABLE] = " ".join((*os.environ.get(_ANSWERED_VARIABLE, "").split(), bucket))


def has_answered(bucket: str) -> bool:
    """Whether it was there."""
    return bucket in os.environ.get(_ANSWERED_VARIABLE, "").split()
