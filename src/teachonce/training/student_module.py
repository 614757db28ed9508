"""The student in training: a LightningModule with the distillation loss, mixup, optimizer, schedule and EMA.

It takes batches of ``KDDataset`` (pixels, labels, teacher_logits) and works in a Trainer of your own as well. What the
student is, in which class space, and where its weights go is the caller's business (``train``).

Decisions a reader would question. SGD is the classical momentum (timm's "momentum"; its "sgd" is Nesterov's, which the
published recipes of this field's ResNets do not use). Gradients of several devices are averaged; running statistics of
batch norms stay each device's own within an epoch and are averaged at its end, before they are used. Torch's
generators are seeded again each epoch from (seed, epoch, rank), so that an epoch does not depend on how often the run
was interrupted before it. The moving average (``weight_average``) is held beside the module's parts and not among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from timm.optim import create_optimizer_v2
from timm.utils import distribute_bn
from torch import Tensor

from teachonce.data.tensors import map_tensor
from teachonce.errors import LogitsError, TeachonceError
from teachonce.losses.losses import (
    average_probs,
    kd_loss_from_probs,
    label_loss,
    label_probs,
    soften,
    weigh_targets,
)
from teachonce.losses.metrics import ClassifierMetrics
from teachonce.losses.mixup import Mixup, apply_mixup, dominant_rows, sample_mixup
from teachonce.models.classifier import Classifier
from teachonce.pixels.preprocessing import Preprocessing, normalize
from teachonce.records.class_space import ClassSpace
from teachonce.rng import derive_seed, generator
from teachonce.training.config import TrainConfig
from teachonce.training.loss_watch import LossWatch
from teachonce.training.schedules import LearningRate, build_schedule, scale_lr
from teachonce.training.weight_average import WeightAverage

_AVERAGE_PREFIX = "ema."
"""Of the average's tensors in a checkpoint's state_dict."""


class OnlineTeacher:
    """A teacher asked at every step: logits [B, C] of the student's class space, from pixels at the teacher's size.

    Not a module: neither its weights nor its mode are the training's.
    """

    def __init__(self, teacher: Classifier, source: ClassSpace, target: ClassSpace) -> None:
        self.teacher = teacher
        self.source = source
        self.target = target
        self.last: Tensor | None = None
        """Its newest logits, as it gave them."""

    def check(self) -> None:
        """Raise LogitsError where its newest logits are NaN or infinite: they make a loss so, whatever the rate."""
        if self.last is not None:
            self.teacher.collect_logits(self.last)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Ask; classes that the teacher lacks are -inf."""
        logits = self.last = self.teacher.logits(pixels)
        # Beside the student, wherever the backend leaves them.
        logits = logits.to(pixels.device, non_blocking=pixels.is_cuda)
        return map_tensor(logits, self.source, self.target)


