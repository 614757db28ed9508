"""Whether the files that ``evaluate`` is to write can be written, asked before anything heavy is loaded."""

from __future__ import annotations

from teachonce.errors import ConfigError
from teachonce.evaluation.config import EvaluateConfig
from teachonce.extras import require
from teachonce.storage.files import check_can_be_made, check_free


def check_outputs(config: EvaluateConfig) -> None:
    """Raise ConfigError for a file that exists, a folder, or one file for both; MissingExtraError without jinja2."""
    if config.html is not None:
        require("matplotlib", "jinja2", purpose="--html")
    if config.html is not None and config.html == config.csv:
        raise ConfigError(f"--csv {config.csv}: is the file of --html; give another one")
    for option, path in (("--html", config.html), ("--csv", config.csv)):
        if path is None:
            continue
        check_free(path, option, overwrite=config.overwrite)
        check_can_be_made(path)
