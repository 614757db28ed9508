"""The ablation: is distilling worth it here, and is storing views as good as an online teacher?

The same student, the same number of steps, the same seeds (initial weights, order of the records), taught in several
ways, the arms:

    labels    no teacher
    center    fixed logits of the teacher's center view, the student's own random crops: the walkthrough
    views:V   V stored views, replayed exactly
    own:V     the same logits, but the student draws its own crops: what the replay itself is worth
    online    a teacher run at every step: the reference that pays for the teacher at every step

With ``--stores A,B,A+B`` the arms are stores that are there already: trying teachers is cheap. Every part is the
program that the command line calls, resumes after a kill, and is skipped when it is complete.

Seeds are paired: with seed s every arm starts from the same weights and sees the records in the same order, so arms are
compared by their differences, seed by seed; intervals are Student's t, at 95 % for all comparisons together.

Loss weights sum to 1 in every arm (``--total-weight``): label + KD at 1 + 1 would be about twice the gradient of the
labels alone at the same learning rate, and the comparison one of learning rates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any, TextIO

from teachonce.cli.ablate_table import Arm, draw_ablation, render_ablation, render_table
from teachonce.cli.config import AblateConfig
from teachonce.engine.jobs import describe_start, run_jobs
from teachonce.engine.machine import num_cores
from teachonce.engine.options import Engine
from teachonce.engine.progress import Advance, progress
from teachonce.engine.stop_long_work import (
    PARENT_SECONDS,
    Interrupted,
    StopSignals,
    end_by_signal,
    stopping_children,
)
from teachonce.errors import ConfigError, PlanMismatchError, TeachonceError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.extras import require
from teachonce.models.spec import first_line, parse_model_spec
from teachonce.options import command_line, drop_idle, to_json
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.runs.run import Run, check_options, find_run, find_trained
from teachonce.storage.files import atomic_write, open_storage, read_json, write_json
from teachonce.storage.local import LocalStorage
from teachonce.storage.strict_json import convert_json
from teachonce.store.store import Store
from teachonce.terminal import plural, print_line, print_note, print_text, print_written
from teachonce.training.config import TrainConfig, TrainingOptions, check_logger, default_options
from teachonce.training.data import describe_other_views
from teachonce.training.schedules import scale_lr
from teachonce.training.train import train
from teachonce.views.options import MixOptions

TABLE_NAME, RESULTS_NAME, PICTURE_NAME, PAGE_NAME = "ablation.md", "ablation.json", "ablation.svg", "ablation.html"
_EXTRACTIONS_NAME = "extractions.json"


@dataclass(frozen=True)
class ArmConfig:
    """How the students of one arm are trained: what their TrainConfig has beyond the common options."""

    name: str
    settings: dict[str, Any]
    stores: tuple[Path, ...] = ()
    num_views: int = 0
    replays: bool = False
    """Whether the students see the stores' views."""


def ablate(config: AblateConfig) -> list[Arm]:
    """Train every arm, print the table and write it with a picture into ``config.out``; returns the arms' results.

    Raises what ``extract`` and ``train`` do.
    """
    config.check_folder()
    require("scipy", purpose="ablate, for its intervals,")
    check_logger(config.logger)
    scale_lr(config, 1)  # before anything is extracted
    start = time.monotonic()
    arm_configs = _given_stores(config) if config.stores else _made_arms(config)
    jobs = [_student_config(config, arm, seed) for seed in range(config.seeds) for arm in arm_configs]
    for job in jobs:
        _check_begun(job)
    if not config.stores:
        _make_stores(config)
    # The finished ones too: train checks whether they are of this configuration, and refuses or skips them.
    num_jobs = min(config.jobs or num_cores(), len(jobs))
    _check_parts(config, arm_configs)
    _train_students(config, jobs, num_jobs)
    _check_parts(config, arm_configs)  # they are read anew for each student
    arms = [_read_arm(config, arm) for arm in arm_configs]
    table, command = render_table(arms, config.seeds), f"teachonce ablate {command_line(config)}"
    with atomic_write(config.out / TABLE_NAME) as file:
        file.write(f"    {command}\n\n{table}".encode())
    write_json(config.out / RESULTS_NAME, [dataclasses.asdict(arm) for arm in arms])
    with atomic_write(config.out / PICTURE_NAME) as file:
        file.write(draw_ablation(arms).encode())
    files = TABLE_NAME, RESULTS_NAME
    page = render_ablation(
        arms, config.seeds, student=parse_model_spec(config.student).title, command=command, files=files
    )
    with atomic_write(config.out / PAGE_NAME) as file:
        file.write(page.encode())
    print_text(table)
    print_note(f"ablate: this call took {time.monotonic() - start:.0f} s")
    print_written(*(config.out / name for name in (TABLE_NAME, PAGE_NAME, PICTURE_NAME, RESULTS_NAME)))
    return arms


