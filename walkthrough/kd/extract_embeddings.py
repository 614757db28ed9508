"""Step 1 of the walkthrough: a teacher's logits over sharded TFRecords, as CSV. Flags of the original, translated.

Each of the ``--total_num_shard`` commands takes its part of one store (OUTPUT_DIR/store.SPLIT), which makes a killed
one resumable and lets ``teachonce verify`` and ``merge`` work from it, and writes its part as SPLIT-NO_SHARD.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from teachonce.cli.walkthrough_flags import parse_boolean, run_command
from teachonce.engine.jobs import partition
from teachonce.errors import ConfigError, NoGpuError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.interop.csv_files import write_csv
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from teachonce.terminal import print_text, visible


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="TFRecord shards train-*, validation-*")
    parser.add_argument("--data_name", choices=["imagenet"], default="imagenet", help=argparse.SUPPRESS)
    parser.add_argument("--output_dir", type=Path, default=Path("amoebanet_logits"), help="folder for the CSV files")
    parser.add_argument("--gpu_to_use", default="0", help="number of the GPU; without that one, the CPU is used")
    parser.add_argument("--no_shard", type=int, default=0, help="which part this command takes, from 0")
    parser.add_argument("--total_num_shard", type=int, default=1, help="number of parts")
    parser.add_argument("--n_tfrecord", type=int, help="number of TFRecord shards, at most (default: any)")
    parser.add_argument("--is_training", type=parse_boolean, default=True, help="train, else validation")
    parser.add_argument("--net_name", choices=["amoebanet", "efficientnet"], default="amoebanet")
    parser.add_argument("--offset", type=int, default=0, help="data label of the teacher's class 0; efficientnet: 1")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument(
        "--saved_model",
        type=Path,
        help="folder of the teacher's SavedModel or TF1 hub module (default: where it is published)",
    )
    parser.add_argument("--teacher", help="any model SPEC of teachonce instead of --net_name and --saved_model")
    parser.add_argument(
        "--background_logit",
        type=float,
        help="write one number a label, this one for labels without a teacher class; 0 is what the original writes "
        "(default: one number a class of the teacher)",
    )
    run_command(extract_embeddings, parser.parse_args())


def extract_embeddings(flags: argparse.Namespace) -> None:
    """Extract one part and write its CSV."""
    split = "train" if flags.is_training else "validation"
    source = open_records(flags.data_dir, split)
    found = f"--n_tfrecord {flags.n_tfrecord}: {flags.data_dir} has {len(source.shards)} {split} shards"
    if flags.n_tfrecord is not None and flags.n_tfrecord < len(source.shards):
        raise ConfigError(f"{found}, the rest would be left out")
    if flags.n_tfrecord is not None and flags.n_tfrecord > len(source.shards):
        # That none of a set is missing, the records' own reader has seen.
        print(f"{found}, the whole set: all are taken", file=sys.stderr)
    if not 0 <= flags.no_shard < flags.total_num_shard:
        raise ConfigError(f"--no_shard {flags.no_shard}: expected 0 to {flags.total_num_shard - 1}")
    store = flags.output_dir / f"store.{split}"
    config = ExtractConfig(
        data=flags.data_dir,
        split=split,
        teacher=teacher_spec(flags),
        out=store,
        codec="float32",
        offset=flags.offset,
        # One teacher for all parts: the first one looks at it.
        gate_samples=64 if flags.no_shard == 0 else 0,
        worker=f"{flags.no_shard}/{flags.total_num_shard}",
        batch_size=flags.batch_size,
        device=find_device(flags.gpu_to_use),
    )
    try:
        extract(config)
    except NoGpuError as error:
        print(f"{error}: the CPU is used", file=sys.stderr)
        extract(dataclasses.replace(config, device="cpu"))
    opened = Store(store, is_partial=True)
    shards = partition(range(len(opened.shards)), flags.no_shard, flags.total_num_shard)
    path = flags.output_dir / f"{split}-{flags.no_shard}.csv"
    write_csv(opened, path, shards, background_logit=flags.background_logit)
    print_text(visible(str(path)))


def find_device(gpu_to_use: str) -> str:
    """The GPU of that number where this machine has one, else the CPU, as the original finds none then."""
    is_there = gpu_to_use.isdecimal() and int(gpu_to_use) < torch.cuda.device_count()
    return f"cuda:{gpu_to_use}" if is_there else "cpu"


def teacher_spec(flags: argparse.Namespace) -> str:
    """The model SPEC that the flags mean."""
    if flags.teacher is not None:
        return flags.teacher
    if flags.saved_model is None:
        return flags.net_name
    return f"{flags.net_name},weights={flags.saved_model}"


if __name__ == "__main__":
    main()
