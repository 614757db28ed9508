"""An HTTP proxy on loopback in front of an object store: it counts requests, and disturbs them by a plan.

A fault is what a network or a server does to one request: an error as its answer, a connection that breaks before the
server has the request, or after it has done it (the answer is lost), an answer that ends in the middle, one that comes
late, or never. What a plan draws is a function of its seed and of the number of the request.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

ERRORS = ("503 SlowDown", "500 InternalError", "429 TooManyRequests")
FAULTS = (*ERRORS, "reset before", "reset after", "cut", "delay")
DELAY_SECONDS = 0.3
SWALLOW_SECONDS = 30.0
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Request(NamedTuple):
    """What a proxy has seen."""

    method: str
    path: str
    """With the query."""

    @property
    def is_listing(self) -> bool:
        """Whether it asks for names."""
        return "list-type=" in self.path


Plan = Callable[[Request, int], str | None]
"""The fault of a request, given how many there were before it; None: none."""


def no_faults(request: Request, number: int) -> str | None:
    """Every request gets through."""
    return None


def random_faults(seed: int, share: float, kinds: tuple[str, ...] = FAULTS) -> Plan:
    """A share of the requests, drawn at random, has a fault."""

    def plan(request: Request, number: int) -> str | None:
        rng = np.random.default_rng([seed, number])
        return kinds[int(rng.integers(len(kinds)))] if rng.random() < share else None

    return plan


class Proxy:
    """A running proxy; ``plan`` may be replaced at any time."""

    def __init__(self, upstream: str, plan: Plan) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname, parts.port)
        self.plan = plan
        self.requests: list[Request] = []
        self.faults: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def draw(self, request: Request) -> str | None:
        """The fault of the next request."""
        with self._lock:
            fault = self.plan(request, len(self.requests))
            self.requests.append(request)
            if fault is not None:
                self.faults[fault] += 1
            return fault

    @contextmanager
    def counted(self) -> Iterator[list[Request]]:
        """The requests of a block, in a list that is filled when the block ends."""
        found: list[Request] = []
        start = len(self.requests)
        yield found
        found += self.requests[start:]


@contextmanager
def start_proxy(upstream: str, plan: Plan = no_faults) -> Iterator[Proxy]:
    """A proxy in front of a server, until the block ends."""
    proxy = Proxy(upstream, plan)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _handle(self) -> None:
        request = Request(self.command, self.path)
        fault = self.server.proxy.draw(request)
        body = self._read_body()
        if fault == "reset before":
            self._reset()
        elif fault is not None and fault[:3].isdigit():
            text = f"<Error><Code>{fault[4:]}</Code><Message>a fault of the tests</Message></Error>".encode()
            self._answer(int(fault[:3]), {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else text)
        elif fault == "swallow":
            time.sleep(SWALLOW_SECONDS)
            self._reset()
        else:
            if fault == "delay":
                time.sleep(DELAY_SECONDS)
            try:
                status, headers, content = self._forward(body)
            except (OSError, http.client.HTTPException):
                self._reset()
                return
            if fault == "reset after":
                self._reset()
            else:
                self._answer(status, headers, content, is_cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        host, port = self.server.proxy.upstream
        connection = http.client.HTTPConnection(host or "", port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_HEADERS:
                    connection.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            found = connection.getresponse()
            content = found.read()
            headers = {name: value for name, value in found.getheaders() if name.lower() not in _HOP_HEADERS}
            if self.command == "HEAD" and (length := found.getheader("Content-Length")):
                headers["Content-Length"] = length
            return found.status, headers, content
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, is_cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if is_cut:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._reset()
        else:
            self.wfile.write(content)

    def _reset(self) -> None:
        """End the connection as a machine does that is gone: the other side has a reset."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True
