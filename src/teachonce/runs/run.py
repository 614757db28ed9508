"""The directory that a training leaves behind: names, identity, the curve and the result.

    RUN/config.json           the resolved configuration; written first; the same command again must agree with it
        metrics.csv           one line an epoch, rewritten after each
        checkpoints/last.ckpt the newest state, of an epoch's end or within one, to resume from
        checkpoints/best.safetensors the weights with the best validation top-1, for ``run:RUN,epoch=best``
        tensorboard/          event files (--logger: or csv/, wandb/, or none)
        student.safetensors   the final weights (their moving average, where there is one)
        validation_classes.csv images and right answers of each class, in the last evaluation
        report.html           a page with curves and results
        result.json           written last: for ``train``, a run that has it is finished
        .train.lock           while it is trained: by which process

A run is the same run wherever it is computed: paths, the kind of device, the nodes that devices are spread over and
loader threads may change between two starts. Everything that the numbers depend on may not, but for the number of
devices (``world_size``) where an update has as many images: config.json keeps the first one (``training/data.py``).
Data, classes, store and teacher are compared by what they are, not by where they are stored. Who only needs the final
weights (``open_finished_run``) asks for these and not for result.json. Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from teachonce.errors import ConfigError, ModelError, PlanMismatchError, TeachonceError
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.source import describe_data_change
from teachonce.runs.metrics import METRICS_NAME, Row, read_metrics
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage, read_json, write_json
from teachonce.storage.resume import PlanFile, Say
from teachonce.storage.strict_json import parse_json

T = TypeVar("T")

CONFIG_NAME = "config.json"
RESULT_NAME = "result.json"
WEIGHTS_NAME = "student.safetensors"
REPORT_NAME = "report.html"
VALIDATION_CLASSES_NAME = "validation_classes.csv"
CHECKPOINTS_NAME = "checkpoints"
LAST_CHECKPOINT = f"{CHECKPOINTS_NAME}/last.ckpt"
BEST_WEIGHTS = f"{CHECKPOINTS_NAME}/best.safetensors"
KEPT_BEST_WEIGHTS = f"{CHECKPOINTS_NAME}/best-kept.safetensors"
"""Of the last checkpoint, while there are newer ones without a checkpoint."""
TENSORBOARD_NAME = "tensorboard"
LOCK_NAME = ".train.lock"
"""Held while a training writes into the run; hidden, as it may come before anything says that this is a run."""


MAX_HEADER_BYTES = 100_000_000
"""Of a file of weights: safetensors reads no longer one."""

_FREE = frozenset(
    {
        "out",
        "data",
        "validation_data",
        "init",
        "classes_hash",
        "class_names",
        "class_texts",
        "store",
        "views",
        "store_parts",
        "device",
        "cache",
        "cache_size",
        "devices",
        "num_nodes",
        "num_workers",
        "in_memory",
        "trust",
        "labels",
        "checkpoint_epochs",
        "checkpoint_minutes",
        "grace_seconds",
        "logger",
        "recipe",
        "versions",
        *(
            f"{records}.{name}"
            for records in ("train_records", "validation_records")
            for name in ("num_shards", "num_bytes")
        ),
    }
)
"""Entries of config.json that may differ when a run is resumed: where it is computed and where files are; the name of
the recipe, whose options are compared one by one; what ``_check_classes`` compares, as older runs lack some of it; what
the hash of the records' shards says already."""

_TRAIN_DATA = partial(describe_data_change, "the training data (--data)")
_VALIDATION_DATA = partial(describe_data_change, "the validation data")
INPUTS: Mapping[str, Say] = {
    "train_records.shards": _TRAIN_DATA,
    "train_records.num_records": _TRAIN_DATA,
    "validation_records.shards": _VALIDATION_DATA,
    "validation_records.num_records": _VALIDATION_DATA,
    "store_fingerprint": "the store (--store)",
    "record_logits.store": "the store whose logits the records have (merge)",
    "record_logits.logits": "the logits that the records have (records --logits)",
    "init_weights_sha256": "the weights to start from (--init, or those of --student)",
    "online_weights_sha256": "the teacher's weights (--teacher)",
}
"""Entries of config.json that say by a hash what a run was started with, and what messages call them."""

_RESOLVED = frozenset({"teacher", "store_weights", "num_classes", "offset"})
"""Options that config.json has as they came out with the data or the teacher at hand."""

_NUMBER = (int, float)
_ANY_NUMBER = (int, float, type(None))
_RESULT: dict[str, type | tuple[type, ...]] = {
    "epochs": int,
    "top1": _ANY_NUMBER,
    "top5": _ANY_NUMBER,
    "ece": _ANY_NUMBER,
    "seconds": _NUMBER,
}
"""Entries of result.json that are read again, with their types; None without a validation split."""


