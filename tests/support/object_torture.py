"""One round of every operation of a storage, compared with what it must give: for a storage that is disturbed."""

from __future__ import annotations

import threading

import numpy as np

from teachonce.storage.storage import Storage


def disturbed_round(storage: Storage, rng: np.random.Generator) -> str | None:
    """Write, read, list and remove in a folder of its own; what came out wrong, or None. An error passes through."""
    folder = f"round-{int(rng.integers(1 << 60)):x}"
    files = {f"{folder}/{number}.bin": rng.bytes(int(rng.choice([0, 3, 70_000, 300_000]))) for number in range(3)}
    for number, (name, content) in enumerate(files.items()):
        with storage.put(name) if number % 2 else storage.put_if_absent(name) as file:
            file.write(content)
    for name, content in files.items():
        start = int(rng.integers(len(content) + 1))
        if storage.read(name) != content:
            return f"read of {len(content)} bytes"
        if storage.open_reader(name).read(start, 100_000) != content[start : start + 100_000]:
            return f"a range of {len(content)} bytes from {start} on"
        if storage.status(name).num_bytes != len(content) or not storage.has(name):
            return f"the status of {len(content)} bytes"
        with storage.stream(name) as stream:
            if stream.read() != content:
                return f"{len(content)} bytes in order"
    wrong = _race(storage, f"{folder}/raced.bin", rng)
    if wrong is not None:
        return wrong
    expected = sorted([*(name.rpartition("/")[2] for name in files), "raced.bin"])
    if sorted(storage.list_folder(folder).files) != expected or sorted(storage.walk(folder)) != expected:
        return f"the names {sorted(storage.walk(folder))}, expected {expected}"
    for name in (*files, f"{folder}/raced.bin"):
        storage.delete(name)
    return f"{folder} is still there" if storage.is_folder(folder) else None


def _race(storage: Storage, name: str, rng: np.random.Generator) -> str | None:
    """Three writers of one name at once: one's bytes are there, and all see them."""
    bodies = [rng.bytes(20_000) for _ in range(3)]
    seen: list[bytes] = []

    def write(body: bytes) -> None:
        with storage.put_if_absent(name) as file:
            file.write(body)
        seen.append(storage.read(name))

    threads = [threading.Thread(target=write, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(seen) != len(bodies):
        return f"{len(bodies) - len(seen)} of {len(bodies)} writers at once had an error"
    return None if len(set(seen)) == 1 and seen[0] in bodies else "writers at once see different bytes"
