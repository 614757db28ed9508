"""Stopping within an epoch, and resuming there: when a checkpoint is written, and what it holds beyond Lightning's.

    after an update, a batch of the evaluation, an epoch -> the ranks decide -> save, or save and stop

Points where a training can stop are between updates, so no accumulated gradients are lost, and in the evaluation, which
then begins again: the epoch before it is not trained twice. Lightning's checkpoint holds what all ranks have in common.
Next to it is, under ``KEY``, what each of them has alone within an epoch: torch's random numbers, the sums that the
epoch's means are made of, and the buffers of the student and of its moving average, since running statistics are
averaged over the ranks at the end of an epoch only. Whatever else is drawn is a function of (seed, epoch, batch).

With as many ranks the curve is bit for bit that of an undisturbed run. With another number of them, where an update has
as many images, each update still has the same records: the sums are added up, running statistics averaged, as at the
end of an epoch, and random numbers drawn from (seed, epoch, update, rank).

There is one file, ``checkpoints/last.ckpt``: the newest state replaces the one before in a single step, so nothing is
left to be removed, and no question which of two is newer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from teachonce.data.dataset import KDDataset
from teachonce.data.loader import Batch, Loader
from teachonce.engine.stop_long_work import StopSignals
from teachonce.errors import ModelError, StoppedError
from teachonce.rng import derive_seed
from teachonce.runs.run import LAST_CHECKPOINT
from teachonce.terminal import print_line
from teachonce.training.callbacks import EpochRecorder
from teachonce.training.config import TrainConfig
from teachonce.training.ranks import Agreement
from teachonce.training.student_module import StudentModule

KEY = "within_epoch"
"""Of the part of a checkpoint that one at the end of an epoch does not have."""

SAVE = 1
"""The wish to save and continue; larger ones are the numbers of signals, and mean to save and stop."""


class Place(NamedTuple):
    """Where in a training a checkpoint is, counted from 0."""

    epoch: int
    num_done: int
    """Updates of the epoch that are done; all of them: what is missing is its evaluation."""
    num_updates: int
    """Of a full epoch."""

    def __str__(self) -> str:
        if self.num_done == self.num_updates:
            return f"in the evaluation after epoch {self.epoch + 1}"
        return f"in epoch {self.epoch + 1} at step {self.num_done} of {self.num_updates}"


class TrainingStoppedError(StoppedError):
    """A signal has ended the training, after a checkpoint was written; ``place`` says where."""

    def __init__(self, place: str, number: int) -> None:
        super().__init__(place)
        self.place = place
        self.number = number


class EpochLoader:
    """A loader for Lightning's loop: the batches of the epoch that Lightning has said last.

    Lightning makes its iterator before it says which epoch it is when it resumes, so the order is fixed at the first
    batch. It finds ``set_epoch`` through ``sampler``, and counts batches of full epochs, also where the first one has
    been started (``begin_at``).
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.sampler = self
        self._begun = (-1, 0)

    def begin_at(self, epoch: int, first_step: int) -> None:
        """Leave out the batches before ``first_step`` of this epoch."""
        self._begun = (epoch, first_step)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on."""
        begun_epoch, first_step = self._begun
        self.loader.batches.set_epoch(epoch)
        self.loader.batches.first_step = first_step if epoch == begun_epoch else 0

    def __len__(self) -> int:
        return self.loader.batches.num_steps

    def __iter__(self) -> Iterator[Batch]:
        yield from self.loader


class Interruption(Checkpoint):
    """Saves every ``--checkpoint-minutes``, and stops where a signal asks for it; resumes where such a checkpoint is.

    A ``Checkpoint``, so that it comes after the ``EpochRecorder`` at the end of an epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        signals: StopSignals,
        agreement: Agreement,
        recorder: EpochRecorder,
        loader: EpochLoader,
        data: KDDataset,
        inputs: Mapping[str, int],
    ) -> None:
        """``inputs``: what all ranks must have alike (``Agreement.check_same``)."""
        self._config = config
        self._inputs = inputs
        self._signals = signals
        self._agreement = agreement
        self._recorder = recorder
        self._loader = loader
        self._data = data
        self._saving: Place | None = None
        """Of the checkpoint that is being made within an epoch."""
        self._resumed: tuple[Place, list[dict[str, Any]]] | None = None
        """Of the checkpoint that was read, with the states of the ranks that wrote it."""
        self._due = float("inf")

    @property
    def _num_updates(self) -> int:
        return self._loader.loader.batches.num_updates

    def state_dict(self) -> dict[str, Any]:
        """What all ranks have met in the data so far, at whatever point of the training; every rank calls this.

        The first one knows it from there on, for the result as well: the end of a training is checkpointed.
        """
        # Ranks may have met the same record, in different epochs: sets are joined, not numbers added.
        found = _gather({"relabeled": self._data.relabeled}, self._agreement.num_ranks)
        self._data.relabeled_before = self._data.relabeled.union(*(state["relabeled"] for state in found if state))
        keys = np.array(sorted(self._data.relabeled), np.uint64)
        return {"relabeled": torch.from_numpy(keys.view(np.int64))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self._data.relabeled_before = frozenset(state_dict["relabeled"].numpy().view(np.uint64).tolist())

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what each rank has alone; every rank calls this."""
        if self._saving is None:
            return
        assert isinstance(module, StudentModule)
        states = _gather(read_rank_state(module), trainer.world_size)
        checkpoint[KEY] = {**self._saving._asdict(), "last_lr": module.last_lr, "ranks": states}

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let Lightning's loops resume where the checkpoint is; the ranks' states follow when all is set up.

        Raises ModelError where the records of an epoch make another number of updates now.
        """
        found = checkpoint.get(KEY)
        if found is None:
            return
        place = Place(found["epoch"], found["num_done"], found["num_updates"])
        if place.num_updates != self._num_updates:
            raise ModelError(
                f"{self._config.out / LAST_CHECKPOINT}: was saved with {place.num_updates} updates per epoch, now "
                f"there are {self._num_updates}; resume on as many devices as before, with the same --batch-size"
            )
        assert isinstance(module, StudentModule)
        module.last_lr = found["last_lr"]
        self._resumed = (place, found["ranks"])
        num_batches, accumulate = len(self._loader), self._config.accumulate
        point_loops_at(checkpoint["loops"]["fit_loop"], place, num_batches, accumulate)
        self._loader.begin_at(place.epoch, place.num_done * accumulate)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take up this rank's state, after the data-parallel wrapper has made all ranks equal."""
        assert isinstance(module, StudentModule)
        self._agreement.check_same(self._inputs)
        self._agreement.check_equal(trainer.global_step)
        where = None if not self._recorder.rows else f"after epoch {len(self._recorder.rows)}"
        if self._resumed is not None:
            place, states = self._resumed
            where = str(place)
            rank, world_size = trainer.global_rank, trainer.world_size
            if len(states) == world_size:
                state = states[rank]
            else:
                seed = derive_seed(self._config.seed, "torch", place.epoch, "update", place.num_done, rank)
                state = merge_rank_states(states, rank=rank, seed=seed)
            write_rank_state(module, state)
            self._resumed = None
        if where is not None and trainer.is_global_zero:
            print_line(f"{self._config.out}: resumes {where}")
        self._restart_clock()

    def after_update(self, trainer: Trainer, module: StudentModule, num_done: int) -> None:
        """An update is done that is not the epoch's last, with all that belongs to it."""
        decided = self._decide()
        if decided:
            # What is not finite must not be saved.
            module.check_loss(newest=True)
            module.check_weights()
            self._save_within(trainer, num_done, decided)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of the evaluation is done; the epoch before it is trained."""
        decided = self._decide()
        if decided:
            self._save_within(trainer, self._num_updates, decided)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """An epoch is done and recorded, and saved where it was its turn."""
        decided = self._decide(wait=True)
        is_saved = self._recorder.saved_epoch == trainer.current_epoch
        if decided and not is_saved:
            trainer.save_checkpoint(self._config.out / LAST_CHECKPOINT)
        if decided or is_saved:
            self._restart_clock()
        if decided > SAVE:
            raise TrainingStoppedError(f"after epoch {trainer.current_epoch + 1}", decided)

    def _decide(self, *, wait: bool = False) -> int:
        wish = self._signals.received or 0
        if not wish and time.monotonic() >= self._due:
            wish = SAVE
            self._restart_clock()  # not again until all ranks have heard of it
        return self._agreement.decide(wish, wait=wait)

    def _save_within(self, trainer: Trainer, num_done: int, decided: int) -> None:
        self._saving = place = Place(trainer.current_epoch, num_done, self._num_updates)
        try:
            trainer.save_checkpoint(self._config.out / LAST_CHECKPOINT)
        finally:
            self._saving = None
        self._restart_clock()
        if decided > SAVE:
            raise TrainingStoppedError(str(place), decided)

    def _restart_clock(self) -> None:
        minutes = self._config.checkpoint_minutes
        self._due = time.monotonic() + 60 * minutes if minutes else float("inf")


def point_loops_at(loops: dict[str, Any], place: Place, num_batches: int, accumulate: int) -> None:
    """Set the counters of Lightning's loops, as their ``state_dict`` has them, to a place in an epoch.

    Within the training: behind the hooks of a batch, which is then the last one done, as for checkpoints that Lightning
    itself makes there. All batches done: a batch of the evaluation that was started, of which none are done.
    """
    is_trained = place.num_done == place.num_updates
    done = place.num_done * accumulate
    completed = done if is_trained else done - 1
    before = place.epoch * num_batches
    progress = loops["epoch_loop.batch_progress"]
    progress["is_last_batch"] = is_trained
    for name, offset in (("current", 0), ("total", before)):
        progress[name] |= dict.fromkeys(("ready", "started", "processed"), offset + done)
        progress[name]["completed"] = offset + completed
    evaluation = loops["epoch_loop.val_loop.batch_progress"]
    evaluation["is_last_batch"] = False
    for name in ("current", "total"):
        evaluation[name] |= dict.fromkeys(("ready", "started"), int(is_trained)) | {"processed": 0, "completed": 0}


def read_rank_state(module: StudentModule) -> dict[str, Any]:
    """What this rank alone has within an epoch, on the CPU, of types that load without executing anything."""
    random = {"cpu": torch.get_rng_state()}
    if module.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(module.device)
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in _own_buffers(module).items()}
    return {"random": random, "sums": module.sums.cpu().clone(), "buffers": buffers}


def write_rank_state(module: StudentModule, state: Mapping[str, Any]) -> None:
    """Take up what ``read_rank_state`` has read; random numbers of another kind of device are not touched."""
    with torch.no_grad():
        module.sums.copy_(state["sums"])
        for name, buffer in _own_buffers(module).items():
            # One that is made for each batch's shape, and kept in no checkpoint, is made again.
            if name in state["buffers"] and state["buffers"][name].shape == buffer.shape:
                buffer.copy_(state["buffers"][name])
    random = state["random"]
    if "seed" in random:
        torch.manual_seed(random["seed"])
        return
    torch.set_rng_state(random["cpu"])
    if module.device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], module.device)


def merge_rank_states(states: Sequence[Mapping[str, Any]], *, rank: int, seed: int) -> dict[str, Any]:
    """The state of a rank of another number of them: all sums with rank 0, running statistics averaged as at the end of
    an epoch (``timm.utils.distribute_bn``), new random numbers by ``seed``.
    """
    sums = torch.stack([state["sums"] for state in states]).sum(dim=0)
    buffers = {
        name: torch.stack([state["buffers"][name] for state in states]).mean(dim=0)
        if "running_mean" in name or "running_var" in name
        else buffer
        for name, buffer in states[0]["buffers"].items()
    }
    return {"random": {"seed": seed}, "sums": sums if rank == 0 else torch.zeros_like(sums), "buffers": buffers}


def _own_buffers(module: StudentModule) -> dict[str, Tensor]:
    parts = {"student": module.student} | ({} if module.average is None else {"average": module.average.model})
    return {f"{part}.{name}": buffer for part, model in parts.items() for name, buffer in model.named_buffers()}


def _gather(state: dict[str, Any], num_ranks: int) -> list[dict[str, Any]]:
    """The states of all ranks, at rank 0; elsewhere what it holds does not count."""
    if num_ranks == 1:
        return [state]
    from torch.distributed import gather_object, get_rank

    states: list[Any] = [None] * num_ranks
    gather_object(state, states if get_rank() == 0 else None)
    return states
