"""Read a store of teachonce without teachonce: numpy and pyarrow, after docs/reference/store-format.md.

python examples/read_store.py STORE [KEY]      # a summary; with KEY (hexadecimal) what the store has of that record

Sizes and identities are checked; hashes (xxh3, 128 bits) are not, since that needs one more library.
"""

import json
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa

OPERATIONS = [
    *("identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness"),
    *("sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "invert"),
]


class StoreReader:
    """The views and records that are complete: ``plan`` is the last one, ``shards`` has (name, records)."""

    def __init__(self, path):
        self.path = Path(path)
        names = ("plan.json", *(f"plan.{number:03d}.json" for number in range(1, 1000)))
        plans = [json.loads((self.path / name).read_bytes()) for name in takewhile(self._has, names)]
        assert [plan["follows"] for plan in plans] == [None, *(plan["xxh3"] for plan in plans[:-1])]
        self.plan = plans[-1]
        self.files: dict[str, list] = {}
        seen = []  # views of each part that is seen
        for number, (_, min_views) in enumerate(self.plan["parts"]):
            end = f".{number:03d}.json" if number else ".json"
            manifests = [f"manifest.v{first:03d}-{last:03d}{end}" for first, last in self.plan["view_groups"]]
            found = list(takewhile(self._has, [f"manifest.records{end}", *manifests]))
            num_views = self.plan["view_groups"][len(found) - 2][1] + 1 if len(found) > 1 else 0
            if num_views < max(1, min_views):
                break
            seen.append(num_views)
            for name in found:
                self.files |= json.loads((self.path / name).read_bytes())["files"]
        assert seen, "no group of views is complete"
        self.num_views = min(seen)
        ends = [first for first, _ in self.plan["parts"][1:]] + [len(self.plan["shards"])]
        self.shards = self.plan["shards"][: ends[len(seen) - 1]]
        indexes = ["index.arrow", *(f"index.{number:03d}.arrow" for number in range(1, len(seen)))]
        self.indexes = [self.read_block(name, 0) for name in indexes]

    def _has(self, name):
        return (self.path / name).exists()

    def read_block(self, name, block):
        """The columns of one block, [N] or [N, width] (file names: a list), of its own bytes and the head's alone."""
        data = pa.memory_map(str(self.path / name)).read_buffer()
        assert data.size == self.files[name][0], f"{name}: damaged"
        head = 16 + int.from_bytes(data[12:16].to_pybytes(), "little")
        schema = pa.ipc.read_schema(data.slice(8, head - 8))
        about = json.loads(schema.metadata[b"teachonce"])
        assert about["plan"] == self.plan["identity"], f"{name}: of another store"
        sizes = [size for size, _ in about["blocks"]]
        batch = pa.ipc.read_record_batch(data.slice(head + sum(sizes[:block]), sizes[block]), schema)
        return {field.name: to_numpy(batch[field.name]) for field in schema}

    def find(self, key):
        """(shard, row) of every record with this key; equal images have equal keys."""
        for index in self.indexes:
            first, end = (np.searchsorted(index["key"], np.uint64(key), side) for side in ("left", "right"))
            yield from zip(index["shard"][first:end].tolist(), index["row"][first:end].tolist(), strict=True)

    def records(self, shard):
        """key, filename, label (-1: none)."""
        return self.read_block(f"{self.shards[shard][0]}.records.arrow", 0)

    def views(self, shard, view):
        """The columns of the policy and of the codec."""
        assert 0 <= view < self.num_views
        first, last = next(group for group in self.plan["view_groups"] if group[1] >= view)
        return self.read_block(f"{self.shards[shard][0]}.v{first:03d}-{last:03d}.arrow", view - first)

    def logits(self, columns, temperature=1.0):
        """Logits [N, C] of some views; of codec topk for a softmax at ``temperature``, up to a constant of the row."""
        codec, num_classes = self.plan["codec"], self.plan["class_space"]["num_classes"]
        if codec["name"] == "float32":
            return columns["logits"]
        if codec["name"] == "float16":
            return columns["max_logit"][:, None] - columns["distances"].astype(np.float32)
        if codec["name"] == "int8":
            levels = np.append((np.arange(255) / 254) ** codec["power"], 0).astype(np.float32)
            near = levels[columns["codes"]] * columns["range"][:, None]
            return columns["max_logit"][:, None] - np.where(columns["codes"] == 255, columns["far"][:, None], near)
        assert codec["name"] == "topk", codec
        scale = columns["range"].astype(np.float64)[:, None]
        num_tail = num_classes - columns["indices"].shape[1]
        steps = np.cumsum(columns["drops"] * [1, 2, 4] * np.log(max(num_tail, 1)) / 255, axis=1)
        logits = np.empty((len(scale), num_classes), np.float32)
        for row, d in enumerate(scale + np.pad(steps, ((0, 0), (1, 0)))):
            knots = [2 * d[3] - d[2], d[3], d[2], d[1], d[0]]
            logits[row] = -np.interp(temperature**-0.5, [0, 8**-0.5, 0.5, 2**-0.5, 1], knots)
        kept = -scale * (columns["codes"] / 255) ** 2
        np.put_along_axis(logits, columns["indices"].astype(np.int64), kept.astype(np.float32), axis=1)
        return logits


def to_numpy(column):
    """An Arrow column as an array, a null label as -1; strings, and others that have nulls, as a list."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    if pa.types.is_signed_integer(column.type):
        column = column.fill_null(-1)
    return column.to_pylist() if pa.types.is_string(column.type) or column.null_count else column.to_numpy()


def describe(store, key):
    """Lines about one record: where it is, and each view of it."""
    names, offset = store.plan["class_names"], store.plan["class_space"]["offset"]
    for shard, row in store.find(key):
        records = store.records(shard)
        label = int(records["label"][row])
        yield f"{key:016x}: shard {shard} row {row}, {records['filename'][row]}, label {label}"
        for view in range(store.num_views):
            columns = {name: values[[row]] for name, values in store.views(shard, view).items()}
            likeliest = int(store.logits(columns)[0].argmax()) + offset
            drawn = {name: columns[name][0].tolist() for name in ("box", "flip", "mix_share") if name in columns}
            if "operations" in columns:
                drawn["operations"] = [OPERATIONS[code] for code in columns["operations"][0]]
            name = f" ({names[likeliest]})" if names and 0 <= likeliest < len(names) else ""
            yield f"  view {view}: {drawn or 'center'} -> {likeliest}{name}"


def summarize(store):
    """Lines about the store; the top-1 of view 0 is of the records that have a label."""
    plan, hits, labeled = store.plan, 0, 0
    for shard in range(len(store.shards)):
        labels, logits = store.records(shard)["label"], store.logits(store.views(shard, 0))
        hits += int(((logits.argmax(axis=1) + plan["class_space"]["offset"] == labels) & (labels >= 0)).sum())
        labeled += int((labels >= 0).sum())
    num_records = sum(records for _, records in store.shards)
    yield f"teacher {plan['teacher']['model']}, policy {plan['policy']['name']}, codec {plan['codec']['name']}"
    yield f"{num_records} records in {len(store.shards)} shards, {store.num_views} views, {len(store.indexes)} parts"
    yield f"view 0: the likeliest class is the label of {hits} of {labeled} records"


if __name__ == "__main__":
    opened = StoreReader(sys.argv[1])
    lines = describe(opened, int(sys.argv[2], 16)) if len(sys.argv) > 2 else summarize(opened)
    print("\n".join(lines))
