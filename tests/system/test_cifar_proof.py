"""The proof on CIFAR-10 takes hours: that its commands are read as they are meant is seen here."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from benchmarks.cifar_proof import steps, teachings
from teachonce.cli.main import parse_command


@pytest.mark.parametrize("in_turn", [True, False])
def test_every_command_is_one(in_turn: bool) -> None:
    found = list(steps(in_turn=in_turn))
    made: set[str] = set()
    for step in found:
        for command in step.commands:
            config = parse_command(shlex.split(command.format(teacher="onnx:teacher.onnx")))
            if command.startswith("records"):
                shards = str(config.out)
            elif command.startswith("extract"):
                made.add(str(config.out))
                assert str(config.data) == (shards if config.mixup_alpha else "25k")
            else:
                assert str(config.out) == step.out
                assert made >= {str(path) for paths in config.parse_stores() for path in paths}
    assert {step.out for step in found} == {"arms", "with-labels", "policies", "codecs-1", "codecs-4"}
    assert "Arms, 3 seeds: labels,center,views:10,online,views:4,views:1,views:30" in {step.title for step in found}
    first, second = (parse_command(shlex.split(words)) for words in teachings(Path("w.safetensors"), is_cpu=in_turn))
    assert second.init == first.out and second.size > first.size