def _make_stores(config: AblateConfig) -> None:
    """Extract the stores that the arms of ``--arms`` need."""
    arms = config.parse_arms()
    num_views = max((count for _, count in arms), default=0)
    if any(kind == "center" for kind, _ in arms):
        # The teacher's own crop draws nothing.
        nothing = dict.fromkeys(("mixup_alpha", "cutmix_alpha", "erase_prob", "object_covered"), 0.0)
        _extract(config, _store_path(config, "center"), policy="center", **nothing)
    if num_views:
        _extract(config, _store_path(config, "views"), policy=config.policy, views=num_views)


def _made_arms(config: AblateConfig) -> list[ArmConfig]:
    """The arms of ``--arms``, whose stores need not be there yet."""
    center, views = _store_path(config, "center"), _store_path(config, "views")
    found = []
    for kind, count in config.parse_arms():
        if kind == "labels":
            found.append(ArmConfig("labels only", _no_view_mix(config)))
        elif kind == "center":
            found.append(ArmConfig("fixed centre logits", _no_view_mix(config), (center,), 1))
        elif kind == "views":
            name = f"{count} stored view" + "s" * (count > 1)
            found.append(ArmConfig(name, {"views": count}, (views,), count, replays=True))
        elif kind == "own":
            settings = {"views": count, "own_views": True, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
            found.append(ArmConfig(f"{count} views, not replayed", settings, (views,), count))
        else:
            online = {"teacher": config.teacher, "teacher_offset": config.teacher_offset}
            found.append(ArmConfig("online teacher", online | {"view_seed": config.view_seed}))
    return found


def _store_path(config: AblateConfig, name: str) -> Path:
    return config.out / "stores" / name


def _given_stores(config: AblateConfig) -> list[ArmConfig]:
    """The arms of ``--stores``, and labels only where ``--arms`` asks for it; what it leaves out of these is said."""
    found = []
    words = [word.strip() for word in config.arms.split(",") if word.strip()]
    others = [word for word in words if word != "labels"]
    if len(others) < len(words):
        found.append(ArmConfig("labels only", _no_view_mix(config)))
    arms = config.parse_stores()
    print_note(
        f"ablate: --stores gives {plural(len(arms), 'arm')}"
        + (", labels of --arms one more" if found else "; --arms without labels leaves out the baseline")
        + (f"; of --arms {', '.join(others)} are left out: they need --teacher without --stores" if others else "")
    )
    for paths in arms:
        stores = [Store(path) for path in paths]
        replays = stores[0].policy.is_random
        arm = ArmConfig(" + ".join(path.name for path in paths), {}, paths, replays=replays)
        num_views = _choose_views(config, arm, [store.num_views for store in stores])
        settings = {"views": num_views} | ({} if replays else _no_view_mix(config))
        found.append(dataclasses.replace(arm, settings=settings, num_views=num_views))
    replayed = [arm.stores[0] for arm in found if arm.replays]
    if len(others) < len(words) and replayed and (note := describe_other_views(replayed[0], config)):
        print_note(f"ablate: labels only: {note}")
    if len({_run_path(config, arm, 0) for arm in found}) != len(found):
        raise ConfigError(
            f"--stores {config.stores}: two arms would have the same name; give stores with different folder names"
        )
    return found


def _choose_views(config: AblateConfig, arm: ArmConfig, whole: Sequence[int]) -> int:
    """Views that all students of an arm use, of stores that may grow: as many as those began with that are there."""
    begun = [run.store_views for run in _begun_runs(config, arm) if run is not None and run.store_views is not None]
    num_views = min([*whole, *begun])
    if num_views < max(whole):
        began = f"as its students in {config.out / 'runs'} began with; another --out takes those of now"
        why = began if num_views < min(whole) else "as one of its stores has no more"
        print_note(f"ablate: {arm.name}: {num_views} of {plural(max(whole), 'view')} are used, {why}")
    return num_views


def _begun_runs(config: AblateConfig, arm: ArmConfig) -> list[Run | None]:
    """The run of each seed, None where it was not started."""
    return [find_trained(_run_path(config, arm, seed)) for seed in range(config.seeds)]


def _check_parts(config: AblateConfig, arms: Iterable[ArmConfig]) -> None:
    """Raise PlanMismatchError where records were added to a store since some of an arm's students began."""
    for arm in arms:
        now = [Store(path).num_parts for path in arm.stores]
        found = [now if run is None else run.store_parts or now for run in _begun_runs(config, arm)]
        if any(parts != found[0] for parts in found):
            raise PlanMismatchError(
                f"{config.out}: records were added to the store since students of {arm.name} began, and others would "
                f"learn from more (parts of the stores: {' and '.join(sorted(set(map(str, found))))}); choose another "
                "--out"
            )


def _no_view_mix(config: AblateConfig) -> dict[str, Any]:
    """Arms without stored views mix within the batch, and have no cutmix."""
    return {"cutmix_alpha": 0.0, "mixup_alpha": config.mixup_alpha}


def _extract(config: AblateConfig, out: Path, **settings: Any) -> None:
    common = {
        "data": config.data,
        "split": config.split,
        "teacher": config.teacher,
        "out": out,
        "codec": config.codec,
        "topk": config.topk,
        "offset": config.teacher_offset,
        "num_classes": config.num_classes,
        "device": config.device,
        "seed": config.view_seed,
    }
    shared = (*dataclasses.fields(MixOptions), *dataclasses.fields(RecordOptions))
    views = {field.name: getattr(config, field.name) for field in shared}
    extraction = ExtractConfig(**drop_idle(ExtractConfig, {**views, **common, **settings}))
    print_note(f"$ teachonce extract {command_line(extraction)}")
    start, before = time.monotonic(), _files_of(out)
    try:
        extract(extraction)
    finally:
        # What was interrupted, and later views, took their time too; a call that finds all there takes none.
        if _files_of(out) != before:
            seconds = _read_extractions(config)
            seconds[out.name] = seconds.get(out.name, 0.0) + time.monotonic() - start
            write_json(config.out / _EXTRACTIONS_NAME, seconds)


def _files_of(store: Path) -> set[str]:
    storage = open_storage(store)
    return set(storage.walk()) if storage.is_folder() else set()


def _read_extractions(config: AblateConfig) -> dict[str, float]:
    """Seconds of the extractions, by name of the store."""
    if not open_storage(config.out).has(_EXTRACTIONS_NAME):
        return {}
    path = config.out / _EXTRACTIONS_NAME
    return convert_json(read_json(path), dict[str, float], path, TeachonceError, advice="remove it")


def _extraction_seconds(config: AblateConfig, store: Path) -> float:
    """What the extractions of this ablation took; 0 for a store elsewhere, whatever its folder is called."""
    is_own = store.resolve() == _store_path(config, store.name).resolve()
    return _read_extractions(config).get(store.name, 0.0) if is_own else 0.0


def _student_config(config: AblateConfig, arm: ArmConfig, seed: int) -> TrainConfig:
    common = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainingOptions)}
    has_teacher = bool(arm.stores) or "teacher" in arm.settings
    if not has_teacher:
        # Without a teacher there is nothing but labels, at their full weight.
        common |= {"kd_temp": None, "kd_weight": 1.0, "label_weight": 1.0}
    elif config.total_weight == "equal" and config.kd_temp != 0:
        total = config.label_weight + config.kd_weight
        common |= {name: common[name] / total for name in ("label_weight", "kd_weight")}
    if arm.replays:
        # The views are the store's: options that would draw others say nothing here.
        common |= {field.name: field.default for field in dataclasses.fields(MixOptions)} | {"policy": "crop"}
    own = {"out": _run_path(config, arm, seed), "store": arm.stores, "seed": seed}
    # What an option needs, such as a teacher or mixup, not every arm has.
    return TrainConfig(**drop_idle(TrainConfig, {**common, **arm.settings, **own}))


