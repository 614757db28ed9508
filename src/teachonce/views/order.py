"""Which of the stored views an epoch shows: the same for every record, so an epoch reads one view of each shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from teachonce.errors import ConfigError
from teachonce.rng import generator
from teachonce.views.options import ViewOrderName


@dataclass(frozen=True, kw_only=True)
class ViewOrder:
    """``sequential``: epoch mod V. ``permuted``: each V epochs go through the V views in an order of their own."""

    num_views: int
    kind: ViewOrderName = "sequential"
    seed: int = 0
    """Of ``permuted``."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ViewOrderName) or self.num_views < 1:
            raise ConfigError(
                f"order {self.kind!r} of {self.num_views} views: expected {' or '.join(get_args(ViewOrderName))}, "
                "of at least 1"
            )

    def is_same(self, other: ViewOrder) -> bool:
        """Whether both show the same view in every epoch: some epochs are no proof, permuted ones may begin alike."""
        return self._essence == other._essence

    @property
    def _essence(self) -> tuple[int, int | None]:
        """What the views depend on: not the seed where nothing is drawn, or where there is but one order to draw."""
        return self.num_views, None if self.kind == "sequential" or self.num_views == 1 else self.seed

    def number_of(self, epoch: int) -> int:
        """The number of the view that every record shows in this epoch."""
        cycle, position = divmod(epoch, self.num_views)
        if self.kind == "sequential":
            return position
        return int(generator(self.seed, "view order", cycle).permutation(self.num_views)[position])
