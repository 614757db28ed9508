"""Small stores and the command in short, for the tests of copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teachonce.interop import copy as copy_module
from teachonce.interop.config import CopyConfig
from teachonce.storage.address import to_location
from teachonce.store.begin import begin_store
from teachonce.store.card import write_card
from teachonce.store.manifests import finalize_store
from teachonce.store.store import Store
from tests.support.small_stores import fill, make_plan


def copy(source: Path | str, target: Path | str, **options: Any) -> None:
    copy_module.copy(CopyConfig(source=to_location(source), target=to_location(target), **options))


def make_store(path: Path, num_views: int = 6) -> Store:
    """Two shards, views in groups of two, samples."""
    plan = begin_store(path, make_plan(num_views=num_views, num_samples=2), views_per_file=2)
    fill(path, plan)
    assert finalize_store(path) == num_views
    write_card(Store(path), "MIT")
    return Store(path)
