"""Every error that a user can meet, as one tree.

    TeachonceError              exit code 1: the work failed, or a check did not hold
    ├── ConfigError             exit code 2: the command or its configuration is wrong
    │   ├── MissingExtraError   an optional dependency is not installed
    │   └── NoGpuError          an optional dependency is installed without what a GPU needs
    ├── RecordError             a record, a shard or an index is damaged, missing or duplicated
    │   └── ImageError          the bytes of a record are no image that can be decoded
    ├── LogitsError             teacher logits are not finite, of another width, or missing
    ├── ModelError              weights or a model do not fit
    ├── StoreError              a store is incomplete, damaged or of other data
    │   ├── PlanMismatchError   what is requested differs from the plan that the store was started with
    │   └── UnsupportedStoreError  its format or codec is not known here, so that nothing is said of it
    ├── UnreadableError         a file cannot be read now (a lost server, rights), so that nothing is said of it
    ├── CheckError              a verdict: gate, verify or a parity check did not hold
    └── StoppedError            exit code 143: SIGTERM; the same command resumes

A message is one line and says what was found, what was expected, where (path, record, byte offset) and what to do.
Programmers' mistakes are ``assert``, never one of these. Each error takes one string, so it crosses a process border
by pickling; ``at`` adds the shard's name on the way without changing the class.
"""

from __future__ import annotations

from typing import ClassVar, Self


class TeachonceError(Exception):
    """Base of all errors meant for users; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 1

    def at(self, where: str) -> Self:
        """The same error with ``where`` in front of its message, unless the place that it begins with says so."""
        message = str(self)
        place = message.partition(": ")[0]
        return self if where in place else type(self)(f"{where}: {message}")


class ConfigError(TeachonceError):
    """The command or its configuration is wrong."""

    exit_code: ClassVar[int] = 2


class MissingExtraError(ConfigError, ImportError):
    """An optional dependency is needed and not installed. An ImportError too, for ``except ImportError``."""


class NoGpuError(ConfigError):
    """An optional dependency is installed, but not with what the GPU that was requested needs."""


class RecordError(TeachonceError):
    """A record, a shard or an index is damaged, missing or duplicated."""


class ImageError(RecordError):
    """The bytes of a record are no image that can be decoded."""


class LogitsError(TeachonceError):
    """Teacher logits are not finite, of another width, or missing."""


class ModelError(TeachonceError):
    """Weights or a model do not fit."""


class StoreError(TeachonceError):
    """A store is incomplete, damaged or of other data."""


class PlanMismatchError(StoreError):
    """What is requested differs from the plan that the store was started with."""


class UnsupportedStoreError(StoreError):
    """A store of a newer format, or with a codec that is not in ``codecs.registry.CODECS`` of this program."""


class UnreadableError(TeachonceError):
    """A file that is there cannot be read now, as by a lost server or without rights: no verdict about its bytes."""


class CheckError(TeachonceError):
    """A gate, a verification or a parity check did not hold."""


class StoppedError(TeachonceError):
    """The work was asked to stop by SIGTERM, and has; ``exit_code`` is what a shell says of that signal."""

    exit_code: ClassVar[int] = 143
