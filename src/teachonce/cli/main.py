"""The command line: one subcommand a program, each a typed configuration.

Nothing heavy is imported until a command runs, so that ``--help`` answers at once, and what can be checked without is
checked before (``checks``). A TeachonceError becomes one line on stderr and its exit code (1: the work failed or a
check did not hold; 2: the command or its configuration is wrong), and so does every other exception, with exit code 1;
``--debug`` shows the traceback before the line.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from teachonce import __version__
from teachonce.cli import output
from teachonce.cli.checks import check_inputs
from teachonce.cli.config import AblateConfig, CompletionConfig, DemoConfig, StartConfig
from teachonce.cli.config_file import read_config_file
from teachonce.cli.help import command_help, overview
from teachonce.cli.parsing import Flags, find_command, find_value, parse_options, take_flags, take_storage_options
from teachonce.engine.progress import set_style
from teachonce.engine.stop_long_work import Interrupted
from teachonce.errors import ConfigError, TeachonceError
from teachonce.evaluation.config import EvaluateConfig, ExportOnnxConfig, ExportWeightsConfig, PredictConfig
from teachonce.extraction.config import ExtractConfig, PlanConfig, VerifyConfig
from teachonce.extras import missing_extras
from teachonce.inspection.config import DiffConfig, InspectConfig, StatusConfig
from teachonce.interop.config import (
    CopyConfig,
    ExportLogitsConfig,
    ImportConfig,
    MergeConfig,
    RecordsConfig,
    ReindexConfig,
    UpgradeConfig,
)
from teachonce.terminal import has_lost_reader, print_line, print_text, set_quiet, show_warnings_as_lines
from teachonce.training.config import TrainConfig
from teachonce.training.recipes import Recipe, build_recipe, describe_recipes

DESCRIPTION = (
    "Offline knowledge distillation for image classifiers: run the teacher once, keep what it said, teach any number "
    "of students."
)


class Command(NamedTuple):
    """A subcommand: its options, the program that they are for, and what of the program's result is shown."""

    options: type
    program: str
    """MODULE:FUNCTION within teachonce, imported when the command runs: each pays for its own libraries only."""
    show: Callable[[Any, Any], int] = output.show_nothing
    """Prints the result of the program, given the options too; returns the exit code."""
    examples: tuple[str, ...] = ()
    """What may follow the command's name, for its help."""
    extra: str | None = None
    """The extra that installs everything the program needs, where its first missing library is in a smaller one."""
    resumes: bool = False
    """Whether the same command goes on where it was interrupted."""


