"""``teachonce export``: a run or a store in the formats of others, each written by its own program."""

from __future__ import annotations

import json
from pathlib import Path

from teachonce.errors import ConfigError
from teachonce.evaluation.config import ExportConfig
from teachonce.storage.files import open_storage
from teachonce.store.plan_files import holds_store
from teachonce.terminal import print_line, print_text, visible


def export(config: ExportConfig) -> None:
    """Write the files and print where they are, with ``--int8`` the comparison of both students too.

    Raises ConfigError for a folder that has nothing to write in that format, and what the formats' programs raise.
    """
    is_store = holds_store(config.source)
    if is_store != (config.format == "csv"):
        kind = "store" if is_store else "run or no folder of ours"
        raise ConfigError(
            f"{config.source}: is a {kind}; --format csv is for stores, onnx and safetensors are for runs"
        )
    # Imports stay inside: a store's CSV needs no torch.
    if config.format == "csv":
        from teachonce.interop.csv_files import export_csv

        paths = export_csv(
            config.source,
            config.out,
            csv_files=config.csv_files,
            view=config.view,
            background_logit=config.background_logit,
            trust=config.trust,
        )
        _print_paths(*paths)
    elif config.int8:
        from teachonce.evaluation.int8 import export_int8, int8_path
        from teachonce.evaluation.int8_table import render_comparison

        found = export_int8(config)
        print_text(json.dumps(found.to_json()) if config.json else render_comparison(found))
        for path in (config.out, int8_path(config.out)):
            print_line(str(path)) if config.json else _print_paths(path)
    else:
        from teachonce.evaluation.onnx_export import export_run

        export_run(config.source, config.format, config.out)
        _print_paths(config.out)
    # What a killed export left there.
    open_storage(config.out if config.format == "csv" else config.out.parent).remove_temporaries()


def _print_paths(*paths: Path) -> None:
    """For programs that read them: whole, a line each."""
    for path in paths:
        print_text(visible(str(path)))
