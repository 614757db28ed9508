"""Resuming: the same plan as the one that a folder was started with, or a refusal that says what differs.

Every program that can be interrupted writes down first what it is going to make: a JSON object, the plan. The same
command again finds the plan and resumes; another command, and a folder that holds something else, are refused before
anything is touched. Several processes may begin at once: the first one's plan counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachonce.errors import PlanMismatchError, TeachonceError
from teachonce.storage.files import open_storage, read_json, write_json

SHOWN_CHARACTERS = 80
"""Of a value in a message; of longer lists it says how many entries differ."""
_HASH = re.compile(r"[0-9a-f]{16,128}(\+[0-9a-f]{16,128})*")
Say = str | Callable[[Mapping[str, Any], Mapping[str, Any]], str]
"""What a hash is of, such as "the store (--store)"; or a phrase from the two objects that the hashes are in."""


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """Where a program keeps the plan of what it makes in ``folder``, and how messages name it."""

    folder: Path
    name: str
    foreign: TeachonceError
    """What is raised where the folder is a file, or holds something that is not this program's and no plan."""
    is_foreign: Callable[[Sequence[str]], bool] = bool
    """Whether names in a folder without plan (hidden ones and the plan's left out) are something else's; here: any."""
    what: str = "plan"
    advice: str = "choose another --out, or the same settings"
    hashes: Mapping[str, Say] = field(default_factory=dict)
    """Settings that identify an input by its hash, which says nothing to people, and how messages name them."""
    advice_on_inputs: str = ""
    """``advice`` where only such settings differ; "": the same."""
    may_differ: frozenset[str] = frozenset()
    """Settings that may change between two calls; "a.b" is b of the object a."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What settings were before there was an option: an older plan lacks them."""

    def read(self) -> dict[str, Any] | None:
        """The plan that is there, None where there is none."""
        path = self.folder / self.name
        if not open_storage(self.folder).has(self.name):
            return None
        plan = read_json(path)
        if not isinstance(plan, dict):
            raise TeachonceError(f"{path}: is not a {self.what}; expected a JSON object; choose another --out")
        return plan

    def check_folder(self) -> None:
        """Raise ``foreign`` where the folder is neither this program's nor free."""
        storage = open_storage(self.folder)
        is_foreign = storage.has()
        if storage.is_folder():
            listing = storage.list_folder()
            names = [name for name in (*listing.files, *listing.folders) if name[0] != "." and name != self.name]
            is_foreign = self.is_foreign(names)
        # Another process may begin at the same time, so the plan is checked last.
        if is_foreign and not storage.has(self.name):
            raise self.foreign

    def check(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        """The plan that is there, None where the folder is free; nothing is written.

        Raises PlanMismatchError, naming each setting that differs, where it is another than ``plan``, and ``foreign``
        as ``check_folder``.
        """
        old = self.read()
        if old is None:
            self.check_folder()
            return None
        known = {name: value for name, value in self.defaults.items() if name in plan}
        # As JSON has it: tuples are lists there.
        new = json.loads(json.dumps(plan))
        differences = plan_differences(known | old, new, self.may_differ, hashes=self.hashes)
        if not differences:
            return old
        found = "; ".join(differences)
        if self.hashes and not plan_differences(known | old, new, self.may_differ | self.hashes.keys()):
            advice = self.advice_on_inputs or self.advice
            raise PlanMismatchError(f"{self.folder}: was started with other inputs: {found}; {advice}")
        raise PlanMismatchError(f"{self.folder}: was started with a different {self.what}: {found}; {self.advice}")

    def begin(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """``check``, then write the plan where there is none; returns the plan that is there now."""
        old = self.check(plan)
        if old is None:
            write_json(self.folder / self.name, dict(plan), overwrite=False)
            old = self.check(plan)
            assert old is not None, self.folder
        return old


def plan_differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    may_differ: frozenset[str] = frozenset(),
    prefix: str = "",
    *,
    words: tuple[str, str] = ("was", "now"),
    hashes: Mapping[str, Say] | None = None,
) -> list[str]:
    """One phrase for each setting in which two JSON objects differ, those aside that may, in the order of ``new``.

    Of a hash it says that it is another one, with the words that ``hashes`` has for the setting.
    """
    hashes = hashes or {}
    phrases: list[str] = []
    for key in dict.fromkeys([*new, *old]):
        name, before, now = prefix + key, old.get(key), new.get(key)
        if before == now or name in may_differ:
            continue
        if {type(before), type(now)} in ({dict}, {dict, type(None)}):
            # A part that only one of them has differs by each of its settings.
            phrases += plan_differences(before or {}, now or {}, may_differ, f"{name}.", words=words, hashes=hashes)
        elif name in hashes or _is_hash(before) or _is_hash(now):
            say = hashes.get(name, name)
            phrases.append(_describe_hash(say, before, now, words) if isinstance(say, str) else say(old, new))
        elif isinstance(before, list) and isinstance(now, list) and len(str(before)) > SHOWN_CHARACTERS:
            num_different = sum(a != b for a, b in zip(before, now, strict=False)) + abs(len(before) - len(now))
            phrases.append(f"{name}: {num_different} of {max(len(before), len(now))} entries differ")
        else:
            phrases.append(f"{name} {words[0]} {_brief(before)}, {words[1]} {_brief(now)}")
    return list(dict.fromkeys(phrases))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _describe_hash(what: str, before: Any, now: Any, words: tuple[str, str]) -> str:
    first, second = ("then", "now") if words == ("was", "now") else words
    if before is None or now is None:
        return f"{what}: none {first if before is None else second}"
    return f"{what}: not the same {first} and {second}"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
