"""Whether a run's student may have been trained on images that it is evaluated on.

Data without a validation split has no images but those it is trained on, less the part that ``--val-fraction`` holds
out: with another fraction or seed than the run's, images of the other part are in it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from teachonce.records.image_listing import TRAIN_NAMES, VALIDATION_NAMES
from teachonce.records.options import RecordOptions
from teachonce.runs.run import Run


def warn_of_trained_images(path: Path | str, split: str, options: RecordOptions) -> None:
    """Warn where the part of ``split`` that ``options`` choose is not cut as the run at ``path`` cut it.

    A split of its own, such as test, or a validation split in the data, holds no images that a run was trained on.
    """
    name = split.lower()
    if name not in TRAIN_NAMES and not (name in VALIDATION_NAMES and options.val_fraction):
        return
    config = Run(path).config
    of_run = config.get("val_fraction", 0.0), config.get("val_seed", 0)
    given = options.val_fraction, options.val_seed
    if of_run == given or not (of_run[0] or given[0]):
        return
    warnings.warn(
        f"run:{path}: was trained on {config.get('data')} with {_describe(*of_run)}, found {_describe(*given)}: of "
        f"this data it may have been trained on some images of {split}; give the run's own values",
        stacklevel=3,
    )


def _describe(fraction: float, seed: int) -> str:
    return f"--val-fraction {fraction:g} --val-seed {seed}" if fraction else "no --val-fraction"
