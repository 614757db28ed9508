"""A store's batches as a tf.data pipeline: teachonce without torch, and a student of TensorFlow.

python examples/tf_data_loop.py DATA STORE
"""

import sys
from pathlib import Path

import tensorflow as tf

from teachonce import CropPolicy, KDDataset, OwnViews, Store, StoredLogits, StoredViews, open_records


def open_dataset(data, store, size=224, temperature=2.0):
    """Views and teacher logits of the records of ``data``: exactly what the teacher saw, where the store has views."""
    store = Store(store)
    if store.policy.mix is not None:
        sys.exit(f"{store.path}: views are mixed: the label loss needs batch['partner_labels'] and batch['shares'] too")
    records = open_records(Path(data), "train")
    if records.labeled != "all":
        sys.exit(
            f"{data}: {records.labeled} of its images have labels: the label loss needs those of all; leave it out"
        )
    views = StoredViews(store) if store.policy.is_random else OwnViews(CropPolicy())
    logits = StoredLogits([store], temperature=temperature)
    return KDDataset(records, views, logits, size=size)


def epoch_batches(dataset, epoch, batch_size):
    """One epoch as a tf.data.Dataset of dictionaries: pixels uint8 [B, H, W, 3], labels, teacher_logits, indices."""
    loader = dataset.batches(batch_size=batch_size, epoch=epoch, num_workers=2).as_numpy()
    signature = {name: tf.TensorSpec([None, *array.shape[1:]], array.dtype) for name, array in loader[0].items()}
    return tf.data.Dataset.from_generator(lambda: loader, output_signature=signature).prefetch(2)


def kd_loss(student_logits, teacher_logits, temperature):
    """T^2 * CE(softmax(teacher / T), student / T), as teachonce.kd_loss."""
    probs = tf.nn.softmax(teacher_logits / temperature)
    loss = tf.nn.softmax_cross_entropy_with_logits(probs, student_logits / temperature)
    return temperature**2 * tf.reduce_mean(loss)


def train(data, store, size=224, batch_size=64, epochs=10, temperature=2.0):
    """Train a small student on labels and on what the teacher said; returns it and the KD loss of each update."""
    dataset = open_dataset(data, store, size, temperature)
    layers = [tf.keras.layers.Rescaling(1 / 127.5, -1), tf.keras.layers.Conv2D(16, 3, 2, activation="relu")]
    layers += [tf.keras.layers.Conv2D(32, 3, 2, activation="relu"), tf.keras.layers.Flatten()]
    model = tf.keras.Sequential([*layers, tf.keras.layers.Dense(dataset.num_classes)])
    optimizer = tf.keras.optimizers.Adam(1e-3)
    losses = []
    for epoch in range(epochs):
        for batch in epoch_batches(dataset, epoch, batch_size):
            with tf.GradientTape() as tape:
                logits = model(batch["pixels"], training=True)
                labels = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits)
                kd = kd_loss(logits, batch["teacher_logits"], temperature)
                loss = tf.reduce_mean(labels) + kd
            optimizer.apply_gradients(zip(tape.gradient(loss, model.variables), model.variables, strict=True))
            losses.append(float(kd))
    return model, losses


if __name__ == "__main__":
    for update, value in enumerate(train(*sys.argv[1:3])[1]):
        print(f"update {update}: KD loss {value:.4f}")
