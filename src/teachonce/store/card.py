"""README.md beside the manifests: a store's card, for people who find it on a server or in a bucket.

It says what the store holds, whose logits they are and on which terms, and the commands to use it. Readers of stores
never read it: it is put when a store is complete and again when more was added, and editing or removing it changes no
store. The license of the teacher, which nothing else of a store says, is kept here alone, in the lines at the top that
sites read (YAML, between ``---``), and stays when the card is renewed. No image is in a store, so none is on its card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teachonce.engine.prefetch import prefetch
from teachonce.errors import TeachonceError
from teachonce.records.image_listing import known_as
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from teachonce.store.plan import teacher_name
from teachonce.store.store import Store
from teachonce.terminal import one_line, plural, shorten_words, visible

CARD_NAME = "README.md"
MAX_LICENSE_CHARACTERS = 2000
_LICENSE = re.compile(r'^teacher_license: (".*")$', re.MULTILINE)
_FINGERPRINT = re.compile(r"^fingerprint: ([0-9a-f]{32})$", re.MULTILINE)


def write_card(store: Store, teacher_license: str | None = None) -> None:
    """Put the card of a complete store; without ``teacher_license`` the license stays that an older card has.

    One that is up to date stays as it is.
    """
    storage = open_storage(store.path)
    old = _read(storage)
    if teacher_license is None:
        teacher_license = _license_of(old)
    match = _FINGERPRINT.search(old)
    if match is None or match[1] != store.fingerprint or _license_of(old) != teacher_license:
        _put(storage, render_card(store, teacher_license))


def copy_card(source: Path, target: Path) -> None:
    """Put the card of a store that was copied: the source's own, or, of a part of it, one with the same license."""
    storage, store = open_storage(target), Store(target)
    card = _read(open_storage(source))
    match = _FINGERPRINT.search(card)
    if match is None or match[1] != store.fingerprint:
        card = render_card(store, _license_of(card))
    if _read(storage) != card:
        _put(storage, card)


def render_card(store: Store, teacher_license: str | None) -> str:
    """The text of the card, which depends on the store and the license alone."""
    top = [] if teacher_license is None else [f"teacher_license: {json.dumps(teacher_license, ensure_ascii=False)}"]
    rows = "\n".join(f"| {name} | {text} |" for name, text in _rows(store, teacher_license))
    views = plural(store.num_views, "view")
    head = "\n".join(["---", *top, f"fingerprint: {store.fingerprint}", "---"])
    return f"""{head}
# {plural(store.num_records, "record")} x {views}: logits of {_code(teacher_name(store.plan.teacher))}

The predictions of a teacher on a dataset, extracted once with teachonce, to train students from. The store holds
logits, view parameters, labels, file names and hashes of the images, but no images: to train, you also need the data.

| | |
|---|---|
{rows}

STORE is the folder of this file: a local folder, an `s3://`, `gs://` or `az://` address, or that of a web server.
RECORDS is the same data as TFRecord shards or class folders, in any order.

```bash
teachonce train --data RECORDS --store STORE --student timm:resnet18 --out RUN
teachonce inspect STORE
teachonce verify STORE --data RECORDS --teacher none
teachonce copy STORE DIR
```
"""


def describe_entry(entry: Mapping[str, Any]) -> str:
    """A policy's or a codec's entry of the plan: name (parameters), those of its parts too."""
    rest = ", ".join(_describe_parameter(key, value) for key, value in entry.items() if key != "name")
    return f"{entry['name']} ({rest})" if rest else str(entry["name"])


def _describe_parameter(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key} ({', '.join(_describe_parameter(*item) for item in value.items())})"
    if isinstance(value, list):
        return f"{key} {' to '.join(_describe_number(item) for item in value)}"
    return f"{key} {_describe_number(value)}"


def _describe_number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rows(store: Store, teacher_license: str | None) -> Iterator[tuple[str, str]]:
    plan, teacher = store.plan, store.plan.teacher
    weights = f", weights with SHA-256 {_code(teacher['weights_sha256'])}" if "weights_sha256" in teacher else ""
    precision = f", computed in {_code(teacher['precision'])}" if "precision" in teacher else ""
    yield "teacher", f"{_code(teacher_name(teacher))}, {store.class_space.num_classes:,} classes{weights}{precision}"
    yield (
        "its license and terms",
        _plain(teacher_license) if teacher_license else "not given: ask the author of the store",
    )
    yield (
        "data",
        f"split {_code(known_as(plan.data['split']))}, {plural(store.num_records, 'record')} in "
        f"{plural(len(store.shards), 'shard')}, "
        f"{plan.data_classes:,} labels; the teacher's first class is label {store.class_space.offset}",
    )
    yield "views", f"{store.num_views} a record, drawn by {_code(describe_entry(plan.policy))}"
    num_bytes = store.num_bytes()
    a_view = num_bytes / max(store.num_records * store.num_views, 1)
    yield "codec", f"{_code(describe_entry(plan.codec))}, {a_view:,.0f} bytes a view"
    yield "accuracy", _describe_accuracy(store)
    yield "bytes", f"{num_bytes:,}"
    for made in store.made_by:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(made.get("versions", {}).items()))
        yield "made by", f"{_code(versions or 'unknown versions')} on {_code(str(made.get('device', 'unknown')))}"


def _describe_accuracy(store: Store) -> str:
    if store.policy.mix is not None:
        return "not given: views are mixed, and a mixed view has no single label"
    files = [(shard, group) for group in store.plan.view_groups for shard in range(len(store.shards))]
    files = [(shard, group) for shard, group in files if group[0] < store.num_views]
    threads = open_storage(store.path).requests_at_once - 1
    found = list(prefetch(files, lambda file: store.read_hits(*file), threads=threads, ahead=2 * threads))
    if None in found:
        return "not recorded when the store was made; `teachonce inspect STORE` measures it"
    shards = range(len(store.shards))
    num_labeled = sum(prefetch(shards, store.count_labeled, threads=threads, ahead=2 * threads))
    if not num_labeled:
        return "not known: the records have no labels"
    num_hits = sum(map(sum, filter(None, found)))
    part = "" if num_labeled == store.num_records else f" of {num_labeled:,} labeled records"
    return f"top-1 {num_hits / (num_labeled * store.num_views):.4f} of the stored logits{part}, over all views"


def _license_of(card: str) -> str | None:
    match = _LICENSE.search(card)
    try:
        found = None if match is None else json.loads(match[1])
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def _read(storage: Storage) -> str:
    """The card that is there; a damaged one, or none, is an empty text."""
    try:
        return storage.read(CARD_NAME).decode(errors="replace") if storage.has(CARD_NAME) else ""
    except TeachonceError:
        return ""


def _put(storage: Storage, card: str) -> None:
    with storage.put(CARD_NAME) as file:
        file.write(card.encode())


def _code(text: str) -> str:
    """A name as Markdown code, in a table too."""
    return "`" + one_line(text).replace("`", "'").replace("|", "/") + "`"


def _plain(text: str) -> str:
    """A user's text in a table: one line that makes no tags, links or images."""
    return re.sub(r"([\\`*_\[\]<>|!#])", r"\\\1", shorten_words(visible(" ".join(text.split()))))
