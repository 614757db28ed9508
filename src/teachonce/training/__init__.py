"""Training a student: options, the module, callbacks, recipes, the report.

The only package that imports Lightning.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.training.config import TrainConfig as TrainConfig
    from teachonce.training.student_module import StudentModule as StudentModule

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "StudentModule": "student_module",
        "TrainConfig": "config",
    },
)