class Run:
    """A run that was started, opened for reading: config.json is parsed once, the rest is read on demand.

    Raises TeachonceError for a folder without config.json, ModelError for one whose config.json is not a run's.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = to_location(path)
        config = read_json(self.path / CONFIG_NAME)
        try:
            self.student: str = _typed(config, "student", str)
            """The student's SPEC."""
            self.num_classes: int = _typed(config, "num_classes", int)
            """Outputs of the student."""
            self.offset: int = _typed(config, "offset", int)
            """Data label of the student's class 0."""
            self.data_classes: int = _typed(config, "data_classes", int)
            """Classes of the data, background included."""
            self.size_px: int = _typed(config, "size", int)
            """Side of the pixels that the student is trained on."""
            self.preprocessing = Preprocessing.from_json(config["preprocessing"])
            """How the student sees images at evaluation."""
            self.temperature: float = _typed(config, "kd_temp", (int, float))
            """0 for a student that learns from labels only."""
            stores = config["store"] or []
            # Runs of 0.1 have one store, as a string.
            self.stores: tuple[str, ...] = (stores,) if isinstance(stores, str) else tuple(stores)
            """Where the stores lay that teach the student."""
            self.teacher: str | None = _typed(config, "teacher", (str, type(None))) if "teacher" in config else None
            """The SPEC of an online teacher."""
            self.store_views: int | None = config.get("store_views")
            """Views of the stores that are used; None without a store."""
            self.store_parts: list[int] | None = config.get("store_parts")
            """Parts of each store that are used; None without a store, and in older runs."""
            self.classes_hash: str | None = config.get("classes_hash")
            """``hash_classes`` of its classes; None for data that does not know their names, and in older runs."""
            self.class_names: tuple[str, ...] | None = _read_names(config, "class_names")
            """Names of its classes by output, as far as the data has names; None as for ``classes_hash``."""
            self.class_texts: tuple[str, ...] | None = _read_names(config, "class_texts")
            """What people see of these names, where it is something else."""
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise _no_run(self.path / CONFIG_NAME, error) from error
        self.config: dict[str, Any] = config
        """The content of config.json, to be shown."""

    @property
    def weights_path(self) -> Path:
        """Path of the student's final weights."""
        return self.path / WEIGHTS_NAME

    def hash_weights(self) -> str | None:
        """A hash of the final weights, None before there are any; equal weights have the same, whoever wrote them.

        Not of the file: safetensors writes its metadata in any order. Raises ModelError for a file that is none.
        """
        storage = open_storage(self.path)
        if not storage.has(WEIGHTS_NAME):
            return None
        with storage.stream(WEIGHTS_NAME) as file:
            try:
                length = int.from_bytes(file.read(8), "little")
                if length > MAX_HEADER_BYTES:
                    raise ValueError(f"a header of {length:,} bytes")
                header = parse_json(file.read(length))
                header.pop("__metadata__", None)
            except (ValueError, AttributeError, TypeError) as error:
                raise ModelError(f"{self.weights_path}: is not in the safetensors format ({error})") from error
            hasher = xxhash.xxh3_128(json.dumps(header, sort_keys=True).encode())
            while block := file.read(1 << 20):
                hasher.update(block)
        return hasher.hexdigest()

    @property
    def metrics(self) -> list[Row]:
        """The curve so far, as ``read_metrics``."""
        return read_metrics(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json, None where there is none: the run is not finished; ModelError if damaged."""
        if not open_storage(self.path).has(RESULT_NAME):
            return None
        result = read_json(self.path / RESULT_NAME)
        try:
            for name, kind in _RESULT.items():
                _typed(result, name, kind)
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"{self.path / RESULT_NAME}: is not the result of a run ({type(error).__name__}: {error}); remove "
                "it, and the same train command writes it again"
            ) from error
        return result

    def setting(self, name: str, kind: type[T]) -> T:
        """An entry of config.json to be shown; ModelError where it is missing or of another type."""
        try:
            return _typed(self.config, name, kind)
        except (KeyError, TypeError) as error:
            raise _no_run(self.path / CONFIG_NAME, error) from error

    def describe_supervision(self) -> str:
        """The teacher of the student, as a phrase."""
        if not self.temperature:
            return "labels only"
        source = " and ".join(self.stores) or self.teacher or "image/logit of the records"
        views = f", {self.store_views} views" if self.store_views else ""
        return f"KD at temperature {self.temperature:g} from {source}{views}"


def holds_run(path: Path) -> bool:
    """Whether a run was started in this folder."""
    return open_storage(path).has(CONFIG_NAME)


def find_run(path: Path) -> Run | None:
    """The run in this folder, None where none was started; raises as ``Run``."""
    return Run(path) if holds_run(path) else None


def find_trained(path: Path) -> Run | None:
    """``find_run`` of a run of which anything was kept: a state to resume from, or the row of an epoch."""
    return None if _is_untrained(path) else find_run(path)


def _is_untrained(path: Path) -> bool:
    """Whether this is a run that ended before anything of it was kept, as by a mistake that shows in the first step."""
    storage = open_storage(path)
    kept = (LAST_CHECKPOINT, METRICS_NAME, WEIGHTS_NAME, RESULT_NAME)
    if not storage.has(CONFIG_NAME) or any(map(storage.has, kept)):
        return False
    with suppress(TeachonceError):  # another program's config.json
        return find_run(path) is not None
    return False


def open_finished_run(path: Path, *, requested_by: str, weights_name: str = WEIGHTS_NAME) -> Run:
    """A run with its final weights, or its best ones, whether or not result.json is there yet.

    ConfigError that begins with ``requested_by`` where configuration or weights are missing, else as ``Run``.
    """
    expected = "the folder of a finished run"
    if weights_name == BEST_WEIGHTS:
        expected = "a run with a validation split, trained to the end of an epoch by this version or a newer one"
    for name in (CONFIG_NAME, weights_name):
        if not open_storage(path).has(name):
            raise ConfigError(f"{requested_by}: has no {name}; expected {expected}")
    return Run(path)


def check_run(path: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Agree with the run that ``path`` holds, if any; nothing is written.

    A run of which nothing was kept yet agrees with everything. ``defaults`` are the values of options that the run's
    version may not have had yet. Raises PlanMismatchError naming each setting that differs, TeachonceError where
    ``path`` holds something else.
    """
    if not _is_untrained(path):
        _check_classes(path, _plan_file(path, defaults).check(config), config)


def hash_config(config: Mapping[str, Any]) -> int:
    """A number below 2**31 of everything in a configuration that the numbers of its run depend on."""
    # The class order is compared by ``check_run`` in its own way.
    counted = {name: value for name, value in config.items() if name not in _FREE or name == "classes_hash"}
    for name in ("train_records", "validation_records"):
        records = counted.get(name) or {}
        counted[name] = {entry: value for entry, value in records.items() if f"{name}.{entry}" not in _FREE}
    return xxhash.xxh3_64(json.dumps(counted, sort_keys=True, default=str).encode()).intdigest() & 0x7FFFFFFF


def check_options(path: Path, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """``check_run`` of what ``options`` alone say, before data, stores and a teacher are opened.

    What config.json has beyond them is left out, and so is what a training makes of an option with these.
    """
    plan_file = _plan_file(path, defaults)
    old = plan_file.read()
    if old is None or _is_untrained(path):
        return
    unsaid = old.keys() - options.keys() | _RESOLVED
    if old.get("world_size", 1) != 1:
        unsaid |= {"batch_size", "accumulate"}
    dataclasses.replace(plan_file, may_differ=_FREE | unsaid).check(options)


def check_run_folder(path: Path) -> None:
    """Raise TeachonceError where ``path`` is something else than a run or a place for one."""
    _plan_file(path, {}).check_folder()


def begin_run(path: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """``check_run``, then write config.json where there is none; the caller holds ``LOCK_NAME``.

    Returns whether it took the place of another configuration, of which nothing was kept.
    """
    try:
        _check_classes(path, _plan_file(path, defaults).begin(config), config)
    except PlanMismatchError:
        if not _is_untrained(path):
            raise
        write_json(path / CONFIG_NAME, dict(config))
        return True
    return False


def _check_classes(path: Path, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
    """Raise PlanMismatchError where outputs of the student would be other classes than so far.

    The order of the classes is that of a file or of folders, which a user may change; by it labels are numbered. A list
    of names (``labels``) may be moved where both know the names.
    """
    if old is None:
        return
    if old.get("classes_hash") is None or new.get("classes_hash") is None:
        before, now = (config.get("labels") for config in (old, new))
        if before != now:
            raise PlanMismatchError(
                f"{path}: was started with a different configuration: labels was {before}, now {now}; choose another "
                "--out, or the same settings"
            )
        return
    if old["classes_hash"] == new["classes_hash"]:
        return
    names = zip_longest(old.get("class_names") or [], new.get("class_names") or [], fillvalue="nothing")
    differing = ((output, *pair) for output, pair in enumerate(names) if pair[0] != pair[1])
    # Older runs have no names.
    output, before, now = next(differing, (None, None, None))
    which = "" if output is None else f": output {output} was {before}, now {now}"
    raise PlanMismatchError(
        f"{path}: was started with other classes, or with the same ones in another order{which}; give --labels or name "
        "the folders as before, or choose another --out"
    )


def _no_run(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: is not from a run ({type(error).__name__}: {error}); train again")


def _plan_file(path: Path, defaults: Mapping[str, Any]) -> PlanFile:
    return PlanFile(
        folder=path,
        name=CONFIG_NAME,
        foreign=TeachonceError(f"{path}: exists and is not a run; choose another --out or remove it"),
        what="configuration",
        hashes=INPUTS,
        advice_on_inputs="choose another --out, or restore what the run was started with",
        may_differ=_FREE,
        defaults=defaults,
    )


def _read_names(config: Mapping[str, Any], entry: str) -> tuple[str, ...] | None:
    value = config.get(entry)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{entry} is {str(value)[:40]}")
    return tuple(value)


def _typed(config: Mapping[str, Any], name: str, kind: type[T] | tuple[type[T], ...]) -> T:
    if not isinstance(config, Mapping):
        raise TypeError(f"a {type(config).__name__} instead of an object")
    value = config[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}")
    return value
