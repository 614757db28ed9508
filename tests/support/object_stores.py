"""Object stores for tests: moto in this process (quick), Ceph's gateway, a real server, and Azurite, where they are."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

RGW = Path(os.environ.get("TEACHONCE_RGW", ROOT.parent / "shared" / "s3" / "rgw"))


def environment(endpoint: str, key: str = "test", secret: str = "test1234") -> dict[str, str]:
    """What a user sets for a server of their own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }


def new_bucket(endpoint: str) -> str:
    """The name of a bucket that was just made."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    _s3(endpoint).create_bucket(Bucket=name)
    return name


@lru_cache
def _s3(endpoint: str) -> Any:
    # Made once: it reads megabytes of JSON first, which beside other tests takes as long as what is to be disturbed.
    boto3 = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test1234"}
    # A session of its own: the default one keeps the first configuration that it has read.
    return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


@contextmanager
def start_moto() -> Iterator[str]:
    """The address of a moto server of this process."""
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


class Gateway:
    """A running Ceph gateway over storage in memory; ``kill`` and ``restart`` are for the gateway alone."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self.endpoint = f"http://127.0.0.1:{port}"
        try:
            self._call("start", str(port))
            # Where another server took the ports meanwhile, it is that one which answers.
            for name in ("mon", "osd", "rgw"):
                os.kill(int((folder / f"{name}.pid").read_text()), 0)
        except (subprocess.SubprocessError, ProcessLookupError):
            self.stop()  # what of it did start
            raise

    def _call(self, verb: str, *arguments: str) -> None:
        with open(self._folder.with_suffix(".log"), "ab") as log:  # noqa: PTH123, handed to a process
            subprocess.run(
                ["bash", RGW, verb, self._folder, *arguments], check=True, timeout=180, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """End the gateway at once; what is stored stays."""
        self._call("kill-gateway")

    def restart(self) -> None:
        """Start it again; returns when it answers."""
        self._call("start-gateway")

    def stop(self) -> None:
        """End everything."""
        self._call("stop")


@contextmanager
def start_gateway(folder: Path, port: int) -> Iterator[Gateway]:
    """A gateway, or a skip where there is none."""
    if shutil.which("radosgw") is None or not RGW.is_file():
        pytest.skip("no radosgw: make services")
    # One at a time on this machine: between the search for ports and their use lie seconds.
    with open(Path(tempfile.gettempdir()) / "teachonce-tests-gateway.lock", "w") as lock:  # noqa: PTH123, held open
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another server may hold the port, or one that a killed run left.
        gateway = Gateway(folder, find_free_ports(port))
    try:
        yield gateway
    finally:
        gateway.stop()


def find_free_ports(first: int) -> int:
    """The first of three ports in a row that nobody listens on: the gateway's and the monitor's two."""
    for port in range(first, first + 500, 10):
        with contextlib.ExitStack() as stack:
            try:
                for number in range(port, port + 3):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free ports from {first} on")


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every Azurite; no secret."""


def find_azurite() -> str | None:
    """Azurite's program for blobs: AZURITE, the PATH, or where `make services` puts it."""
    places = [os.environ.get("AZURITE"), shutil.which("azurite-blob"), ROOT / ".azurite/node_modules/.bin/azurite-blob"]
    return next((str(path) for path in places if path and Path(path).is_file()), None)


def azure_environment(endpoint: str) -> dict[str, str]:
    """What a user sets for an Azurite of their own."""
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ENDPOINT": endpoint,
    }


def new_container(endpoint: str) -> str:
    """The name of a container that was just made, by a request signed by hand (shared key)."""
    name = f"container-{uuid.uuid4().hex[:12]}"
    date = formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:2021-12-02\n"
    # The path has the account twice: as an account, and as it stands in the address of an Azurite.
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + headers + resource
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT")
    request.add_header("x-ms-date", date)
    request.add_header("x-ms-version", "2021-12-02")
    request.add_header("Authorization", f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 201
    return name


@contextmanager
def start_azurite(folder: Path) -> Iterator[str]:
    """The address of an account of an Azurite with blobs in memory, or a skip where there is none."""
    program = find_azurite()
    if program is None:
        pytest.skip("no azurite: make services, or AZURITE=.../azurite-blob")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True)
    options = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--loose"]
    process = subprocess.Popen(
        [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        assert process.poll() is None, "Azurite has ended: another process may have its port"
        yield f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    finally:
        process.kill()
        process.wait()


def list_uploads(endpoint: str, bucket: str) -> list[str]:
    """Keys of uploads in parts that were begun and neither completed nor given up."""
    found = _s3(endpoint).list_multipart_uploads(Bucket=bucket)
    return [upload["Key"] for upload in found.get("Uploads", [])]


def list_keys(endpoint: str, bucket: str) -> list[str]:
    """Keys of all objects of a bucket."""
    pages = _s3(endpoint).get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def put_marker(endpoint: str, bucket: str, key: str) -> None:
    """Put an empty object, as consoles do for a folder "key/"."""
    _s3(endpoint).put_object(Bucket=bucket, Key=key, Body=b"")


def fill_bucket(endpoint: str, bucket: str, folder: Path, prefix: str) -> None:
    """Put all files below a local folder into a bucket."""
    client = _s3(endpoint)
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())


def copy_bucket(endpoint: str, bucket: str, folder: Path) -> None:
    """Write all objects of a bucket below a local folder."""
    client = _s3(endpoint)
    for key in list_keys(endpoint, bucket):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
