"""``teachonce completion SHELL``: a script that completes commands, options and the words that an option can be.

The scripts are made once from the option classes and hold every name, so that Tab starts no Python. Values that are not
a few words are completed as files. Of the Z shell it is its own reading of bash's completions.
"""

from __future__ import annotations

import shlex

from teachonce.cli.config import CompletionConfig
from teachonce.cli.help import GLOBAL_OPTIONS, Option, describe_options
from teachonce.cli.main import ACTIONS, COMMANDS
from teachonce.options import flag


def completion(config: CompletionConfig) -> str:
    """The script for ``config.shell``."""
    if config.shell == "fish":
        return _fish()
    return _bash() if config.shell == "bash" else "#compdef teachonce\nautoload -U +X bashcompinit && bashcompinit\n" + _bash()


def _bash() -> str:
    cases = []
    for name, command in COMMANDS.items():
        options = describe_options(command.options)
        lines = [
            f'{flag(option.name)}) COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$current")); return;;'
            for option in options
            if option.choices and not option.is_positional
        ]
        choices = [choice for option in options if option.is_positional for choice in option.choices]
        words = " ".join([*_flags(name, options), *choices])
        cases.append(
            f"    {name})\n"
            f'      case "$previous" in {" ".join(lines)} esac\n'
            f"      words={shlex.quote(words)};;"
        )
    joined = "\n".join(cases)
    return f"""# Completion of teachonce for bash: teachonce completion bash > \
~/.local/share/bash-completion/completions/teachonce
_teachonce() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W {shlex.quote(" ".join([*COMMANDS, *_global_flags()]))} -- "$current")); return
  fi
  case "${{COMP_WORDS[1]}}" in
{joined}
  esac
  case "$current" in -*) COMPREPLY=($(compgen -W "$words" -- "$current"));;
    *) COMPREPLY=($(compgen -W "$(printf '%s\\n' $words | grep -v ^-)" -- "$current") $(compgen -f -- "$current"));;
  esac
}}
complete -o filenames -F _teachonce teachonce"""


def _fish() -> str:
    lines = ["# Completion of teachonce for fish: teachonce completion fish > ~/.config/fish/completions/teachonce.fish"]
    for name, command in COMMANDS.items():
        sentence = (command.options.__doc__ or "").split("\n")[0]
        lines.append(f"complete -c teachonce -n __fish_use_subcommand -f -a {name} -d {shlex.quote(sentence)}")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for option in describe_options(command.options):
            if option.is_positional:
                if option.choices:
                    lines.append(f"complete -c teachonce {seen} -f -a {shlex.quote(' '.join(option.choices))}")
                continue
            values = f" -x -a {shlex.quote(' '.join(option.choices))}" if option.choices else " -r" if option.value else ""
            for word in _forms(option):
                words = f"-l {word.removeprefix('--')}{values} -d {shlex.quote(option.sentence.split('. ')[0])}"
                lines.append(f"complete -c teachonce {seen} {words}")
    lines += [f"complete -c teachonce -l {word.removeprefix('--')}" for word in _global_flags()]
    return "\n".join(lines)


def _flags(name: str, options: tuple[Option, ...]) -> list[str]:
    own = [word for option in options if not option.is_positional for word in _forms(option)]
    return [*own, *(heading for heading, _ in ACTIONS.get(name, ())), *_global_flags()]


def _forms(option: Option) -> list[str]:
    return [flag(option.name)] + ([flag("no_" + option.name)] if not option.value else [])


def _global_flags() -> list[str]:
    return [word for heading, _ in GLOBAL_OPTIONS for word in heading.replace(",", "").split() if word.startswith("--")]
