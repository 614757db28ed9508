"""What a view is: its parameters, how they are drawn, how they are stored.

No pixels here: must not import Pillow, records or stores.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.views.columns import ViewLayout as ViewLayout
    from teachonce.views.draw import sample_view as sample_view
    from teachonce.views.policy import CenterPolicy as CenterPolicy
    from teachonce.views.policy import CropPolicy as CropPolicy
    from teachonce.views.view import View as View

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "CenterPolicy": "policy",
        "CropPolicy": "policy",
        "View": "view",
        "ViewLayout": "columns",
        "sample_view": "draw",
    },
)
