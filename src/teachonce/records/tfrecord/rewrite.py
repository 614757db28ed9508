"""Writing a folder of TFRecord shards again, one new shard for each: what ``merge`` and ``reindex`` have in common.

New shards keep the names, the order and the records of the old ones. Each appears complete, with its index, and a plan
next to them says from what they are made, so that the same command resumes and another one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from teachonce.errors import ConfigError, PlanMismatchError, RecordError
from teachonce.records.class_table import CLASSES_NAME, describe_classes, read_classes, write_classes
from teachonce.records.source import RecordSource, ShardInfo, describe_data_change, identify_data, split_in_names
from teachonce.records.tfrecord.framing import TFRecordWriter, delete_index, index_path, write_index
from teachonce.storage.files import atomic_write, open_storage
from teachonce.storage.remote.file_index import ListedFile
from teachonce.storage.resume import PlanFile


def begin_rewrite(
    command: str, data: Path, out: Path, source: RecordSource, plan: Mapping[str, Any], *, is_data_new: bool = False
) -> None:
    """Put the plan (COMMAND.SPLIT.json) and the classes, or compare with what an earlier run put; remove its leftovers.

    The data's shards are part of the plan; ``is_data_new``: plans of older versions lack them. Raises ConfigError where
    ``out`` is the data itself, or holds something else than splits that the command wrote, PlanMismatchError for
    another plan.
    """
    if out.resolve() == data.resolve():
        raise ConfigError(f"--out {out}: is the --data folder; choose another folder")
    split = split_in_names(source)
    _check_classes(command, data, out, split)
    identity = identify_data(source)
    shards = identity.pop("shards")
    PlanFile(
        folder=out,
        name=f"{command}.{split}.json",
        foreign=ConfigError(f"--out {out}: exists and is not empty; choose another folder"),
        is_foreign=lambda names: not _are_of_command(names, command, split),
        defaults={"data": shards} if is_data_new else {},
        # What the hash says already; plans of older versions lack them.
        may_differ=frozenset(identity),
        hashes={
            "data": partial(describe_data_change, f"the records of {data}"),
            "store": "the store",
        },
        advice_on_inputs="choose another --out, or restore them",
    ).begin({"split": split, **plan, "data": shards, **identity})
    classes = read_classes(data)
    if classes is not None and read_classes(out) is None:
        write_classes(out, classes)
    open_storage(out).remove_temporaries()


def _check_classes(command: str, data: Path, out: Path, split: str) -> None:
    """Raise PlanMismatchError where the other splits in ``out`` have other classes: a folder has one list of them."""
    storage = open_storage(out)
    names = storage.list_folder().files if storage.is_folder() else []
    others = [name for name in names if name.startswith(f"{command}.") and name != f"{command}.{split}.json"]
    old, new = read_classes(out), read_classes(data)
    if old != new and (old is not None or others):
        raise PlanMismatchError(
            f"{out / CLASSES_NAME}: {describe_classes(old)}; of {data}: {describe_classes(new)}; splits of one folder "
            "have one list of classes; choose another --out"
        )


def rewrite_shard(info: ShardInfo, path: Path, write: Callable[[TFRecordWriter], int]) -> dict[str, ListedFile]:
    """Write the shard of ``info`` again as ``path``, with its index; ``write`` returns how many records it wrote.

    Raises RecordError, and leaves no shard, where these are not as many as when the data was opened. Returns the
    entries of both files for the list of the folder.
    """
    return begin_shard(info, path, write)()


def begin_shard(
    info: ShardInfo, path: Path, write: Callable[[TFRecordWriter], int]
) -> Callable[[], dict[str, ListedFile]]:
    """``rewrite_shard`` but for the end: the function that is returned has to be called for it, by any thread.

    It waits for the disk, which takes about as long as writing, so another shard can be written meanwhile. A shard
    that another process wrote meanwhile stays: it has the same bytes, and may be read already.
    """
    delete_index(path)  # of an older shard of this name
    with ExitStack() as stack:
        writer = TFRecordWriter(stack.enter_context(atomic_write(path, overwrite=False)))
        with writer.behind():
            num_rows = write(writer)
        if num_rows != info.num_records:
            raise RecordError(
                f"{info.path}: {num_rows} records, {info.num_records} when it was opened: the shard was changed; "
                "start again when nothing writes to it"
            )
        opened = stack.pop_all()

    def end() -> dict[str, ListedFile]:
        opened.close()
        listed_index = write_index(index_path(path), writer.index)
        return {info.name: writer.listed, index_path(path).name: listed_index}

    return end


def _are_of_command(names: Sequence[str], command: str, split: str) -> bool:
    """Whether there are none, or those of other splits alone: train and validation may share a folder."""
    return not names or (
        any(name.startswith(f"{command}.") for name in names)
        and not any(name.startswith(f"{split}-") for name in names)
    )
