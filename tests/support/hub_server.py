"""A server that answers what huggingface_hub asks of the hub for a data set: its commit, its files and their bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
"""Of all that it has, whatever the revision."""


@dataclass
class HubServer:
    """Data sets by name: their files by name. ``asked`` has the paths of all requests, ``revisions`` what exists."""

    files: dict[str, dict[str, bytes]]
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    revisions: tuple[str, ...] = ("main", COMMIT)

    def downloads(self) -> list[str]:
        """The files whose bytes were asked for."""
        paths = [path.split("/resolve/")[1] for path in self.asked if path.startswith("GET /datasets/")]
        return [path.partition("/")[2] for path in paths]


@contextmanager
def serve_hub(files: dict[str, dict[str, bytes]]) -> Iterator[HubServer]:
    hub = HubServer(files)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            headers, body = self.find(path)
            error = headers.pop("error", None)
            self.send_response(200 if error is None else 404)
            for name, value in {**headers, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}.items():
                self.send_header(name, value)
            if error is not None:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def find(self, path: str) -> tuple[dict[str, str], bytes]:
            api = path.startswith("/api/")
            path = path.removeprefix("/api").removeprefix("/datasets/")
            name = next((name for name in hub.files if path == name or path.startswith(f"{name}/")), None)
            if name is None:
                return {"error": "RepoNotFound"}, b"{}"
            rest = path[len(name) + 1 :]
            revision = next((item for item in hub.revisions if f"/{item}" in f"/{rest}"), None)
            if rest and revision is None:
                return {"error": "RevisionNotFound"}, b"{}"
            found = hub.files[name]
            if not api:
                body = found[rest.partition(f"{revision}/")[2]]
                return {"ETag": f'"{hashlib.sha1(body).hexdigest()}"'}, body
            siblings = [
                {"rfilename": key, "size": len(body), "blobId": hashlib.sha1(body).hexdigest()}
                for key, body in found.items()
            ]
            info = {"id": name, "sha": COMMIT, "siblings": siblings}
            return {"Content-Type": "application/json"}, json.dumps(info).encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # How often it looks whether it is to end, in seconds: every test waits for that.
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
