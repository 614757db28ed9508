"""What is counted of a pass: the trainer's figures, calibration by its definition, and no more memory than classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from teachonce.evaluation.findings.paired import PairedCounts
from teachonce.evaluation.findings.tally import NUM_MISTAKES, Findings, Tally
from teachonce.losses.metrics import ClassifierMetrics

NUM_CLASSES = 6


def random_batch(count: int = 500, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, NUM_CLASSES, (count,), generator=rng)
    logits = torch.randn(count, NUM_CLASSES, generator=rng) + 2 * torch.nn.functional.one_hot(labels, NUM_CLASSES)
    logits[:, 0] = -torch.inf  # a background class, that the model does not know
    return logits, labels, torch.arange(count)


def count_all(batch_size: int, others: bool = False) -> Findings:
    logits, labels, indices = random_batch()
    counts = [PairedCounts("other", "teacher", NUM_CLASSES)] if others else []
    tally = Tally(NUM_CLASSES, num_known_classes=5, names=[f"class{i}" for i in range(NUM_CLASSES)], others=counts)
    other_probs = torch.softmax(random_batch(seed=1)[0], dim=1)
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        tally.update(logits[part], labels[part], indices[part], [other_probs[part]] if others else [])
    return tally.findings()


@pytest.mark.parametrize("batch_size", [1, 64, 500])
def test_figures_are_the_trainers_and_those_of_a_plain_loop(batch_size: int) -> None:
    logits, labels, _ = random_batch()
    found = count_all(batch_size)
    metrics = ClassifierMetrics(NUM_CLASSES, top5_classes=5)
    metrics.update(logits, labels)
    expected = metrics.compute()
    # Means of 500 float32 numbers, added in another order.
    assert (found.top1, found.top5, found.ece) == pytest.approx(
        (expected["top1"], expected["top5"], expected["ece"]), abs=500 * 2**-24
    )
    probs, choices = logits.softmax(dim=1).numpy(), logits.argmax(dim=1)
    is_right = (choices == labels).numpy()
    for result in found.classes:
        of_class = (labels == result.label).numpy()
        assert (result.count, result.correct) == (of_class.sum(), is_right[of_class].sum())
        assert result.wrong_count == max(
            (
                int(((choices == other) & (labels == result.label)).sum())
                for other in range(NUM_CLASSES)
                if other != result.label
            ),
            default=0,
        )
    assert found.balanced_accuracy == pytest.approx(np.mean([r.correct / r.count for r in found.classes[1:]]))
    confidences = probs.max(axis=1)
    for at, (count, confidence, hits) in enumerate(found.reliability.tolist()):
        inside = (confidences >= at / 15) & (confidences < (at + 1) / 15 if at < 14 else confidences <= 1)
        assert (count, hits) == (inside.sum(), is_right[inside].sum())
        assert confidence == pytest.approx(confidences[inside].sum(), abs=1e-4)
    # The expected calibration error is what these bins say.
    counts, sums, hits = found.reliability.T
    filled = counts > 0
    assert found.ece == pytest.approx((abs(hits - sums)[filled] / counts.sum()).sum(), abs=1e-5)
    wrong = sorted(np.flatnonzero(~is_right).tolist(), key=lambda index: (-confidences[index], index))
    assert [answer.index for answer in found.mistakes] == wrong[:NUM_MISTAKES]
    assert found.mistakes[0].confidence == confidences[wrong[0]]


def test_batches_make_no_difference() -> None:
    one, other = (count_all(size, others=True).to_json() for size in (3, 500))
    for name in ("top1", "top5", "ece"):
        assert one.pop(name) == pytest.approx(other.pop(name), abs=500 * 2**-24)
    one.pop("reliability"), other.pop("reliability")  # sums, compared above
    assert one == other


def test_json_has_the_old_names_and_the_new() -> None:
    value = json.loads(json.dumps(count_all(64, others=True).to_json()))
    assert {"top1", "top5", "ece", "num_records"} < value.keys() and value["num_records"] == 500
    assert value["top1_low"] < value["top1"] < value["top1_high"]
    background = value["classes"][0]
    assert (background.pop("name"), background.pop("label")) == ("class0", 0)
    assert not any(background.values()) and background["accuracy"] is None and background["low"] is None
    assert sum(pair["count"] for pair in value["confusions"]) == sum(
        result["count"] - result["correct"] for result in value["classes"]
    )
    assert value["confusions"][0]["choice_name"] == f"class{value['confusions'][0]['choice']}"
    assert len(value["reliability"]) == 15 and value["reliability"][0]["accuracy"] is None
    assert value["teacher"]["teacher"] == "other" and "against" not in value


@pytest.mark.slow
def test_memory_is_that_of_the_classes_and_not_of_the_images() -> None:
    """50,000 images of 1000 classes, each batch forgotten: what is kept stays under 8 MB, and it takes seconds."""
    tally = Tally(1000, others=[PairedCounts("other", "model", 1000)])
    rng = torch.Generator().manual_seed(0)
    for start in range(0, 50_000, 500):
        labels = torch.randint(0, 1000, (500,), generator=rng)
        logits = torch.randn(500, 1000, generator=rng) + 4 * torch.nn.functional.one_hot(labels, 1000)
        tally.update(logits, labels, torch.arange(start, start + 500), [torch.softmax(logits.roll(1, 1), 1)])
    confusions = tally._confusions
    kept = [
        tally._counts,
        tally._correct,
        confusions._codes,
        confusions._counts,
        confusions._examples,
        *confusions._new,
    ]
    assert sum(array.nbytes for array in kept) < 8e6
    found = tally.findings()
    assert sum(result.count for result in found.classes) == 50_000 and 0.4 < found.top1 < 0.9
    assert len(found.mistakes) == NUM_MISTAKES and len(found.to_json()["confusions"]) == 100
