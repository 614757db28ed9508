"""SIGTERM: what was begun is finished or dropped, the exit code is 143, and one line says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from teachonce.engine.inline import run_inline
from teachonce.engine.stop_between_units import check_stop, is_stopping, stopping_gently
from teachonce.errors import StoppedError
from tests.engine.test_jobs import wait_until
from tests.support.kills import everything
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.warm_python import warm_python

STOPPED = "teachonce: stopped by SIGTERM; completed work is kept. Run the same command to resume"


def test_the_signal_is_a_request_within_the_block_and_the_job_is_finished():
    done = []

    def build(index):
        def work(job, report):
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_stopping()
            done.append(job)

        return work

    before = signal.getsignal(signal.SIGTERM)
    expected = r"^stopped by SIGTERM; completed work is kept\. Run the same"
    with pytest.raises(StoppedError, match=expected), stopping_gently(60):
        assert not is_stopping()
        list(run_inline(build, [1, 2], lambda count: None))
    assert done == [1] and not is_stopping() and signal.getsignal(signal.SIGTERM) is before
    wait_until(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))
    check_stop()


def test_a_signal_after_the_last_question_is_not_forgotten():
    with pytest.raises(StoppedError), stopping_gently(60):
        os.kill(os.getpid(), signal.SIGTERM)
    check_stop()


def test_an_error_is_not_hidden_by_the_signal():
    with pytest.raises(KeyError), stopping_gently(60):
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyError("x")
    check_stop()


def test_another_thread_than_the_main_one_changes_nothing():
    def block():
        with stopping_gently(0):
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[object] = []
    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_what_takes_longer_than_the_grace_is_dropped_with_the_process():
    code = "import time; from teachonce.engine.stop_between_units import stopping_gently\n"
    code += "with stopping_gently(0.2):\n print('here', flush=True)\n time.sleep(600)\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    begin = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - begin < 30
    assert said == f"{STOPPED} (what was unfinished after 0.2 s was dropped)\n"


MAIN = "from teachonce.cli.main import main; main()"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A command with many small units, and what it makes undisturbed, inline."""
    folder = tmp_path_factory.mktemp("work")
    data, teacher = write_color_shards(folder / "data", sizes=(8,) * 40), write_color_teacher(folder / "t.onnx")
    words = ["extract", "--data", str(data), "--teacher", teacher, "--device", "cpu", "--gate-samples", "0"]
    words += ["--policy", "crop", "--views", "8", "--views-per-file", "4", "--batch-size", "1"]
    start(words, folder / "inline", warm_python()).communicate()
    return folder, words


def start(words: list[str], out: Path, python: Sequence[str]) -> subprocess.Popen[str]:
    command = [*python, "-c", MAIN, *words, "--out", str(out)]
    # A session of its own, so that all of its processes can be given the signal.
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, to_all",
    [((), False), (("--worker", "1/2"), False), (("--num-workers", "2"), False), (("--num-workers", "2"), True)],
    ids=["inline", "array", "processes", "processes, to all of them"],
)
def test_a_stopped_extraction_is_resumed_by_the_same_command(work, tmp_path, more, to_all):
    (folder, words), out = work, tmp_path / "store"
    process = start([*words, *more], out, [sys.executable] if to_all else warm_python())
    wait_until(lambda: len(list(out.glob("*.v*.arrow"))) >= 4, 300)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert said.splitlines()[-1] == STOPPED and "Traceback" not in said
    assert not list(out.glob(".tmp-*")), "what was begun was finished"
    num_done = len(list(out.glob("*.v*.arrow")))
    assert num_done < 160
    again = start([*words, *more], out, warm_python())
    assert again.communicate(timeout=300) and again.returncode == 0
    assert everything(out) == everything(folder / "inline")
