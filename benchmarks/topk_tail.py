"""What to keep of the classes that a sparse codec drops: total variation from the dense softened target.

    python -m benchmarks.topk_tail --data DIR [--logits FILE] [--out FILE]

DIR has ``squeezenet1_0-imagenet.safetensors`` (real ImageNet weights) and ``imagenet-sample.tar`` (250 ImageNet images,
one a class). The teacher looks at 8 random crops of each image, and at 50 of 20 of them; FILE keeps its logits for the
next run. Three sets of rows: these logits, the same times 2 (an over-confident teacher), and a network on the 10
handwritten digits of scikit-learn. Ways that share something between rows (a profile, a covariance) learn it from one
half of the images, and all ways are measured on the other half. About 6 minutes on one core, 5 of them the teacher's.

A cell has four figures: total variation, mean and largest over rows; bias, which is the total variation between the
means over all rows; and the mean total variation between the averages over an image's 50 views.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.codecs.topk import TopKCodec
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.rng import generator
from teachonce.store.store import Store
from teachonce.versions import library_versions

Array = NDArray[np.float64]
TEMPERATURES = (1.0, 2.0, 4.0)
NUM_VIEWS, NUM_MANY_VIEWS, NUM_MANY_IMAGES = 8, 50, 20


@dataclass(frozen=True)
class Rows:
    """Logits to measure on, logits [N, C] of other images to learn from, and the sums of the latter."""

    measured: Array
    """[N, C]."""
    many_views: Array | None
    """[images, views, C]."""
    profile: Array
    """Mean [C] over the rows learned from, each row less its own mean."""
    covariance: Array
    """[C, C] about the profile."""

    @classmethod
    def build(cls, measured: Array, learned: Array, many_views: Array | None) -> Rows:
        """The sums of ``learned`` [M, C] beside the rest."""
        centered = learned - learned.mean(axis=1, keepdims=True)
        profile = centered.mean(axis=0)
        return cls(measured, many_views, profile, np.cov(centered, rowvar=False))


Way = Callable[[Array, int, float, Rows], Array]
"""(logits [N, C], k, temperature, rows to learn from) -> target probabilities [N, C] at that temperature."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--logits", type=Path, help="an .npz file with the teacher's logits; made when missing")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 5, 10, 20, 50])
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"`python -m benchmarks.topk_tail`, {', '.join(f'{n} {v}' for n, v in library_versions().items())}"]
    for title, rows in read_rows(flags.data, flags.logits):
        lines += ["", f"## {title}", "", "| k | bytes | way | T = 1 | T = 2 | T = 4 |", "|---|---|---|---|---|---|"]
        for k in sorted({min(k, rows.measured.shape[1]) for k in flags.k}):
            for name, (num_bytes, way) in ways().items():
                cells = [measure(way, k, temperature, rows) for temperature in TEMPERATURES]
                lines.append(f"| {k} | {num_bytes(k)} | {name} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    print(table)
    if flags.out is not None:
        flags.out.write_text(table)


def ways() -> dict[str, tuple[Callable[[int], int], Way]]:
    """Name -> (bytes a row for a teacher of up to 65,536 classes, the way); 5 bytes for scale, tail and its drops."""
    return {
        "zero, renormalised": (lambda k: 3 * k + 2, keep_only),
        "one lumped class": (lambda k: 3 * k + 2, lump_tail),
        "uniform, mass right at T = 1": (lambda k: 3 * k + 2, partial(spread_tail, fit_temperature=1.0)),
        "uniform, mass right at each T": (lambda k: 3 * k + 5, spread_tail),
        "**codec topk**": (lambda k: 3 * k + 5, encode_and_decode),
        "profile of the store": (lambda k: 3 * k + 5, shared_profile),
        "profile, scaled a row": (lambda k: 3 * k + 7, partial(shared_profile, is_scaled=True)),
        "conditional Gaussian": (lambda k: 3 * k + 7, conditional_mean),
        "k samples, from p": (lambda k: 3 * k, sample_classes),
        "k samples, from p^0.5": (lambda k: 4 * k + 2, partial(sample_classes, power=0.5)),
        "5 k samples, from p": (lambda k: 3 * k, partial(sample_classes, num_samples=5)),
    }


def measure(way: Way, k: int, temperature: float, rows: Rows) -> str:
    """Mean and largest total variation, bias, and that of the average over 50 views, as a cell."""
    dense, stored = soften(rows.measured, temperature), way(rows.measured, k, temperature, rows)
    figures = total_variation(dense, stored)
    bias = total_variation(dense.mean(axis=0)[None], stored.mean(axis=0)[None])[0]
    cell = f"{figures.mean():.4f}, {figures.max():.3f}; {bias:.4f}"
    if rows.many_views is None:
        return cell
    flat = rows.many_views.reshape(-1, rows.many_views.shape[2])
    average = [
        probs.reshape(rows.many_views.shape).mean(axis=1)
        for probs in (soften(flat, temperature), way(flat, k, temperature, rows))
    ]
    return f"{cell}; {total_variation(*average).mean():.4f}"


def soften(logits: Array, temperature: float) -> Array:
    """softmax(logits / T); -inf has no mass."""
    exp = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return exp / exp.sum(axis=1, keepdims=True)


def total_variation(a: Array, b: Array) -> Array:
    """Half the sum of absolute differences, for each row."""
    return 0.5 * np.abs(a - b).sum(axis=1)


def is_kept(logits: Array, k: int) -> NDArray[np.bool_]:
    """The k largest of each row."""
    kept = np.zeros(logits.shape, bool)
    np.put_along_axis(kept, np.argsort(-logits, axis=1, kind="stable")[:, :k], True, axis=1)
    return kept


def log_mean_exp(logits: Array, where: NDArray[np.bool_], temperature: float) -> Array:
    """T * log(mean(exp(z / T))) [N, 1] over the classes of ``where``."""
    largest = np.where(where, logits, -np.inf).max(axis=1, keepdims=True)
    powers = np.exp(np.where(where, logits - largest, -np.inf) / temperature)
    return largest + temperature * np.log(powers.sum(axis=1, keepdims=True) / where.sum(axis=1, keepdims=True))


def keep_only(logits: Array, k: int, temperature: float, rows: Rows) -> Array:
    """No tail at all."""
    return soften(np.where(is_kept(logits, k), logits, -np.inf), temperature)


def lump_tail(logits: Array, k: int, temperature: float, rows: Rows) -> Array:
    """The tail as one class with its whole mass at T = 1; what that keeps when softened is spread over the tail."""
    kept = is_kept(logits, k)
    if kept.all():
        return soften(logits, temperature)
    num_tail = (~kept).sum(axis=1, keepdims=True)
    lump = log_mean_exp(logits, ~kept, 1.0) + np.log(num_tail)
    return soften(np.where(kept, logits, lump - temperature * np.log(num_tail)), temperature)


def spread_tail(logits: Array, k: int, temperature: float, rows: Rows, fit_temperature: float | None = None) -> Array:
    """One logit for the tail classes: with the right mass at ``fit_temperature``, else at the one asked for."""
    kept = is_kept(logits, k)
    if kept.all():
        return soften(logits, temperature)
    shared = log_mean_exp(logits, ~kept, fit_temperature or temperature)
    return soften(np.where(kept, logits, shared), temperature)


def encode_and_decode(logits: Array, k: int, temperature: float, rows: Rows) -> Array:
    """The codec as it is, with its rounding."""
    codec = TopKCodec(k=k, num_classes=logits.shape[1])
    decoded = codec.decode_logits(codec.encode_logits(logits.astype(np.float32)), temperature)
    return soften(decoded.astype(np.float64), temperature)


def shape_tail(logits: Array, kept: NDArray[np.bool_], shape: Array, temperature: float) -> Array:
    """Tail logits of a given shape, with the right mass at this temperature."""
    if kept.all():
        return soften(logits, temperature)
    offset = log_mean_exp(logits, ~kept, temperature) - log_mean_exp(shape, ~kept, temperature)
    return soften(np.where(kept, logits, shape + offset), temperature)


def shared_profile(logits: Array, k: int, temperature: float, rows: Rows, is_scaled: bool = False) -> Array:
    """The mean logit of each class over other images; scaled by least squares in each row if asked for."""
    kept = is_kept(logits, k)
    shape = np.broadcast_to(rows.profile, logits.shape)
    if is_scaled and not kept.all():
        num_tail = (~kept).sum(axis=1, keepdims=True)
        values, profile = (
            np.where(kept, 0.0, x - (np.where(kept, 0.0, x).sum(axis=1, keepdims=True) / num_tail))
            for x in (logits, shape)
        )
        shape = shape * ((values * profile).sum(axis=1) / np.maximum((profile**2).sum(axis=1), 1e-12))[:, None]
    return shape_tail(logits, kept, shape, temperature)


def conditional_mean(logits: Array, k: int, temperature: float, rows: Rows) -> Array:
    """Tail logits as a joint normal distribution of all classes predicts them from the kept ones and the row's mean."""
    kept = is_kept(logits, k)
    indices = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    covariance = rows.covariance
    # For the directions that few images do not show: twice the mean variance was better than half of it.
    noise = 2 * np.trace(covariance) / len(covariance) * np.eye(k)
    shape = np.empty_like(logits)
    for start in range(0, len(logits), 100):
        some = indices[start : start + 100]
        seen = logits[start : start + 100] - logits[start : start + 100].mean(axis=1, keepdims=True) - rows.profile
        seen = np.take_along_axis(seen, some, axis=1)
        weights = np.linalg.solve(covariance[some[:, :, None], some[:, None, :]] + noise, seen[:, :, None])
        shape[start : start + 100] = rows.profile + (weights * covariance[some]).sum(axis=1)
    return shape_tail(logits, kept, shape, temperature)


def sample_classes(
    logits: Array, k: int, temperature: float, rows: Rows, power: float = 1.0, num_samples: int = 1
) -> Array:
    """Random sampling: ``num_samples * k`` draws with replacement from p^power, each weighted by p_T / p^power.

    Anshumann et al. 2025, "Sparse Logit Sampling", arXiv:2503.16870: unbiased at T = 1 from p itself. At other
    temperatures the weights are normalized to sum 1, which is biased. Draws fall on the same classes again, so that
    several times k of them need about the bytes of k classes (LOG.md), in rows of unequal length.
    """
    proposal = soften(logits, 1 / power)
    counts = generator(0, "topk_tail", k).multinomial(num_samples * k, proposal)
    weights = np.where(counts > 0, counts / np.maximum(proposal, 1e-300) * soften(logits, temperature), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def read_rows(data: Path, cache: Path | None) -> Iterator[tuple[str, Rows]]:
    """(title, rows) of the three sets."""
    if cache is None or not cache.exists():
        logits = teacher_logits(data)
        if cache is not None:
            arrays: Any = logits  # not the flags that savez has too
            np.savez(cache, **arrays)
    else:
        logits = dict(np.load(cache))
    views, many_views = logits["views"].astype(np.float64), logits["many_views"].astype(np.float64)
    num_classes = views.shape[2]
    learned, measured = views[0::2].reshape(-1, num_classes), views[1::2].reshape(-1, num_classes)
    yield "SqueezeNet 1.0, 1000 classes", Rows.build(measured, learned, many_views)
    yield "the same times 2", Rows.build(2 * measured, 2 * learned, 2 * many_views)
    digits = digit_logits()
    yield "digits, 10 classes", Rows.build(digits[1::2], digits[0::2], None)


def teacher_logits(data: Path) -> dict[str, NDArray[np.float32]]:
    """``views`` [250, 8, C] and ``many_views`` [20, 50, C], the latter of images that nothing is learned from."""
    spec = f"torchvision:squeezenet1_0,weights={data / 'squeezenet1_0-imagenet.safetensors'},size=227,resize=256"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(data / "imagenet-sample.tar") as file:
            file.extractall(folder / "images", filter="data")
        for synset in sorted((folder / "images" / "train").iterdir())[1::2][:NUM_MANY_IMAGES]:
            shutil.copytree(synset, folder / "some" / "train" / synset.name)
        return {
            "views": extract_logits(folder / "images", spec, folder / "store", NUM_VIEWS),
            "many_views": extract_logits(folder / "some", spec, folder / "store-of-some", NUM_MANY_VIEWS),
        }


def extract_logits(images: Path, spec: str, out: Path, num_views: int) -> NDArray[np.float32]:
    """Logits [records, views, C] of random crops."""
    extract(
        ExtractConfig(
            data=images,
            teacher=spec,
            out=out,
            policy="crop",
            views=num_views,
            codec="float32",
            num_classes=1000,
            offset=0,
            gate_samples=0,
            decode_threads=1,
            device="cpu",
        )
    )
    store = Store(out)
    shards = range(len(store.shards))
    return np.stack(
        [
            np.concatenate([store.read_logits(shard, view, slice(None)) for shard in shards])
            for view in range(num_views)
        ],
        axis=1,
    )


def digit_logits() -> Array:
    """Log-probabilities [N, 10] of a network with 32 hidden units, on the half of the digits that it did not see."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    digits = load_digits()
    network = MLPClassifier((32,), random_state=0, max_iter=60, early_stopping=True)
    network.fit(digits.data[0::2] / 16, digits.target[0::2])
    return np.asarray(network.predict_log_proba(digits.data[1::2] / 16), np.float64)


if __name__ == "__main__":
    main()
