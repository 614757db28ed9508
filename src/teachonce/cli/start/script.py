"""``teachonce start DATA``: the commands as a shell script with its reasons as comments, to read, change and run.

In a comment what a terminal would obey is an escape; in a command the words are what was given. With ``--out FILE`` it
is written there, and beside it the options of both trainings as files for ``--config``.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from teachonce.cli.config import StartConfig
from teachonce.cli.start.findings import Findings, find_out
from teachonce.cli.start.rules import Step, choose_steps
from teachonce.engine.progress import phase
from teachonce.errors import ConfigError
from teachonce.inspection.config import InspectConfig
from teachonce.options import command_line, given_options, to_json
from teachonce.records.image_listing import known_as
from teachonce.records.options import RecordOptions
from teachonce.storage.files import create_file, exists, write_json
from teachonce.terminal import plural, print_note, visible
from teachonce.training.config import TrainConfig

WIDTH = 100
NAMES_SHOWN = 8
UNEQUAL = 10
"""From this ratio of the largest to the smallest class on it is mentioned."""
_FORMATS = {
    "folder": "a folder of images",
    "tfrecord": "TFRecords",
    "webdataset": "WebDataset tars",
    "arrow": "Parquet or Arrow files",
    "table": "a table of images",
}


def start(config: StartConfig) -> str:
    """The script, or, where it was written, what was; raises what ``find_out`` and ``choose_steps`` do."""
    files = [] if config.out is None else _files(config.out)
    for path in files:
        if exists(path):
            raise ConfigError(f"{path}: exists; remove it or choose another --out")
    with phase("start", "looking at the images"):
        found = find_out(config)
    steps = choose_steps(found, config, Path() if config.out is None else config.out.parent)
    if config.out is None:
        return render_script(found, config, steps)
    trainings = [number for number, step in enumerate(steps) if isinstance(step.config, TrainConfig)]
    # Where the teacher needs no training, that of the student alone.
    given = dict(zip(trainings, files[-len(trainings) :], strict=True))
    for number, path in given.items():
        write_json(path, _options_of(steps[number].config), overwrite=False)
    with create_file(config.out, "--out") as file:
        file.write((render_script(found, config, steps, given) + "\n").encode())
    print_note(f"start: read what was written, then: sh {shlex.quote(str(config.out))}")
    return "\n".join(visible(str(path)) for path in (config.out, *given.values()))


def _files(out: Path) -> list[Path]:
    """The script, and the options of the teacher's and of the student's training."""
    return [out, *(out.with_name(f"{out.stem}.{name}.json") for name in ("teacher", "student"))]


def _options_of(config: TrainConfig) -> dict[str, Any]:
    given = given_options(config)
    return {name: value for name, value in to_json(config).items() if name in given}


def render_script(
    found: Findings, config: StartConfig, steps: Sequence[Step], files: dict[int, Path] | None = None
) -> str:
    """The script; ``files`` are those of the steps, by number, whose options are in one."""
    lines = ["#!/bin/sh", f"# teachonce start {visible(command_line(config))}", *_comment("", describe(found, config))]
    lines += [
        "# A starting point, by rules and not by a search; nothing was run. Change what you know better.",
        *_comment(
            "", "First, as only some headers were read; it names images that are cut short, at which commands end:"
        ),
        f"#   {visible(_inspect_command(config))}",
        "set -e",
    ]
    for number, step in enumerate(steps):
        lines += ["", f"# {number + 1}. {step.title}"]
        for reason in step.reasons:
            lines += _comment("- ", reason)
        file = (files or {}).get(number)
        options = command_line(step.config) if file is None else shlex.join(["--config", str(file)])
        lines.append(_wrap(f"teachonce {step.command}", shlex.split(options)))
    # Comments alone: the shell reads the other lines, and a path with another character is another path.
    shown = (visible(line) if line.startswith("#") else line for line in lines)
    return "\n".join(shown)


def _inspect_command(config: StartConfig) -> str:
    # Of all splits, so what is held out does not matter.
    names = {field.name for field in fields(RecordOptions)} - {"val_fraction", "val_seed"}
    records = {name: getattr(config, name) for name in names}
    return f"teachonce inspect {command_line(InspectConfig(path=config.data, **records))}"


def describe(found: Findings, config: StartConfig) -> str:
    """What was found, as a paragraph."""
    least, median, most = found.sides_px
    text = (
        f"{found.num_records:,} images in split {known_as(config.split)} ({_FORMATS.get(found.format, found.format)}), "
        f"shorter side {least} to {most} px, median {median}, {found.mean_bytes:,} bytes in the mean "
        f"({found.num_sampled:,} looked at)."
    )
    if found.num_odd:
        text += f" {plural(found.num_odd, 'file')} of these cannot be read as an image: teachonce inspect names them."
    if found.labeled == "none":
        return text + " They have no labels."
    if found.labeled == "some":
        return text + " Some have no labels, so the teacher is taken as it is and nothing is evaluated."
    names = ", ".join(found.class_names[:NAMES_SHOWN]) + (", ..." if len(found.class_names) > NAMES_SHOWN else "")
    text += f" {plural(found.num_classes, 'class', 'classes')}" + (f" ({names})" if names else " without names")
    if found.has_background:
        text += " and background, which the student leaves out (--offset 1)"
    of_sample = "" if found.is_counted else " of the sample"
    text += f", {found.counts[0]:,} to {found.counts[-1]:,} images each{of_sample}."
    if found.counts[-1] >= UNEQUAL * found.counts[0]:
        text += " They are unequal: the accuracy over all images says little about the rare ones."
    if not found.class_names:
        text += " --num-classes is the largest label that was seen, and 1: correct it if there are more."
    if found.has_validation:
        return text + " There is a validation split."
    return text + " No validation split: a part is held out by a hash of each image (--val-fraction)."


def _comment(mark: str, text: str) -> list[str]:
    lead = f"# {mark}"
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent="# " + " " * len(mark), break_long_words=False
    )


def _wrap(command: str, words: Sequence[str]) -> str:
    """A command with its words, each option together with its values, over as many lines as it takes."""
    parts: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not parts:
            parts.append([])
        parts[-1].append(shlex.quote(word))
    # What the command is of comes first; inherited options would.
    parts.sort(key=lambda part: 0 if not part[0].startswith("--") else 1 if part[0] == "--data" else 2)
    lines = [command]
    for part in map(" ".join, parts):
        if len(lines[-1]) + len(part) + 3 > WIDTH:
            lines.append("   ")
        lines[-1] += f" {part}"
    return " \\\n".join(lines)
