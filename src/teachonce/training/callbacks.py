"""What a training leaves behind while it runs: the curve, checkpoints, what ``--logger`` logs, lines and a bar.

The curve lives in the checkpoint, and metrics.csv is written from it: so after a kill between the two, the resumed run
has neither a line too many nor one too few. A checkpoint is complete or absent, and loading it executes nothing
(``weights_only``). Those of the end of an epoch are written here, those within one by ``interruption``.

Everything goes through ``storage``, which may be remote: nothing is read back, and a library that writes files itself
does so in a scratch folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from teachonce.engine.heartbeat import heartbeats
from teachonce.engine.progress import LINE_SECONDS, format_seconds, progress
from teachonce.errors import ModelError, TeachonceError
from teachonce.runs.best_weights import BestWeights
from teachonce.runs.metrics import METRIC_COLUMNS, Row, write_metrics
from teachonce.runs.run import LAST_CHECKPOINT, TENSORBOARD_NAME
from teachonce.storage.address import to_location
from teachonce.storage.files import atomic_write, locate, open_storage
from teachonce.storage.local import LocalStorage
from teachonce.storage.scratch import scratch_folder
from teachonce.storage.storage import Storage
from teachonce.terminal import print_note
from teachonce.training.config import LoggerName
from teachonce.training.ranks import is_first_rank
from teachonce.training.student_module import StudentModule

EPOCH_LINE_SECONDS = 2.0
"""Epochs shorter than this do not all get a line on a terminal, elsewhere those shorter than ``LINE_SECONDS`` do not;
metrics.csv has every one."""


HEARTBEAT_FIGURES = ("train_loss", "train_top1", "validation_loss", "validation_top1")
"""Of the last epoch, in a training's heartbeat."""


