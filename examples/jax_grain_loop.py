"""A store's batches as a source of Grain, and a student of JAX: teachonce without torch.

python examples/jax_grain_loop.py DATA STORE
"""

import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp

from teachonce import CropPolicy, KDDataset, OwnViews, Store, StoredLogits, StoredViews, open_records


def epoch_batches(dataset, epoch, batch_size):
    """One epoch through Grain, whose threads make the batches: a loader is a source of them by number."""
    loader = dataset.batches(batch_size=batch_size, epoch=epoch).as_numpy()
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return grain.MapDataset.source(loader).to_iter_dataset(options)


def student_logits(weights, pixels):
    """Two layers over the pixels: logits [B, C]."""
    inputs = pixels.reshape(len(pixels), -1) / 127.5 - 1
    return jax.nn.relu(inputs @ weights["hidden"]) @ weights["output"] + weights["bias"]


def loss_parts(weights, batch, temperature):
    """The loss, and of it the KD part: T^2 * CE(softmax(teacher / T), student / T), as teachonce.kd_loss."""
    logits = student_logits(weights, batch["pixels"])
    probs = jax.nn.softmax(batch["teacher_logits"] / temperature)
    kd = -(temperature**2) * (probs * jax.nn.log_softmax(logits / temperature)).sum(axis=1).mean()
    labels = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][:, None], axis=1).mean()
    return labels + kd, kd


def train(data, store, size=224, batch_size=64, epochs=10, temperature=2.0, rate=0.01):
    """Train a small student on labels and on what the teacher said; returns its weights and each update's KD loss."""
    store = Store(store)
    if store.policy.mix is not None:
        sys.exit(f"{store.path}: views are mixed: the label loss needs batch['partner_labels'] and batch['shares'] too")
    records = open_records(Path(data), "train")
    if records.labeled != "all":
        sys.exit(
            f"{data}: {records.labeled} of its images have labels: the label loss needs those of all; leave it out"
        )
    # Exactly what the teacher saw, where the store has views; else crops of the student's own.
    views = StoredViews(store) if store.policy.is_random else OwnViews(CropPolicy())
    logits = StoredLogits([store], temperature=temperature)
    dataset = KDDataset(records, views, logits, size=size)
    key, num_inputs, num_hidden = jax.random.key(0), size * size * 3, 64
    weights = {
        "hidden": jax.random.normal(key, (num_inputs, num_hidden)) * num_inputs**-0.5,
        "output": jnp.zeros((num_hidden, dataset.num_classes)),
        "bias": jnp.zeros(dataset.num_classes),
    }
    step = jax.jit(jax.value_and_grad(loss_parts, has_aux=True), static_argnums=2)
    losses = []
    for epoch in range(epochs):
        for batch in epoch_batches(dataset, epoch, batch_size):
            (_, kd), gradients = step(weights, batch, temperature)
            weights = jax.tree.map(lambda weight, gradient: weight - rate * gradient, weights, gradients)
            losses.append(float(kd))
    return weights, losses


if __name__ == "__main__":
    for update, value in enumerate(train(*sys.argv[1:3])[1]):
        print(f"update {update}: KD loss {value:.4f}")
