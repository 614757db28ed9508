"""Object stores keep the storage contract; what only they can do wrong."""

from __future__ import annotations

import pytest

from teachonce.errors import RecordError
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from tests.storage.test_storage import StorageContract
from tests.support.object_stores import (
    Gateway,
    azure_environment,
    environment,
    new_bucket,
    new_container,
    put_marker,
)
from tests.support.proxy import start_proxy


def set_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


class TestMoto(StorageContract):
    @pytest.fixture
    def storage(self, moto: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        set_environment(monkeypatch, environment(moto))
        return open_storage(f"s3://{new_bucket(moto)}/some/folder", RecordError)


@pytest.mark.slow
@pytest.mark.xdist_group("gateway")
class TestGateway(StorageContract):
    @pytest.fixture
    def storage(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Storage:
        set_environment(monkeypatch, environment(gateway.endpoint))
        return open_storage(f"s3://{new_bucket(gateway.endpoint)}/some/folder", RecordError)


@pytest.mark.slow
@pytest.mark.xdist_group("azurite")
class TestAzurite(StorageContract):
    @pytest.fixture
    def storage(self, azurite: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        set_environment(monkeypatch, azure_environment(azurite))
        return open_storage(f"az://{new_container(azurite)}/some/folder", RecordError)

    @pytest.mark.parametrize(
        "settings, container, phrase",
        [
            ({}, "no-such-container", "there is no such container; create it, or check its name and the account"),
            ({"AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}, "", "the credentials are wrong, or do not allow this; check"),
        ],
    )
    def test_what_cannot_be_used(
        self, azurite: str, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], container: str, phrase: str
    ) -> None:
        set_environment(monkeypatch, {**azure_environment(azurite), **settings})
        storage = open_storage(f"az://{container or new_container(azurite)}/some", RecordError)
        for ask in (storage.has, storage.read, storage.statuses):
            with pytest.raises(RecordError, match=phrase):
                ask("a.bin")


@pytest.mark.parametrize("place", ["mk", ""])
def test_markers_of_folders_are_no_files(moto: str, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    set_environment(monkeypatch, environment(moto))
    bucket = new_bucket(moto)
    prefix = f"{place}/" if place else ""
    for marker in (prefix, f"{prefix}train/", f"{prefix}train/red/", f"{prefix}old"):
        if marker:
            put_marker(moto, bucket, marker)
    storage = open_storage(f"s3://{bucket}/{place}", RecordError)
    for name in ("train/red/a.bin", "old/b.bin", "c.bin"):
        with storage.put(name) as file:
            file.write(b"abc")
    put_marker(moto, bucket, f"{prefix}train/red/empty.bin")
    assert storage.is_folder() and storage.is_folder("train") and storage.is_folder("train/red")
    assert not storage.is_folder("train/blue")
    top = storage.list_folder()
    assert sorted(top.files) == ["c.bin"] and sorted(top.folders) == ["old", "train"]
    assert storage.list_folder("train") == ([], ["red"])
    assert sorted(storage.list_folder("train/red").files) == ["a.bin", "empty.bin"]
    assert storage.statuses().keys() == {"c.bin"} and storage.statuses("train").keys() == set()
    assert storage.statuses("train/red").keys() == {"a.bin", "empty.bin"}
    assert sorted(storage.walk()) == ["c.bin", "old/b.bin", "train/red/a.bin", "train/red/empty.bin"]
    assert sorted(storage.walk("train")) == ["red/a.bin", "red/empty.bin"]


def test_a_denied_object_is_not_taken_for_a_missing_one(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = new_bucket(moto)
    with start_proxy(moto) as proxy:
        set_environment(monkeypatch, environment(proxy.endpoint))
        storage = open_storage(f"s3://{bucket}/some", RecordError)
        with storage.put("a.bin") as file:
            file.write(b"abc")
        denied = f"/{bucket}/some/"
        proxy.plan = lambda request, number: "403 AccessDenied" if denied in request.path else None
        with pytest.raises(RecordError, match=r"some/a\.bin: cannot be read: access denied"):
            storage.has("a.bin")
        assert not storage.has("b.bin") and not storage.has("a")


def test_a_put_whose_answer_cannot_be_checked_says_that_it_was_writing(
    moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(moto)
    with start_proxy(moto) as proxy:
        set_environment(monkeypatch, environment(proxy.endpoint))
        storage = open_storage(f"s3://{bucket}/some", RecordError)
        with storage.put("a.bin") as file:
            file.write(b"abc")
        denied = f"/{bucket}/some/a.bin"
        # "It exists already", and then nobody may look whether it does.
        proxy.plan = lambda request, number: "403 AccessDenied" if request.method != "PUT" else None
        expected = pytest.raises(RecordError, match=r"some/a\.bin: cannot be written: access denied")
        with expected, storage.put_if_absent("a.bin") as file:
            file.write(b"abc")
        assert any(request.path.startswith(denied) for request in proxy.requests if request.method == "HEAD")
