"""What a run or a store is written as for others: one command a product, each by its own program."""

from __future__ import annotations

import json
from pathlib import Path

from teachonce.errors import ConfigError
from teachonce.evaluation.config import ExportOnnxConfig, ExportWeightsConfig
from teachonce.interop.config import ExportLogitsConfig
from teachonce.records.class_table import LABELS_NAME
from teachonce.runs.run import Run
from teachonce.storage.files import open_storage
from teachonce.store.plan_files import holds_store
from teachonce.terminal import print_text, print_written


def export_onnx(config: ExportOnnxConfig) -> None:
    """Write ONNX and print where it is, with ``--int8`` the comparison of both students too; raises what they do."""
    _refuse_store(config.run)
    if not config.int8:
        from teachonce.evaluation.onnx_export import export_run

        written = export_run(
            config.run,
            "onnx",
            config.out,
            preprocessing=config.preprocessing,
            epoch=config.epoch,
            overwrite=config.overwrite,
        )
        print_written(*written)
    else:
        from teachonce.evaluation.int8 import export_int8, int8_path
        from teachonce.evaluation.int8_table import render_comparison

        found = export_int8(config)
        print_text(json.dumps(found.to_json()) if config.json else render_comparison(found))
        labels = () if Run(config.run).class_names is None else (config.out.with_name(LABELS_NAME),)
        print_written(config.out, int8_path(config.out), *labels, is_json=config.json)
    # What a killed export left there.
    open_storage(config.out.parent).remove_temporaries()


def export_weights(config: ExportWeightsConfig) -> None:
    """Write safetensors and print where they are; raises what ``export_run`` does."""
    _refuse_store(config.run)
    from teachonce.evaluation.onnx_export import export_run

    written = export_run(config.run, "safetensors", config.out, epoch=config.epoch, overwrite=config.overwrite)
    print_written(*written)
    open_storage(config.out.parent).remove_temporaries()


def export_logits(config: ExportLogitsConfig) -> None:
    """Write a store's logits as CSV or Parquet and print where they are; raises what the formats' programs do."""
    if not holds_store(config.store):
        raise ConfigError(
            f"{config.store}: is not a store; export-logits exports the logits of stores, export-onnx and "
            "export-weights export runs"
        )
    if config.format == "csv":
        from teachonce.interop.csv_files import export_csv

        paths = export_csv(
            config.store,
            config.out,
            csv_files=config.csv_files,
            view=config.view,
            background_logit=config.background_logit,
            trust=config.trust,
        )
    else:
        from teachonce.interop.parquet_files import export_parquet

        paths = export_parquet(config.store, config.out, view=config.view, top=config.top, trust=config.trust)
    print_written(*paths)
    open_storage(config.out).remove_temporaries()


def _refuse_store(run: Path) -> None:
    if holds_store(run):
        raise ConfigError(f"{run}: is a store, expected a run; use export-logits for stores")
