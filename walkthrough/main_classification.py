"""Step 3 of the walkthrough: train the ImageNet backbone; ``--kd_temp`` above 0 applies the KD loss.

The original's flags with the original's defaults, so that its published commands mean here what they mean there: the
assembled ResNet (Lee et al. 2020, arXiv:2001.06268), or any other ``--student``. What has no meaning here is refused
in one line that says why; what only keeps house (checkpoints, logging, threads) is named in one line and ignored.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

from teachonce.cli.walkthrough_flags import add_boolean, parse_list, run_command
from teachonce.errors import ConfigError
from teachonce.records.discovery import open_records
from teachonce.training.config import TrainConfig
from teachonce.training.train import train

DATASETS = {
    "imagenet": 1001,
    "food101": 101,
    "cub_200_2011": 100,
    "iFood2019": 251,
    "oxford_flowers102": 102,
    "cars196": 196,
    "oxford_iiit_pet": 37,
    "fgvc_aircraft": 100,
}
"""The original's class counts."""

KEEPS_HOUSE = {
    "keep_checkpoint_max": "the last checkpoint and the best weights are kept",
    "num_best_ckpt_to_keep": "the last checkpoint and the best weights are kept",
    "keep_ckpt_every_eval": "the last checkpoint and the best weights are kept",
    "save_checkpoints_epochs": "a checkpoint is kept after each epoch",
    "ratio_fine_eval": "it evaluates every --epochs_between_evals epochs; the weights kept are the last ones",
    "val_batch_size": "accuracy does not depend on it",
    "loss_scale": "the scale is found while training",
    "use_hyperdash": "metrics.csv and TensorBoard files are written",
    "hooks": "metrics.csv and TensorBoard files are written",
    "benchmark_logger_type": "metrics.csv and TensorBoard files are written",
    "benchmark_log_dir": "metrics.csv and TensorBoard files are written",
    "benchmark_test_id": "metrics.csv and TensorBoard files are written",
    "data_format": "PyTorch chooses",
    "all_reduce_alg": "PyTorch chooses",
    "inter_op_parallelism_threads": "PyTorch chooses",
    "intra_op_parallelism_threads": "PyTorch chooses",
    "num_parallel_calls": "give --num_workers",
}
"""Flags that change nothing of what is trained, and why."""

REFUSED = {
    "clean": "nothing is deleted here: remove --model_dir yourself, or give another",
    "eval_only": "evaluate with 'teachonce evaluate --model SPEC', run:MODEL_DIR or an original checkpoint's",
    "export_only": "export with 'teachonce export-onnx MODEL_DIR'",
    "export_dir": "export with 'teachonce export-onnx MODEL_DIR'",
    "export_decoder_type": "export with 'teachonce export-onnx MODEL_DIR'",
    "zeroshot_eval": "retrieval and metric learning are not part of this package",
    "eval_similarity": "retrieval and metric learning are not part of this package",
    "recall_at_k": "retrieval and metric learning are not part of this package",
    "use_ranking_loss": "retrieval and metric learning are not part of this package",
    "logit_type": "retrieval and metric learning are not part of this package",
    "arc_s": "retrieval and metric learning are not part of this package",
    "arc_m": "retrieval and metric learning are not part of this package",
    "label_file": "labels are those of the records; classes.json beside them names them",
    "train_regex": "shards are called train-NNNNN-of-NNNNN",
    "val_regex": "shards are called validation-NNNNN-of-NNNNN",
    "max_train_steps": "give --train_epochs",
    "stop_threshold": "a training runs all its --train_epochs",
    "use_synthetic_data": "give real --data_dir",
    "with_drawing_bbox": "'teachonce inspect --html' shows records and views",
    "training_random_crop": "training without random crops is not here",
}
"""Flags that would change what is done, and what to do instead."""

CHOICES = {
    "dataset_name": (DATASETS, "the others are of retrieval, which is not here; --num_classes takes any data"),
    "resnet_size": (("50", "101", "152", "200"), "the original has no blocks for the others either"),
    "pool_type": (("gap", "gem"), "flatten would bind the network to one input size"),
    "cls_loss_type": (("softmax",), "the KD loss and the metrics are those of one class an image"),
    "dct_method": (("INTEGER_ACCURATE",), "it is the decoder here"),
    "autoaugment_type": (("imagenet",), "it is the only learned policy here"),
}
"""Flags with fewer values than the original's, and why."""


