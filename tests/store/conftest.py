"""A finished store of given content."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from tests.support.small_stores import fill, make_plan


@pytest.fixture
def finished(tmp_path: Path):
    """(path, logits [shard][V, N, C], views [shard][V][N]) of three views in two files a shard."""
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(num_views=3), views_per_file=2)
    logits, views = fill(path, plan)
    assert finalize_store(path) == 3
    return path, logits, views
