"""Whether the files that ``evaluate`` is to write can be written, asked before anything heavy is loaded."""

from __future__ import annotations

from teachonce.errors import ConfigError
from teachonce.evaluation.config import EvaluateConfig
from teachonce.extras import require
from teachonce.storage.files import check_can_be_made, locate


def check_outputs(config: EvaluateConfig) -> None:
    """Raise ConfigError for a file that exists, a folder, or one file for both; MissingExtraError without jinja2."""
    if config.html is not None:
        require("matplotlib", "jinja2", purpose="--html")
    if config.html is not None and config.html == config.csv:
        raise ConfigError(f"--csv {config.csv}: is the file of --html; give another one")
    for option, path in (("--html", config.html), ("--csv", config.csv)):
        if path is None:
            continue
        storage, name = locate(path, ConfigError)
        if storage.is_folder(name):
            raise ConfigError(f"{path}: is a folder; give a file with {option}")
        if storage.has(name) and not config.overwrite:
            raise ConfigError(f"{path}: exists; remove it, choose another {option}, or give --overwrite")
        check_can_be_made(path)
