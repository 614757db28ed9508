"""What an assembled ResNet is assembled from: the tweaks of Lee et al. 2020 (arXiv:2001.06268), one option each.

They can be had alone and together. Where the original ignores one beside another, that is a warning here. The defaults
are the plain ResNet-50 of the original code, which numbers its networks 1 (plain) and 2 (Big-Little); here that is
``big_little``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from torch import nn

from teachonce.errors import ConfigError
from teachonce.models.assembled_resnet.layers import MAX_FILTER, NormLayer

Shortcut = Literal["plain", "resnet_d", "big_little"]
"""How a stage's first shortcut comes to its width and resolution."""

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
_BIG_LITTLE_BLOCKS = {50: (3, 4, 6, 3), 101: (4, 8, 18, 3), 152: (5, 12, 30, 3)}


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """What a network is assembled from; each field may also be given to ``timm.create_model``."""

    depth: int = 50
    """Layers by the usual count: 50, 101, 152, and 200 without Big-Little."""
    num_filters: int = 64
    """Filters of the first stage; every later one has twice as many."""
    big_little: tuple[int, int] | None = None
    """(alpha, beta) of Big-Little (arXiv:1807.03848): how many times narrower and shorter the little branch is."""
    use_resnet_d: bool = False
    """Three 3x3 convolutions as stem and mean pools in the shortcuts (arXiv:1812.01187)."""
    use_se: bool = False
    """Squeeze-and-excitation with ratio 16 and no biases (arXiv:1709.01507)."""
    use_sk: bool = False
    """Selective kernels in place of 3x3 convolutions (arXiv:1903.06586)."""
    anti_alias: tuple[Literal["sconv", "proj"], ...] = ()
    """Where to blur before every second pixel goes: after strided convolutions, in strided projections."""
    anti_alias_filter: int = 3
    """Side of the blur's filter, 1 (none) to 7."""
    drop_block_keep: tuple[float, float] | None = None
    """DropBlock's probability to keep, at the begin and the end of a training; None leaves it out."""
    zero_gamma: bool = False
    """The last scale of each block starts at 0, so that it starts as its shortcut."""
    global_pool: Literal["avg", "gem"] = "avg"
    """Plain or generalised mean over the pixels."""
    embedding_size: int = 0
    """Width of a layer between pool and classifier; 0 leaves it out."""
    use_last_downsample: bool = True
    """False keeps the last stage at the resolution of the one before."""
    bn_momentum: float = 0.997
    """Share of the old mean that batch norm keeps a step: TensorFlow's sense, one minus PyTorch's."""

    def __post_init__(self) -> None:
        depths = _BLOCKS if self.big_little is None else _BIG_LITTLE_BLOCKS
        if self.depth not in depths:
            raise ConfigError(f"backbone of depth {self.depth}: expected one of {', '.join(map(str, depths))}")
        if self.num_filters < 1 or self.num_filters % 4:
            raise ConfigError(f"backbone with num_filters {self.num_filters}: expected a multiple of 4")
        if self.big_little is not None and (
            len(self.big_little) != 2 or min(self.big_little) < 1 or self.num_filters % self.big_little[0]
        ):
            raise ConfigError(
                f"backbone with big_little {self.big_little}: expected (alpha, beta), integers of at least 1, "
                f"with alpha a divisor of num_filters ({self.num_filters})"
            )
        if isinstance(cast(object, self.anti_alias), str):
            raise ConfigError(f"backbone with anti_alias {self.anti_alias!r}: expected a tuple, such as ('sconv',)")
        if unknown := set(self.anti_alias) - {"sconv", "proj"}:
            raise ConfigError(f"backbone with anti_alias {sorted(unknown)}: expected ('sconv',), ('proj',) or both")
        if not 1 <= self.anti_alias_filter <= MAX_FILTER:
            raise ConfigError(f"backbone with anti_alias_filter {self.anti_alias_filter}: expected 1 to {MAX_FILTER}")
        if self.drop_block_keep is not None and (
            len(self.drop_block_keep) != 2 or not all(0 < keep <= 1 for keep in self.drop_block_keep)
        ):
            raise ConfigError(f"backbone with drop_block_keep {self.drop_block_keep}: expected two numbers in (0, 1]")
        if self.global_pool not in ("avg", "gem"):
            raise ConfigError(f"backbone with global_pool {self.global_pool!r}: expected 'avg' or 'gem'")
        if self.embedding_size < 0:
            raise ConfigError(f"backbone with embedding_size {self.embedding_size}: expected 0 or more")
        if not 0 <= self.bn_momentum < 1:
            raise ConfigError(f"backbone with bn_momentum {self.bn_momentum}: expected a number in [0, 1)")
        if "proj" in self.anti_alias and self.shortcut != "plain":
            warnings.warn(
                "anti_alias 'proj' has no effect with big_little or use_resnet_d, whose shortcuts are already pooled",
                stacklevel=3,
            )

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Blocks of each stage; with Big-Little the stage's merging block counts as one."""
        return (_BLOCKS if self.big_little is None else _BIG_LITTLE_BLOCKS)[self.depth]

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each stage; with Big-Little of its merging block."""
        last = 2 if self.use_last_downsample else 1
        return (1, 2, 2, last) if self.big_little is None else (2, 2, 1, last)

    @property
    def shortcut(self) -> Shortcut:
        """How the projections come to fewer pixels, outside Big-Little's branches."""
        return "resnet_d" if self.use_resnet_d else "plain" if self.big_little is None else "big_little"

    @property
    def norm(self) -> NormLayer:
        """Makes a batch norm."""
        return partial(nn.BatchNorm2d, eps=1e-5, momentum=1 - self.bn_momentum)
