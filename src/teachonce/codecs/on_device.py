"""What ``Codec.decode_tensor`` computes: the arithmetic of ``decode_logits`` on tensors, on whatever device they are.

Torch is imported when a function is called, so that stores are read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def decode_int8(columns: Mapping[str, Tensor], levels: NDArray[np.float32]) -> Tensor:
    """Logits [N, C] of ``Int8Codec``'s columns; ``levels`` [256] is the fraction of its range that a code decodes
    to."""
    max_logit, codes = columns["max_logit"], columns["codes"]
    tables = max_logit[:, None] - _on(codes, levels) * columns["range"][:, None]
    tables[:, 255] = max_logit - columns["far"]
    return tables.gather(1, codes.long())


def decode_topk(
    columns: Mapping[str, Tensor],
    num_classes: int,
    drop_steps: NDArray[np.float64],
    tail_weights: NDArray[np.float64] | None,
) -> Tensor:
    """Logits [N, C] of ``TopKCodec``'s columns.

    ``drop_steps`` [3] is the value of a unit of each drop, ``tail_weights`` [4] are those of the tail's distances at
    the requested temperature; None: there is no tail.
    """
    import torch

    row_range = columns["range"].float()[:, None]
    kept = -row_range * (columns["codes"].float() / 255) ** 2
    if tail_weights is None:
        logits = kept.new_empty(len(kept), num_classes)
    else:
        drops = columns["drops"]
        falls = torch.cumsum(drops.float() * _on(drops, drop_steps), dim=1)
        distances = torch.cat([row_range, row_range + falls], dim=1)
        # Not as a matrix product, which mixed precision would do in 16 bits.
        tail = (distances * _on(drops, tail_weights)).sum(dim=1)
        logits = (-tail)[:, None].expand(-1, num_classes).clone()
    return logits.scatter_(1, columns["indices"].long(), kept)


def _on(like: Tensor, values: NDArray[np.floating]) -> Tensor:
    import torch

    return torch.from_numpy(values.astype(np.float32)).to(like.device, non_blocking=like.is_cuda)
