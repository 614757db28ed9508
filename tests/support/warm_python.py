"""A ``python`` for tests that start commands: its processes are forks of a server that has imported what they need.

A new process that trains or extracts imports for five seconds or more, whatever little it does. What is kept of a
process of its own: streams, environment, folder, signals, exit code, and that it can be killed. What is not: a session
of its own, imports that happen late (tests/system/test_light_install.py looks at these), and processes that it starts
for several devices or workers are forks, too, where a user's are spawned.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from tests.support.paths import ROOT

_CLIENT = Path(__file__).with_name("warm_client.py")


@cache
def warm_python() -> list[str]:
    """What stands for ``[sys.executable]`` at the beginning of a command: -c CODE, -m teachonce, or a file.

    The first call starts the server, which lives as long as this process does.
    """
    folder = Path(mkdtemp(prefix="warm-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    address = folder / "socket"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    server = subprocess.Popen(
        [sys.executable, "-m", __name__, str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment | {"OMP_NUM_THREADS": "1"},  # as all tests; OpenBLAS would begin threads, too
        # Ctrl-C is for the tests: forks get it from their clients.
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.communicate)  # closes its input, and waits for its end
    return [sys.executable, "-I", "-S", str(_CLIENT), str(address)]


def fork_instead_of_spawn() -> None:
    """From now on the ranks and the workers of this process are forks of it, as if they were new to signals."""
    os.register_at_fork(after_in_child=_forget_signals)
    from teachonce.engine import processes
    from teachonce.training import ranks

    for module in (processes, ranks):
        module.get_context = lambda method: get_context("fork")  # type: ignore[attr-defined]


def _forget_signals() -> None:
    # The handlers of the process that forked would wake that process up.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _import_ahead() -> None:
    # Not ONNX Runtime, which begins a thread; Arrow's allocator has one, too, and is made for forks.
    import teachonce.cli.main
    import teachonce.evaluation.evaluate
    import teachonce.extraction.extract
    import teachonce.training.train  # noqa: F401
    from tests.support import blank_curves

    blank_curves.install()
    # As in tests/conftest.py: what would outlast a crash of the machine is not tested.
    os.fsync = lambda fd: None  # type: ignore[assignment]
    fork_instead_of_spawn()


class _Server:
    """Forks a process for each client, and says how it ended."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._clients: dict[int, socket.socket] = {}
        self._wakes, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._events = selectors.DefaultSelector()
        for source in (self._listener, self._wakes, sys.stdin):
            self._events.register(source, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the tests are over, and this process with them; what is running then is killed."""
        while True:
            for key, _ in self._events.select():
                if key.fileobj is sys.stdin:
                    for pid in self._clients:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                if key.fileobj is self._wakes:
                    self._wakes.recv(4096)
                    self._reap()
                elif key.fileobj is self._listener:
                    client, _ = self._listener.accept()
                    # A client that was killed meanwhile has no fork.
                    with suppress(OSError, ValueError):
                        self._serve_client(client)
                elif key.data in self._clients:
                    os.kill(key.data, signal.SIGKILL)  # a client says no more: it is gone
                    self._events.unregister(key.fileobj)

    def _serve_client(self, client: socket.socket) -> None:
        header, streams, _, _ = socket.recv_fds(client, 8, 3)
        with client.makefile("rb") as file:
            arguments, folder, environment = json.loads(file.read(int.from_bytes(header, "little")))
        pid = os.fork()
        if pid == 0:
            self._become(streams, client)
            _run(arguments, folder, environment)
        for stream in streams:
            os.close(stream)
        self._clients[pid] = client
        self._events.register(client, selectors.EVENT_READ, pid)
        client.sendall(f"{pid}\n".encode())

    def _become(self, streams: list[int], client: socket.socket) -> None:
        """Nothing of the server's is left but what it has imported."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._events.close()
        for one in (self._listener, self._wakes, self._wake, client, *self._clients.values()):
            one.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                client = self._clients.pop(pid)
                with suppress(OSError):
                    client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                with suppress(KeyError, ValueError):
                    self._events.unregister(client)
                client.close()


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """As ``python`` with these arguments does, to its end."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        code = _exit_code(arguments)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _exit_code(arguments: list[str]) -> int:
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return _code_of(end.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 0


def _code_of(code: Any) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    _import_ahead()
    the_threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    assert len([name for name in the_threads if not name.startswith("jemalloc")]) == 1, the_threads
    the_server = _Server(sys.argv[1])
    print("ready", flush=True)
    the_server.serve()
