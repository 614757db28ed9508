"""What the scripts in ``walkthrough/`` share: booleans as the original's flags take them, and errors as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from teachonce.errors import TeachonceError
from teachonce.terminal import print_line


def parse_boolean(text: str) -> bool:
    """``True``/``False`` in the spellings of the original's flag library."""
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text}: expected True or False")


def add_boolean(parser: argparse.ArgumentParser, name: str) -> None:
    """A boolean flag, off unless given, in the original's spellings: ``--x``, ``--x=True``, ``--nox``."""
    parser.add_argument(f"--{name}", nargs="?", const=True, default=False, type=parse_boolean)
    parser.add_argument(f"--no{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


def parse_list(text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers, such as 0.9,0.7") from None


def run_command(command: Callable[[argparse.Namespace], None], flags: argparse.Namespace) -> None:
    """Run a command; an error for users is one line on stderr and its exit code."""
    try:
        command(flags)
    except TeachonceError as error:
        print_line(f"{sys.argv[0]}: {error}")
        sys.exit(error.exit_code)
