"""A teacher's stored logits: plan, Arrow files, manifest, and whether records belong to them.

Needs numpy, pyarrow, xxhash and msgspec alone: must not import Pillow, torch or tyro.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.store.plan import Plan as Plan
    from teachonce.store.store import Store as Store

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "Plan": "plan",
        "Store": "store",
    },
)
