"""What an engine runs: jobs, and the workers that do them. Every engine keeps this contract.

The unit of work is one shard, or a bundle of them, and a job's result is a file that appears complete or not at all. So
nothing has to be undone when a worker dies, and the same command again does what is missing.

An engine is a function of a ``BuildWorker``, the jobs and a callback for progress. It yields (job, result) as the jobs
end, in any order; the first error ends the work and is raised to the caller with its class and message unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from teachonce.engine.progress import Advance

Job = TypeVar("Job")
Result = TypeVar("Result")

Worker = Callable[[Job, Advance], Result]
"""``worker(job, report)`` does a job; ``report(count)``, from any of its threads, reports that so many items are
done."""
BuildWorker = Callable[[int], Worker[Job, Result]]
"""``build_worker(index)`` is called once for each worker, in its process, with 0 to num_workers - 1.

It is picklable (a module's function, or a partial of one), and so are jobs, results and errors.
"""
