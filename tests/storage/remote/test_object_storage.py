"""Object stores keep the storage contract; what only they can do wrong."""

from __future__ import annotations

import pytest

from teachonce.errors import RecordError
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from tests.storage.test_storage import StorageContract
from tests.support.object_stores import Gateway, environment, new_bucket


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