class StudentModule(lightning.LightningModule):
    """``student`` maps [B, 3, H, W] to logits [B, C]; ``preprocessing`` says what its pixels become.

    ``decode_stored`` makes the teacher logits of batches that hold a store's columns (``StoredLogits`` without a
    temperature) instead of logits: (batch, temperature) to [B, C] or [B, M, C].

    Gradients are accumulated by the Trainer (``accumulate_grad_batches``): schedule, average and clipping are of whole
    updates. Each batch is mixed, and normed by batch norms, by itself.

    A student with a method ``set_progress`` is called before each update with the fraction of the training that is done
    (0 at the first), for what is scheduled inside it, such as DropBlock's keep probability.
    """

    class_weights: Tensor | None
    """What a record of each class [C] counts in the losses; None: all the same."""
    sums: Tensor
    """Over the epoch's batches on this device: loss, label loss, KD loss, hits, images; read once an epoch."""
    class_sums: Tensor
    """Over the evaluation's batches on this device: images and right answers of each class."""

    def __init__(
        self,
        student: torch.nn.Module,
        config: TrainConfig,
        preprocessing: Preprocessing,
        num_classes: int,
        online: OnlineTeacher | None = None,
        decode_stored: Callable[[Mapping[str, Tensor], float], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.online = online
        self.decode_stored = decode_stored
        self.student = student
        self.config = config
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.metrics = ClassifierMetrics(num_classes)
        self.has_labels = True
        """Set False where records lack labels: the loss is the teacher's alone, and nothing is compared with labels."""
        self.validation_result: dict[str, float] | None = None
        self.validation_classes: Tensor | None = None
        """[2, C] on the CPU: images and right answers of each class, of this epoch's evaluation on all devices."""
        self.last_lr = 0.0
        self._set_progress: Callable[[float], None] | None = getattr(student, "set_progress", None)
        if config.bn_momentum is not None:
            for part in student.modules():
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    part.momentum = config.bn_momentum
        self.average = WeightAverage(student, config.ema_decay) if config.ema_decay > 0 else None
        if config.channels_last:
            self.to(memory_format=torch.channels_last)
        if config.compile:
            # Once for each of the few batch sizes: code for any size took 1.3 times as long (LOG.md, 2026-11-26).
            student.compile(dynamic=False)
        self.register_buffer("sums", torch.zeros(5), persistent=False)
        self.register_buffer("class_weights", None, persistent=False)
        self.register_buffer("class_sums", torch.zeros(2, num_classes, dtype=torch.int32), persistent=False)
        self.watch = LossWatch()
        self.loss_weight: Callable[[int], float] | None = None
        """What a batch of the epoch counts in its update (``EpochBatches.loss_weight``); None: all the same."""
        self.after_update: Callable[[int], None] | None = None
        """Called when an update is complete with all that belongs to it, the epoch's last one excepted, with the number
        of updates of the epoch so far: the points between two updates."""
        self.update_loss = (torch.zeros(()), 0)
        """Of the current update, on this device: the sum of the images' losses so far, and how many they are."""

    @property
    def eval_model(self) -> torch.nn.Module:
        """What is evaluated and kept: the moving average where there is one, else the student."""
        return self.student if self.average is None else self.average.model

    def weights(self) -> bytes:
        """``eval_model``'s, in the safetensors format."""
        tensors = {
            name: value.detach().cpu().contiguous().clone() for name, value in self.eval_model.state_dict().items()
        }
        return save(tensors, {"student": self.config.student, "format": "pt"})

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of pixels [B, H, W, 3] in 0..255, by the weights that are kept."""
        return self.eval_model(self._images(pixels))

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """The loss of one batch as it counts in its update; its parts are added to the epoch's sums."""
        self.last_lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        is_first = batch_index % self.trainer.accumulate_grad_batches == 0
        if self._set_progress is not None and is_first:
            self._set_progress(self.global_step / int(self.trainer.estimated_stepping_batches))
        images, labels = self._images(batch["pixels"]), batch["labels"]
        teacher_logits = batch.get("teacher_logits")
        label_targets: Tensor = labels
        if "shares" in batch and self.has_labels:
            label_targets = self._mixed_labels(batch)
            labels = _larger_labels(batch)
        mixup = None
        if self.decode_stored is not None and teacher_logits is None:
            teacher_logits = self.decode_stored(batch, self.config.temperature)
        if self.online is not None:
            teacher_logits = self.online(batch.get("teacher_pixels", batch["pixels"]))
        elif self.config.mixes_batches:
            rng = generator(self.config.seed, "mixup", self.current_epoch, batch_index, self.global_rank)
            mixup = sample_mixup(rng, self.config.mixup_alpha, len(labels), self.config.mixup_type)
            images = apply_mixup(mixup, images)
            labels = dominant_rows(mixup, labels)
        student_logits = self.student(images)
        loss, *parts = self.losses(student_logits, label_targets, teacher_logits, mixup, self._row_weights(batch))
        with torch.no_grad():
            hits = (student_logits.argmax(dim=1) == labels).sum()
            # torch.full, not torch.tensor: filled on the device, nothing waits.
            count = torch.full_like(loss, len(student_logits))
            self.sums.add_(torch.stack([loss * count, *(part * count for part in parts), hits.to(loss.dtype), count]))
            before, num_before = (torch.zeros_like(loss), 0) if is_first else self.update_loss
            self.update_loss = (before + loss * count, num_before + len(student_logits))
        self.watch.add(loss, self.global_step)
        self.check_loss()
        return loss if self.loss_weight is None else loss * self.loss_weight(batch_index)

    def losses(
        self,
        student_logits: Float[Tensor, "B C"],
        labels: Int[Tensor, " A"] | Float[Tensor, "A C"],
        teacher_logits: Float[Tensor, "A C"] | Float[Tensor, "A M C"] | None,
        mixup: Mixup | None,
        row_weights: Float[Tensor, " A"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The total loss, the label loss and the KD loss (0 without teacher), as the config weighs them.

        Labels and teacher are of the A rows that ``mixup`` makes B of; without it A = B.
        Of M teachers the softened probabilities are averaged, by ``--store-weights``. ``row_weights`` count in both
        losses, before anything is mixed: what a mixture has of a record counts by that record's own weight, not by the
        mean of both, which would give the common partner of a rare record part of the rare one's weight. Labels that
        are given as probabilities are weighted and smoothed already (``_mixed_labels``).
        """
        config = self.config
        label_targets, label_weights, smoothing = labels, row_weights, config.label_smoothing
        if row_weights is not None and self.has_labels and (mixup is not None or labels.is_floating_point()):
            if not labels.is_floating_point():
                label_targets = weigh_targets(label_probs(labels, self.num_classes), row_weights, smoothing)
            label_weights, smoothing = None, 0.0
        if mixup is not None and self.has_labels:
            probs = label_targets if label_targets.is_floating_point() else label_probs(labels, self.num_classes)
            label_targets = apply_mixup(mixup, probs)
        if self.has_labels:
            label_part = label_loss(student_logits, label_targets, smoothing, label_weights)
        else:
            label_part = student_logits.new_zeros((), dtype=torch.float32)
        loss, kd_part = config.label_weight * label_part, torch.zeros_like(label_part)
        if config.temperature > 0:
            if teacher_logits is None:
                raise LogitsError("a batch without teacher_logits, expected them with --kd-temp > 0")
            if teacher_logits.ndim == 3:
                teacher_probs = average_probs(teacher_logits, config.temperature, config.teacher_weights())
            else:
                teacher_probs = soften(teacher_logits, config.temperature)
            if mixup is not None:
                if row_weights is not None:
                    teacher_probs, row_weights = weigh_targets(teacher_probs, row_weights), None
                teacher_probs = apply_mixup(mixup, teacher_probs)
            kd_part = kd_loss_from_probs(student_logits, teacher_probs, config.temperature, row_weights)
            loss = loss + config.kd_weight * kd_part
        return loss, label_part, kd_part

    def _row_weights(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The weight [A] of each record; of a stored mixture, whose answer is one for both, the mean of both."""
        if self.class_weights is None:
            return None
        weights = self.class_weights[batch["labels"]]
        if "shares" not in batch:
            return weights
        return torch.lerp(self.class_weights[batch["partner_labels"]], weights, batch["shares"])

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Count one batch."""
        logits, labels = self(batch["pixels"]), batch["labels"]
        self.metrics.update(logits, labels)
        is_right = logits.argmax(dim=1) == labels
        self.class_sums.index_add_(1, labels, torch.stack([torch.ones_like(is_right), is_right]).int())

    def on_train_epoch_start(self) -> None:
        """Seed torch for this epoch, and forget the last one's sums."""
        torch.manual_seed(derive_seed(self.config.seed, "torch", self.current_epoch, self.global_rank))
        self.sums.zero_()
        self.validation_result = self.validation_classes = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Move the average along after an update; make the epoch's end sound before anything is kept of it."""
        is_last = batch_index + 1 == self.trainer.num_training_batches
        is_updated = is_last or (batch_index + 1) % self.trainer.accumulate_grad_batches == 0
        if self.average is not None and is_updated:
            self.average.update(self.student, self.global_step)
        if is_last:
            self.check_loss(newest=True)
        if is_last and self.trainer.world_size > 1:
            distribute_bn(self.student, self.trainer.world_size, reduce=True)
            if self.average is not None:
                distribute_bn(self.average.model, self.trainer.world_size, reduce=True)
        if is_last:
            self.check_weights(with_statistics=True)
        if is_updated and not is_last and self.after_update is not None:
            self.after_update((batch_index + 1) // self.trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the average beside the student."""
        if self.average is not None:
            checkpoint["state_dict"] |= self.average.state_dict(_AVERAGE_PREFIX)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the average out of what is the module's own."""
        if self.average is not None:
            state = checkpoint["state_dict"]
            names = [name for name in state if name.startswith(_AVERAGE_PREFIX)]
            self.average.load_state_dict({name.removeprefix(_AVERAGE_PREFIX): state.pop(name) for name in names})

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # The average follows to another device or memory format.
        if self.average is not None:
            self.average.apply(fn)
        return super()._apply(fn, recurse)

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that was interrupted counted."""
        self.class_sums.zero_()

    def on_validation_epoch_end(self) -> None:
        """Keep the result of this epoch's evaluation."""
        self.validation_classes = self.trainer.strategy.reduce(self.class_sums.clone(), reduce_op="sum").cpu()
        self.validation_result = self.metrics.compute()
        self.metrics.reset()
        if not math.isfinite(self.validation_result["loss"]):
            self.check_loss(newest=True)  # which says in which update
            raise self._not_finite(f"the validation loss is not finite after epoch {self.current_epoch + 1}")

    def check_loss(self, *, newest: bool = False) -> None:
        """Raise TeachonceError if a loss was NaN or infinite; on a GPU the last batch's counts only with ``newest``."""
        update = self.watch.find_bad(newest=newest)
        if update is not None:
            raise self._not_finite(f"the loss is not finite in update {update + 1} (epoch {self.current_epoch + 1})")

    def check_weights(self, *, with_statistics: bool = False) -> None:
        """Raise TeachonceError if a weight is NaN or infinite, as only the newest update's can be: its loss is that of
        the weights before it. For what is about to be saved; the device is waited for.

        Ranks agree without asking each other: they all have the same parameters, and from an epoch's end on the same
        running statistics, which are looked at then (``with_statistics``).
        """
        largest = []
        for model in (self.student, *([] if self.average is None else [self.average.model])):
            tensors: list[Tensor] = list(model.parameters())
            if with_statistics:
                tensors += [value for name, value in model.named_buffers() if "running_" in name]
            # The largest magnitude, not the sum, which may overflow.
            largest += [
                torch.linalg.vector_norm(value.detach().float(), torch.inf) for value in tensors if value.numel()
            ]
        if not torch.stack(largest).isfinite().all():
            epoch = min(self.current_epoch + 1, self.config.epochs)  # behind the last one it counts on
            raise self._not_finite(f"the weights are not finite after update {self.global_step} (epoch {epoch})")

    def _not_finite(self, what: str) -> TeachonceError:
        if self.online is not None:
            self.online.check()
        precision = self.config.precision
        other = "" if precision == "float32" else f", or another --precision than {precision}"
        return TeachonceError(
            f"{self.config.out}: {what}; lower --lr ({self.config.lr:g}), use --warmup-epochs or --clip-norm{other}, "
            "and give another --out"
        )

    def read_sums(self) -> dict[str, float]:
        """Means over this epoch's images on all devices: train_loss, label_loss, kd_loss, train_top1; and images.

        Without labels there is no label_loss and no train_top1.
        """
        sums = self.trainer.strategy.reduce(self.sums.clone(), reduce_op="sum")
        *totals, count = sums.cpu().double().tolist()  # Apple's GPUs have no float64
        names = ("train_loss", "label_loss", "kd_loss", "train_top1")
        means = {name: total / count for name, total in zip(names, totals, strict=True)} | {"images": count}
        return means if self.has_labels else {name: means[name] for name in ("train_loss", "kd_loss", "images")}

    def configure_optimizers(self) -> Any:
        """Optimizer (timm's) and per-update schedule of the config."""
        config = self.config
        peak_lr = scale_lr(config, self.trainer.world_size)
        # timm gives norms and biases (all parameters of one dimension), and what its network exempts, no weight decay.
        optimizer = create_optimizer_v2(
            self.student,
            opt="momentum" if config.optimizer == "sgd" else config.optimizer,
            lr=peak_lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        updates_per_epoch = int(self.trainer.estimated_stepping_batches) // config.epochs
        scheduler = LearningRate(optimizer, build_schedule(config, peak_lr, updates_per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate of the next update."""
        scheduler.step_update(self.global_step)

    def _mixed_labels(self, batch: dict[str, Tensor]) -> Tensor:
        """Label probabilities [B, C] of views that are mixed: own and partner's label by the effective share.

        Where classes have weights, each label by its own class's, and smoothed.
        """
        share = batch["shares"][:, None]
        own, partner = (self._label_targets(batch[name]) for name in ("labels", "partner_labels"))
        return share * own + (1 - share) * partner

    def _label_targets(self, labels: Tensor) -> Tensor:
        probs = label_probs(labels, self.num_classes)
        if self.class_weights is None:
            return probs
        return weigh_targets(probs, self.class_weights[labels], self.config.label_smoothing)

    def _images(self, pixels: Tensor) -> Tensor:
        images = normalize(pixels, self.preprocessing)
        return images.contiguous(memory_format=torch.channels_last) if self.config.channels_last else images


def _larger_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """Of views that are mixed the labels [B] with the larger share: train_top1 is counted by these."""
    return torch.where(batch["shares"] >= 0.5, batch["labels"], batch["partner_labels"])
