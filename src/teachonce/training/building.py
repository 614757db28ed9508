"""The student as a training begins with it: its weights, whether it takes the data's images, and its teacher."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from teachonce.data.class_balance import balanced_weights
from teachonce.data.sampler import EpochBatches
from teachonce.errors import ConfigError, ModelError
from teachonce.models.classifier import Classifier, build_student
from teachonce.models.fine_tuning import start_from
from teachonce.models.own_classes import resolve_model_offset
from teachonce.models.spec import ModelSpec, first_line
from teachonce.models.torch_backend import build_module, hash_weights
from teachonce.records.class_space import ClassSpace
from teachonce.rng import derive_seed
from teachonce.runs.run import LAST_CHECKPOINT, find_trained
from teachonce.storage.files import open_storage
from teachonce.training.config import TrainConfig
from teachonce.training.data import TrainingData
from teachonce.training.student_module import OnlineTeacher, StudentModule


def start_student(config: TrainConfig, spec: ModelSpec, data: TrainingData) -> tuple[nn.Module, str | None, str]:
    """The network with the weights that it starts from, on the CPU, in training mode; their hash where they are those
    of its own SPEC; and a phrase that says what of ``--init`` was taken, where the training begins now.

    A checkpoint has all weights: where the run goes on from one the SPEC's are not read again, nor asked for, and have
    no hash here. Raises ConfigError and ModelError for weights that do not fit, or that are not there.
    """
    begun, num_classes = find_trained(config.out), data.train.num_classes
    goes_on = begun is not None and open_storage(config.out).has(LAST_CHECKPOINT)
    torch.manual_seed(derive_seed(config.seed, "student"))
    if spec.names_weights:
        if goes_on and begun is not None and begun.student == config.student:
            return build_module(spec, num_classes, config.size).train(), None, ""
        student = build_student(spec, num_classes, size_px=config.size)
        return student, hash_weights(student.state_dict()), ""
    student = build_student(spec, num_classes, size_px=config.size)
    if data.initial is None:
        return student, None, ""
    phrase = start_from(
        student,
        data.initial,
        spec,
        num_classes=num_classes,
        size_px=config.size,
        classes_hash=data.classes_hash,
    )
    return student, None, "" if goes_on else f"{config.out}: starts from {data.initial.path}: {phrase}"


def build_student_module(
    student: nn.Module,
    config: TrainConfig,
    spec: ModelSpec,
    data: TrainingData,
    teacher: Classifier | None,
    world_size: int,
) -> StudentModule:
    """The module that is trained; raises ModelError or ConfigError where ``student`` does not take the images."""
    for size_px in sorted({config.size, data.preprocessing.size_px}):
        _check_size(spec, student, size_px, data.train.num_classes)
    count, size = len(data.train), world_size
    order = EpochBatches(count, config.batch_size, world_size=size, accumulate=config.accumulate)
    if count // (order.num_steps * size) == 1:
        _check_single_image(spec, student, config, count)
    online = None
    if teacher is not None:
        classes = data.train.records.classes
        names = None if classes is None else classes.names
        asked = config.teacher_offset
        offset = resolve_model_offset(teacher, names, data.data_classes, asked, option="--teacher-offset")
        space = ClassSpace(num_classes=teacher.num_classes, offset=offset)
        online = OnlineTeacher(teacher, space, data.train.class_space)
    decode = None if data.stored is None else partial(data.stored.decode, class_space=data.train.class_space)
    module = StudentModule(student, config, data.preprocessing, data.train.num_classes, online, decode)
    module.has_labels = data.train.records.labeled == "all"
    if data.classes is not None and config.class_weights == "balanced":
        module.class_weights = torch.from_numpy(balanced_weights(data.classes, data.train.num_classes))
    return module


def _check_size(spec: ModelSpec, student: nn.Module, size_px: int, num_classes: int) -> None:
    """Raise ModelError now, not after an epoch, where the student does not take this size."""
    student.eval()
    try:
        with torch.no_grad():
            logits = student(torch.zeros(1, 3, size_px, size_px))
    except Exception as error:
        # Architectures raise whatever they like; the cause stays in the message and in the chain.
        raise ModelError(
            f"--student {spec}: does not run on {size_px} x {size_px} px ({first_line(error)}); choose "
            "another --size, or --eval-size"
        ) from error
    student.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"--student {spec}: returns {found}, expected [1, {num_classes}]")


def _check_single_image(spec: ModelSpec, student: nn.Module, config: TrainConfig, num_records: int) -> None:
    """Raise ConfigError where batches of one image leave batch normalization a single value to normalize."""
    trained = copy.deepcopy(student).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trained(torch.zeros(1, 3, config.size, config.size))
    except ValueError as error:
        split = "" if config.batch_size == 1 else f" splits {num_records} images so that one is alone in its batch, and"
        raise ConfigError(
            f"--batch-size {config.batch_size}{split or ':'} --student {spec} cannot be trained on one image of "
            f"{config.size} px ({first_line(error)}); choose a larger --batch-size or --size"
        ) from error
