"""The teacher is run once: units, the gate before, the verdict after, and the plan of it all.

Must not import Lightning.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.extraction.config import ExtractConfig as ExtractConfig
    from teachonce.extraction.config import PlanConfig as PlanConfig
    from teachonce.extraction.config import VerifyConfig as VerifyConfig
    from teachonce.extraction.verify import Verdict as Verdict

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "ExtractConfig": "config",
        "PlanConfig": "config",
        "Verdict": "verify",
        "VerifyConfig": "config",
    },
)
