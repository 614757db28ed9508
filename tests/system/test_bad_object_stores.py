"""Object stores that cannot be used, as a user meets them: in every command one line that says what to do, in time.

The answers of a server are those of a proxy in front of a real one; the table of docs/reference/errors.md.
"""

from __future__ import annotations

import builtins
import importlib
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from teachonce.cli.main import main
from teachonce.storage.remote import object_storage, retry
from teachonce.storage.remote.settings import VARIABLE
from tests.support.copies import copy, make_store
from tests.support.object_stores import environment, new_bucket
from tests.support.paths import GOLDEN
from tests.support.proxy import Proxy, no_faults, start_proxy
from tests.support.small_data import write_image_folder
from tests.support.small_models import write_color_shards, write_color_teacher

READING = {
    "start": "start {remote}",
    "records": "records --images {remote} --out {local}/new --shards 1 --num-workers 1",
    "extract": "extract --data {remote} --teacher {teacher} --out {local}/new --device cpu",
    "verify": "verify {remote} --data {local}/data --device cpu",
    "inspect": "inspect {remote}",
    "merge": "merge {remote} --data {local}/data --out {local}/new",
    "train": "train --data {local}/data --store {remote} --student timm:test_vit3 --out {local}/new --device cpu "
    "--validation-split none",
    "train from data": "train --data {remote} --student timm:test_vit3 --out {local}/new --device cpu",
    "evaluate": "evaluate --data {remote} --model {teacher} --device cpu",
    "evaluate beside a store": "evaluate --data {local}/data --model {teacher} --store {remote} --split train "
    "--device cpu",
    "evaluate a run": "evaluate --data {local}/data --model run:{remote} --split train --device cpu",
    "predict": "predict {teacher} {remote} --device cpu",
    "predict by a run": "predict {remote} {local}/images --device cpu",
    "export-logits": "export-logits {remote} --out {local}/new",
    "export-onnx": "export-onnx {remote} --out {local}/new.onnx",
    "export-weights": "export-weights {remote} --out {local}/new.safetensors",
    "copy": "copy {remote} {local}/new",
    "status": "status {remote}",
    "diff": "diff {remote} {remote}",
    "reindex": "reindex --data {remote} --out {local}/new",
    "upgrade": "upgrade {remote} --out {local}/new",
    "import": "import {remote} --data {local}/data --out {local}/new",
    "plan": "plan --data {remote} --teacher {teacher} --device cpu",
}
WRITING = {
    "records": "records --images {local}/images --out {remote} --shards 1 --num-workers 1",
    "extract": "extract --data {local}/data --teacher {teacher} --out {remote} --device cpu --gate-samples 0",
    "train": "train --data {local}/data --student timm:test_vit3 --out {remote} --device cpu --size 32 --batch-size 4 "
    "--epochs 1 --validation-split none --num-workers 1",
}
ANSWERS = {
    "403 SignatureDoesNotMatch": "the secret key does not belong to this access key; check the credentials",
    "403 InvalidAccessKeyId": "the access key is unknown; check the credentials and the endpoint",
    "403 RequestTimeTooSkewed": "this machine's clock differs from the server's by minutes; set the clock",
    "400 ExpiredToken": "the credentials have expired; renew them",
    "400 AuthorizationHeaderMalformed": "the region is wrong; set it with AWS_REGION or --storage-options region=",
    "301 PermanentRedirect": "the bucket is in another region; set it with AWS_REGION or --storage-options region=",
    "403 AccessDenied": "access denied; check the credentials and their permissions",
}
"""What a server says, and what is said of it."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_image_folder(folder / "images", num_classes=2, per_class=2)
    write_color_shards(folder / "data", sizes=(6,))
    return folder


@pytest.fixture(scope="module")
def teacher(inputs: Path) -> str:
    return write_color_teacher(inputs / "teacher.onnx")


@pytest.fixture(scope="module")
def proxy(moto: str) -> Iterator[Proxy]:
    with start_proxy(moto) as found:
        yield found


Fails = Callable[..., str]


@pytest.fixture
def fails(inputs: Path, teacher: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Fails:
    """``fails(command, remote)``: a command that must end with code 1 or 2 and one line, which is returned."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**environment(proxy.endpoint), VARIABLE: ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(proxy, "plan", no_faults)
    monkeypatch.chdir(inputs)
    before = sorted(inputs.rglob("*"))

    def run(command: str, remote: str, *more: str) -> str:
        words = [word.format(remote=remote, local=inputs, teacher=teacher) for word in command.split()]
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        out, err = capsys.readouterr()
        shown = err.splitlines()
        lines = [line for line in shown if line.startswith("teachonce: ") and "warning" not in line]
        lines += [line for line in out.splitlines() if "NOT sound" in line]  # verify's verdict, which is an answer
        assert end.value.code in (1, 2) and len(lines) == 1, (command, end.value.code, shown)
        assert "Traceback" not in "\n".join(shown)
        assert [path for path in sorted(inputs.rglob("*")) if path not in before and path.suffix != ".idx"] == []
        return lines[0]

    return run