def main() -> None:
    run_command(main_classification, build_parser().parse_args())


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --data_dir=DIR --model_dir=DIR [--FLAG=VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="TFRecords, with image/logit for --kd_temp > 0")
    parser.add_argument("--model_dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--dataset_name", help="says the class count (default: from the data)")
    parser.add_argument("--num_classes", type=int, help="labels, background included, instead of --dataset_name")
    parser.add_argument("--kd_temp", type=float, default=0.0, help="temperature of the KD loss; 0 is none")
    parser.add_argument(
        "--pretrained_model_checkpoint_path",
        type=Path,
        help="checkpoint (or the folder of checkpoints) to start from; a last layer of other classes is new",
    )
    # The network.
    parser.add_argument("--student", help="any student SPEC of teachonce instead of the assembled ResNet")
    parser.add_argument("--resnet_version", choices=["1", "2"], default="1", help="1: plain, 2: Big-Little")
    parser.add_argument("--resnet_size", default="50", help="50, 101, 152 or 200")
    add_boolean(parser, "use_resnet_d")
    add_boolean(parser, "use_se_block")
    add_boolean(parser, "use_sk_block")
    parser.add_argument("--anti_alias_type", default="", help="sconv, proj or both with a comma")
    parser.add_argument("--anti_alias_filter_size", type=int, default=0)
    parser.add_argument("--bl_alpha", type=int, default=2)
    parser.add_argument("--bl_beta", type=int, default=4)
    parser.add_argument("--embedding_size", type=int, default=0)
    parser.add_argument("--pool_type", default="gap", help="gap or gem")
    add_boolean(parser, "no_downsample")
    add_boolean(parser, "zero_gamma")
    parser.add_argument("--bn_momentum", type=float, default=0.997)
    add_boolean(parser, "use_dropblock")
    parser.add_argument("--dropblock_kp", type=parse_list, default=[1.0, 0.9])
    # Images.
    parser.add_argument("--preprocessing_type", default="imagenet", help="imagenet[_224_256[a]], imagenet_NNN[a]")
    parser.add_argument("--image_size", type=int, help="side of images, instead of --preprocessing_type's")
    parser.add_argument("--autoaugment_type", help="imagenet")
    parser.add_argument("--mixup_type", type=int, choices=[0, 1, 2], default=0, help="Beta(0.2, 0.2)")
    parser.add_argument("--dct_method", default="INTEGER_ACCURATE", help=argparse.SUPPRESS)
    # The training.
    parser.add_argument("--train_epochs", type=int, default=90)
    parser.add_argument("--epochs_between_evals", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32, help="over all GPUs")
    parser.add_argument("--num_gpus", type=int, default=1, help="0: on the CPU")
    parser.add_argument("--num_workers", type=int, default=2, help="threads a GPU that make batches")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32")
    parser.add_argument("--base_learning_rate", type=float, default=0.01)
    parser.add_argument("--lr_warmup_epochs", type=float, default=0)
    parser.add_argument(
        "--learning_rate_decay_type",
        choices=["fixed", "exponential", "polynomial", "piecewise", "cosine"],
        default="exponential",
    )
    parser.add_argument("--num_epochs_per_decay", type=float, default=2.0)
    parser.add_argument("--learning_rate_decay_factor", type=float, default=0.94)
    parser.add_argument("--end_learning_rate", type=float, default=1e-4)
    parser.add_argument("--piecewise_lr_boundary_epochs", type=parse_list, default=[30, 60, 80, 90])
    parser.add_argument("--piecewise_lr_decay_rates", type=parse_list, default=[1, 0.1, 0.01, 0.001, 1e-4])
    parser.add_argument("--weight_decay", type=float, default=4e-5)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--label_smoothing", type=float, default=0.0)
    parser.add_argument("--cls_loss_type", default="softmax", help=argparse.SUPPRESS)
    for name in KEEPS_HOUSE | REFUSED:
        # absl's booleans may stand without a value.
        parser.add_argument(f"--{name}", nargs="?", const="True", help=argparse.SUPPRESS)
    return parser


def main_classification(flags: argparse.Namespace) -> None:
    """Train."""
    check_flags(flags)
    train(build_config(flags))


