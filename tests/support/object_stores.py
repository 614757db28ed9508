"""Object stores for tests: moto in this process (quick), and Ceph's gateway, a real server, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    boto3 = pytest.importorskip("boto3")
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test1234",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=name)
    return name


@contextmanager
def start_moto() -> Iterator[str]:
    """The address of a moto server of this process."""
    server_module = pytest.importorskip("moto.server")
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
        self._call("start", str(port))

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
    gateway = Gateway(folder, port)
    try:
        yield gateway
    finally:
        gateway.stop()
