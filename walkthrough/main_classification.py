"""Step 3 of the walkthrough: train the ImageNet backbone; ``--kd_temp`` above 0 applies the KD loss.

The flags of the original that matter here, translated; the defaults are its README's. The backbone is torchvision's
ResNet of the given size, or any ``--student`` SPEC.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from teachonce.cli.walkthrough_flags import run_command
from teachonce.errors import ConfigError
from teachonce.records.discovery import open_records
from teachonce.training.config import TrainConfig
from teachonce.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="TFRecords, with image/logit for --kd_temp > 0")
    parser.add_argument("--model_dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--kd_temp", type=float, default=0.0, help="temperature of the KD loss; 0 is none")
    parser.add_argument("--resnet_size", choices=["18", "34", "50", "101", "152"], default="50")
    parser.add_argument("--student", help="any student SPEC of teachonce instead of --resnet_size")
    parser.add_argument("--train_epochs", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=1024, help="over all GPUs")
    parser.add_argument("--base_learning_rate", type=float, default=0.4)
    parser.add_argument("--lr_warmup_epochs", type=float, default=5)
    parser.add_argument("--weight_decay", type=float, default=1e-4)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--label_smoothing", type=float, default=0.0)
    parser.add_argument("--mixup_type", type=int, choices=[0, 1], default=0, help="1: Beta(0.2, 0.2)")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--num_classes", type=int, help="labels, background included (default: from the data)")
    parser.add_argument("--num_gpus", type=int, default=1)
    parser.add_argument("--num_workers", type=int, default=2, help="loader processes a GPU")
    run_command(main_classification, parser.parse_args())


def main_classification(flags: argparse.Namespace) -> None:
    """Train."""
    if flags.batch_size % flags.num_gpus:
        raise ConfigError(f"--batch_size {flags.batch_size}: expected a multiple of --num_gpus {flags.num_gpus}")
    try:
        open_records(flags.data_dir, "validation")
        validation_split = "validation"
    except ConfigError:
        validation_split = None
    train(
        TrainConfig(
            data=flags.data_dir,
            student=flags.student or f"torchvision:resnet{flags.resnet_size}",
            out=flags.model_dir,
            validation_split=validation_split,
            logits="records" if flags.kd_temp > 0 else None,
            kd_temp=flags.kd_temp,
            epochs=flags.train_epochs,
            batch_size=flags.batch_size // flags.num_gpus,
            devices=flags.num_gpus,
            lr=flags.base_learning_rate,
            warmup_epochs=flags.lr_warmup_epochs,
            weight_decay=flags.weight_decay,
            momentum=flags.momentum,
            label_smoothing=flags.label_smoothing,
            mixup_alpha=0.2 if flags.mixup_type else 0.0,
            size=flags.image_size,
            num_classes=flags.num_classes,
            num_workers=flags.num_workers,
        )
    )


if __name__ == "__main__":
    main()
