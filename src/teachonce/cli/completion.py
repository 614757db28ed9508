"""``teachonce completion SHELL``: a script that completes commands, options and the words that an option can be.

The scripts are made once from the option classes and hold every name, so that Tab starts no Python. Values that are not
a few words are completed as files. The Z shell reads bash's script by its own bashcompinit.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable, Sequence

from teachonce.cli.config import CompletionConfig
from teachonce.cli.help import GLOBAL_OPTIONS, Option, describe_options
from teachonce.cli.main import ACTIONS, COMMANDS
from teachonce.options import flag

_FILES = {
    "bash": "~/.local/share/bash-completion/completions/teachonce",
    "zsh": "a folder of $fpath, as _teachonce",
    "fish": "~/.config/fish/completions/teachonce.fish",
}


def completion(config: CompletionConfig) -> str:
    """The script for ``config.shell``."""
    title = f"# Completion of teachonce for {config.shell}; goes to {_FILES[config.shell]}\n"
    if config.shell == "fish":
        return title + _fish()
    if config.shell == "zsh":
        return f"#compdef teachonce\n{title}autoload -U +X bashcompinit && bashcompinit\n{_bash()}"
    return title + _bash()


def _bash() -> str:
    cases = "\n".join(_bash_case(name, describe_options(command.options)) for name, command in COMMANDS.items())
    return f"""_teachonce() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    {_reply([*COMMANDS, *_global_flags()])}; return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$current"));;
    *) COMPREPLY=($(compgen -f -- "$current"));;
  esac
}}
complete -o filenames -F _teachonce teachonce"""


def _bash_case(command: str, options: Sequence[Option]) -> str:
    """What follows the command, and what follows each of its options that is one of a few words."""
    chosen = [(flag(option.name), option.choices) for option in options if not option.is_positional]
    chosen += [(command, option.choices) for option in options if option.is_positional]
    after = "".join(f"\n        {word}) {_reply(choices)}; return;;" for word, choices in chosen if choices)
    words = shlex.quote(" ".join(_flags(command, options)))
    return f'    {command})\n      case "$previous" in{after}\n      esac\n      words={words};;'


def _reply(words: Iterable[str]) -> str:
    return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$current"))'


def _fish() -> str:
    lines = []
    for name, command in COMMANDS.items():
        sentence = (inspect.getdoc(command.options) or "").split("\n")[0]
        lines.append(f"complete -c teachonce -n __fish_use_subcommand -f -a {name} -d {shlex.quote(sentence)}")
        for option in describe_options(command.options):
            lines += _fish_lines(f"complete -c teachonce -n '__fish_seen_subcommand_from {name}'", option)
        for heading, sentence in ACTIONS.get(name, ()):
            words = f"-l {heading.removeprefix('--')} -d {shlex.quote(sentence)}"
            lines.append(f"complete -c teachonce -n '__fish_seen_subcommand_from {name}' {words}")
    return "\n".join([*lines, *(f"complete -c teachonce -l {word.removeprefix('--')}" for word in _global_flags())])


def _fish_lines(begin: str, option: Option) -> list[str]:
    choices = shlex.quote(" ".join(option.choices))
    if option.is_positional:
        return [f"{begin} -f -a {choices}"] if option.choices else []
    value = f"-x -a {choices} " if option.choices else "-r " if option.value else ""
    sentence = shlex.quote(option.sentence.split(". ")[0])
    return [f"{begin} -l {word.removeprefix('--')} {value}-d {sentence}" for word in _forms(option)]


def _flags(command: str, options: Sequence[Option]) -> list[str]:
    own = [word for option in options if not option.is_positional for word in _forms(option)]
    return [*own, *(heading for heading, _ in ACTIONS.get(command, ())), *_global_flags()]


def _forms(option: Option) -> list[str]:
    return [flag(option.name)] + ([] if option.value else [flag("no_" + option.name)])


def _global_flags() -> list[str]:
    return [word for heading, _ in GLOBAL_OPTIONS for word in heading.replace(",", "").split() if word.startswith("--")]
