"""What is printed: names from files and command lines cannot move the cursor, ring the bell or fill the screen.

Class names, file names and SPECs come from the author of the data. Everything that the package prints passes through
here: characters that a terminal obeys are written as escapes (``\\x1b``, ``\\n``), and so are those that the stream
cannot encode; a word that is longer than any path is shortened in its middle. Pages escape by ``visible`` too.

Not for what a program reads: JSON goes out as ``json.dumps`` makes it.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

MAX_WORD_CHARACTERS = 400
"""Of a word in a line for people; longer ones lose their middle."""
MAX_LINE_CHARACTERS = 4000
"""Of a line for people, whatever its words."""
_SHOWN_END = 40
_QUIET_VARIABLE = "TEACHONCE_QUIET"
_shown: set[str] = set()
"""Warnings that were printed; a loop gives the same one many times."""
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's control and format characters (which reverse what follows), surrogates, line and paragraph separators."""
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_CHARACTERS + 1},}}")


def visible(text: str, *, keep: str = "") -> str:
    """``text`` with every character that a terminal obeys, those of ``keep`` aside, as its escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep or unicodedata.category(character) not in _OBEYED
        else _escape(character)
        for character in text
    )


def one_line(text: str) -> str:
    """``text`` as a line for people: ``visible``, line breaks too, and what is too long without its middle."""
    return _without_middle(shorten_words(visible(text)), MAX_LINE_CHARACTERS)


def plural(number: int, thing: str, things: str = "") -> str:
    """A count with its noun: 1 shard, 1,024 shards; ``things`` where the plural has another ending than s."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def shorten_words(text: str) -> str:
    """``text`` with the middle of each word left out that is longer than ``MAX_WORD_CHARACTERS``."""
    return _LONG_WORD.sub(lambda match: _without_middle(match[0], MAX_WORD_CHARACTERS), text)


def as_text(lines: Iterable[str]) -> str:
    """A table or another text of several lines, each ``one_line``: a name in it cannot make lines of its own."""
    return "\n".join(map(one_line, lines))


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print ``one_line`` of a message, at once; default: on stderr, or where ``send_lines`` says.

    That nobody reads stderr any more, or the disk of a log is full, is no reason to stop working.
    """
    if file is None and _senders:
        _senders[-1](one_line(text))
        return
    with suppress(OSError) if file is None else nullcontext():
        file = sys.stderr if file is None else file
        print(_encodable(one_line(text), file), file=file, flush=True)


_senders: list[Callable[[str], None]] = []


def send_lines(send: Callable[[str], None]) -> None:
    """From now on lines for people go to ``send``: in a process on another machine, whose stderr is not shown."""
    _senders.append(send)


def print_text(text: str) -> None:
    """Print a result on stdout, at once: tables and paths keep their line breaks and their length."""
    print(_encodable(visible(text, keep="\n\t"), sys.stdout), flush=True)


def print_written(*paths: Path, is_json: bool = False) -> None:
    """Print where a command wrote, behind its result: on stdout, complete, a line each, for programs that read them.

    ``is_json``: stdout has the result as JSON and nothing else, so they are lines on stderr.
    """
    for path in paths:
        if is_json:
            print_line(str(path))
        else:
            print_text(visible(str(path)))


def print_note(text: str, file: TextIO | None = None) -> None:
    """``print_line`` of what is useful to know but not needed; not with ``--quiet``."""
    if not is_quiet():
        print_line(text, file)


def print_json(value: Any, file: TextIO | None = None) -> None:
    """Print a value as JSON in one line of ASCII, at once, for a program; default: on stderr, as ``print_line``."""
    with suppress(OSError) if file is None else nullcontext():
        print(json.dumps(value), file=sys.stderr if file is None else file, flush=True)


def has_lost_reader(stream: TextIO) -> bool:
    """Whether what is written to a pipe or socket goes nowhere, as the other end is closed."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False  # closed, or none of the system's
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def set_quiet(quiet: bool) -> None:
    """Whether this process, and those that it starts, leave out notes and progress from now on."""
    os.environ[_QUIET_VARIABLE] = "1" if quiet else "0"


def is_quiet() -> bool:
    """Whether notes and progress are left out."""
    return os.environ.get(_QUIET_VARIABLE) == "1"


def show_warnings_as_lines(show: Callable[[str], None] | None = None) -> None:
    """From now on a warning is one line for people, the first time that it is given, and not a source line.

    ``show`` is called with its text; default: it is printed.
    """
    _shown.clear()
    _show_text[0] = print_warning if show is None else show
    warnings.showwarning = _show_warning


def print_warning(text: str) -> None:
    """Print a warning as a line, unless it was printed before: by this process, or by a worker that sent it here."""
    if text not in _shown:
        _shown.add(text)
        print_line(f"teachonce: warning: {text}")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # Of the libraries' own deprecations, the user is not the reader.
    if issubclass(category, UserWarning):
        _show_text[0](str(message))


_show_text: list[Callable[[str], None]] = [print_warning]
"""What becomes of a warning's text in this process."""


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def _without_middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    mark = f"...({len(text):,} characters)..."
    return text[: most - _SHOWN_END - len(mark)] + mark + text[-_SHOWN_END:]


def _encodable(text: str, file: TextIO) -> str:
    encoding = getattr(file, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
