"""What was done to the commands, by its name, for the table of the end."""

from __future__ import annotations

from collections import Counter

counts: Counter[str] = Counter()
