"""Stems, blocks and stages of the assembled ResNet, from its options.

The order in which a module makes its layers is the order in which the original TensorFlow code makes its variables;
``tf_weights`` relies on it. Beside each class stands the paper it is from; where the original code and a paper
differ, it is the code's behavior, because its weights are to load.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from timm.layers import SEModule, create_pool2d
from torch import Tensor, nn
from torch.nn import functional

from teachonce.models.assembled_resnet.layers import (
    NormLayer,
    SelectiveConv,
    anti_aliased_downsample,
    conv_bn,
    resnet_d_pool,
)
from teachonce.models.assembled_resnet.options import BackboneOptions, Shortcut

if TYPE_CHECKING:
    from jaxtyping import Float

EXPANSION = 4
"""A block ends with so many times the filters it works with."""


def build_projection(
    in_channels: int,
    out_channels: int,
    stride: int,
    kind: Shortcut,
    options: BackboneOptions,
) -> nn.Sequential:
    """The shortcut of a stage's first block: perhaps a pool, then a 1x1 convolution and its norm."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if kind == "resnet_d":
        layers["pool"] = resnet_d_pool(stride)
    elif kind == "big_little" and stride > 1:
        layers["pool"] = nn.AvgPool2d(3, stride, padding=1)
    elif kind == "plain" and stride > 1 and "proj" in options.anti_alias:
        layers["pool"] = anti_aliased_downsample(in_channels, options.anti_alias_filter)
    conv_stride = stride if kind == "plain" and "pool" not in layers else 1
    layers.update(conv_bn(in_channels, out_channels, 1, options.norm, stride=conv_stride).named_children())
    return nn.Sequential(layers)