@pytest.fixture
def bucket(moto: str) -> str:
    return new_bucket(moto)


EVERY = [*READING.values(), *WRITING.values()]


@pytest.mark.parametrize("command", EVERY)
def test_an_unknown_scheme(fails: Fails, command: str) -> None:
    assert "s4://bucket/some: unknown scheme s4, expected s3://, gs://, az://" in fails(command, "s4://bucket/some")


@pytest.mark.parametrize("command", EVERY)
def test_a_missing_bucket(fails: Fails, command: str) -> None:
    line = fails(command, "s3://no-such-bucket/some")
    assert "s3://no-such-bucket/some" in line and "there is no such bucket; create it, or check its name" in line


QUICK = [(command, list(ANSWERS)[number % len(ANSWERS)]) for number, command in enumerate(EVERY)]
REST = [(command, answer) for command in EVERY for answer in ANSWERS if (command, answer) not in QUICK]


@pytest.mark.parametrize("command, answer", [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)])
def test_what_a_server_refuses(fails: Fails, proxy: Proxy, bucket: str, command: str, answer: str) -> None:
    proxy.plan = lambda request, number: answer
    line = fails(command, f"s3://{bucket}/some")
    assert f"s3://{bucket}/some" in line and ANSWERS[answer] in line


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_whose_files_cannot_be_read_now_is_not_judged(
    fails: Fails, proxy: Proxy, bucket: str, tmp_path: Path, version: int
) -> None:
    """Credentials that expire while it is verified are no damage, and no file that comes after is tried."""
    path = make_store(tmp_path / "store").path if version == 3 else next(GOLDEN.glob("store-v2*"))
    copy(path, f"s3://{bucket}/store")
    proxy.plan = lambda request, number: "400 ExpiredToken" if ".arrow" in request.path else None
    with proxy.counted() as requests:
        line = fails(READING["verify"], f"s3://{bucket}/store", "--teacher", "none")
    assert "NOT sound" not in line and "damaged" not in line and "--repair" not in line
    assert re.search(r"arrow: cannot be read: the credentials have expired; renew them; so nothing is known", line)
    assert version == 3 or len({request.path for request in requests if ".arrow" in request.path}) == 1


@pytest.mark.parametrize("command", WRITING.values())
def test_a_bucket_without_permission_to_write(fails: Fails, proxy: Proxy, bucket: str, command: str) -> None:
    proxy.plan = lambda request, number: "403 AccessDenied" if request.method in ("PUT", "POST") else None
    line = fails(command, f"s3://{bucket}/some")
    assert re.search(rf"s3://{bucket}/some\S*: cannot be written: access denied; check the credentials", line)


