"""Our loader against those that people use, on the same photographs, pair by pair: ratios within one run.

    python -m benchmarks.loading [--images DIR_OR_TAR | --data DIR] [--small DIR_OR_TAR] [--peers tfdata,dali,...]
                                 [--quick] [--out FILE.md]

Photographs are the JPEGs of ``--images`` (CLASS/NAME.jpg in a folder or tar archive, repeated up to 1,000 records),
TFRecord shards with ``image/logit`` (``--data``), or synthetic ones. Batches of 64, random resized crop to 224 and
flip, uint8, labels, and the teacher's logits; 2 workers or threads. ``--small`` adds small images (CIFAR-10) from a
store.

Every pipeline lives in a process of its own (``peers.py``). In each round ours and the peer's run in turn, a
few seconds each, and only one at a time: the other is stopped (SIGSTOP) with all its workers, queues as they are. So a
machine that drifts, or that others use, drifts for both; the ratio of the round is what counts, and the median over
rounds is quoted with the least and the most. What others compute at the same time takes more from a pipeline of few
threads than from one of many, so a second ratio is of images per second of CPU time (Linux only), which they touch
less: where the two differ much, the machine was busy. Our loader on the same photographs with restart markers is
measured twice: as a variant against each peer, and against itself without them (``markers.py``). Peers that are not
installed are skipped with a line:

    pip install tensorflow webdataset grain simplejpeg nvidia-dali-cuda120 ffcv

(ffcv builds against OpenCV and libturbojpeg: Debian's libopencv-dev, libturbojpeg0-dev, pkg-config.) In full about 10
minutes, with ``--quick`` about 2. The table goes to ``--out``, and a picture beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.loading.peers import NOT_INSTALLED, OURS, PEERS

START_SECONDS = 300.0
"""How long a pipeline may take to write its files, start and warm up."""
TARGETS = {
    "tf.data, no antialiasing, float32 (its default)": 1.05,
    "tf.data, no antialiasing": 1.05,
    "tf.data, antialiased": 1.9,
    "WebDataset, Pillow": 2.2,
    "FFCV, area filter": 1.5,
    "DALI, image_random_crop, antialiased": 1.5,
    "DALI, random_resized_crop, antialiased": 1.5,
}
"""How many times the peer's images/s ours must reach; the others are for information."""
MARKED = "ours, store, restart markers"
MARKED_TARGETS = {
    "FFCV, area filter": 2.0,
    "DALI, image_random_crop, antialiased": 2.2,
    "DALI, random_resized_crop, antialiased": 2.2,
}
"""The same of our loader on the photographs with restart markers; the peers have their own best files."""
LIBRARY_TARGET = 1.15
"""Of code of our own against the best of the libraries on one core."""
_PACKAGES = ("tensorflow", "webdataset", "nvidia-dali-cuda120", "ffcv", "grain", "simplejpeg", "torch", "torchvision")


@dataclass(frozen=True)
class Pair:
    """Images/s of our variants and of a peer, by round."""

    peer: str
    peer_rates: list[float] = field(default_factory=list)
    our_rates: dict[str, list[float]] = field(default_factory=dict)
    per_cpu_ratios: list[float] = field(default_factory=list)
    """Images per second of CPU time, our first variant's over the peer's, one a round."""

    def ratios(self, variant: str) -> list[float]:
        """Ours over the peer's, one a round."""
        return [ours / peer for ours, peer in zip(self.our_rates[variant], self.peer_rates, strict=True)]


class NotInstalledError(Exception):
    """A peer's library is not there; the message says what."""


class Pipeline:
    """A pipeline in its own process group, stopped except while it is measured."""

    def __init__(self, name: str, work: Path, num_classes: int, warm_up_seconds: float) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        command = [sys.executable, "-m", "benchmarks.loading.peers", name, "--work", str(work)]
        command += ["--num-classes", str(num_classes), "--warm-up-seconds", str(warm_up_seconds)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Two workers and two cores: threads of a library's own in each would only be in the way.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            start_new_session=True,
        )

    def __enter__(self) -> Pipeline:
        """Wait until it is warm; raises NotInstalledError, or RuntimeError with its last words."""
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):  # a turn that was asked for and never read
                file.close()

    def rate(self, seconds: float) -> tuple[float, float]:
        """(images/s, images per second of CPU time) over about ``seconds``."""
        assert self._process.stdin is not None
        cpu_before = cpu_seconds(self._process.pid)
        self._signal(signal.SIGCONT)
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        count, taken = self._answer()
        self._signal(signal.SIGSTOP)
        return count / taken, count / max(cpu_seconds(self._process.pid) - cpu_before, 0.01)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # ended by itself; whoever waits for an answer learns why

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self._errors.seek(0)
        words = self._errors.read().strip().splitlines() or ["no answer"]
        if ready and self._process.wait() == NOT_INSTALLED:
            raise NotInstalledError(words[-1])
        raise RuntimeError(f"{self.name}: {words[-1]}" if ready else f"{self.name}: no answer in {START_SECONDS:.0f} s")


