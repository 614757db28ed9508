"""Step 2 of the walkthrough: raw ImageNet to TFRecords with the logits inserted. Flags of the original, translated.

The label, metadata and bounding box files that the walkthrough names belong to the original's repository; where they
are not there, the labels and texts are timm's tables of the same synsets, and no boxes are written. Validation logits
are looked for in LOGITS and in LOGITS_val, where the walkthrough puts them; without any, the validation records carry
none, which training does not need.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from teachonce.cli.walkthrough_flags import parse_boolean, run_command
from teachonce.errors import ConfigError
from teachonce.interop.config import RecordsConfig
from teachonce.interop.convert import convert_records, list_labeled_images
from teachonce.interop.imagenet import imagenet_synsets
from teachonce.storage.files import atomic_write
from teachonce.terminal import print_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--train_directory", type=Path, help="folder called train, with SYNSET/*.JPEG")
    parser.add_argument("--validation_directory", type=Path, help="folder called validation, with SYNSET/*.JPEG")
    parser.add_argument("--output_directory", type=Path, required=True)
    parser.add_argument("--train_shards", type=int, default=1024)
    parser.add_argument("--validation_shards", type=int, default=128)
    parser.add_argument("--num_threads", type=int, default=0, help="processes; 0 is one a core")
    parser.add_argument("--make_train", type=parse_boolean, default=True)
    parser.add_argument("--make_val", type=parse_boolean, help="default: where the folder is there")
    parser.add_argument("--labels_file", type=Path, default=Path("datasets/imagenet_lsvrc_2015_synsets.txt"))
    parser.add_argument("--imagenet_metadata_file", type=Path, default=Path("datasets/imagenet_metadata.txt"))
    parser.add_argument("--bounding_box_file", type=Path, default=Path("datasets/imagenet_2012_bounding_boxes.csv"))
    parser.add_argument("--logits_file_path", type=Path, help="folder of train-*.csv (or a store)")
    parser.add_argument(
        "--background_logit",
        type=float,
        default=float("-inf"),
        help="logit of labels without a teacher class; 0 is what the original writes, and takes real mass",
    )
    run_command(build_imagenet_data, parser.parse_args())


def build_imagenet_data(flags: argparse.Namespace) -> None:
    """Convert the splits that are asked for."""
    labels = flags.labels_file
    if not labels.exists():
        labels = flags.output_directory / "labels.txt"
        say(f"{flags.labels_file} is not there: the labels are timm's 1000 ImageNet synsets ({labels})")
        with atomic_write(labels) as file:
            file.write("".join(f"{synset}\n" for synset in imagenet_synsets()).encode())
    if flags.make_val is None:
        flags.make_val = flags.validation_directory is not None and flags.validation_directory.is_dir()
    splits = {"validation": flags.make_val, "train": flags.make_train}
    # Both are looked at before the first is written.
    for config in [plan_split(split, labels, flags) for split, is_wanted in splits.items() if is_wanted]:
        convert_records(config)


def plan_split(split: str, labels: Path, flags: argparse.Namespace) -> RecordsConfig:
    """How one split is converted; where it has fewer images than shards were asked for, it has one a shard."""
    directory = getattr(flags, f"{split}_directory")
    if directory is None or directory.name != split:
        raise ConfigError(f"--{split}_directory {directory}: expected a folder called {split}")
    config = RecordsConfig(
        images=directory.parent,
        split=split,
        out=flags.output_directory,
        shards=getattr(flags, f"{split}_shards"),
        labels=labels,
        metadata=existing(flags.imagenet_metadata_file, "the texts are timm's"),
        boxes=existing(flags.bounding_box_file, "no boxes are written"),
        logits=find_logits(split, flags.logits_file_path),
        background_logit=flags.background_logit,
        seed=12345,
        num_workers=flags.num_threads,
    )
    listing, _, _ = list_labeled_images(config)
    if len(listing) < config.shards:
        say(f"--{split}_shards {config.shards}: {directory} has {len(listing)} images, so {len(listing)} shards")
        config = dataclasses.replace(config, shards=len(listing))
    return config


def find_logits(split: str, folder: Path | None) -> Path | None:
    """The folder of a split's logits; for validation also the one with _val at its end, or None."""
    if folder is None or split == "train":
        return folder
    for place in (folder, folder.with_name(folder.name + "_val")):
        if any(place.glob("validation-*.csv")):
            return place
    say(f"no validation-*.csv in {folder} or {folder}_val: the validation records carry no logits")
    return None


def existing(path: Path, otherwise: str) -> Path | None:
    """The path if it is there."""
    if path.exists():
        return path
    say(f"{path} is not there: {otherwise}")
    return None


def say(text: str) -> None:
    print_line(text)


if __name__ == "__main__":
    main()
