"""What ranks do that are spawned by a test: each imports this module, so it imports next to nothing."""

from __future__ import annotations

import os

from teachonce.training.config import TrainConfig


def write_rank(config: TrainConfig) -> None:
    """Leave a file of this rank's name with the number of ranks."""
    (config.out / os.environ["LOCAL_RANK"]).write_text(os.environ["WORLD_SIZE"])