EVENT_STEPS = 50
"""Updates between two entries of a logger: reading the loss waits for the device."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are complete or absent, and load without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write under a temporary name, sync, rename; raises TeachonceError where the disk is full."""
        with atomic_write(to_location(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read; raises ModelError for what is damaged or would execute code."""
        storage, name = locate(to_location(path))
        with ExitStack() as stack:
            local = storage.local_path(name) if isinstance(storage, LocalStorage) else None
            if local is None:
                # Not a copy that is kept: of a checkpoint there is a newer one each time.
                scratch = LocalStorage(stack.enter_context(scratch_folder()))
                with storage.stream(name) as source, scratch.put(name) as target:
                    shutil.copyfileobj(source, target)
                local = scratch.local_path(name)
            return self._load(path, local, map_location)

    def _load(self, path: Path, local: Path, map_location: Any) -> dict[str, Any]:
        try:
            return torch.load(local, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, OSError, ... for damage
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"{path}: not a readable checkpoint ({type(error).__name__}: {reason}); remove it to start over"
            ) from error


class EpochRecorder(Checkpoint):
    """Adds a row to the curve at the end of each epoch, writes metrics.csv and the checkpoints.

    Lightning runs a ``Checkpoint`` after every other callback, when the epoch counts as done.
    """

    def __init__(self, run: Path, num_epochs: int, checkpoint_epochs: int) -> None:
        self.run = run
        self.num_epochs = num_epochs
        self.checkpoint_epochs = checkpoint_epochs
        self.best_weights = BestWeights(run)
        self.rows: list[Row] = []
        self.class_sums: torch.Tensor | None = None
        """[2, C]: images and right answers of each class in the last evaluation; None before one."""
        self.saved_epoch = -1
        """The last epoch that was checkpointed when it had ended."""
        self._last_line = float("-inf")
        self._start = time.monotonic()
        self._train_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The curve so far, and the time that the current epoch has taken."""
        return {
            "rows": self.rows,
            "class_sums": self.class_sums,
            "seconds": time.monotonic() - self._start,
            "train_seconds": self._train_seconds,
            "best_weights": self.best_weights.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue this curve; checkpoints of earlier versions are of an epoch's end, without times and classes."""
        self.rows = state_dict["rows"]
        self.class_sums = state_dict.get("class_sums")
        self._start = time.monotonic() - state_dict.get("seconds", 0.0)
        self._train_seconds = state_dict.get("train_seconds", 0.0)
        if "best_weights" in state_dict:
            self.best_weights.resume(state_dict["best_weights"], is_first=is_first_rank())

    @property
    def best_row(self) -> Row | None:
        """The epoch with the best validation top-1, the first of equals; None without validation."""
        rows = [row for row in self.rows if row["validation_top1"] is not None]
        return max(rows, key=lambda row: row["validation_top1"] or 0.0, default=None)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Stop the clock of the speed after the last batch."""
        if batch_index + 1 == trainer.num_training_batches:
            _wait_for_device(module)
            self._train_seconds = time.monotonic() - self._start

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Add the row, then write; the curve that is checkpointed includes this epoch."""
        assert isinstance(module, StudentModule)
        sums = module.read_sums()
        num_images = sums.pop("images")
        validation = module.validation_result or {}
        if module.validation_classes is not None:
            self.class_sums = module.validation_classes
        found = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": module.last_lr,
            **sums,
            **{f"validation_{name}": value for name, value in validation.items()},
            "seconds": time.monotonic() - self._start,
            "images_per_second": num_images / self._train_seconds,
        }
        self.rows.append({name: found.get(name) for name in METRIC_COLUMNS})
        is_last = trainer.current_epoch + 1 == self.num_epochs
        # Before the checkpoint behind which this epoch is not repeated.
        if self.best_row is self.rows[-1] and trainer.is_global_zero:
            self.best_weights.put(module.weights())
        if is_last or (trainer.current_epoch + 1) % self.checkpoint_epochs == 0:
            self._save(trainer)
        if is_last and trainer.is_global_zero:
            self.best_weights.finish()
        if trainer.is_global_zero:
            write_metrics(self.run, self.rows)
            self._log(is_last)

    def _save(self, trainer: Trainer) -> None:
        self.saved_epoch = trainer.current_epoch
        trainer.save_checkpoint(self.run / LAST_CHECKPOINT)  # every process: some strategies gather

    def _log(self, is_last: bool) -> None:
        least = EPOCH_LINE_SECONDS if sys.stderr.isatty() else LINE_SECONDS
        if not is_last and time.monotonic() - self._last_line < least:
            return
        self._last_line = time.monotonic()
        print_note(f"train: {describe_row(self.rows[-1], self.num_epochs)}")


class TeacherPassed(Callback):
    """Warns, once, when the student knows the labels of its training views better than its teacher does.

    From there on the teacher's targets pull it back toward the teacher's errors. The teacher's accuracy is that of a
    sample of ``num_judged`` views: the student passes it by two of its standard errors.
    """

    def __init__(self, teacher_top1: float, num_judged: int, recorder: EpochRecorder) -> None:
        self.teacher_top1 = teacher_top1
        self.num_judged = num_judged
        # Two successes and two failures more (Agresti & Coull 1998): a sample of one answer alone has an error too.
        smoothed = (teacher_top1 * num_judged + 2) / (num_judged + 4)
        self._passed_top1 = teacher_top1 + 2 * (smoothed * (1 - smoothed) / (num_judged + 4)) ** 0.5
        self.recorder = recorder
        self._has_warned = False

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare the epoch before, whose row the recorder adds after all other callbacks."""
        if self._has_warned or not self.recorder.rows:
            return
        top1 = float(self.recorder.rows[-1]["train_top1"] or 0.0)
        if top1 <= self._passed_top1:
            return
        self._has_warned = True
        warnings.warn(
            f"epoch {self.recorder.rows[-1]['epoch']}: the student's top-1 on its training views is {top1:.3f}, "
            f"above the teacher's {self.teacher_top1:.3f} on {self.num_judged:,} of them by more than two standard "
            "errors: from now on the teacher holds it back; try a smaller --kd-weight, another teacher, or labels "
            "alone (teachonce ablate)",
            stacklevel=2,
        )


class TrainingProgress(Callback):
    """Progress over all epochs in images, on the first process: shown here, and as a heartbeat for watchers."""

    def __init__(self, num_epochs: int, num_records: int, recorder: EpochRecorder) -> None:
        self.num_epochs = num_epochs
        self.num_records = num_records
        self.recorder = recorder
        self._shown: ExitStack | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin at the checkpoint."""
        if trainer.is_global_zero:
            done, total = self._images(trainer), self.num_epochs * self.num_records
            self._shown = ExitStack()
            self._advance = self._shown.enter_context(progress("train", total, done=done))
            session = self._shown.enter_context(heartbeats(self.recorder.run, "train", item="images"))
            self._heartbeat = session.start(
                device=str(module.device), total=total, done=done, details=self._details(trainer)
            )
            self._num_done = done

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """One step of all devices."""
        if self._shown is not None:
            done = self._images(trainer)
            self._advance(done - self._num_done)
            self._heartbeat.advance(done - self._num_done, details=self._details(trainer))
            self._num_done = done

    def _details(self, trainer: Trainer) -> dict[str, float | int | None]:
        """Where the training is, and the figures of the last epoch that ended."""
        last = self.recorder.rows[-1] if self.recorder.rows else {}
        figures = {name: last[name] for name in HEARTBEAT_FIGURES if last.get(name) is not None}
        return {"epoch": trainer.current_epoch + 1, "epochs": self.num_epochs, "step": trainer.global_step, **figures}

    def _images(self, trainer: Trainer) -> int:
        # Updates of one epoch differ in size by one image at most.
        updates_per_epoch = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        return trainer.global_step * self.num_records // updates_per_epoch

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Say how long it took."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Say where it stopped."""
        if self._shown is not None:
            shown, self._shown = self._shown, None
            shown.__exit__(type(exception), exception, exception.__traceback__)


class EpochCount(Callback):
    """Tells the caller of the training how many epochs have ended."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The epoch's, also where it is not validated."""
        self.report(trainer.current_epoch + 1)


class Beginning(NamedTuple):
    """What a logger is built for: a training that starts, or resumes."""

    folder: Path
    """A local folder for the logger's own one."""
    run: str
    """The name of the run."""
    settings: Mapping[str, Any]
    """The options, as JSON values."""
    step: int
    """Updates done."""
    identity: str
    """Of this training, the same when it is resumed from a checkpoint."""
    storage: Storage
    """The run's, which may be remote: what earlier starts have left."""


def _build_tensorboard(beginning: Beginning) -> Logger:
    # Events of steps after the checkpoint, of an interrupted run, are hidden.
    return TensorBoardLogger(beginning.folder, name=TENSORBOARD_NAME, version="", purge_step=beginning.step + 1)


def _build_csv(beginning: Beginning) -> Logger:
    # By the update that it begins with, and a number where one began there before: a start that was killed before its
    # first checkpoint. Lightning would delete that table, and in a remote run it would be replaced.
    version, number = f"from_{beginning.step}", 1
    while beginning.storage.is_folder(f"csv/{version}"):
        number += 1
        version = f"from_{beginning.step}.{number}"
    # Each row at once: by default those of a killed process are lost, as Lightning saves at updates 99, 199, ... alone.
    logger = CSVLogger(beginning.folder, name="csv", version=version, flush_logs_every_n_steps=1)
    logger.log_hyperparams(dict(beginning.settings))
    return logger


def _build_wandb(beginning: Beginning) -> Logger:
    try:
        logger = WandbLogger(
            name=beginning.run,
            save_dir=beginning.folder,
            project=os.environ.get("WANDB_PROJECT", "teachonce"),
            id=beginning.identity,
            resume="allow",
        )
        logger.log_hyperparams(dict(beginning.settings))
    except Exception as error:  # wandb's UsageError, CommError, AuthenticationError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TeachonceError(
            f"--logger wandb: cannot start ({reason}); log in with 'wandb login', or set WANDB_MODE=offline"
        ) from error
    return logger


LOGGERS: dict[LoggerName, Callable[[Beginning], Logger]] = {
    "tensorboard": _build_tensorboard,
    "csv": _build_csv,
    "wandb": _build_wandb,
}
"""By the name that ``--logger`` has for it: what builds a logger of Lightning."""


class CurveLog(Callback):
    """Loss and learning rate every ``EVENT_STEPS`` updates, and each epoch's row, to a logger of Lightning.

    Loggers write files themselves. Where the run is remote they do so in a scratch folder, whose files are put into the
    run at the end of each epoch and of the training.
    """

    def __init__(self, name: LoggerName, run: Path, settings: Mapping[str, Any], recorder: EpochRecorder) -> None:
        self.name = name
        self.run = run
        self.settings = settings
        self.recorder = recorder
        self._identity = secrets.token_hex(4)
        self._logger: Logger | None = None
        self._num_written = 0
        self._stack = ExitStack()
        self._scratch: LocalStorage | None = None

    def state_dict(self) -> dict[str, Any]:
        """What wandb knows this training by; the others' checkpoints have nothing of it."""
        return {"identity": self._identity} if self.name == "wandb" else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the same run of wandb."""
        self._identity = state_dict.get("identity", self._identity)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the log on the first process."""
        if trainer.is_global_zero:
            storage = open_storage(self.run)
            if isinstance(storage, LocalStorage):
                folder = storage.local_path().absolute()
            else:
                self._scratch = LocalStorage(self._stack.enter_context(scratch_folder()))
                folder = self._scratch.local_path()
            beginning = Beginning(folder, self.run.name, self.settings, trainer.global_step, self._identity, storage)
            with _without_tensorflow():
                self._logger = LOGGERS[self.name](beginning)
                # What it opens it opens now, so that what is wrong ends the training before it begins.
                _ = getattr(self._logger, "experiment", None)
            self._num_written = len(self.recorder.rows)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Write the mean over this device's images of the update."""
        is_updated = (batch_index + 1) % trainer.accumulate_grad_batches == 0
        if self._logger is not None and is_updated and trainer.global_step % EVENT_STEPS == 0:
            assert isinstance(module, StudentModule)
            loss, num_images = module.update_loss
            values = {"step/loss": float(loss) / num_images, "step/lr": module.last_lr}
            self._logger.log_metrics(values, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the row of the epoch before, which the recorder adds after all other callbacks."""
        self._write_rows()
        self._put()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the last row and close."""
        self._write_rows()
        self._close("success")

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close; what ended the training is the error to report, not a full disk or a lost connection here."""
        with suppress(Exception):
            self._write_rows()
            self._close("failed")

    def _close(self, status: str) -> None:
        with self._stack:
            if self._logger is not None:
                self._save()
                # TensorBoard's would add a file of hyperparameters where all went well.
                self._logger.finalize("done" if self.name == "tensorboard" else status)
                if isinstance(self._logger, WandbLogger):
                    self._logger.experiment.finish(exit_code=int(status != "success"))
                self._put()
                self._logger = None

    def _save(self) -> None:
        """Have the files hold what was logged."""
        if isinstance(self._logger, TensorBoardLogger):
            self._logger.experiment.flush()
        elif self._logger is not None:
            self._logger.save()

    def _put(self) -> None:
        """Have the files hold what was logged; where the run is remote, put them there in place of those before."""
        if self._logger is None:
            return
        self._save()
        if self._scratch is None:
            return
        storage = open_storage(self.run)
        for name in self._scratch.walk():
            with self._scratch.stream(name) as source, storage.put(name) as target:
                shutil.copyfileobj(source, target)

    def _write_rows(self) -> None:
        if self._logger is None:
            return
        for row in self.recorder.rows[self._num_written :]:
            found = ((name, row[name]) for name in METRIC_COLUMNS[2:])
            values = {f"epoch/{name}": value for name, value in found if value is not None}
            self._logger.log_metrics(values, int(row["step"] or 0))
        self._num_written = len(self.recorder.rows)


def describe_row(row: Row, num_epochs: int) -> str:
    """One epoch as a line for people."""
    parts = [f"epoch {row['epoch']}/{num_epochs}: loss {row['train_loss']:.4f}"]
    if row["kd_loss"] and row["label_loss"] is not None:
        parts.append(f"label {row['label_loss']:.4f}, kd {row['kd_loss']:.4f}")
    if row["train_top1"] is not None:
        parts.append(f"train top-1 {row['train_top1']:.4f}")
    if row["validation_top1"] is not None:
        parts.append(f"validation top-1 {row['validation_top1']:.4f}")
    parts.append(f"{row['images_per_second']:,.0f} images/s, {format_seconds(float(row['seconds'] or 0))}")
    return ", ".join(parts)


def _wait_for_device(module: LightningModule) -> None:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)


@contextmanager
def _without_tensorflow() -> Iterator[None]:
    # TensorBoard imports TensorFlow where it is installed, for remote file systems: ten seconds and a page of log
    # lines. A module of this name is TensorBoard's own switch for doing without.
    name = "tensorboard.compat.notf"
    is_ours = name not in sys.modules
    if is_ours:
        sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        if is_ours:
            del sys.modules[name]
