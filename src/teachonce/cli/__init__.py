"""The command line: words and files to options, help, and the programs that chain others: ablate, demo, export.

The only package that imports tyro.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.cli.config import AblateConfig as AblateConfig
    from teachonce.cli.config import DemoConfig as DemoConfig

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "AblateConfig": "config",
        "DemoConfig": "config",
    },
)
