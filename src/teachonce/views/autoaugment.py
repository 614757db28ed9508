"""AutoAugment's policy for ImageNet: 25 sub-policies of two operations, each with a probability and a level.

Cubuk et al. 2018, arXiv:1805.09501, table 9 of the appendix. A view draws one sub-policy uniformly, then each of its
two operations with its probability; one that is not drawn is stored as ``identity``, so every view has two.

The scale of the levels is that of the authors' published TensorFlow code, which the walkthrough trains with (Lee et al.
2020, arXiv:2001.06268): a tenth of a range a level, truncated to integers where the magnitude is one. Rotation 3
degrees a level, shear 0.03, both with a random sign; color, contrast and sharpness a factor of 0.1 + 0.18 a level
(below 1 takes away, above 1 adds: no random sign); solarize inverts gray levels from 25.6 a level on; posterize keeps
0.4 bits a level, so level 5 keeps 2. (Other libraries read table 6 of the paper otherwise: posterize from 8 down to 4
bits, factors with a random sign.) The operations themselves are those of ``operations``: bilinear and filled with
ImageNet's mean where that code takes the nearest pixel and fills with gray, Pillow's contrast instead of that code's,
whose mean depends on the image's size.
"""

from __future__ import annotations

import numpy as np

from teachonce.views.operations import Operation

Step = tuple[str, float, int]
"""Operation, probability, level."""

IMAGENET_SUB_POLICIES: tuple[tuple[Step, Step], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def sample_sub_policy(rng: np.random.Generator) -> tuple[Operation, Operation]:
    """The two operations of a view, ``identity`` for one that is left out; magnitudes are what float16 stores."""
    first, second = IMAGENET_SUB_POLICIES[rng.integers(len(IMAGENET_SUB_POLICIES))]
    return _sample_step(rng, first), _sample_step(rng, second)


def _sample_step(rng: np.random.Generator, step: Step) -> Operation:
    name, prob, level = step
    # Both are drawn whatever comes of them: which numbers are used for what does not depend on the sub-policy.
    is_drawn = rng.random() < prob
    sign = 1.0 if rng.random() < 0.5 else -1.0
    return Operation(name, float(np.float16(level_magnitude(name, level, sign)))) if is_drawn else Operation("identity")


def level_magnitude(name: str, level: int, sign: float) -> float:
    """The physical magnitude at ``level`` (0..10), in the unit of the operation; 0 for one that has none."""
    if name == "rotate":
        return sign * level / 10 * 30
    if name in ("shear_x", "shear_y"):
        return sign * level / 10 * 0.3
    if name in ("color", "contrast", "sharpness"):
        return level / 10 * 1.8 + 0.1
    if name == "solarize":
        return int(level / 10 * 256)
    if name == "posterize":
        return int(level / 10 * 4)
    return 0.0