def _check_begun(student: TrainConfig) -> None:
    """Raise PlanMismatchError where the student was begun with other options: before other work, unlike ``train``."""
    resolved = {"kd_temp": student.temperature, "eval_size": student.eval_sides_px[0]}
    if student.views is not None and student.temperature > 0:
        resolved["store_views"] = student.views
    check_options(student.out, to_json(student) | resolved, default_options())


def _run_path(config: AblateConfig, arm: ArmConfig, seed: int) -> Path:
    folder = arm.name.replace(" ", "-").replace(",", "")
    return config.out / "runs" / f"{folder}-seed{seed}"


def _train_students(config: AblateConfig, students: Sequence[TrainConfig], num_jobs: int) -> None:
    """Train all students; a signal stops those that are being trained, each with a checkpoint, and then the command.

    A student that fails is said at once and leaves the others to be trained; what is wrong with the command, which the
    others would say too, stops them. Raises that, or in the end TeachonceError with all failures.
    """
    others = set(active_children())
    num_trained, stopped = 0, 0
    failures: list[str] = []
    refusal: TeachonceError | None = None
    with (
        StopSignals(config.grace_seconds + PARENT_SECONDS) as signals,
        stopping_children(signals, lambda: set(active_children()) - others),
    ):
        build = partial(_build_trainer, config.out / "logs", num_jobs)
        engine = Engine(num_workers=num_jobs)
        try:
            num_done = sum(map(_count_epochs, students))
            phase = describe_start(num_jobs, len(students))
            total = len(students) * config.epochs
            with progress("ablate", total, done=num_done, unit="epochs", phase=phase) as advance:
                for student, failure in run_jobs(build, students, engine=engine, report=advance):
                    if isinstance(failure, (ConfigError, PlanMismatchError)):
                        refusal = failure
                        signals.received = signals.received or signal.SIGTERM  # as if asked: it stops the others
                        raise refusal
                    if failure is None:
                        num_trained += 1
                    else:
                        failures.append(f"{student.out.name}: {failure}")
                        print_line(f"ablate: {failures[-1]}")
                    if signals.received:
                        break
                if failures and not signals.received:
                    raise TeachonceError(
                        f"{config.out}: of {plural(len(students), 'student')} {len(failures)} failed: "
                        f"{'; '.join(failures)}; logs/ has more, and the same command tries them again"
                    )
        except Interrupted:
            stopped = signal.SIGINT
        except SystemExit:
            stopped = signal.SIGTERM
        except TeachonceError as error:
            if error is refusal or not signals.received:
                raise
            # Mostly a process that was about to train, which knows no more of a signal than to end.
            print_line(f"ablate: {error}")
        stopped = signals.received or stopped
    if stopped:
        done = f"{num_trained} of {len(students)} students are trained"
        print_line(f"ablate: interrupted; {done}. Run the same command to resume")
        raise end_by_signal(stopped)


