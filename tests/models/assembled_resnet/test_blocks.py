"""Blocks and stages of the assembled ResNet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from teachonce.models.assembled_resnet.blocks import (
    BigLittleStage,
    Bottleneck,
    build_blocks,
    build_projection,
    build_stem,
)
from teachonce.models.assembled_resnet.options import BackboneOptions


def test_a_bottleneck_is_its_formula() -> None:
    torch.manual_seed(0)
    block = Bottleneck(32, 8, BackboneOptions(num_filters=8)).eval()
    x = torch.randn(2, 32, 6, 6)
    with torch.no_grad():
        expected = torch.relu(x + block.conv3(torch.relu(block.conv2(torch.relu(block.conv1(x))))))
        assert torch.equal(block(x), expected)
        # The shortcut alone, where the last norm scales with 0.
        block.conv3.bn.weight.zero_()
        assert torch.equal(block(x), torch.relu(x))


@pytest.mark.parametrize("side", [8, 7])
@pytest.mark.parametrize("kind", ["plain", "resnet_d", "big_little"])
def test_projections_pool_as_the_original_does(kind: str, side: int) -> None:
    options = BackboneOptions(num_filters=8)
    projection = build_projection(4, 6, 2, kind, options).eval()  # type: ignore[arg-type]
    assert projection(torch.randn(1, 4, side, side)).shape == (1, 6, 4, 4)
    names = [type(layer).__name__ for layer in projection]
    assert names[-2:] == ["Conv2d", "BatchNorm2d"]
    assert (len(names) == 2) == (kind == "plain")
    assert projection.conv.stride == ((2, 2) if kind == "plain" else (1, 1))


def test_blurred_projections_and_convolutions_lose_their_stride() -> None:
    options = BackboneOptions(num_filters=8, anti_alias=("proj", "sconv"), anti_alias_filter=5)
    block = build_blocks(8, 8, 1, 2, "plain", options, None)[0]
    strides = {module.stride for module in block.modules() if isinstance(module, nn.Conv2d)}
    assert strides == {(1, 1)}
    assert block(torch.randn(1, 8, 9, 9)).shape == (1, 32, 5, 5)
    # A stage at stride 1 has nothing to blur.
    assert isinstance(build_blocks(8, 8, 1, 1, "plain", options, None)[0].blur, nn.Identity)


def test_the_big_branch_ends_without_its_activation() -> None:
    torch.manual_seed(0)
    stage = BigLittleStage(8, 8, 3, 2, BackboneOptions(num_filters=8, big_little=(2, 4)), None)
    x = torch.randn(2, 8, 16, 16)
    assert (stage.big(x) < 0).any()
    assert len(stage.big) == 2 and len(stage.little) == 2 and len(stage.merge) == 1
    assert stage(x).shape == (2, 32, 8, 8)
    # 8 blocks and beta 2: the big branch has all but the merging one, the little one 8 / 2 - 1 and its widening.
    longer = BigLittleStage(8, 8, 8, 1, BackboneOptions(num_filters=8, big_little=(1, 2)), None)
    assert len(longer.big) == 7 and len(longer.little) == 3 + 1


@pytest.mark.parametrize("side", [14, 15, 9])
def test_stages_take_any_size(side: int) -> None:
    stage = BigLittleStage(8, 8, 3, 2, BackboneOptions(num_filters=8, big_little=(2, 4)), None).eval()
    assert stage(torch.randn(1, 8, side, side)).shape[-1] == -(-side // 2)


@pytest.mark.parametrize("side", [64, 63])
def test_the_plain_stem_pools_as_tensorflow_does(side: int) -> None:
    """'SAME' pads an even size at its end alone: the first window begins at pixel 0."""
    stem = build_stem(3, BackboneOptions(num_filters=8)).eval()
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        before = torch.relu(stem.bn(stem.convs(x)))
        pooled = stem(x)
    assert before.shape[-1] == 32 and pooled.shape[-1] == 16
    assert torch.equal(pooled[..., 0, 0], before[..., :3, :3].amax((2, 3)))
    assert torch.equal(pooled[..., -1, -1], before[..., 30:, 30:].amax((2, 3)))
