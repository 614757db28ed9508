"""A plain web server over a folder, for tests: files by name with ranges and ETags, and nothing else."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest


class WebServer:
    """A running server: its ``address``, and the (method, path) of all requests so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[tuple[str, str]] = []


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have read enough."""


def _handler(folder: Path, found: list[tuple[str, str]], missing: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def _answer(self, *, has_body: bool) -> None:
            found.append((self.command, self.path))
            path = folder / unquote(self.path).lstrip("/")
            if not path.is_file():
                self._send(missing, b"not here\n" if has_body else b"", {})
                return
            content = path.read_bytes()
            headers = {"ETag": f'"{path.stat().st_mtime_ns:x}-{len(content):x}"', "Accept-Ranges": "bytes"}
            if self.headers.get("If-Match") not in (None, headers["ETag"]):
                self._send(412, b"", headers)
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if match is None:
                self._send(200, content, headers, has_body=has_body)
                return
            start, end = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
            if start >= len(content):
                self._send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self._send(206, content[start:end], headers, has_body=has_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], *, has_body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if has_body and self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serve(folder: Path, *, has_ranges: bool = True, missing: int = 404) -> Iterator[WebServer]:
    """Serve a folder on loopback; without ``has_ranges`` by Python's own server, which sends whole files alone.

    ``missing`` is the status of what is not there: of a bucket that may not be listed 403.
    """
    pytest.importorskip("obstore")
    requests: list[tuple[str, str]] = []
    handler: Any = _handler(folder, requests, missing)
    if not has_ranges:

        class Plain(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, directory=str(folder), **named)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        handler = Plain
    server = _Server(("127.0.0.1", 0), handler)
    # How often it looks whether it is to end, in seconds: every test waits for that.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    running = WebServer(f"http://127.0.0.1:{server.server_address[1]}")
    running.requests = requests
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
