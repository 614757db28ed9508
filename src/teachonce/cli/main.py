"""The command line: one subcommand a program, each a typed configuration.

Nothing heavy is imported until a command runs, so that ``--help`` answers at once. A TeachonceError becomes one line
on stderr and its exit code (1: the work failed or a check did not hold; 2: the command or its configuration is wrong),
and so does every other exception, with exit code 1; ``--debug`` shows the traceback before the line.

What a command means is found in three steps: argparse takes out the few options that must be known first (``--recipe``
among them), tyro reads the words into an unchecked form whose defaults are the recipe's, and the command's own option
class checks the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple, Union, get_args, get_type_hints

import tyro

from teachonce import __version__
from teachonce.cli import output
from teachonce.cli.config import AblateConfig, DemoConfig
from teachonce.cli.reading import with_readers
from teachonce.cli.storage_options import take_storage_options
from teachonce.engine.stop_signals import Interrupted
from teachonce.errors import TeachonceError
from teachonce.evaluation.config import EvaluateConfig, ExportConfig
from teachonce.extraction.config import ExtractConfig, PlanConfig, VerifyConfig
from teachonce.extras import missing_extras
from teachonce.inspection.config import InspectConfig, StatusConfig
from teachonce.interop.config import CopyConfig, ImportConfig, MergeConfig, RecordsConfig, ReindexConfig, UpgradeConfig
from teachonce.options import POSITIONAL, REPEATED, Alias, flag
from teachonce.terminal import print_line, print_text, show_warnings_as_lines
from teachonce.training.config import TrainConfig
from teachonce.training.recipes import Options, Recipe, build_recipe, describe_recipes

DESCRIPTION = (
    "Offline knowledge distillation for image classifiers: run the teacher once, keep what it said, teach any number "
    "of students. '--debug' in front of a command shows tracebacks, '--version' the version; "
    "'--storage-options KEY=VALUE ...' anywhere sets what object stores (s3://, gs://, az://) need."
)


class Command(NamedTuple):
    """A subcommand: its options, the program that they are for, and what of the program's result is shown."""

    options: type
    program: str
    """MODULE:FUNCTION within teachonce, imported when the command runs: each pays for its own libraries only."""
    show: Callable[[Any, Any], int] = output.show_nothing
    """Prints the result of the program, given the options too; returns the exit code."""
    extra: str | None = None
    """What to install for all that the program needs, where the first library that it lacks is of a smaller extra."""


