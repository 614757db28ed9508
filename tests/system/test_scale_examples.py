"""The files of examples/scale: their commands are commands, their numbers agree, and what can be run here runs."""

import configparser
import http.server
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from teachonce.cli.main import parse_command
from teachonce.extraction.config import ExtractConfig
from teachonce.storage.files import read_json
from teachonce.store.store import Store
from tests.support.kills import everything
from tests.support.paths import DOCS, ROOT
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.warm_python import warm_python

FOLDER = ROOT / "examples" / "scale"
SCRIPTS = sorted(FOLDER.rglob("*.sh"))
JOB = yaml.safe_load((FOLDER / "kubernetes-indexed-job.yaml").read_text())
RAY_JOB = yaml.safe_load((FOLDER / "kuberay-job.yaml").read_text())
SERVICE = FOLDER / "spot" / "teachonce-extract.service"
RUN_UNTIL_COMPLETE = FOLDER / "spot" / "run-until-complete.sh"
NO_COMMAND = {"aws-notice.sh", "run-until-complete.sh"}


def relative(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def commands_of_script(path: Path) -> list[list[str]]:
    """The words of each teachonce command of a script, with the values that its variables have by default."""
    text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    # An array of options that depend on something, as it is where it is not empty.
    for name, words in re.findall(r"\b(\w+)=\(([^()]+)\)", text):
        text = text.replace(f'"${{{name}[@]}}"', words)
    values = dict(re.findall(r"\$\{(\w+):=([^{}]*)\}", text))

    def fill(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        return values.get(name, default or "")

    found = []
    for line in text.splitlines():
        if match := re.search(r"\bteachonce (?:plan|extract|train|verify|status|inspect)\b.*", line):
            filled = re.sub(r"\$\{(\w+)(?::-([^{}]*))?\}|\$(\w+)", fill, match[0])
            found.append(shlex.split(filled)[1:])
    return found


def container(template: dict) -> dict:
    (found,) = template["spec"]["containers"]
    return found


def all_commands() -> dict[str, list[str]]:
    found = {}
    for path in SCRIPTS:
        for words in commands_of_script(path):
            found[f"{relative(path)}: {words[0]}"] = words
    job = container(JOB["spec"]["template"])
    assert job["command"] == ["teachonce"]
    found["kubernetes-indexed-job.yaml"] = job["args"]
    found["kuberay-job.yaml"] = shlex.split(RAY_JOB["spec"]["entrypoint"])[1:]
    found[relative(SERVICE)] = shlex.split(read_service()["Service"]["ExecStart"])[1:]
    return found


def read_service() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(SERVICE.read_text())
    return parser


COMMANDS = all_commands()


def parse(name: str, monkeypatch: pytest.MonkeyPatch):
    """A command as it means something where it runs: there the scheduler says which worker it is."""
    for key, value in {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64", "SLURM_ARRAY_TASK_MIN": "0"}.items():
        monkeypatch.setenv(key, value)
    return parse_command(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_one(name, monkeypatch):
    parse(name, monkeypatch)


def test_every_file_has_a_command_and_a_line_in_both_readmes():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".md"]
    with_commands = {name.partition(":")[0] for name in COMMANDS}
    assert {relative(path) for path in files} == with_commands | {f"spot/{name}" for name in NO_COMMAND}
    readme, guide = (FOLDER / "README.md").read_text(), (DOCS / "guide" / "scale.md").read_text()
    for path in files:
        assert f"]({relative(path)})" in readme and f"](../../examples/scale/{relative(path)})" in guide, path


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_scripts_are_scripts(path):
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


def test_the_indexed_jobs_numbers_agree(monkeypatch):
    spec = JOB["spec"]
    assert (JOB["apiVersion"], JOB["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    pod = spec["template"]["spec"]
    environment = {item["name"]: item["value"] for item in container(spec["template"])["env"]}
    assert int(environment["TEACHONCE_NUM_WORKERS"]) == spec["completions"] == spec["parallelism"]
    config = parse("kubernetes-indexed-job.yaml", monkeypatch)
    assert isinstance(config, ExtractConfig) and config.worker == "auto"
    assert pod["terminationGracePeriodSeconds"] > config.grace_seconds and pod["restartPolicy"] == "Never"
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {2: "FailJob", 128 + signal.SIGTERM: "Ignore"}
    names = {
        rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    }
    assert names == {container(spec["template"])["name"]}


def test_the_ray_jobs_numbers_agree(monkeypatch):
    assert (RAY_JOB["apiVersion"], RAY_JOB["kind"]) == ("ray.io/v1", "RayJob")
    (workers,) = RAY_JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    config = parse("kuberay-job.yaml", monkeypatch)
    resources = container(workers["template"])["resources"]
    assert (config.engine, config.address, config.max_workers) == ("ray", "auto", workers["maxReplicas"])
    assert config.worker_cpus == int(resources["requests"]["cpu"])
    assert config.worker_gpus == int(resources["limits"]["nvidia.com/gpu"])
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > config.grace_seconds


def test_the_units_numbers_agree(monkeypatch):
    service = read_service()["Service"]
    config = parse(relative(SERVICE), monkeypatch)
    assert int(service["TimeoutStopSec"]) > config.grace_seconds
    assert service["Restart"] == "on-failure" and service["RestartPreventExitStatus"] == "2"
    if shutil.which("systemd-analyze"):
        shown = subprocess.run(["systemd-analyze", "verify", str(SERVICE)], capture_output=True, text=True, check=False)
        # That the program is not installed here is no fault of the unit.
        wrong = [line for line in shown.stderr.splitlines() if SERVICE.name in line and "not executable" not in line]
        assert not wrong


def run_until_complete(tmp_path: Path, program: str, **settings: int) -> subprocess.CompletedProcess:
    """The script around a shell program, which finds in $COUNT how often it was begun before."""
    script = tmp_path / "program.sh"
    script.write_text(f"COUNT=$(cat count 2>/dev/null || echo 0); echo $((COUNT + 1)) > count\n{program}\n")
    environment = {**os.environ, "PAUSE": "0", **{name: str(value) for name, value in settings.items()}}
    words = ["bash", str(RUN_UNTIL_COMPLETE), "bash", str(script)]
    return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)


def num_begun(tmp_path: Path) -> int:
    return int((tmp_path / "count").read_text())


@pytest.mark.parametrize(
    ("program", "code", "begun"),
    [
        ("exit 0", 0, 1),
        ("[ $COUNT -ge 2 ] || exit 1", 0, 3),
        ("[ $COUNT -ge 2 ] || kill -KILL $$", 0, 3),
        ("exit 2", 2, 1),
        ("[ $COUNT -ge 1 ] && exit 2; exit 143", 2, 2),
        ("exit 7", 7, 5),
    ],
)
def test_a_command_is_run_until_it_succeeds_or_is_wrong(tmp_path, program, code, begun):
    done = run_until_complete(tmp_path, program)
    assert (done.returncode, num_begun(tmp_path)) == (code, begun), done.stderr
    assert ("gave up after 5 failures" in done.stderr) is (code == 7)


def test_failures_after_long_work_are_none_in_a_row(tmp_path):
    assert run_until_complete(tmp_path, "[ $COUNT -ge 7 ] || exit 1", LONG=0).returncode == 0
    assert num_begun(tmp_path) == 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_end_it(tmp_path, number):
    program = tmp_path / "program.sh"
    program.write_text("trap 'sleep 0.3; exit 143' TERM INT\necho begun\nwhile true; do sleep 0.05; done\n")
    words = ["bash", str(RUN_UNTIL_COMPLETE), "bash", str(program)]
    # A session of its own: the signal is for the script alone.
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            process.send_signal(number)
            assert process.wait(20) == 143
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_pause_ends_it(tmp_path, number):
    """At once, and the command is not begun again."""
    program = tmp_path / "program.sh"
    program.write_text("echo begun >> begun\nexit 1\n")
    words = ["bash", str(RUN_UNTIL_COMPLETE), "bash", str(program)]
    environment = {**os.environ, "PAUSE": "60"}
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None and b"again in 60 s" in process.stderr.readline()
            time.sleep(0.3)
            process.send_signal(number)
            assert process.wait(30) == 143
            assert (tmp_path / "begun").read_text() == "begun\n"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_notice_of_aws_becomes_sigterm():
    asked: list[tuple[str, str | None]] = []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            self.answer(200, b"token")

        def do_GET(self):
            asked.append((self.path, self.headers["X-aws-ec2-metadata-token"]))
            self.answer(404 if len(asked) < 3 else 200, b'{"action": "terminate"}')

        def answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    if not shutil.which("curl"):
        pytest.skip("no curl")
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server,
        subprocess.Popen(["sleep", "60"]) as target,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "METADATA": f"http://127.0.0.1:{server.server_port}", "PAUSE": "0.05"}
        words = ["bash", str(FOLDER / "spot" / "aws-notice.sh"), str(target.pid)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)
        try:
            assert target.wait(10) == -signal.SIGTERM
        finally:
            target.kill()
            server.shutdown()
    assert done.returncode == 0 and "SIGTERM to process" in done.stderr
    assert asked == [("/latest/meta-data/spot/instance-action", "token")] * 3


@pytest.fixture
def job(tmp_path):
    """A folder with small data and a teacher, and the environment in which the scripts of a cluster run here."""
    programs = tmp_path / "programs"
    programs.mkdir()
    main = "from teachonce.cli.main import main; main()"
    for name, line in {
        "teachonce": f'exec {shlex.join([*warm_python(), "-c", main])} "$@"',
        "srun": 'test "$1 $2" = "--cpus-per-task ${SLURM_CPUS_PER_TASK:-8}" && shift 2 && exec "$@"',
        "torchrun": f'exec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "DATA": str(write_color_shards(tmp_path / "data", sizes=(20, 13, 9, 8))),
        "TEACHER": write_color_teacher(tmp_path / "teacher.onnx"),
        "STORE": str(tmp_path / "store"),
        "RUN": str(tmp_path / "run"),
        "CACHE": str(tmp_path / "cache"),
        "STUDENT": "timm:test_resnet",
        "VIEWS": "3",
        "DEVICE": "cpu",
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return tmp_path, environment


def run_script(path: Path, environment: dict[str, str]) -> str:
    words = ["bash", str(path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_slurm_array_of_which_a_task_never_starts(job):
    folder, environment = job
    slurm = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_CPUS_PER_TASK": "1"}
    for task in ("0", "2"):
        run_script(FOLDER / "slurm-array.sh", environment | slurm | {"SLURM_ARRAY_TASK_ID": task})
    assert Store(folder / "store").num_views == 3
    # The same bytes as by one worker that does it all.
    slurm |= {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_ID": "0"}
    run_script(FOLDER / "slurm-array.sh", environment | slurm | {"STORE": str(folder / "other")})
    assert everything(folder / "store") == everything(folder / "other")


@pytest.mark.slow
def test_one_machine_from_plan_to_student(job):
    folder, environment = job
    write_color_shards(folder / "data", sizes=(9,), split="validation")
    script = (FOLDER / "one-machine.sh").read_text()
    # Two batches of the data, which has 50 records, for a few epochs.
    short = folder / "one-machine.sh"
    short.write_text(script.replace("--kd-temp 1", "--kd-temp 1 --batch-size 16 --size 32"))
    few = {"EPOCHS": "2", "WARMUP": "1"}
    done = subprocess.run(
        ["bash", str(short)], env=environment | few, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "on 1 device (--devices)" in done.stdout and "sound" in done.stdout
    assert f"{folder / 'store'}: 4 of 4 units done, 0 missing, complete" in done.stdout
    assert f"{folder / 'run'}: 2 of 2 epochs done" in done.stdout and ", complete" in done.stdout.splitlines()[-2]


@pytest.mark.slow
def test_torchrun_on_one_machine(job):
    folder, environment = job
    run_script(FOLDER / "slurm-array.sh", environment | {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_ID": "0"})
    with_port = {"GPUS": "2", "BATCH": "8", "PORT": "0", "NODES": "1"}
    more = {"MORE": "--size 32 --validation-split none", "EPOCHS": "1", "WARMUP": "1"}
    run_script(FOLDER / "torchrun-train.sh", environment | with_port | more)
    assert read_json(folder / "run" / "result.json")["epochs"] == 1
    assert read_json(folder / "run" / "config.json")["world_size"] == 2
