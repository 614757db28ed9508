"""What a run is: the content of config.json, by which the same command resumes it and another one is refused.

Models, weights and data count by what they are, and not by where they lie: what a run was started with is taken from
its config.json where it says the same in other words.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from teachonce.errors import ConfigError, PlanMismatchError, RecordError
from teachonce.models.spec import parse_model_spec
from teachonce.options import to_json
from teachonce.records.source import RecordSource, identify_data, split_in_names
from teachonce.runs.run import Run, find_trained
from teachonce.storage.files import open_storage, read_json
from teachonce.terminal import plural
from teachonce.training.config import TrainConfig
from teachonce.training.data import TrainingData
from teachonce.versions import library_versions


def resolve_run(
    config: TrainConfig, data: TrainingData, world_size: int, online_sha256: str | None = None
) -> dict[str, Any]:
    """The content of config.json: the configuration, what it came to, and what the data and the store are."""
    return {
        **to_json(config),
        **_batch_as_begun(config, world_size),
        "student": _student_as_begun(config),
        "kd_temp": config.temperature,
        "store_weights": _as_begun(config),
        "teacher": _teacher_as_begun(config, online_sha256),
        "eval_size": data.preprocessing.size_px,
        "num_classes": data.train.num_classes,
        "offset": data.train.class_space.offset,
        "data_classes": data.data_classes,
        "classes_hash": data.classes_hash,
        "class_names": None if data.class_names is None else list(data.class_names),
        "class_texts": None if data.class_texts is None else list(data.class_texts),
        "init_weights_sha256": _initial_weights(config, data),
        "preprocessing": data.preprocessing.to_json(),
        "train_records": _identify(data.train.records),
        "validation_records": None if data.validation is None else _identify(data.validation.records),
        "store_fingerprint": _join([store.fingerprint for store in data.stores]),
        "record_logits": _identify_record_logits(config, data.train.records),
        "store_views": data.num_views,
        "store_parts": [store.num_parts for store in data.stores] or None,
        "online_weights_sha256": online_sha256,
        "versions": library_versions(),
    }


def check_batch(config: TrainConfig, world_size: int) -> str | None:
    """What another number of devices than the run was started with changes, in a line; None: it is the same number.

    Raises PlanMismatchError where updates would have another number of images, or an epoch of updates.
    """
    begun = find_trained(config.out)
    if begun is None:
        return None
    before, now = _begun_batch(begun), _batch(config, world_size)
    num_before, images = before["world_size"], math.prod(before.values())
    if num_before == world_size:
        return None
    phrase = f"{config.out}: started on {plural(num_before, 'device')} with {images} images an update"
    if images == math.prod(now.values()):
        if (before["batch_size"] == 1) != (now["batch_size"] == 1):
            reason = f"with one image a batch an epoch may have other updates; resume on {num_before}"
            raise PlanMismatchError(f"{phrase}, now on {world_size}: {reason}, or choose another --out")
        equal = "equal up to rounding, except for batch norm and mixup, which use one device's batch"
        return f"{phrase}, now on {world_size}: {equal}"
    per_batch, rest = divmod(images, world_size * config.accumulate)
    times = f" --accumulate {config.accumulate}" if config.accumulate > 1 else ""
    advice = "choose a number of devices that divides it" if rest else f"give --batch-size {per_batch}{times}"
    raise PlanMismatchError(
        f"{phrase}, now on {world_size} with {math.prod(now.values())}; {advice}, or choose another --out"
    )


def _batch(config: TrainConfig, world_size: int) -> dict[str, int]:
    """What the images of an update are: batch size, batches and devices."""
    return {"batch_size": config.batch_size, "accumulate": config.accumulate, "world_size": world_size}


def _begun_batch(begun: Run) -> dict[str, int]:
    # Runs of a version without --accumulate had one batch an update.
    accumulate = begun.setting("accumulate", int) if "accumulate" in begun.config else 1
    return {
        "batch_size": begun.setting("batch_size", int),
        "accumulate": accumulate,
        "world_size": begun.setting("world_size", int),
    }


def _batch_as_begun(config: TrainConfig, world_size: int) -> dict[str, int]:
    """``_batch`` as the run was started with, where there are other devices and an update has as many images."""
    now, begun = _batch(config, world_size), find_trained(config.out)
    if begun is None:
        return now
    before = _begun_batch(begun)
    is_same = before["world_size"] != world_size and math.prod(before.values()) == math.prod(now.values())
    return before if is_same else now


def _as_begun(config: TrainConfig) -> str:
    """``--store-weights`` as the run was started with, where it says the same: 7,3 is 0.7,0.3."""
    begun = find_trained(config.out)
    text = None if begun is None else begun.config.get("store_weights")
    if begun is None or not isinstance(text, str) or len(begun.stores) != len(config.store):
        return config.store_weights
    try:
        before = dataclasses.replace(config, store_weights=text).teacher_weights()
    except ConfigError:
        return config.store_weights
    is_same = np.allclose(before, config.teacher_weights(), rtol=1e-9, atol=0)
    return text if is_same else config.store_weights


def _teacher_as_begun(config: TrainConfig, weights_sha256: str | None) -> str | None:
    """``--teacher`` as the run was started with, where it is the same model in another place."""
    begun = find_trained(config.out)
    if weights_sha256 is None or begun is None or begun.config.get("online_weights_sha256") != weights_sha256:
        return config.teacher
    return begun.teacher if _is_same_elsewhere(begun.teacher, config.teacher) else config.teacher


def _student_as_begun(config: TrainConfig) -> str:
    """``--student`` as the run was started with, where at most the file of its weights lies elsewhere.

    Whether it is the same file is seen when it is read (``train``), if the run knows.
    """
    begun = find_trained(config.out)
    if (
        begun is None
        or begun.config.get("init_weights_sha256") is None
        or not parse_model_spec(config.student).names_weights
    ):
        return config.student
    return begun.student if _is_same_elsewhere(begun.student, config.student) else config.student


def _is_same_elsewhere(before: str | None, now: str | None) -> bool:
    try:
        return parse_model_spec(str(before)).elsewhere == parse_model_spec(str(now)).elsewhere
    except ConfigError:  # a path with commas that is not there any more
        return False


def _initial_weights(config: TrainConfig, data: TrainingData) -> str | None:
    """What identifies the weights that the student starts from; of a SPEC's own only a run that is there knows yet."""
    if data.initial is not None:
        return data.initial.weights_sha256
    begun = find_trained(config.out) if parse_model_spec(config.student).names_weights else None
    return None if begun is None else begun.config.get("init_weights_sha256")


def _join(fingerprints: list[str]) -> str | None:
    return "+".join(fingerprints) or None


def _identify_record_logits(config: TrainConfig, source: RecordSource) -> dict[str, Any] | None:
    """What ``merge`` or ``records`` noted of the logits that they put into the records; None where they did not.

    Records with the logits of two teachers have the same names, sizes and counts.
    """
    if config.logits != "records" or config.temperature == 0:
        return None
    split = split_in_names(source)
    noted = {
        f"merge.{split}.json": ("store", "view", "background_logit"),
        f"records.{split}.json": ("logits", "background logit"),
    }
    for name, settings in noted.items():
        if open_storage(config.data).has(name):
            found = read_json(config.data / name)
            if not isinstance(found, dict):
                raise RecordError(
                    f"{config.data / name}: is not a plan of merged records, expected a JSON object; run merge again"
                )
            return {setting: found.get(setting) for setting in settings}
    return None


def _identify(source: RecordSource) -> dict[str, Any]:
    return {**source.describe(), **identify_data(source)}
