"""What an online teacher is about to teach, measured before the training as ``store_warnings`` measures a store.

The teacher is asked about the views of the first epoch, of records that are spread evenly over the data. It has not
been asked before, so these are few: the teacher of a store has been asked about all of them.
"""

from __future__ import annotations

import numpy as np

from teachonce.codecs.softmax import log_softmax
from teachonce.data.dataset import KDDataset
from teachonce.records.source import NO_LABEL
from teachonce.training.guards.store_warnings import StoreStats, judge_labels
from teachonce.training.student_module import OnlineTeacher

NUM_ONLINE_ROWS = 256
"""Views that are looked at: the standard error of an accuracy is at most 3.1 points."""


def measure_online_stats(data: KDDataset, online: OnlineTeacher, temperature: float, batch_size: int) -> StoreStats:
    """Ask about at most ``NUM_ONLINE_ROWS`` views; those that are mixed are not judged by labels.

    Logits are of the student's class space, as the loss sees them. Raises LogitsError for a teacher that gives NaN.
    """
    indices = np.unique(np.linspace(0, len(data) - 1, min(len(data), NUM_ONLINE_ROWS)).round().astype(np.int64))
    hits = nats = non_top1 = 0.0
    num_judged = num_known = num_mixed = 0
    for first in range(0, len(indices), batch_size):
        batch = data.read_batch(indices[first : first + batch_size].tolist(), epoch=0)
        logits = online(batch.get("teacher_pixels", batch["pixels"])).cpu().numpy()
        online.check()
        labels = batch["labels"].numpy()
        is_mixed = batch["shares"].numpy() != 1 if "shares" in batch else np.zeros(len(labels), bool)
        is_judged = (labels != NO_LABEL) & ~is_mixed
        num_judged += int(is_judged.sum())
        num_mixed += int(is_mixed.sum())
        hits += float(((logits.argmax(axis=1) == labels) & is_judged).sum())
        log_probs = np.take_along_axis(log_softmax(logits)[is_judged], labels[is_judged, None], axis=1)
        log_probs = log_probs[np.isfinite(log_probs)]  # a class that the teacher lacks adds no surprise
        num_known += len(log_probs)
        nats -= float(log_probs.sum())
        non_top1 += float((1 - np.exp(log_softmax(logits, temperature).max(axis=1))).sum())
    total = len(indices)
    judged = judge_labels(hits, nats, num_judged, num_known, num_mixed)
    return StoreStats(*judged, non_top1 / total, total, num_judged)
