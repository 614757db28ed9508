"""Folders of a place that is known by a list of its files."""

from __future__ import annotations

from collections.abc import Iterable

from teachonce.storage.storage import Listing


def list_folders(names: Iterable[str]) -> dict[str, Listing]:
    """What lies directly in each folder, by its name; "" is the place itself, and in it where there are files."""
    folders: dict[str, Listing] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        is_new = folder not in folders
        folders.setdefault(folder, Listing([], [])).files.append(base)
        while is_new and folder:
            parent, _, base = folder.rpartition("/")
            is_new = parent not in folders
            folders.setdefault(parent, Listing([], [])).folders.append(base)
            folder = parent
    return folders
