"""Run the commands that a page prints, and put their output of today below them.

    python -m benchmarks.rerun_page docs/results/imagenet-sample.md --with ../shared/data --folder page

A page's commands are the lines that begin with "$ " in its code blocks; what stands below one, up to the next one or
the end of the block, is what it printed, with "exit N" as the last line where its exit code was not 0. They are run in
the order of the page, in one folder in which the files of ``--with`` are (links). A command that ended in another way
than the page says ends this, and the page stays as it was: so each line of it is of one run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^(```\w*\n)(\$ .*?)(^```$)", re.MULTILINE | re.DOTALL)
PROMPT = "$ "


def main() -> None:
    """Exit code 1 with what was found where a command ends in another way than the page says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--with", dest="inputs", type=Path, nargs="*", default=[], help="files, or folders of files")
    parser.add_argument("--folder", type=Path, help="where to work, and to leave what was made; else a temporary one")
    flags = parser.parse_args()
    text = flags.page.read_text()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(flags.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for path in flags.inputs:
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                (folder / file.name).symlink_to(file.absolute())
        flags.page.write_text(BLOCK.sub(lambda match: match[1] + rerun(match[2], folder) + match[3], text))


def rerun(block: str, folder: Path) -> str:
    """The commands of a block, each with what it prints today."""
    parts = []
    for part in re.split(r"^(?=\$ )", block, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        expected = re.search(r"^exit (\d+)$", printed, re.MULTILINE)
        found, code = run(command.removeprefix(PROMPT), folder)
        if code != int(expected[1] if expected else 0):
            sys.exit(f"{command}\n{found}exit {code}, not as on the page")
        parts.append(f"{command}\n{found}" + (f"exit {code}\n" if code else "") + "\n" * printed.endswith("\n\n"))
    return "".join(parts)


def run(command: str, folder: Path) -> tuple[str, int]:
    """(what it prints, both streams as a terminal has them, its exit code); says how it goes on."""
    print(f"{PROMPT}{command}", file=sys.stderr, flush=True)
    # The teachonce of this Python, whatever the PATH says.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout, done.returncode


if __name__ == "__main__":
    main()
