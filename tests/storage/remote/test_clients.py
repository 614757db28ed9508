"""Where settings and credentials come from: the environment, --storage-options, an AWS profile."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from obstore.exceptions import UnauthenticatedError

from teachonce.errors import ConfigError, RecordError, TeachonceError
from teachonce.storage.files import open_storage
from teachonce.storage.remote.clients import SMALL_BYTES, connect, patience
from teachonce.storage.remote.failures import classify
from teachonce.storage.remote.settings import VARIABLE, add_options, read_settings
from tests.storage.test_storage import put
from tests.support.object_stores import environment, new_bucket
from tests.support.proxy import start_proxy


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in environment("http://localhost"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def test_everything_by_storage_options(moto: str) -> None:
    add_options([f"endpoint={moto}", "access_key_id=test", "region=eu-west-1"])
    add_options(["aws_secret_access_key=a secret with spaces, and 'quotes'", "azure_account_name=of another provider"])
    storage = open_storage(f"s3://{new_bucket(moto)}/a", RecordError)
    put(storage, "b.bin")
    assert storage.read("b.bin") == b"content"


def test_an_option_overrides_the_environment(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    add_options([f"endpoint={moto}"])
    put(open_storage(f"s3://{new_bucket(moto)}/a", RecordError), "b.bin")


def test_a_profile_with_its_endpoint(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "config").write_text(f"[profile mine]\nregion = eu-west-1\nendpoint_url = {moto}\n")
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = test\naws_secret_access_key = test1234\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    storage = open_storage(f"s3://{new_bucket(moto)}/a", RecordError)
    put(storage, "b.bin")
    assert storage.read("b.bin") == b"content"


def test_the_default_profile_is_used_where_nothing_else_is(moto: str, tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {moto}\n")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test1234\n")
    with start_proxy(moto) as proxy:
        put(open_storage(f"s3://{new_bucket(moto)}/a", RecordError), "b.bin")
        assert proxy.requests == []
        add_options([f"endpoint={proxy.endpoint}"])
        put(open_storage(f"s3://{new_bucket(moto)}/a", RecordError), "b.bin")
        assert len(proxy.requests) == 2


@pytest.fixture
def provider(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that provides credentials for 20 minutes, and fails once for each line of the file ``fail``."""
    pytest.importorskip("boto3")
    program = tmp_path / "provide.py"
    program.write_text(
        "import datetime, json, pathlib, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / 'calls').open('a').write('.')\n"
        "lines = (here / 'fail').read_text().splitlines() if (here / 'fail').exists() else []\n"
        "if lines:\n"
        "    (here / 'fail').write_text('\\n'.join(lines[1:]))\n"
        "    sys.exit(lines[0])\n"
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=20)\n"
        "keys = {'AccessKeyId': 'test', 'SecretAccessKey': 'test1234', 'SessionToken': 'test'}\n"
        "print(json.dumps({'Version': 1, 'Expiration': end.isoformat(), **keys}))\n"
    )
    (tmp_path / "config").write_text(
        f"[profile own]\nendpoint_url = {moto}\ncredential_process = {sys.executable} {program}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "own")
    return tmp_path


def test_a_provider_that_fails_for_a_moment(provider: Path, moto: str) -> None:
    (provider / "fail").write_text("no token yet\n")
    storage = open_storage(f"s3://{new_bucket(moto)}/a", RecordError)
    put(storage, "b.bin")
    calls = (provider / "calls").read_text()
    (provider / "fail").write_text("away now\n" * 99)
    put(storage, "c.bin", b"c" * (SMALL_BYTES + 1))  # another client, of the same session
    assert len(storage.read("c.bin")) == SMALL_BYTES + 1 and (provider / "calls").read_text() == calls


def test_a_provider_that_fails_is_no_wrong_command(provider: Path, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "retry_seconds=0.1")
    (provider / "fail").write_text("no token today\n" * 99)
    with pytest.raises(TeachonceError, match=r"AWS_PROFILE=own: no credentials: .*no token today; check ~") as raised:
        open_storage(f"s3://{new_bucket(moto)}/a", RecordError).has("b.bin")
    assert raised.value.exit_code == 1


def test_credentials_hold_as_long_as_they_say(provider: Path) -> None:
    found = connect("s3", "bucket").credential_provider()
    left = found["expires_at"] - datetime.now(UTC)
    assert timedelta(minutes=19) < left <= timedelta(minutes=20)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("CredentialRetrievalError", "passing"), ("UnauthorizedSSOTokenError", "refused")],
)
def test_why_credentials_were_not_renewed(kind: str, expected: str) -> None:
    text = f"The operation lacked valid credentials for path External AWS credential provider: {kind}: it is away."
    failure = classify(UnauthenticatedError(text))
    assert failure.kind == expected and failure.reason.startswith("no credentials: it is away")


def test_changed_credentials_are_another_client(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_proxy(moto) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        storage = open_storage(f"s3://{new_bucket(moto)}/a", RecordError)
        assert not storage.has("b")
        first = len(proxy.requests)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        proxy.plan = lambda request, number: "403 SignatureDoesNotMatch"
        with pytest.raises(RecordError, match="the secret key does not belong to this access key"):
            storage.has("b")
        assert len(proxy.requests) == first + 1


def test_options_that_are_no_pairs() -> None:
    with pytest.raises(ConfigError, match=r"--storage-options region: expected KEY=VALUE"):
        add_options(["region"])


def test_a_variable_that_is_no_list_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a='")
    with pytest.raises(ConfigError, match=f"{VARIABLE}: No closing quotation; expected KEY=VALUE pairs"):
        read_settings()


def test_small_requests_need_not_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience(SMALL_BYTES) == (60, None, None)
    assert patience(SMALL_BYTES + 1) == (600, 60, None)
    assert patience(SMALL_BYTES + 1, is_upload=True, retry_seconds=7) == (600, None, 7)
    monkeypatch.setenv(VARIABLE, "timeout_seconds=5")
    assert patience(0) == (5, None, None) and patience(1 << 30) == (5, 5, None)


def test_containers_that_azure_names_itself() -> None:
    add_options(["account_name=a", "skip_signature=true"])
    connect("az", "$web")
    for scheme, name in (("az", "$other"), ("s3", "$web")):
        with pytest.raises(ConfigError, match="is not a valid bucket name"):
            connect(scheme, name)
