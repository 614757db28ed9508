"""The assembled ResNet's own layers against plain loops, then what must hold of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teachonce.models.assembled_resnet.layers import (
    DropBlock,
    GemPool,
    SelectiveConv,
    anti_aliased_downsample,
    resnet_d_pool,
    sample_kept,
)

# The rows of Pascal's triangle, as the paper on anti-aliasing prints them.
FILTERS = {
    1: [1],
    2: [1, 1],
    3: [1, 2, 1],
    4: [1, 3, 3, 1],
    5: [1, 4, 6, 4, 1],
    6: [1, 5, 10, 10, 5, 1],
    7: [1, 6, 15, 20, 15, 6, 1],
}


def noise(*size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(len(size)).normal(size=size).astype(np.float32))


def blur_plainly(image: NDArray[np.float64], filter_size: int) -> NDArray[np.float64]:
    """[H, W] -> [H / 2, W / 2]: the original's padding of (filter - 1) // 2 on both sides, by reflection."""
    taps = np.outer(FILTERS[filter_size], FILTERS[filter_size]) / np.sum(FILTERS[filter_size]) ** 2
    padded = np.pad(image, (filter_size - 1) // 2, mode="reflect")
    rows, columns = ((side - filter_size) // 2 + 1 for side in padded.shape)
    return np.array(
        [
            [
                (padded[2 * row : 2 * row + filter_size, 2 * column : 2 * column + filter_size] * taps).sum()
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


@pytest.mark.parametrize("filter_size", FILTERS)
def test_downsampling_is_the_plain_loop(filter_size: int) -> None:
    x = noise(2, 3, 8, 12)
    result = anti_aliased_downsample(3, filter_size)(x).numpy()
    for image, blurred in zip(x.numpy().reshape(-1, 8, 12), result.reshape(-1, 4, 6), strict=True):
        np.testing.assert_allclose(blurred, blur_plainly(image.astype(np.float64), filter_size), atol=1e-6)


@pytest.mark.parametrize("filter_size", FILTERS)
@pytest.mark.parametrize("side", [4, 7, 14])
def test_downsampling_halves_upwards_and_keeps_a_constant(filter_size: int, side: int) -> None:
    result = anti_aliased_downsample(2, filter_size)(torch.full((1, 2, side, side), 3.0))
    torch.testing.assert_close(result, torch.full((1, 2, -(-side // 2), -(-side // 2)), 3.0))


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_resnet_d_pool_is_the_plain_loop(side: int, stride: int) -> None:
    """Stride 1 is TensorFlow's 'SAME': a mean of the pixels there are. At stride 2 the added zeros count."""
    x = noise(1, 1, side, side)
    image = x[0, 0].numpy()
    num = -(-side // stride)
    windows = [
        [image[stride * i : stride * i + 2, stride * j : stride * j + 2] for j in range(num)] for i in range(num)
    ]
    expected = [[w.mean() if stride == 1 else w.sum() / 4 for w in row] for row in windows]
    np.testing.assert_allclose(resnet_d_pool(stride)(x)[0, 0].numpy(), expected, atol=1e-6)


def test_gem_is_the_root_of_the_mean_cube() -> None:
    x = noise(2, 3, 4, 5)
    expected = (np.maximum(x.numpy().astype(np.float64), 1e-6) ** 3).mean(axis=(2, 3)) ** (1 / 3)
    np.testing.assert_allclose(GemPool()(x).numpy(), expected, rtol=1e-5)
    # 100^3 is more than float16 can hold.
    half = GemPool()(torch.full((1, 1, 2, 2), 100.0, dtype=torch.float16))
    assert half.dtype == torch.float16 and half.item() == pytest.approx(100, rel=1e-3)


def test_selective_kernels_are_the_papers_formula() -> None:
    torch.manual_seed(0)
    layer = SelectiveConv(4, 80, torch.nn.BatchNorm2d, stride=2).eval()
    x = noise(2, 4, 6, 6)
    with torch.no_grad():
        first, second = torch.relu(layer.branches(x)).chunk(2, dim=1)
        squeezed = (first + second).mean((2, 3), keepdim=True)
        attention = layer.attention
        scores = attention.fc_select(torch.relu(attention.bn(attention.fc_reduce(squeezed))))
        share = torch.sigmoid(scores[:, :80] - scores[:, 80:])  # a softmax over two
        torch.testing.assert_close(layer(x), share * first + (1 - share) * second, rtol=1e-5, atol=1e-6)
    assert attention.fc_reduce.out_channels == 40 and attention.fc_reduce.bias is None
    assert SelectiveConv(4, 8, torch.nn.BatchNorm2d).attention.fc_reduce.out_channels == 32


def test_dropblock_does_nothing_in_evaluation_and_at_probability_0() -> None:
    layer, x = DropBlock(1.0), noise(2, 3, 14, 14)
    assert torch.equal(layer(x), x)
    layer.drop_prob.fill_(0.5)
    assert not torch.equal(layer(x), x)
    assert torch.equal(layer.eval()(x), x)
    assert not layer.state_dict()


def test_what_is_dropped_is_whole_blocks_inside_the_map() -> None:
    torch.manual_seed(0)
    kept = sample_kept((64, 12, 14), torch.tensor(0.3), 1.0, 7)
    assert kept.shape == (1, 64, 12, 14) and set(kept.unique().tolist()) == {0.0, 1.0}
    dropped = kept[0] == 0
    blocks = dropped.unfold(1, 7, 1).unfold(2, 7, 1).all(-1).all(-1)
    covered = torch.zeros_like(dropped)
    for channel, row, column in blocks.nonzero().tolist():
        covered[channel, row : row + 7, column : column + 7] = True
    assert torch.equal(covered, dropped)
    assert len({tuple(mask.flatten().tolist()) for mask in dropped}) > 32, "each channel has a mask of its own"


def test_as_many_are_dropped_as_asked() -> None:
    torch.manual_seed(0)
    # Blocks overlap at times, so a little less than the probability; 100,000 begins: sampling error below 2 %.
    dropped = 1 - sample_kept((2000, 14, 14), torch.tensor(0.1), 1.0, 7).mean()
    assert 0.085 < dropped < 0.1
    quarter = 1 - sample_kept((2000, 14, 14), torch.tensor(0.1), 0.25, 7).mean()
    assert 0.022 < quarter < 0.028


def test_dropblock_keeps_the_mean_and_is_the_same_for_the_whole_batch() -> None:
    torch.manual_seed(0)
    layer = DropBlock(1.0)
    layer.drop_prob.fill_(0.2)
    result = layer(torch.ones(3, 50, 14, 14))
    assert torch.equal(result[0], result[1]) and result.mean() == pytest.approx(1, rel=1e-5)
    small = layer(torch.ones(1, 500, 4, 4))  # smaller than a block: whole channels go
    assert set(small[0].amax((1, 2)).eq(small[0].amin((1, 2))).tolist()) == {True} and (small == 0).any()