@pytest.mark.parametrize("command", EVERY)
def test_no_credentials(fails: Fails, bucket: str, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # boto3's search
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    assert "no credentials; set them in the environment (AWS_ACCESS_KEY_ID and" in fails(command, f"s3://{bucket}/some")


@pytest.mark.parametrize("command", EVERY)
def test_a_server_that_refuses(fails: Fails, bucket: str, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    # Tried several times, and not for long: every command waits for it.
    monkeypatch.setattr(retry, "FIRST_CONTACT_SECONDS", 0.05)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    line = fails(command, f"s3://{bucket}/some")
    assert "the server refused the connection; tried for 0 s: check the endpoint and the network" in line


@pytest.mark.parametrize("command", [READING["extract"], WRITING["extract"]])
def test_a_server_that_never_answers(fails: Fails, bucket: str, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(retry, "FIRST_CONTACT_SECONDS", 2.0)
    monkeypatch.setattr(object_storage, "_FIRST_ANSWER_SECONDS", 1.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert "the server did not respond in time; tried for 2 s: check" in fails(command, f"s3://{bucket}/some")
    assert time.monotonic() - begin < 10
    assert retry.FIRST_CONTACT_SECONDS >= object_storage._FIRST_ANSWER_SECONDS


def test_an_endpoint_that_is_misspelt(fails: Fails, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    command = READING["inspect"]
    monkeypatch.setattr(retry, "FIRST_CONTACT_SECONDS", 0.5)
    for endpoint, phrase in (
        ("http://nowhere.invalid:9000", "the server's name cannot be resolved; tried for 0 s: check the endpoint"),
        (
            proxy.endpoint.replace("http://", "https://"),
            "does not use TLS; if it is yours, give its endpoint as http",
        ),
        ("127.0.0.1:9000", "AWS_ENDPOINT_URL=127.0.0.1:9000: expected a URL, such as http://127.0.0.1:9000 or"),
        ("http://:99999999", "AWS_ENDPOINT_URL=http://:99999999: expected a URL"),
        ("localhost", "AWS_ENDPOINT_URL=localhost: expected a URL"),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert phrase in fails(command, f"s3://{bucket}/some")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    line = fails(command, f"s3://{bucket}/some", "--storage-options", "endpoint=here")
    assert "--storage-options endpoint=here: expected a URL" in line


@pytest.mark.parametrize("command", EVERY)
def test_storage_options_that_are_none(fails: Fails, bucket: str, command: str) -> None:
    remote = f"s3://{bucket}/some"
    line = fails(command, remote, "--storage-options", "nonsense=1")
    assert "--storage-options nonsense: unknown for s3://, expected keys such as endpoint, region" in line


@pytest.mark.parametrize(
    "words, phrase",
    [
        (["--storage-options"], "--storage-options: expected KEY=VALUE pairs, such as"),
        (["--storage-options", "region"], "--storage-options: expected KEY=VALUE pairs"),
        (["--storage-options=region"], "--storage-options=region: expected KEY=VALUE pairs"),
        (["--storage-options", "retry_seconds=soon"], "retry_seconds=soon: expected seconds from 0 to 86400"),
        (["--storage-options", "timeout_seconds=-1"], "timeout_seconds=-1: expected seconds from 0 to 86400"),
        (["--storage-options", "timeout_seconds=nan"], "timeout_seconds=nan: expected seconds from 0 to 86400"),
        (["--storage-options", "allow_http=perhaps"], "perhaps"),
    ],
)
def test_storage_options_without_a_value(fails: Fails, bucket: str, words: list[str], phrase: str) -> None:
    assert phrase in fails(READING["inspect"], f"s3://{bucket}/some", *words)


@pytest.mark.parametrize("name", ["a", "B$x", "..", "-a"])
def test_what_is_no_name_of_a_bucket(fails: Fails, name: str) -> None:
    assert "is not a valid bucket name" in fails(READING["inspect"].replace("{remote}", "s3://" + name), "")


@pytest.mark.parametrize("command", EVERY)
def test_without_obstore(fails: Fails, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("obstore", "teachonce.storage.remote."))]:
        if name != "teachonce.storage.remote.settings":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    line = fails(command, "s3://bucket/some")
    assert line.endswith("s3://bucket/some needs obstore, which is not installed: pip install 'teachonce[remote]'")


def test_an_unknown_profile(fails: Fails, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    line = fails(READING["inspect"], f"s3://{bucket}/some")
    assert "AWS_PROFILE=mine: The config profile (mine) could not be found; check ~/.aws/config" in line
    (tmp_path / "config").write_text("[profile mine\n")
    assert "AWS_PROFILE=mine: " in fails(READING["inspect"], f"s3://{bucket}/some")
    monkeypatch.setattr(builtins, "__import__", _without("boto3", builtins.__import__))
    assert "AWS_PROFILE=mine: profiles need boto3; pip install boto3" in fails(READING["inspect"], "s3://other/some")


def _without(missing: str, real: Any) -> Any:
    def find(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    return find


def test_the_table_is_of_every_command() -> None:
    commands = importlib.import_module("teachonce.cli.main").COMMANDS
    tried = {command.split()[0] for command in EVERY}
    assert set(commands) - tried == {"ablate", "demo", "completion"}, "these train and extract, or read nothing"
