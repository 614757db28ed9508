"""Object stores keep the storage contract; what only they can do wrong."""

from __future__ import annotations

import pytest

from teachonce.errors import RecordError
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from tests.storage.test_storage import StorageContract
from tests.support.object_stores import Gateway, azure_environment, environment, new_bucket, new_container


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
