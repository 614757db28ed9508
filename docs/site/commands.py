"""The options of every command as HTML, from the option classes that ``--help`` is made from.

Pages say where by a comment: ``<!-- options of extract -->``, ``<!-- options of every command -->``,
``<!-- recipes -->``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from teachonce.cli.help import GLOBAL_OPTIONS, describe_options, sentence_with_default
from teachonce.cli.main import ACTIONS, COMMANDS
from teachonce.options import COMMON
from teachonce.training.recipes import describe_recipes

PLACE = re.compile(r"^<!-- (?:options of ([a-z0-9 -]+)|(recipes)) -->$", re.MULTILINE)


def fill_places(text: str) -> str:
    """A page with its comments replaced; raises KeyError for a command that is not there."""

    def fill(match: re.Match[str]) -> str:
        if match[2]:
            return f"```text\n{describe_recipes()}\n```"
        return render_list("every-command", GLOBAL_OPTIONS) if match[1] == "every command" else render_command(match[1])

    return PLACE.sub(fill, text)


def render_command(name: str) -> str:
    """What the command is for, its examples, and its options in the groups of its help."""
    command = COMMANDS[name]
    found = describe_options(command.options)
    examples = "\n".join(f"teachonce {name} {example}" for example in command.examples)
    parts = [escape(" ".join((command.options.__doc__ or "").split()), quote=False), f"```bash\n{examples}\n```"]
    required = [option for option in found if option.is_required]
    parts += _section("required", name, [(option.heading, option.sentence) for option in required])
    titles = dict(getattr(command.options, "GROUP_TITLES", ()))
    rest = sorted((option for option in found if not option.is_required), key=lambda one: COMMON not in one.marks)
    for group in sorted({option.group for option in rest if option.group is not None}, key=lambda one: one.rank):
        rows = [(option.heading, sentence_with_default(option)) for option in rest if option.group == group]
        parts += _section(titles.get(group.title, group.title), name, rows)
    parts += _section("instead of running", name, ACTIONS.get(name, ()))
    return "\n\n".join(parts)


def render_list(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """Options with their sentences; each has an id, so that a link can lead to it."""
    items = "\n".join(
        f'<dt id="{name}{option_id(heading)}"><code>{escape(heading)}</code></dt>\n<dd>{_mark_options(sentence)}</dd>'
        for heading, sentence in rows
    )
    return f'<dl class="options">\n{items}\n</dl>'


def option_id(heading: str) -> str:
    """``--batch-size`` of ``--batch-size INT``; an argument by its name."""
    option = re.search(r"--[a-z0-9-]+", heading)
    return option[0] if option else f"-{heading.lower().removesuffix(' ...')}"


def _section(title: str, name: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"**{escape(title)}**", render_list(name, rows)] if rows else []


def _mark_options(sentence: str) -> str:
    return re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*)", r"<code>\1</code>", escape(sentence, quote=False))
