"""A store's batches as a keras.utils.PyDataset: ``model.fit`` with distillation, on any of Keras's backends.

python examples/keras_loop.py DATA STORE
"""

import sys
from pathlib import Path

import keras
import numpy as np

from teachonce import CropPolicy, KDDataset, OwnViews, Store, StoredLogits, StoredViews, open_records


class StoreBatches(keras.utils.PyDataset):
    """Pixels [B, H, W, 3], and targets [B, C + 1]: the teacher's logits and the label. ``workers`` are threads."""

    def __init__(self, dataset, batch_size, **options):
        super().__init__(**options)
        self.dataset, self.batch_size, self.epoch = dataset, batch_size, -1
        self.on_epoch_end()

    def __len__(self):
        return len(self.loader)

    def __getitem__(self, step):
        batch = self.loader[step]
        targets = [batch["teacher_logits"], batch["labels"][:, None].astype(np.float32)]
        return batch["pixels"], np.concatenate(targets, axis=1)

    def on_epoch_end(self):
        """Take the next epoch: another order, other views."""
        self.epoch += 1
        self.loader = self.dataset.batches(batch_size=self.batch_size, epoch=self.epoch).as_numpy()


def kd_part(temperature):
    """The KD part of the loss: T^2 * CE(softmax(teacher / T), student / T), as teachonce.kd_loss."""

    def kd_loss(targets, logits):
        probs = keras.ops.softmax(targets[:, :-1] / temperature)
        return temperature**2 * keras.losses.categorical_crossentropy(probs, logits / temperature, from_logits=True)

    return kd_loss


def train(data, store, size=224, batch_size=64, epochs=10, temperature=2.0, workers=2):
    """Train a small student on labels and on what the teacher said; returns it and Keras's history."""
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
    layers = [keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Conv2D(16, 3, 2, activation="relu")]
    layers += [keras.layers.Conv2D(32, 3, 2, activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(dataset.num_classes)])
    kd = kd_part(temperature)

    def loss(targets, logits):
        labels = keras.losses.sparse_categorical_crossentropy(targets[:, -1], logits, from_logits=True)
        return labels + kd(targets, logits)

    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=[kd])
    history = model.fit(StoreBatches(dataset, batch_size, workers=workers), epochs=epochs, verbose=0)
    return model, history.history


if __name__ == "__main__":
    for epoch, value in enumerate(train(*sys.argv[1:3])[1]["kd_loss"]):
        print(f"epoch {epoch}: KD loss {value:.4f}")