def build_config(flags: argparse.Namespace) -> TrainConfig:
    """The options of teachonce that the flags mean."""
    student = student_spec(flags)
    kind, size = flags.learning_rate_decay_type, image_sizes(flags)
    options: dict[str, Any] = {}
    if kind in ("exponential", "polynomial"):
        options["decay_epochs"] = flags.num_epochs_per_decay
    if kind == "exponential":
        options["decay_rate"] = flags.learning_rate_decay_factor
    elif kind == "polynomial":
        options["min_lr"] = flags.end_learning_rate
    elif kind == "piecewise":
        options["boundary_epochs"] = tuple(map(int, flags.piecewise_lr_boundary_epochs))
        options["boundary_rates"] = tuple(flags.piecewise_lr_decay_rates)
    elif kind == "cosine":
        options["warmup_prefix"] = True
    if flags.mixup_type:
        options |= {"mixup_alpha": 0.2, "mixup_type": flags.mixup_type}
    validation_split = "validation" if has_validation(flags.data_dir) else None
    if validation_split:
        # A divisor: the original's last cycle is shorter where the flag is none.
        options["validation_epochs"] = math.gcd(flags.epochs_between_evals, max(flags.train_epochs, 1))
    return TrainConfig(
        data=flags.data_dir,
        student=student,
        out=flags.model_dir,
        validation_split=validation_split,
        num_classes=flags.num_classes or DATASETS.get(flags.dataset_name),
        logits="records" if flags.kd_temp > 0 else None,
        kd_temp=flags.kd_temp,
        label_smoothing=flags.label_smoothing,
        policy="crop+autoaugment" if flags.autoaugment_type else "crop",
        # The original's crops; its training reader hands them no boxes, so the whole image is their object.
        crop_scale=(0.05, 1.0),
        crop_ratio=(0.75, 1.33),
        object_covered=0.1,
        object_boxes="image",
        **size,
        bn_momentum=round(1 - flags.bn_momentum, 9),
        epochs=flags.train_epochs,
        batch_size=flags.batch_size // max(1, flags.num_gpus),
        devices=max(1, flags.num_gpus),
        device="auto" if flags.num_gpus else "cpu",
        num_workers=flags.num_workers,
        precision=flags.dtype.replace("fp32", "float32"),
        lr=flags.base_learning_rate,
        schedule=kind,
        warmup_epochs=flags.lr_warmup_epochs,
        weight_decay=flags.weight_decay,
        momentum=flags.momentum,
        **options,
    )


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse what has no meaning here, and name what is ignored."""
    idle = {"training_random_crop": "true", "train_regex": "train-*", "val_regex": "validation-*"}
    for name, reason in REFUSED.items():
        value = getattr(flags, name)
        if value is not None and value.lower() not in (idle.get(name, "false"), "none"):
            raise ConfigError(f"--{name}={value}: {reason}")
    for name, (known, reason) in CHOICES.items():
        value = getattr(flags, name)
        if value is not None and value not in known:
            raise ConfigError(f"--{name}={value}: expected {' or '.join(known)}; {reason}")
    if flags.num_gpus < 0 or flags.batch_size % max(1, flags.num_gpus):
        raise ConfigError(f"--batch_size {flags.batch_size}: expected a multiple of --num_gpus {flags.num_gpus}")
    ignored = [f"--{name} ({reason})" for name, reason in KEEPS_HOUSE.items() if getattr(flags, name) is not None]
    if ignored:
        print(f"without effect here: {', '.join(ignored)}", file=sys.stderr)


def student_spec(flags: argparse.Namespace) -> str:
    """The SPEC of the network that the flags mean."""
    weights = find_checkpoint(flags.pretrained_model_checkpoint_path)
    start = f",weights={weights}" if weights else ""
    if flags.student is not None:
        return flags.student + start
    options = {
        "big_little": f"{flags.bl_alpha}/{flags.bl_beta}" if flags.resnet_version == "2" else "",
        "use_resnet_d": "1" * flags.use_resnet_d,
        "use_se": "1" * flags.use_se_block,
        "use_sk": "1" * flags.use_sk_block,
        "embedding_size": str(flags.embedding_size or ""),
        "global_pool": "gem" if flags.pool_type == "gem" else "",
        "use_last_downsample": "0" * flags.no_downsample,
        "zero_gamma": "1" * flags.zero_gamma,
        "drop_block_keep": "/".join(map(str, flags.dropblock_kp)) if flags.use_dropblock else "",
    }
    if flags.anti_alias_type:
        # The original takes 'max' too and does nothing for it.
        options["anti_alias"] = "/".join(place for place in flags.anti_alias_type.split(",") if place != "max")
        options["anti_alias_filter"] = str(flags.anti_alias_filter_size)
    words = "".join(f",{name}={value}" for name, value in options.items() if value)
    return f"timm:tf_resnet{flags.resnet_size}{words}{start}"


def find_checkpoint(path: Path | None) -> Path | None:
    """The checkpoint itself, or the last one that its folder names."""
    if path is None or not path.is_dir():
        return path
    state = path / "checkpoint"
    found = (
        re.search(r'^model_checkpoint_path: "([^"]+)"', state.read_text(), re.MULTILINE) if state.is_file() else None
    )
    if found is None:
        raise ConfigError(f"--pretrained_model_checkpoint_path {path}: no checkpoint is named there; give the file")
    return path / found[1]


def image_sizes(flags: argparse.Namespace) -> dict[str, Any]:
    """The sides of images in training and evaluation that ``--preprocessing_type`` means."""
    found = re.fullmatch(r"imagenet(?:_(\d{3}))?(?:_(256))?(a?)", flags.preprocessing_type)
    if found is None or (found[2] and found[1] != "224") or (found[3] and not found[1]):
        raise ConfigError(
            f"--preprocessing_type={flags.preprocessing_type}: expected imagenet, imagenet_224_256, imagenet_NNN, or "
            "with an 'a' at the end; the others are of tasks that are not here, or of teachers"
        )
    size = flags.image_size or int(found[1] or 224)
    eval_size = int(found[2]) if found[2] and not flags.image_size else size
    sides = {"size": size} if eval_size == size else {"size": size, "eval_size": eval_size}
    return sides | ({"eval_resize": eval_size + 1} if found[3] else {})


def has_validation(data: Path) -> bool:
    """Whether there are validation records."""
    try:
        open_records(data, "validation")
    except ConfigError:
        return False
    return True


if __name__ == "__main__":
    main()
