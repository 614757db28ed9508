"""A command whose work is done by a fork of the server of ``warm_python``; it imports next to nothing.

    python -I -S warm_client.py SOCKET ARGUMENT...

The arguments are those of ``python``. Streams, folder and environment are this process's; signals are passed on, and it
ends as the fork did. Where it is killed, the server kills the fork.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


def pass_on(fork: int, number: int) -> None:
    """To a fork that may have ended by now."""
    with suppress(ProcessLookupError):
        os.kill(fork, number)


def main() -> None:
    """Ask for the fork and wait for its end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()  # noqa: PTH109 (pathlib is slow)
    socket.send_fds(connection, [len(request).to_bytes(8, "little")], [0, 1, 2])
    connection.sendall(request)
    answers = connection.makefile()
    fork = int(answers.readline())
    for number in PASSED_ON:
        signal.signal(number, lambda number, frame: pass_on(fork, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    answer = answers.readline()
    if not answer:
        sys.exit("the server of warm_python has ended")
    code = int(answer)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
