"""The engine that does jobs where it is called, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from teachonce.engine.progress import Advance
from teachonce.engine.stop_between_units import check_stop
from teachonce.engine.worker import BuildWorker, Job, Result


def run_inline(
    build_worker: BuildWorker[Job, Result], jobs: Sequence[Job], report: Advance
) -> Iterator[tuple[Job, Result]]:
    """Do ``jobs`` in their order, by one worker that is built when there is a job; see ``worker`` for the contract."""
    if jobs:
        check_stop()
        worker = build_worker(0)
        for job in jobs:
            check_stop()
            result = worker(job, report)
            check_stop()
            yield job, result
