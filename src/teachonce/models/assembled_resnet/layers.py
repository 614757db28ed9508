"""Layers of the assembled ResNet that timm has not, or has otherwise than the paper's code.

Lee et al. 2020, arXiv:2001.06268, section 3. From timm come squeeze-and-excitation, the attention of selective kernels,
the blur and the 'SAME' maximum pool. What is here instead of timm's: its DropBlock draws one mask an image for all
channels and lets blocks overhang the border, the paper's draws one a channel for the whole batch, inside; its selective
kernels have a 3x3 and a 5x5 branch, the paper's are the two halves of one 3x3 convolution of twice the width; its blur
pads one pixel too much for filters of even size.

Padding is TensorFlow's 'fixed' one: by kernel size alone, never by input size, so it is symmetric for odd kernels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from timm.layers import BlurPool2d
from timm.layers.selective_kernel import SelectiveKernelAttn
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

NormLayer = Callable[[int], nn.Module]

MAX_FILTER = 7
"""Largest side of the anti-aliasing filter."""


def conv_bn(in_channels: int, out_channels: int, kernel: int, norm: NormLayer, *, stride: int = 1) -> nn.Sequential:
    """``conv`` without a bias and with half the (odd) kernel as padding, then ``bn``."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm(out_channels)))


class Subsample(nn.Module):
    """Every second pixel: the anti-aliased downsampling with a filter of one tap."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """[B, C, ceil(H / 2), ceil(W / 2)]."""
        return x[:, :, ::2, ::2]


def anti_aliased_downsample(channels: int, filter_size: int) -> nn.Module:
    """Blur with a binomial filter of 1 to 7 taps a side after reflect padding, keep every second pixel.

    Zhang 2019, arXiv:1904.11486. The result has ceil(H / 2) rows for every filter; the original, which pads
    (filter - 1) // 2 on both sides, agrees wherever H is even and has one row less for odd H and an even filter.
    """
    assert 1 <= filter_size <= MAX_FILTER
    if filter_size == 1:
        return Subsample()
    blur = BlurPool2d(channels, filt_size=filter_size, stride=2, pad_mode="reflect")
    before, after = (filter_size - 1) // 2, filter_size // 2
    blur.padding = [before, after, before, after]
    return blur


class SelectiveConv(nn.Module):
    """Selective kernels: two branches, weighted channel by channel with an attention that both agree on.

    Li et al. 2019, arXiv:1903.06586, as Lee et al. simplify it: the branches are the halves of one 3x3 convolution of
    doubled width. Ends after the weighted sum, without a further activation.
    """

    def __init__(self, in_channels: int, filters: int, norm: NormLayer, *, stride: int = 1):
        super().__init__()
        self.branches = conv_bn(in_channels, 2 * filters, 3, norm, stride=stride)
        # The attention's width: half the filters, but never below 32.
        self.attention = SelectiveKernelAttn(
            filters,
            2,
            attn_channels=max(filters // 2, 32),
            norm_layer=norm,  # type: ignore[arg-type]
        )

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C h w"]:
        """[B, filters, ceil(H / stride), ceil(W / stride)]."""
        branches = functional.relu(self.branches(x)).unflatten(1, (2, -1))
        return (branches * self.attention(branches)).sum(1)


class DropBlock(nn.Module):
    """Zero square blocks of a feature map while training, at other places in each channel; scale what is left.

    Ghiasi et al. 2018, arXiv:1810.12890. ``drop_prob`` is a buffer and not a number: a compiled network need not be
    compiled again when it changes. It starts at 0, where the layer changes nothing. Maps smaller than a block drop
    whole channels.
    """

    def __init__(self, gamma_scale: float, block_px: int = 7):
        super().__init__()
        self.gamma_scale = gamma_scale
        self.block_px = block_px
        self.drop_prob: Tensor
        self.register_buffer("drop_prob", torch.zeros(()), persistent=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The same map in evaluation; while training scaled to keep its mean over the mask."""
        if not self.training:
            return x
        kept = sample_kept(x.shape[1:], self.drop_prob, self.gamma_scale, self.block_px)
        # In float32 whatever the map is: a count of 100,000 does not fit float16.
        scale = kept.numel() / (kept.sum() + 1e-8)
        return x * (kept * scale).to(x.dtype)


def sample_kept(
    size: torch.Size | tuple[int, ...], drop_prob: Tensor, gamma_scale: float, block_px: int
) -> Float[Tensor, "1 C H W"]:
    """Draw which pixels of a map [C, H, W] are kept, 1 or 0, from PyTorch's global generator.

    Blocks are completely inside. Where one begins is drawn with gamma = gamma_scale * drop_prob / block area * map area
    / number of places, the paper's equation 1, which drops about gamma_scale * drop_prob of the pixels.
    """
    channels, height, width = size
    rows, columns = min(block_px, height), min(block_px, width)
    num_rows, num_columns = height - rows + 1, width - columns + 1
    gamma = drop_prob * (gamma_scale * height * width / (rows * columns) / (num_rows * num_columns))
    begins = (torch.rand(1, channels, num_rows, num_columns, device=drop_prob.device) < gamma).float()
    # A pixel is dropped where a block begins at it or up to a block's side before it.
    begins = functional.pad(begins, (columns - 1, columns - 1, rows - 1, rows - 1))
    return 1 - functional.max_pool2d(begins, (rows, columns), stride=1)


class GemPool(nn.Module):
    """Generalized mean over the pixels: (mean of x^3)^(1/3), of x clamped to 1e-6 or more.

    Radenovic et al. 2018, arXiv:1711.02512, with the exponent fixed. float32 whatever comes in.
    """

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
        """[B, C], in the type of ``x``."""
        return x.float().clamp(1e-6, 1e12).pow(3).mean((2, 3)).pow(1 / 3).to(x.dtype)


def resnet_d_pool(stride: int) -> nn.Module:
    """The mean over 2x2 pixels before a ResNet-D shortcut; He et al. 2018, arXiv:1812.01187.

    At stride 1 too, as in the original, with TensorFlow's 'SAME': one more row and column, which do not count in the
    mean; repeating the last ones comes to the same. At stride 2 the added zeros count (for odd sizes alone).
    """
    pad: nn.Module = nn.ReplicationPad2d((0, 1, 0, 1)) if stride == 1 else nn.ZeroPad2d((0, 1, 0, 1))
    return nn.Sequential(pad, nn.AvgPool2d(2, stride))
