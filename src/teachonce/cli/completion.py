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
        # It knows no compopt, so all words are files there, which is what paths need.
        begin = f"#compdef teachonce\n{title}autoload -U +X bashcompinit && bashcompinit"
        return f"{begin}\n{_bash()}\ncomplete -o filenames -F _teachonce teachonce"
    return f"{title}{_bash()}\ncomplete -F _teachonce teachonce"


def _bash() -> str:
    """The functions. Files are said to be files only where they are: bash makes folders of words else.

    The command is the first word that is one, past what belongs to options of all commands.
    """
    cases = "\n".join(_bash_case(name, describe_options(command.options)) for name, command in COMMANDS.items())
    choices = "".join(f"\n      {word}) {_reply(words)}; return;;" for word, words in _global_choices().items())
    files = "|".join(word for word in _global_values() if word not in _global_choices())
    return f"""_teachonce_files() {{
  local line
  compopt -o filenames 2>/dev/null || true
  COMPREPLY=()
  while IFS= read -r line; do
    [ -z "$line" ] || COMPREPLY+=("$line")
  done <<< "$(compgen -f -- "$1")"
}}
_teachonce() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words="" chosen="" at
  for ((at = 1; at < COMP_CWORD && ${{#chosen}} == 0; at++)); do
    case "${{COMP_WORDS[at]}}" in
      {"|".join(_global_values())}|=) at=$((at + 1));;
      {"|".join(COMMANDS)}) chosen="${{COMP_WORDS[at]}}";;
    esac
  done
  case "$previous" in{choices}
      {files}) _teachonce_files "$current"; return;;
  esac
  case "$chosen" in
    '') {_reply([*COMMANDS, *_global_flags()])}; return;;
{cases}
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$current"));;
    *) _teachonce_files "$current";;
  esac
}}"""


def _bash_case(command: str, options: Sequence[Option]) -> str:
    """What follows the command, and what follows each of its options that is one of a few words."""
    chosen = [(flag(option.name), option.choices) for option in options if not option.is_positional]
    chosen += [(command, option.choices) for option in options if option.is_positional]
    after = "".join(f"\n        {word}) {_reply(choices)}; return;;" for word, choices in chosen if choices)
    words = shlex.quote(" ".join(_flags(command, options)))
    return f'    {command})\n      case "$previous" in{after}\n      esac\n      words={words};;'


def _reply(words: Iterable[str]) -> str:
    return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$current"))'


_FISH_COMMAND = """function __teachonce_command
    set -l words (commandline -opc)
    set -l is_value 0
    for word in $words[2..-1]
        if test $is_value -eq 1
            set is_value 0
            continue
        end
        switch $word
            case {values}
                set is_value 1
            case '-*' '*=*'
                continue
            case '*'
                echo $word
                return
        end
    end
end
function __teachonce_is
    set -l command (__teachonce_command)
    test "$command" = "$argv[1]"
end"""
"""The command is the first word that is no option, nor the value of an option of all commands."""


def _fish() -> str:
    lines = [_FISH_COMMAND.replace("{values}", " ".join(_global_values()))]
    for name, command in COMMANDS.items():
        sentence = (inspect.getdoc(command.options) or "").split("\n")[0]
        lines.append(f"""complete -c teachonce -n '__teachonce_is ""' -f -a {name} -d {shlex.quote(sentence)}""")
        for option in describe_options(command.options):
            lines += _fish_lines(f"complete -c teachonce -n '__teachonce_is {name}'", option)
        for heading, sentence in ACTIONS.get(name, ()):
            words = f"-l {heading.removeprefix('--')} -d {shlex.quote(sentence)}"
            lines.append(f"complete -c teachonce -n '__teachonce_is {name}' {words}")
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


def _global_values() -> list[str]:
    """Those that a value follows."""
    return [heading.split()[0] for heading, _ in GLOBAL_OPTIONS if " " in heading and "," not in heading.split(" ")[0]]


def _global_choices() -> dict[str, list[str]]:
    """Of those whose value is one of a few words, these."""
    found = [heading.split() for heading, _ in GLOBAL_OPTIONS]
    return {parts[0]: parts[1][1:-1].split(",") for parts in found if len(parts) == 2 and parts[1].startswith("{")}