class Bottleneck(nn.Module):
    """1x1, 3x3 (or selective kernels), 1x1 to four times the filters, plus the shortcut.

    ``projection`` is the shortcut's, None where that is the input itself. DropBlock follows every norm.
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        options: BackboneOptions,
        *,
        projection: nn.Module | None = None,
        stride: int = 1,
        drop: nn.Module | None = None,
        has_last_relu: bool = True,
    ):
        super().__init__()
        # The order of the layers is the order in which the original makes its variables (tf_weights).
        norm, out_channels = options.norm, filters * EXPANSION
        is_blurred = stride > 1 and "sconv" in options.anti_alias
        stride = 1 if is_blurred else stride
        self.projection = projection
        self.conv1 = conv_bn(in_channels, filters, 1, norm)
        self.conv2: nn.Module
        if options.use_sk:
            self.conv2 = SelectiveConv(filters, filters, norm, stride=stride)
        else:
            self.conv2 = conv_bn(filters, filters, 3, norm, stride=stride)
        self.blur = anti_aliased_downsample(filters, options.anti_alias_filter) if is_blurred else nn.Identity()
        self.conv3 = conv_bn(filters, out_channels, 1, norm)
        self.se = (
            SEModule(out_channels, rd_channels=max(1, out_channels // 16), bias=False)
            if options.use_se
            else nn.Identity()
        )
        self.drop = drop if drop is not None else nn.Identity()
        # Selective kernels end in a weighted sum of activations.
        self.has_relu2 = not options.use_sk
        self.has_last_relu = has_last_relu

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C h w"]:
        """[B, 4 * filters, ceil(H / stride), ceil(W / stride)]."""
        shortcut = x if self.projection is None else self.drop(self.projection(x))
        x = functional.relu(self.drop(self.conv1(x)))
        x = self.drop(self.conv2(x))
        if self.has_relu2:
            x = functional.relu(x)
        x = self.se(self.drop(self.conv3(self.blur(x)))) + shortcut
        return functional.relu(x) if self.has_last_relu else x


def build_blocks(
    in_channels: int,
    filters: int,
    num_blocks: int,
    stride: int,
    kind: Shortcut,
    options: BackboneOptions,
    drop: nn.Module | None,
    *,
    has_last_relu: bool = True,
) -> list[nn.Module]:
    """Blocks of which the first projects its shortcut and takes the stride."""
    out_channels = filters * EXPANSION
    projection = build_projection(in_channels, out_channels, stride, kind, options)
    blocks = [Bottleneck(in_channels, filters, options, projection=projection, stride=stride, drop=drop)]
    for index in range(1, num_blocks):
        # As in the original, a branch of a single block ends with its activation in any case.
        has_relu = has_last_relu or index < num_blocks - 1
        blocks.append(Bottleneck(out_channels, filters, options, drop=drop, has_last_relu=has_relu))
    return list(blocks)


class BigLittleStage(nn.Module):
    """A deep branch at half the resolution and a small one at full, added, then merged by one more block.

    Chen et al. 2018, arXiv:1807.03848. The big branch comes back by repeating its pixels. Sizes need not be even: the
    last row of an odd one has its pixels once.
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        num_blocks: int,
        stride: int,
        options: BackboneOptions,
        drop: nn.Module | None,
    ):
        super().__init__()
        assert options.big_little is not None
        alpha, beta = options.big_little
        build = partial(build_blocks, kind="big_little", options=options, drop=drop)
        out_channels, little_filters = filters * EXPANSION, filters // alpha
        self.big = nn.Sequential(*build(in_channels, filters, num_blocks=num_blocks - 1, stride=2, has_last_relu=False))
        self.little = nn.Sequential(
            *build(in_channels, little_filters, num_blocks=max(1, num_blocks // beta - 1), stride=1),
            conv_bn(little_filters * EXPANSION, out_channels, 1, options.norm),
        )
        self.merge = nn.Sequential(*build(out_channels, filters, num_blocks=1, stride=stride))

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C h w"]:
        """[B, 4 * filters, ceil(H / stride), ceil(W / stride)]."""
        big, little = self.big(x), self.little(x)
        big = functional.interpolate(big, size=little.shape[-2:], mode="nearest")
        return self.merge(functional.relu(big + little))


class BigLittlePool(nn.Module):
    """Big-Little's way from the stem to a quarter of the resolution, in place of a maximum pool."""

    def __init__(self, channels: int, alpha: int, norm: NormLayer):
        super().__init__()
        narrow = channels // alpha
        self.big = conv_bn(channels, channels, 3, norm, stride=2)
        self.little = nn.Sequential(
            conv_bn(channels, narrow, 3, norm),
            nn.ReLU(),
            conv_bn(narrow, narrow, 3, norm, stride=2),
            nn.ReLU(),
            conv_bn(narrow, channels, 1, norm),
        )
        self.merge = conv_bn(channels, channels, 1, norm)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """[B, C, ceil(H / 2), ceil(W / 2)]."""
        return functional.relu(self.merge(functional.relu(self.big(x) + self.little(x))))


def build_stem(in_chans: int, options: BackboneOptions) -> nn.Sequential:
    """Images to a quarter of their resolution: ``convs``, ``bn``, ``relu``, ``pool``."""
    filters, norm = options.num_filters, options.norm
    if options.use_resnet_d:
        narrow = filters // 2
        convs = nn.Sequential(
            *conv_bn(in_chans, narrow, 3, norm, stride=2),
            nn.ReLU(),
            *conv_bn(narrow, narrow, 3, norm),
            nn.ReLU(),
            nn.Conv2d(narrow, filters, 3, padding=1, bias=False),
        )
    else:
        convs = nn.Sequential(nn.Conv2d(in_chans, filters, 7, 2, padding=3, bias=False))
    if options.big_little is None:
        pool = create_pool2d("max", 3, 2, padding="same")
    else:
        pool = BigLittlePool(filters, options.big_little[0], norm)
    return nn.Sequential(OrderedDict(convs=convs, bn=norm(filters), relu=nn.ReLU(), pool=pool))
