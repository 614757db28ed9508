"""The command line: one subcommand a program, each a typed configuration.

Nothing heavy is imported until a command runs, so that ``--help`` answers at once. A TeachonceError becomes one line
on stderr and its exit code (1: the work failed or a check did not hold; 2: the command or its configuration is wrong);
``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO, Union, get_args, get_type_hints

import tyro

from teachonce import __version__
from teachonce.cli.config import AblateConfig, DemoConfig
from teachonce.errors import ConfigError, TeachonceError
from teachonce.evaluation.config import EvaluateConfig, ExportConfig
from teachonce.extraction.config import ExtractConfig, PlanConfig, VerifyConfig
from teachonce.inspection.config import InspectConfig
from teachonce.interop.config import ImportConfig, MergeConfig, RecordsConfig
from teachonce.options import POSITIONAL, REPEATED
from teachonce.training.config import TrainConfig
from teachonce.training.recipes import describe_recipes, expand_recipe

DESCRIPTION = (
    "Offline knowledge distillation for image classifiers: run the teacher once, keep what it said, teach any number "
    "of students. '--debug' in front of a command shows tracebacks, '--version' the version."
)

COMMANDS: dict[str, type] = {
    "records": RecordsConfig,
    "extract": ExtractConfig,
    "verify": VerifyConfig,
    "inspect": InspectConfig,
    "merge": MergeConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "import": ImportConfig,
    "plan": PlanConfig,
    "ablate": AblateConfig,
    "demo": DemoConfig,
}


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
    commands = tuple(
        Annotated[_with_tyros_markers(options), tyro.conf.subcommand(name)] for name, options in COMMANDS.items()
    )
    union: Any = Union[commands]  # noqa: UP007, of what a dictionary holds
    parsed = tyro.cli(
        union,
        prog="teachonce",
        description=DESCRIPTION,
        args=expand_recipe(words),
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    options = next(item for item in COMMANDS.values() if isinstance(parsed, item))
    return options(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(options)})


def _with_tyros_markers(options: type) -> type:
    """An option class as tyro wants it: ours are plain, and mark with words of our own (``teachonce.options``)."""
    markers = {POSITIONAL: tyro.conf.Positional, REPEATED: tyro.conf.UseAppendAction}
    marked: dict[str, Any] = {}
    for name, hint in get_type_hints(options, include_extras=True).items():
        for marker in getattr(hint, "__metadata__", ()):
            if marker in markers:
                marked[name] = Annotated[get_args(hint)[0], markers[marker]]
    if not marked:
        return options
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(options)
        if field.name in marked and field.default is not dataclasses.MISSING
    }
    namespace = {"__doc__": options.__doc__, "__module__": options.__module__, "__annotations__": marked, **defaults}
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(options.__name__, (options,), namespace))


def run(config: Any) -> int:
    """Run the program of a configuration; returns the exit code."""
    # Imports stay inside: each command pays for its own libraries only.
    match config:
        case RecordsConfig():
            from teachonce.interop.convert import convert_records

            convert_records(config)
        case ExtractConfig():
            from teachonce.extraction.extract import extract

            extract(config)
        case VerifyConfig():
            return _verify(config)
        case InspectConfig():
            from teachonce.inspection.inspect import inspect

            print(inspect(config))
        case MergeConfig():
            from teachonce.interop.merge import merge

            merge(config)
        case TrainConfig():
            from teachonce.training.train import train

            train(config)
        case EvaluateConfig():
            from teachonce.evaluation.evaluate import evaluate

            _print_result(evaluate(config), config.json)
        case ExportConfig():
            _export(config)
        case ImportConfig():
            from teachonce.interop.csv_files import import_csv

            import_csv(config)
        case PlanConfig():
            from teachonce.extraction.planning.estimate import plan

            print(plan(config))
        case AblateConfig():
            from teachonce.cli.ablate import ablate

            ablate(config)
        case DemoConfig():
            from teachonce.cli.demo import demo

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
    from teachonce.extraction.verify import verify

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
    from teachonce.store.plan import holds_store

    is_store = holds_store(config.source)
    if is_store != (config.format == "csv"):
        kind = "store" if is_store else "run or no folder of ours"
        raise ConfigError(
            f"{config.source}: is a {kind}; --format csv is for stores, onnx and safetensors are for runs"
        )
    if config.format == "csv":
        from teachonce.interop.csv_files import export_csv

        paths = export_csv(
            config.source,
            config.out,
            csv_files=config.csv_files,
            view=config.view,
            background_logit=config.background_logit,
        )
        for path in paths:
            print(path)
        return
    if config.csv_files != 1 or config.view or config.background_logit is not None:
        raise ConfigError(f"--csv-files, --view and --background-logit: mean nothing with --format {config.format}")
    if config.int8:
        from teachonce.evaluation.int8 import export_int8, int8_path
        from teachonce.evaluation.int8_table import render_comparison

        found = export_int8(config)
        print(json.dumps(found.to_json()) if config.json else render_comparison(found))
        print(f"{config.out}\n{int8_path(config.out)}", file=sys.stderr if config.json else sys.stdout)
        return
    from teachonce.evaluation.onnx_export import export_run

    export_run(config.source, config.format, config.out)
    print(config.out)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