COMMANDS: dict[str, Command] = {
    "start": Command(
        StartConfig,
        "cli.start.script:start",
        output.show_text,
        ("pictures", "pictures --student timm:mobilenetv4_conv_small --out start.sh"),
    ),
    "records": Command(
        RecordsConfig,
        "interop.convert:convert_records",
        examples=(
            "--images raw --split train --shards 1024 --out records",
            "--images raw --split train --out merged --logits store",
        ),
        resumes=True,
    ),
    "reindex": Command(
        ReindexConfig,
        "interop.reindex:reindex",
        examples=("--data records --out marked",),
        resumes=True,
    ),
    "extract": Command(
        ExtractConfig,
        "extraction.extract:extract",
        examples=(
            "--data records --teacher timm:resnet50 --out store --expect-top1 0.78",
            "--data records --teacher timm:resnet50 --out store --policy crop --views 50",
        ),
        resumes=True,
    ),
    "verify": Command(
        VerifyConfig,
        "extraction.verify:verify",
        output.show_verdict,
        ("store --data records", "store --data records --samples 0 --json"),
    ),
    "inspect": Command(
        InspectConfig,
        "inspection.inspect:inspect",
        output.show_inspection,
        ("store", "store --html --data records"),
    ),
    "status": Command(
        StatusConfig,
        "inspection.status:status",
        output.show_text,
        ("store", "s3://bucket/store --watch"),
    ),
    "diff": Command(DiffConfig, "inspection.diff:diff", output.show_text, ("run-a run-b", "store-a store-b --json")),
    "merge": Command(MergeConfig, "interop.merge:merge", examples=("store --data records --out merged",), resumes=True),
    "train": Command(
        TrainConfig,
        "training.train:train",
        examples=(
            "--data records --student timm:resnet18 --store store --kd-temp 1 --out run",
            "--config run/config.json --seed 1 --out run-1",
        ),
        extra="train",
        resumes=True,
    ),
    "evaluate": Command(
        EvaluateConfig,
        "evaluation.evaluate:evaluate",
        output.show_scores,
        ("--data records --model run:run", "--data records --model timm:resnet50 --json"),
    ),
    "predict": Command(
        PredictConfig,
        "evaluation.predict:predict",
        output.show_predicted,
        ("run pictures", "student.onnx a.jpg b.png --top 3", "timm:resnet50 pictures --csv predictions.csv"),
    ),
    "export-onnx": Command(
        ExportOnnxConfig,
        "cli.export:export_onnx",
        examples=("run --out student.onnx", "run --out student.onnx --int8 --data records"),
    ),
    "export-weights": Command(
        ExportWeightsConfig, "cli.export:export_weights", examples=("run --out student.safetensors",)
    ),
    "export-logits": Command(
        ExportLogitsConfig,
        "cli.export:export_logits",
        examples=("store --out logits", "store --out csv --format csv --background-logit 0"),
    ),
    "upgrade": Command(
        UpgradeConfig, "interop.upgrade:upgrade", examples=("old-store --out store --data records",), resumes=True
    ),
    "copy": Command(
        CopyConfig,
        "interop.copy:copy",
        examples=("store s3://bucket/store", "https://host/store store --views 0:10"),
        resumes=True,
    ),
    "import": Command(
        ImportConfig,
        "interop.csv_files:import_csv",
        examples=("csv --data records --out store --drop 1",),
        resumes=True,
    ),
    "plan": Command(
        PlanConfig,
        "extraction.planning.estimate:estimate",
        output.show_plan,
        ("--data records --teacher timm:resnet50 --policy crop --views 50 --students 3",),
    ),
    "ablate": Command(
        AblateConfig,
        "cli.ablate:ablate",
        examples=("--data records --student timm:resnet18 --teacher timm:resnet50 --out ablation --epochs 30",),
        extra="train",
        resumes=True,
    ),
    "demo": Command(DemoConfig, "cli.demo:demo", examples=("--out demo",), extra="demo", resumes=True),
    "completion": Command(
        CompletionConfig,
        "cli.completion:completion",
        output.show_text,
        ("bash > ~/.local/share/bash-completion/completions/teachonce", "fish"),
    ),
}
GROUPS = {
    "make data and stores": ("start", "records", "reindex", "plan", "extract", "import"),
    "train and evaluate": ("train", "evaluate", "predict", "ablate", "demo"),
    "inspect and check": ("inspect", "status", "verify", "diff"),
    "copy and convert": (
        "copy",
        "merge",
        "upgrade",
        "export-onnx",
        "export-weights",
        "export-logits",
    ),
    "shell": ("completion",),
}
"""How ``teachonce --help`` groups the commands."""
ACTIONS = {"train": (("--list-recipes", "Show all recipes and exit."),)}
"""What a command can print instead of running."""
GONE = {
    "export": "was split into one command per product: export-onnx RUN (with --int8), export-weights RUN "
    "(safetensors), export-logits STORE --format csv or parquet"
}
"""What replaced commands of older versions."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_warnings_as_lines()
    try:
        code = run_words(words)
    except KeyboardInterrupt as interrupt:
        if not isinstance(interrupt, Interrupted):
            kept = "; completed work is kept. Run the same command to resume" if _resumes(words) else ""
            print_line(f"teachonce: interrupted{kept}")
        code = 130
    except Exception as error:
        # Whatever it is: a library's error, or a bug. The last handler.
        if isinstance(error, BrokenPipeError) and has_lost_reader(sys.stdout):
            # `| head` has what it wanted: an error could not be shown; Python would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if "--debug" in words:
            traceback.print_exc()
        print_line(f"teachonce: {_as_line(error)}")
        code = error.exit_code if isinstance(error, TeachonceError) else 1
    sys.exit(code)


def _resumes(words: Sequence[str]) -> bool:
    """Whether the command of these words goes on where it was."""
    name = next((word for word in words if word in COMMANDS), None)
    return name is not None and COMMANDS[name].resumes


def run_words(arguments: Sequence[str]) -> int:
    """Do what the words of a command line ask for; returns the exit code."""
    flags, words = take_flags(take_storage_options(list(arguments)))
    if flags.version:
        print_text(f"teachonce {__version__}")
        return 0
    if words[:1] == ["help"]:
        words, flags = words[1:], flags._replace(help=True)
    if not words:
        groups = {title: {name: COMMANDS[name].options for name in names} for title, names in GROUPS.items()}
        print_text(overview(DESCRIPTION, groups))
        return 0 if flags.help or flags.help_all else 2
    name = find_command(words, COMMANDS, GONE)
    if flags.help or flags.help_all:
        print_text(_help(name, words[1:], flags))
        return 0
    if name == "train" and "--list-recipes" in words:
        print_text(describe_recipes())
        return 0
    set_style(flags.progress)
    set_quiet(flags.quiet)
    try:
        return run_command(_parse(name, words[1:], flags))
    finally:
        # A caller that uses main() from Python keeps its own settings.
        set_style("auto")
        set_quiet(False)


def parse_command(arguments: Sequence[str]) -> Any:
    """The configuration that a command line means; raises ConfigError where it is invalid."""
    flags, words = take_flags(arguments)
    if not words:
        raise ConfigError("no command; 'teachonce --help' lists them")
    return _parse(find_command(words, COMMANDS, GONE), words[1:], flags)


def run_command(config: Any) -> int:
    """Run the program of a configuration, its inputs checked before anything heavy is imported; the exit code."""
    name, command = next(row for row in COMMANDS.items() if type(config) is row[1].options)
    check_inputs(config)
    module, _, function = command.program.partition(":")
    with missing_extras(name, command.extra):
        program = getattr(import_module(f"teachonce.{module}"), function)
        return command.show(program(config), config)


def _help(name: str, words: Sequence[str], flags: Flags) -> str:
    command = COMMANDS[name]
    chosen = _read_file(name, flags)
    recipe = _find_recipe(name, words, chosen)
    return command_help(
        name,
        command.options,
        command.examples,
        ACTIONS.get(name, ()),
        is_full=flags.help_all,
        defaults=chosen if recipe is None else recipe.options | chosen,
    )


def _parse(name: str, words: Sequence[str], flags: Flags) -> Any:
    options = COMMANDS[name].options
    chosen = _read_file(name, flags)
    recipe = _find_recipe(name, words, chosen)
    values = parse_options(name, options, words, chosen if recipe is None else recipe.options | chosen)
    return options(**(values if recipe is None else recipe.complete(values)))


def _read_file(name: str, flags: Flags) -> dict[str, Any]:
    return {} if flags.config is None else read_config_file(flags.config, name, COMMANDS[name].options)


def _find_recipe(name: str, words: Sequence[str], chosen: Mapping[str, Any]) -> Recipe | None:
    if name != "train":
        return None
    found = find_value("--recipe", words) or chosen.get("recipe")
    return None if found is None else build_recipe(found)


def _as_line(error: BaseException) -> str:
    if isinstance(error, TeachonceError):
        return str(error)
    # A library's own error, such as a device out of memory: still one line.
    lines = str(error).strip().splitlines()
    found = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{found}; --debug shows where"
