"""The command line: one subcommand a program, each a typed configuration.

Nothing heavy is imported until a command runs, so that ``--help`` answers at once. A TeachonceError becomes one line
on stderr and its exit code (1: the work failed or a check did not hold; 2: the command or its configuration is wrong);
``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import tyro

from teachonce import __version__
from teachonce.config import (
    DemoConfig,
    EvaluateConfig,
    ExtractConfig,
    ImportConfig,
    InspectConfig,
    MergeConfig,
    PlanConfig,
    RecordsConfig,
    VerifyConfig,
)
from teachonce.config_export import ExportConfig
from teachonce.config_train import AblateConfig, TrainConfig
from teachonce.errors import ConfigError, TeachonceError
from teachonce.recipes import describe_recipes, expand_recipe

DESCRIPTION = (
    "Offline knowledge distillation for image classifiers: run the teacher once, keep what it said, teach any number "
    "of students. '--debug' in front of a command shows tracebacks, '--version' the version."
)

Command = (
    Annotated[RecordsConfig, tyro.conf.subcommand("records")]
    | Annotated[ExtractConfig, tyro.conf.subcommand("extract")]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify")]
    | Annotated[InspectConfig, tyro.conf.subcommand("inspect")]
    | Annotated[MergeConfig, tyro.conf.subcommand("merge")]
    | Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[ImportConfig, tyro.conf.subcommand("import")]
    | Annotated[PlanConfig, tyro.conf.subcommand("plan")]
    | Annotated[AblateConfig, tyro.conf.subcommand("ablate")]
    | Annotated[DemoConfig, tyro.conf.subcommand("demo")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(f"teachonce {__version__}")
        sys.exit(0)
    if words[:1] == ["train"] and "--list-recipes" in words:
        print(describe_recipes())
        sys.exit(0)
    warnings.showwarning = _show_warning
    try:
        config = parse_command(words)
        code = run(config)
    except TeachonceError as error:
        if is_debug:
            raise
        print(f"teachonce: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (MemoryError, RuntimeError, OSError) as error:
        # A library's own error, such as a device out of memory: still one line.
        if is_debug:
            raise
        first_line = str(error).partition("\n")[0]
        print(f"teachonce: {type(error).__name__}: {first_line}; --debug shows where", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("teachonce: interrupted; what is whole is kept, the same command goes on from there", file=sys.stderr)
        code = 130
    sys.exit(code)


def parse_command(words: Sequence[str]) -> Any:
    """The configuration that a command line means; exits with code 2 and a hint where it means none."""
    return tyro.cli(
        Command,
        prog="teachonce",
        description=DESCRIPTION,
        args=expand_recipe(words),
        config=(tyro.conf.CascadeSubcommandArgs,),
    )


def run(config: Any) -> int:
    """Run the program of a configuration; returns the exit code."""
    # Imports stay inside: each command pays for its own libraries only.
    match config:
        case RecordsConfig():
            from teachonce.convert import convert_records

            convert_records(config)
        case ExtractConfig():
            from teachonce.extract import extract

            extract(config)
        case VerifyConfig():
            return _verify(config)
        case InspectConfig():
            from teachonce.inspect import inspect

            print(inspect(config))
        case MergeConfig():
            from teachonce.merge import merge

            merge(config)
        case TrainConfig():
            from teachonce.train import train

            train(config)
        case EvaluateConfig():
            from teachonce.evaluate import evaluate

            _print_result(evaluate(config), config.json)
        case ExportConfig():
            _export(config)
        case ImportConfig():
            from teachonce.exchange import import_csv

            import_csv(config)
        case PlanConfig():
            from teachonce.plan import plan

            print(plan(config))
        case AblateConfig():
            from teachonce.ablate import ablate

            ablate(config)
        case DemoConfig():
            from teachonce.demo import demo

            demo(config)
        case _:
            raise AssertionError(config)
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line for people, instead of a source line that says nothing to them."""
    # Of the libraries' own deprecations, the user is not the reader.
    if issubclass(category, UserWarning):
        print(f"teachonce: warning: {message}", file=sys.stderr)


def _verify(config: VerifyConfig) -> int:
    from teachonce.verify import verify

    verdict = verify(config)
    if config.json:
        print(json.dumps(verdict.to_json()))
        return 0 if verdict.is_sound else 1
    checked = (
        f"{verdict.num_files} files, {verdict.num_keys:,} keys, pixels of {verdict.num_pixels:,} and logits of "
        f"{verdict.num_logits:,} views"
    )
    if verdict.is_sound:
        error = "" if verdict.largest_error is None else f"; largest logit error {verdict.largest_error:.4g}"
        print(f"{config.store}: sound: {checked}{error}")
        return 0
    print(f"{config.store}: NOT sound after {checked}: {verdict.reason}")
    return 1


def _export(config: ExportConfig) -> None:
    is_store = (config.source / "plan.json").exists()
    if is_store != (config.format == "csv"):
        kind = "store" if is_store else "run or no folder of ours"
        raise ConfigError(
            f"{config.source}: is a {kind}; --format csv is for stores, onnx and safetensors are for runs"
        )
    if config.format == "csv":
        from teachonce.exchange import export_csv

        for path in export_csv(config):
            print(path)
        return
    if config.csv_files != 1 or config.view or config.background_logit is not None:
        raise ConfigError(f"--csv-files, --view and --background-logit: mean nothing with --format {config.format}")
    if config.int8:
        from teachonce.export_int8 import export_int8, int8_path
        from teachonce.export_table import render_comparison

        found = export_int8(config)
        print(json.dumps(found.to_json()) if config.json else render_comparison(found))
        print(f"{config.out}\n{int8_path(config.out)}", file=sys.stderr if config.json else sys.stdout)
        return
    from teachonce.export import export_run

    export_run(config.source, config.format, config.out)
    print(config.out)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
