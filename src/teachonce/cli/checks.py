"""What is checked before a command's program is imported: whether its inputs exist.

Importing torch takes seconds, on a cold or a shared disk many; that a split is missing, or that a SPEC is invalid,
is seen in a hundredth of that. Nothing is decided here: each check is the one that the program makes too, with its
words. tests/cli/test_checks.py holds that none of them brings torch in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.cli.config import AblateConfig
from teachonce.errors import ConfigError, TeachonceError
from teachonce.evaluation.config import EvaluateConfig, ExportOnnxConfig, ExportWeightsConfig, PredictConfig
from teachonce.extraction.config import ExtractConfig, PlanConfig
from teachonce.models.options import EpochName
from teachonce.records.options import RecordOptions
from teachonce.storage.address import is_remote, to_location
from teachonce.training.config import TrainConfig, TrainingOptions, check_num_records

if TYPE_CHECKING:
    from teachonce.models.spec import ModelSpec

MAX_FILES_OPENED = 4096
"""Files of a folder up to which its records are counted before the program is imported: more fill a batch."""
SCANNED_SUFFIXES = (".tar", ".gz", ".parquet")
MAX_BYTES_SCANNED = 64 << 20
"""Of files that are read from end to end to be opened: of more it is the program's work, which shows how far it is."""


def check_inputs(config: Any) -> None:
    """Raise what the program of this configuration would, for what can be seen without loading anything."""
    for kind, check in _CHECKS.items():
        if isinstance(config, kind):
            check(config)


def _check_extract(config: ExtractConfig) -> None:
    from teachonce.store.begin import check_store_folder

    check_store_folder(config.out)
    _check_split(config.data, config.split, config)
    _check_stores([] if config.views_of is None else [config.views_of])
    _check_model(config.teacher)


def _check_plan(config: PlanConfig) -> None:
    _check_split(config.data, config.split, config)
    _check_model(config.teacher)


def _check_training(config: TrainingOptions) -> None:
    _check_split(config.data, config.split, config)
    if config.has_validation:
        _check_split(config.validation_data or config.data, str(config.validation_split), config)
    _check_model(config.student)


def _check_train(config: TrainConfig) -> None:
    from teachonce.runs.run import check_run_folder

    if config.temperature > 0:
        _check_stores(config.store)
        if config.teacher is not None:
            _check_model(config.teacher)
    check_run_folder(config.out)
    _check_num_records(config, config.devices * config.num_nodes)


def _check_ablate(config: AblateConfig) -> None:
    config.check_folder()
    if config.stores:
        _check_stores(store for stores in config.parse_stores() for store in stores)
    if config.teacher is not None:
        _check_model(config.teacher)
    _check_num_records(config, world_size=1)


def _check_evaluate(config: EvaluateConfig) -> None:
    from teachonce.evaluation.outputs import check_outputs

    check_outputs(config)
    _check_split(config.data, config.split, config)
    _check_stores([] if config.store is None else [config.store])
    for spec in (config.model, config.against):
        if spec is not None:
            _check_model(spec)


def _check_predict(config: PredictConfig) -> None:
    from teachonce.evaluation.image_files import check_images
    from teachonce.models.spec import parse_model
    from teachonce.storage.files import check_free

    _check_spec(parse_model(config.model))
    if config.csv is not None:
        check_free(config.csv, "--csv", overwrite=config.overwrite)
    check_images(config.images)


def _check_export_onnx(config: ExportOnnxConfig) -> None:
    from teachonce.storage.files import check_free

    _check_run(config.run, config.epoch)
    if config.data is not None:
        _check_split(config.data, config.split, config)
        _check_split(config.validation_data or config.data, config.validation_split, config)
    check_free(config.out, overwrite=config.overwrite)


def _check_export_weights(config: ExportWeightsConfig) -> None:
    from teachonce.storage.files import check_free

    _check_run(config.run, config.epoch)
    check_free(config.out, overwrite=config.overwrite)


_CHECKS: dict[type, Callable[[Any], None]] = {
    ExtractConfig: _check_extract,
    PlanConfig: _check_plan,
    TrainingOptions: _check_training,
    TrainConfig: _check_train,
    AblateConfig: _check_ablate,
    EvaluateConfig: _check_evaluate,
    PredictConfig: _check_predict,
    ExportOnnxConfig: _check_export_onnx,
    ExportWeightsConfig: _check_export_weights,
}
"""Commands whose programs import torch; the others say it as quickly themselves."""


def _check_split(data: Path, split: str, options: RecordOptions) -> None:
    from teachonce.records.discovery import find_split

    find_split(data, split, options)


def _check_num_records(config: TrainingOptions, world_size: int) -> None:
    num_records = _count_records(config)
    if num_records is not None:
        check_num_records(config, num_records, world_size)


def _count_records(config: TrainingOptions) -> int | None:
    """Records of the split, at most; None where it would take long to say, or torchrun started several processes.

    Of few files opening is quick, and what it finds out of large ones (an index of offsets) is kept for the program.
    """
    from teachonce.records.containers.tar_index import INDEX_SUFFIX
    from teachonce.records.discovery import open_records
    from teachonce.storage.files import locate, open_storage

    if "LOCAL_WORLD_SIZE" in os.environ or is_remote(config.data) or "{" in config.data.name:
        return None
    storage = open_storage(config.data)
    if storage.is_folder():
        names = list(islice(storage.walk(), MAX_FILES_OPENED))
    else:
        storage, name = locate(config.data)
        names = list(filter(storage.has, (name, f"{name}{INDEX_SUFFIX}")))
    scanned = [name for name in names if name.endswith(SCANNED_SUFFIXES)]
    indexed = {name.removesuffix(INDEX_SUFFIX) for name in names if name.endswith(INDEX_SUFFIX)}
    num_bytes = 0
    for name in scanned:
        with suppress(TeachonceError):  # a link that leads nowhere is the program's matter
            num_bytes += 0 if name in indexed else storage.status(name).num_bytes
    if len(names) == MAX_FILES_OPENED or num_bytes > MAX_BYTES_SCANNED:
        return None
    # A part of it has fewer, but to say how many takes the keys of all.
    return open_records(config.data, config.split, replace(config, val_fraction=0, val_seed=0)).num_records


def _check_stores(paths: Any) -> None:
    from teachonce.store.plan_files import check_holds_store

    for path in paths:
        check_holds_store(path)


def _check_run(path: Path, epoch: EpochName) -> None:
    from teachonce.models.spec import path_spec
    from teachonce.runs.run import open_finished_run
    from teachonce.store.plan_files import holds_store

    if holds_store(path):
        raise ConfigError(f"{path}: is a store, expected a run; use export-logits for stores")
    spec = path_spec("run", path, epoch)
    open_finished_run(path, requested_by=f"model {spec.text!r}", weights_name=spec.run_weights)


def _check_model(text: str) -> None:
    from teachonce.models.spec import parse_model_spec

    _check_spec(parse_model_spec(text))


def _check_spec(spec: ModelSpec) -> None:
    from teachonce.runs.run import open_finished_run
    from teachonce.storage.files import locate

    if spec.kind == "run":
        open_finished_run(to_location(spec.name), requested_by=f"model {spec.text!r}", weights_name=spec.run_weights)
    if spec.kind == "onnx":
        storage, name = locate(to_location(spec.name))
        if not storage.has(name):
            raise ConfigError(f"model {spec.text!r}: no file {spec.name}")
