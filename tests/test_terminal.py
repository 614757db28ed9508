"""What is printed: no character of a name moves the cursor, and no name fills the screen."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings

import pytest

from teachonce.cli.main import main
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.terminal import (
    MAX_LINE_CHARACTERS,
    MAX_WORD_CHARACTERS,
    as_text,
    has_lost_reader,
    one_line,
    plural,
    print_line,
    print_note,
    print_warning,
    set_quiet,
    show_warnings_as_lines,
    visible,
)
from tests.support.many_commands import run_commands
from tests.support.small_data import encode_jpeg, write_image_folder, write_shards, write_store

HOSTILE = "a\x1b[31mred\x07\r\nteachonce: done"
SHOWN = r"a\x1b[31mred\x07\r\nteachonce: done"
OBEYED = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2028, 0x2066)} - {"\n"}


def is_harmless(text: str) -> bool:
    return not OBEYED & set(text)


def test_what_a_terminal_obeys_is_escaped():
    assert one_line(HOSTILE) == SHOWN
    assert visible("right\u202eleft\u2028\udcff\x9b") == r"right\u202eleft\u2028\udcff\x9b"
    assert visible("日本語 é ñ") == "日本語 é ñ", "letters are letters"
    assert visible("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\x1b"
    assert as_text([HOSTILE, "two"]) == f"{SHOWN}\ntwo"


def test_what_is_too_long_loses_its_middle():
    spec = "timm:" + "x" * 100_000 + ",end=1"
    shown = one_line(f"model {spec!r} and {spec!r}")
    assert len(shown) < 2 * MAX_WORD_CHARACTERS + 20
    assert shown.count("...(100,013 characters)...") == 2 and shown.count("end=1") == 2
    path = "/folder" * 50
    assert path in one_line(f"{path}: no such file"), "paths as people have them stay whole"
    assert len(one_line("words " * 100_000)) == MAX_LINE_CHARACTERS


def test_a_stream_that_cannot_encode_a_name():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    print_line("café \udcff", file)
    file.seek(0)
    assert file.read() == "caf\\xe9 \\udcff\n"


def test_warnings_are_lines(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show_warnings_as_lines()
        warnings.warn(HOSTILE, stacklevel=1)
    assert capsys.readouterr().err == f"teachonce: warning: {SHOWN}\n"


def test_a_warning_is_shown_once(capsys):
    """Whatever process gives it: a worker sends it to where it is shown."""
    sent = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show_warnings_as_lines()
        for text in ("one", "one", "two"):
            warnings.warn(text, stacklevel=1)
        print_warning("one")
        assert capsys.readouterr().err == "teachonce: warning: one\nteachonce: warning: two\n"
        show_warnings_as_lines(sent.append)
        warnings.warn("one", stacklevel=1)
        assert sent == ["one"] and not capsys.readouterr().err


def test_notes_can_be_left_out(capsys):
    print_note("done")
    set_quiet(True)
    try:
        print_note("done")
        print_line("wrong")
    finally:
        set_quiet(False)
    assert capsys.readouterr().err == "done\nwrong\n"


def run(capsys, *words) -> tuple[int, str, str]:
    with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
        warnings.simplefilter("always")
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert is_harmless(shown.out) and is_harmless(shown.err)
    return end.value.code, shown.out, shown.err


def test_file_names_of_images(tmp_path, capsys):
    images = write_image_folder(tmp_path / "images")
    folder = images / "train" / "class0"
    (folder / "evil\x1b[2J\x07.jpg").write_bytes(b"no image")
    (folder / "notes\x1b[2J\nteachonce: done").write_text("")
    code, _, err = run(capsys, "records", "--images", images, "--out", tmp_path / "out", "--num-workers", 1)
    assert code == 1 and r"evil\x1b[2J\x07.jpg" in err and r"notes\x1b[2J\nteachonce: done" in err
    assert not [line for line in err.splitlines() if line.startswith("teachonce: done")]


def test_class_names_in_results(tmp_path, capsys):
    data = write_shards(tmp_path / "data")
    names = ("background", "class0", HOSTILE, "b" * 100_000)
    write_classes(data, ClassTable(names, names, has_background=True))
    code, out, _ = run(capsys, "inspect", data)
    assert code == 0 and SHOWN in out and len(out) < 5_000
    assert not [line for line in out.splitlines() if line.startswith("teachonce: done")]
    code, out, _ = run(capsys, "inspect", data, "--json")
    found = json.loads(out)["splits"][0]["classes"]
    assert [entry["name"] for entry in found] == [*names], "for a program a name is what it is"


def test_class_names_in_pages(tmp_path, capsys):
    data = write_shards(tmp_path / "data")
    names = ("background", "class0", HOSTILE, "b" * 100_000)
    write_classes(data, ClassTable(names, names, has_background=True))
    store = write_store(tmp_path / "store", data).path
    code, _, _ = run(capsys, "inspect", store, "--html", "--data", data)
    page = (store / "inspect.html").read_text()
    assert code == 0 and r"a\x1b[31mred\x07" in page and is_harmless(page) and "b" * 1000 not in page


@pytest.mark.parametrize("spec", ["timm:\x1b[31m\x07\nteachonce: done", "timm:" + "x" * 100_000])
def test_specs(tmp_path, capsys, spec):
    data = write_image_folder(tmp_path / "images", split="validation")
    code, _, err = run(capsys, "evaluate", "--data", data, "--model", spec, "--device", "cpu")
    assert code == 2 and len(err.splitlines()) == 1 and len(err) < MAX_LINE_CHARACTERS


def test_paths_that_are_no_text(tmp_path):
    """A name of bytes that are no UTF-8, on a stream that is strict: written, and not a traceback."""
    folder = tmp_path / "caf\udce9"
    (folder / "train" / "a").mkdir(parents=True)
    (folder / "train" / "a" / "0.jpg").write_bytes(encode_jpeg(0))
    code = "import sys; from teachonce.cli.main import main; main(['inspect', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-X", "utf8=1", "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert r"caf\udce9: records" in done.stdout


def test_names_in_a_process_that_reads_ascii(tmp_path):
    """A name that is UTF-8 is not called anything else: it is the locale that must be mended."""
    for folder, name in (("utf8", b"caf\xc3\xa9.jpg"), ("latin1", b"caf\xe9.jpg")):
        (tmp_path / folder / "train" / "a").mkdir(parents=True)
        (tmp_path / folder / "train" / "a" / os.fsdecode(name)).write_bytes(encode_jpeg(0))

    def run_code(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        words, others = [sys.executable, "-c", code], os.environ | locale | environment
        return subprocess.run(words, capture_output=True, text=True, env=others, cwd=tmp_path)

    utf8, latin1 = run_commands(run_code, [["inspect", "utf8"], ["inspect", "latin1"]])
    assert utf8.returncode == latin1.returncode == 1
    assert len(utf8.stderr.splitlines()) == len(latin1.stderr.splitlines()) == 1
    assert r"'caf\xe9.jpg' is UTF-8, but this process decodes names as ascii: set PYTHONUTF8=1" in utf8.stderr
    assert "is not UTF-8; rename it" in latin1.stderr
    (mended,) = run_commands(lambda code: run_code(code, PYTHONUTF8="1"), [["inspect", "utf8"]])
    assert mended.returncode == 0, mended.stderr


def test_a_count_has_its_noun():
    assert [plural(number, "shard") for number in (0, 1, 2, 1024)] == [
        "0 shards",
        "1 shard",
        "2 shards",
        "1,024 shards",
    ]
    assert plural(2, "batch", "batches") == "2 batches" and plural(1, "batch", "batches") == "1 batch"


def test_nobody_need_read_stderr() -> None:
    """A supervisor that closes the pipe of the progress is no reason to stop working."""
    code = (
        "import os\n"
        "from teachonce.terminal import print_json, print_line, print_text\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "os.dup2(write, 2)\n"
        "print_line('extract: 3 of 4')\n"
        "print_json({'done': 3})\n"
        "print_text('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "still here\n"


@pytest.mark.parametrize(("lost", "code"), [(1, 0), (2, 0), (3, 1)])
def test_only_a_lost_reader_of_stdout_ends_a_command_well(lost: int, code: int) -> None:
    """`| head` has seen enough; that another pipe is broken is an error, and that nobody reads stderr is nothing."""
    program = (
        "import os, sys\n"
        "from teachonce.cli import main\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        f"os.dup2(write, {lost})\n"
        "def run(words):\n"
        "    print('working', file=sys.__stdout__, flush=True)\n"
        f"    {lost} == 3 and os.write(3, b'x')\n"
        "main.run_words = run\n"
        "main.main(['verify'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    assert (done.stderr != "") == (code == 1)


def test_a_stream_without_a_descriptor_has_not_lost_its_reader() -> None:
    assert not has_lost_reader(io.StringIO())
