"""Options of the assembled ResNet: what cannot be meant is refused in one line."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from teachonce.errors import ConfigError
from teachonce.models.assembled_resnet.options import BackboneOptions


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depth": 34}, "depth 34: expected one of 50, 101, 152, 200"),
        ({"depth": 200, "big_little": (2, 4)}, "depth 200: expected one of 50, 101, 152$"),
        ({"num_filters": 6}, "num_filters 6: expected a multiple of 4"),
        ({"big_little": (3, 4)}, "alpha a divisor of num_filters"),
        ({"big_little": (0, 4)}, "integers of at least 1"),
        ({"anti_alias": ("max",)}, r"anti_alias \['max'\]"),
        ({"anti_alias": "sconv"}, "anti_alias 'sconv': expected a tuple"),
        ({"anti_alias_filter": 8}, "anti_alias_filter 8: expected 1 to 7"),
        ({"drop_block_keep": (1.0, 0.0)}, "drop_block_keep"),
        ({"global_pool": "max"}, "global_pool 'max': expected 'avg' or 'gem'"),
        ({"embedding_size": -1}, "embedding_size -1"),
        ({"bn_momentum": 1.0}, "bn_momentum 1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        BackboneOptions(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"use_resnet_d": True}, {"big_little": (2, 4)}])
def test_blurred_projections_without_effect_are_a_warning(options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="'proj' has no effect"):
        BackboneOptions(anti_alias=("proj",), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BackboneOptions(anti_alias=("proj",))


def test_blocks_and_strides_are_the_papers() -> None:
    assert BackboneOptions().num_blocks == (3, 4, 6, 3) and BackboneOptions().strides == (1, 2, 2, 2)
    assert BackboneOptions(depth=101, big_little=(2, 4)).num_blocks == (4, 8, 18, 3)
    large = BackboneOptions(depth=152, big_little=(1, 2), use_last_downsample=False)
    assert large.num_blocks == (5, 12, 30, 3) and large.strides == (2, 2, 1, 1)