def cpu_seconds(group: int) -> float:
    """CPU time that the living processes of a group have taken; 0 where there is no /proc."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name in brackets, which may hold anything: state, parent, group, ..., utime and stime.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 for a peer that is not known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="folder of TFRecord shards of a train split, with image/logit")
    source.add_argument("--images", type=Path, help="folder or tar archive of CLASS/NAME.jpg")
    parser.add_argument("--small", type=Path, help="folder or tar archive of small CLASS/NAME.jpg (CIFAR-10)")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; none: only one core")
    parser.add_argument("--rounds", type=int, help="turns of each pair (5; quick: 3)")
    parser.add_argument("--seconds", type=float, help="of each turn (2.5; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="short turns, and of ours only those from a store")
    parser.add_argument("--out", type=Path, help="write the table to this file, and a picture beside it")
    flags = parser.parse_args(arguments)
    flags.peers = [] if flags.peers == "none" else flags.peers.split(",")
    unknown = [name for name in flags.peers if name not in PEERS]
    if unknown:
        parser.error(f"--peers {unknown[0]}: not known, expected some of {', '.join(PEERS)}, or none")
    flags.rounds = flags.rounds or (3 if flags.quick else 5)
    flags.seconds = flags.seconds or (1.0 if flags.quick else 2.5)
    return flags


def main() -> None:
    """Prepare, measure, print."""
    from benchmarks.loading.data import num_classes_of, prepare_photographs, prepare_small

    flags = parse_flags()
    # Ended from outside, it must still end the pipelines: stopped ones in groups of their own would stay for ever.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = prepare_photographs(work, flags.data, flags.images)
        pairs = measure_pairs(work, num_classes_of(source), flags)
        if flags.small is not None:
            prepare_small(work, flags.small)
        one_core = measure_one_core(work, flags)
        markers = measure_markers(work, flags)
    text = report(pairs, one_core, markers, flags)
    print(text)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(text)
        if pairs:
            draw_ratios(pairs, flags.out.with_suffix(".png"))


def measure_pairs(work: Path, num_classes: int, flags: argparse.Namespace) -> list[Pair]:
    """All variants of the peers asked for, one after the other, each in turn with ours."""
    if not flags.peers:
        return []
    warm_up_seconds = 1.0 if flags.quick else 3.0
    pairs = []
    with ExitStack() as stack:
        names = list(OURS)[:2] if flags.quick else list(OURS)
        ours = [stack.enter_context(Pipeline(name, work, num_classes, warm_up_seconds)) for name in names]
        for peer in flags.peers:
            for name in PEERS[peer]:
                pair = Pair(name, our_rates={variant: [] for variant in names})
                try:
                    with Pipeline(name, work, num_classes, warm_up_seconds) as theirs:
                        for _ in range(flags.rounds):
                            our_rate, our_per_cpu = ours[0].rate(flags.seconds)
                            peer_rate, peer_per_cpu = theirs.rate(flags.seconds)
                            pair.our_rates[names[0]].append(our_rate)
                            pair.peer_rates.append(peer_rate)
                            pair.per_cpu_ratios.append(our_per_cpu / peer_per_cpu)
                            for pipeline in ours[1:]:
                                pair.our_rates[pipeline.name].append(pipeline.rate(flags.seconds)[0])
                except NotInstalledError as error:
                    print(f"{peer}: not installed ({error}), skipped", file=sys.stderr)
                    break
                except RuntimeError as error:
                    print(f"{error}; skipped", file=sys.stderr)
                    continue
                print(
                    f"{name}: {quote(pair.ratios(names[0]))}, per CPU second {quote(pair.per_cpu_ratios)}",
                    file=sys.stderr,
                )
                pairs.append(pair)
    return pairs


def measure_one_core(work: Path, flags: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """What ``decoding.py`` prints."""
    command = [sys.executable, "-m", "benchmarks.loading.decoding", "--work", str(work), "--rounds", str(flags.rounds)]
    command += ["--seconds", str(min(flags.seconds, 1.0))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    *lines, last = printed.strip().splitlines()
    for line in lines:
        print(line, file=sys.stderr)
    return json.loads(last)


def measure_markers(work: Path, flags: argparse.Namespace) -> dict[str, list[float]]:
    """What ``markers.py`` prints."""
    command = [sys.executable, "-m", "benchmarks.loading.markers", "--work", str(work)]
    command += ["--rounds", str(4 * flags.rounds), "--batches", "2" if flags.quick else "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(printed.strip().splitlines()[-1])


def quote(ratios: list[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def verdict(targets: dict[str, float], name: str, ratios: list[float]) -> str:
    """The target of a peer and whether the median reaches it; empty where there is none."""
    if name not in targets:
        return ""
    return f"{targets[name]} {'held' if statistics.median(ratios) >= targets[name] else '**missed**'}"


def report(
    pairs: list[Pair],
    one_core: dict[str, dict[str, list[float]]],
    markers: dict[str, list[float]],
    flags: argparse.Namespace,
) -> str:
    """All tables as Markdown."""
    from benchmarks.loading.markers import describe
    from teachonce.engine.machine import num_cores

    command = " ".join([*(Path(item).name if "/" in item else item for item in sys.argv[1:])])
    lines = [
        f"# Loading, {platform.machine()}, {num_cores()} cores",
        "",
        f"{datetime.date.today()}, `python -m benchmarks.loading {command}`, {flags.rounds} rounds of "
        f"{flags.seconds} s in turn.",
        ", ".join(versions()),
    ]
    if pairs:
        variants = list(pairs[0].our_rates)
        lines += [
            "",
            "Ratio of images/s in the same round, median (least to most). Images/s are for information.",
            "Per CPU second: the same ratio of images per second of CPU time, which a busy machine touches less.",
            "",
            f"| peer | {' | '.join(f'{variant} / peer' for variant in variants)} | target | with markers | "
            "per CPU second | images/s of peer, ours |",
            "|---|" + "---|" * (len(variants) + 4),
        ]
        for pair in pairs:
            ratios = " | ".join(quote(pair.ratios(variant)) for variant in variants)
            rates = [statistics.median(rates) for rates in (pair.peer_rates, pair.our_rates[variants[0]])]
            target = verdict(TARGETS, pair.peer, pair.ratios(variants[0]))
            marked = verdict(MARKED_TARGETS, pair.peer, pair.ratios(MARKED))
            lines.append(
                f"| {pair.peer} | {ratios} | {target} | {marked} | {quote(pair.per_cpu_ratios)} | "
                f"{rates[0]:.0f}, {rates[1]:.0f} |"
            )
    titles = {
        "photographs": "One core, decoding alone: whole image, or random resized crop to 224 and flip",
        "small": "One core, small images, by seconds of CPU time",
    }
    for key, rates_by_way in one_core.items():
        lines += ["", f"## {titles[key]}", "", *one_core_table(rates_by_way)]
    lines += [
        "",
        "## The same photographs with restart markers",
        "",
        "CPU time without markers / with them, batches of 64 in turn on one core; the same pixels.",
        "",
        "| what | ratio |",
        "|---|---|",
        *(f"| {name} | {describe(ratios)} |" for name, ratios in markers.items()),
    ]
    return "\n".join(lines) + "\n"


def one_core_table(rates: dict[str, list[float]]) -> list[str]:
    """Each way against the first one, bare decoding, and ours against each way."""
    reference = next(iter(rates))
    ours = next(name for name in rates if name.startswith("**ours**"))
    lines = ["| way | images/s | / bare decode | ours / this |", "|---|---|---|---|"]
    for name, values in rates.items():
        to_bare = [a / b for a, b in zip(values, rates[reference], strict=True)]
        from_ours = [a / b for a, b in zip(rates[ours], values, strict=True)]
        quoted = "" if name == ours else quote(from_ours)
        if "last needed row" in name:
            quoted += f", target {LIBRARY_TARGET}"
        lines.append(f"| {name} | {statistics.median(values):.0f} | {quote(to_bare)} | {quoted} |")
    return lines


def versions() -> list[str]:
    """Names and versions of what is compared, as far as it is installed."""
    from teachonce.versions import library_versions

    found = library_versions()
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return [f"{name} {number}" for name, number in found.items()]


def draw_ratios(pairs: list[Pair], path: Path) -> None:
    """Horizontal bars of the ratios with their spread, and each target as a line across its bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(pairs) + 1.4), layout="constrained")
    axes = figure.subplots()
    variant = next(iter(pairs[0].our_rates))
    for row, pair in enumerate(pairs):
        ratios = pair.ratios(variant)
        median = statistics.median(ratios)
        spread = [[median - min(ratios)], [max(ratios) - median]]
        axes.barh(row, median, height=0.6, color="#4c72b0", xerr=spread, ecolor="#333333")
        if pair.peer in TARGETS:
            label = "target" if not axes.get_legend_handles_labels()[1] else None
            axes.plot([TARGETS[pair.peer]] * 2, [row - 0.42, row + 0.42], color="#c44e52", linewidth=2.5, label=label)
    axes.axvline(1, color="#999999", linewidth=1, zorder=0)
    axes.set_yticks(range(len(pairs)), [pair.peer for pair in pairs])
    axes.invert_yaxis()
    axes.set_xlabel("our images/s / the peer's: median, least to most")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