def _build_trainer(
    logs: Path, num_jobs: int, worker_index: int
) -> Callable[[TrainConfig, Advance], TeachonceError | None]:
    import torch

    if num_jobs > 1:
        torch.set_num_threads(max(1, num_cores() // num_jobs))

    def train_one(student: TrainConfig, report: Advance) -> TeachonceError | None:
        num_done = _count_epochs(student)

        def count(num_epochs: int) -> None:
            nonlocal num_done
            report(max(0, num_epochs - num_done))  # a checkpoint may be behind the curve
            num_done = max(num_done, num_epochs)

        # What each training says would be a mess of all of them at once.
        with _open_log(logs, f"{student.out.name}.log") as log, contextlib.redirect_stderr(log):
            print_line(f"$ teachonce train {command_line(student)}", log)
            try:
                train(_with_own_threads(student, num_jobs), on_epoch=count)
            except Exception as error:
                # Returned, as an error that is raised would wait in the engine until all students at hand have ended.
                failure = error if isinstance(error, TeachonceError) else None
                if failure is None:
                    traceback.print_exc(file=log)
                    failure = TeachonceError(first_line(error))
                print_line(f"teachonce: {failure}", log)
                return failure
        count(student.epochs)
        return None

    return train_one


def _count_epochs(student: TrainConfig) -> int:
    """Those that an earlier call trained."""
    run = find_run(student.out)
    if run is None:
        return 0
    if run.result is not None:
        return student.epochs
    return int(run.metrics[-1]["epoch"] or 0) if run.metrics else 0


def _with_own_threads(student: TrainConfig, num_jobs: int) -> TrainConfig:
    """Of several students that share a GPU each has its part of the cores for its batches, unless it was said."""
    from teachonce.data.loader import choose_threads
    from teachonce.models.classifier import resolve_device

    if student.num_workers is not None or num_jobs == 1:
        return student
    num_threads = choose_threads(None, resolve_device(student.device).type)
    return dataclasses.replace(student, num_workers=min(num_threads, max(1, num_cores() // num_jobs)))


@contextlib.contextmanager
def _open_log(folder: Path, name: str) -> Iterator[TextIO]:
    """A log to append to; elsewhere than on this machine nothing can be appended: there it is put when it has ended."""
    storage = open_storage(folder)
    if isinstance(storage, LocalStorage):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a") as file:
            yield file
        return
    log = io.StringIO()
    if storage.has(name):
        log.write(storage.read(name).decode(errors="replace"))
    try:
        yield log
    finally:
        with storage.put(name) as content:
            content.write(log.getvalue().encode())


def _read_arm(config: AblateConfig, arm: ArmConfig) -> Arm:
    results, curves = [], []
    student = _student_config(config, arm, 0)
    for seed in range(config.seeds):
        run = Run(_run_path(config, arm, seed))
        result = run.result
        assert result is not None, run.path
        results.append(result)
        rows = [row for row in run.metrics if row["validation_top1"] is not None]
        curves.append([(int(row["epoch"] or 0), float(row["validation_top1"] or 0.0)) for row in rows])
    stores = [Store(path) for path in arm.stores]
    forwards = sum(store.num_records for store in stores) * arm.num_views
    if "teacher" in arm.settings:
        forwards = config.seeds * config.epochs * open_records(config.data, config.split, config).num_records
    shares = [arm.num_views / store.num_views for store in stores]
    return Arm(
        name=arm.name,
        top1=[result["top1"] for result in results],
        ece=[result["ece"] for result in results],
        train_seconds=[result["seconds"] for result in results],
        extract_seconds=sum(
            _extraction_seconds(config, path) * share for path, share in zip(arm.stores, shares, strict=True)
        ),
        teacher_forwards=forwards,
        store_bytes=round(sum(store.num_bytes() * share for store, share in zip(stores, shares, strict=True))),
        curves=curves,
        is_baseline=arm.name == "labels only",
        label_weight=student.label_weight,
        kd_weight=student.kd_weight if student.temperature > 0 else 0.0,
        lr=student.lr,
        num_validation=open_records(
            config.validation_data or config.data, str(config.validation_split), config
        ).num_records,
    )