COMMANDS: dict[str, Command] = {
    "records": Command(RecordsConfig, "interop.convert:convert_records"),
    "reindex": Command(ReindexConfig, "interop.reindex:reindex"),
    "extract": Command(ExtractConfig, "extraction.extract:extract"),
    "verify": Command(VerifyConfig, "extraction.verify:verify", output.show_verdict),
    "inspect": Command(InspectConfig, "inspection.inspect:inspect", output.show_text),
    "status": Command(StatusConfig, "inspection.status:status", output.show_text),
    "merge": Command(MergeConfig, "interop.merge:merge"),
    "train": Command(TrainConfig, "training.train:train", extra="train"),
    "evaluate": Command(EvaluateConfig, "evaluation.evaluate:evaluate", output.show_scores),
    "export": Command(ExportConfig, "cli.export:export"),
    "upgrade": Command(UpgradeConfig, "interop.upgrade:upgrade"),
    "copy": Command(CopyConfig, "interop.copy:copy"),
    "import": Command(ImportConfig, "interop.csv_files:import_csv"),
    "plan": Command(PlanConfig, "extraction.planning.estimate:estimate", output.show_text),
    "ablate": Command(AblateConfig, "cli.ablate:ablate", extra="train"),
    "demo": Command(DemoConfig, "cli.demo:demo", extra="demo"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    first = argparse.ArgumentParser(prog="teachonce", add_help=False, allow_abbrev=False)
    first.add_argument("--debug", action="store_true")
    first.add_argument("--version", action="version", version=f"teachonce {__version__}")
    flags, remaining = first.parse_known_args(arguments)
    show_warnings_as_lines()
    try:
        code = run_command(parse_command(take_storage_options(remaining)))
    except KeyboardInterrupt as interrupt:
        if not isinstance(interrupt, Interrupted):
            print_line("teachonce: interrupted; completed work is kept. Run the same command to resume")
        code = 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        # Whatever it is: a library's error, or a mistake of ours. The last handler there is.
        if flags.debug:
            traceback.print_exc()
        print_line(f"teachonce: {_as_line(error)}")
        code = error.exit_code if isinstance(error, TeachonceError) else 1
    sys.exit(code)


def parse_command(arguments: Sequence[str]) -> Any:
    """The configuration that a command line means; exits with code 2 and a hint where it means none."""
    recipe = _find_recipe(arguments) if arguments[:1] == ["train"] else None
    forms = {_unchecked_form(command.options): name for name, command in COMMANDS.items()}
    chosen: dict[str, Options] = {} if recipe is None else {"train": recipe.options}
    subcommands = tuple(
        Annotated[form, tyro.conf.subcommand(name, default=_starting_values(form, chosen.get(name, {})))]
        for form, name in forms.items()
    )
    union: Any = Union[subcommands]  # noqa: UP007, of what a dictionary holds
    form = tyro.cli(
        union, prog="teachonce", description=DESCRIPTION, args=arguments, config=(tyro.conf.CascadeSubcommandArgs,)
    )
    values = {field.name: getattr(form, field.name) for field in dataclasses.fields(form)}
    return COMMANDS[forms[type(form)]].options(**(values if recipe is None else recipe.complete(values)))


def run_command(config: Any) -> int:
    """Run the program of a configuration; returns the exit code."""
    name, command = next(row for row in COMMANDS.items() if type(config) is row[1].options)
    module, _, function = command.program.partition(":")
    with missing_extras(name, command.extra):
        program = getattr(import_module(f"teachonce.{module}"), function)
        return command.show(program(config), config)


def _find_recipe(arguments: Sequence[str]) -> Recipe | None:
    """The recipe that a training begins with; for ``--list-recipes`` all are printed instead, and nothing follows."""
    first = argparse.ArgumentParser(prog="teachonce train", add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")  # where its value is missing, tyro says so
    first.add_argument("--list-recipes", action="store_true")
    found, _ = first.parse_known_args(arguments)
    if found.list_recipes:
        print_text(describe_recipes())
        sys.exit(0)
    return None if found.recipe is None else build_recipe(found.recipe)


def _unchecked_form(options: type) -> type:
    """An option class as tyro wants it: with tyro's markers in place of ours, and filled in before it is checked."""
    markers = {POSITIONAL: tyro.conf.Positional, REPEATED: tyro.conf.UseAppendAction}
    marked: dict[str, Any] = {}
    for name, hint in get_type_hints(options, include_extras=True).items():
        marked[name] = with_readers(name, hint)
        for marker in getattr(hint, "__metadata__", ()):
            if isinstance(marker, Alias):
                marked[name] = Annotated[marked[name], tyro.conf.arg(aliases=[flag(marker.name)])]
            elif marker in markers:
                marked[name] = Annotated[with_readers(name, get_args(hint)[0]), markers[marker]]
    namespace = {
        "__doc__": options.__doc__,
        "__module__": options.__module__,
        "__annotations__": marked,
        "__post_init__": lambda self: None,
    }
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(options.__name__, (options,), namespace))


def _starting_values(form: type, chosen: Options) -> Any:
    """What a form holds before the words are read: the chosen options, the defaults, and nothing where one is asked."""
    required = [field.name for field in dataclasses.fields(form) if field.default is dataclasses.MISSING]
    return form(**(dict.fromkeys(required, tyro.MISSING) | chosen))


def _as_line(error: BaseException) -> str:
    if isinstance(error, TeachonceError):
        return str(error)
    # A library's own error, such as a device out of memory: still one line.
    lines = str(error).strip().splitlines()
    found = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{found}; --debug shows where"
