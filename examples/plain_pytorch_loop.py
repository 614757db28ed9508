"""Bring your own loop: the dataset, the store and the loss of teachonce in plain PyTorch, without its trainer.

python examples/plain_pytorch_loop.py DATA STORE
"""

import sys
from pathlib import Path

import timm
import torch

from teachonce import CropPolicy, KDDataset, OwnViews, Store, StoredLogits, StoredViews, kd_loss, open_records


def train(data, store, student="resnet18", size=224, batch_size=64, epochs=10, temperature=2.0):
    """Train on labels and on what the teacher said; returns the student and the loss of each update."""
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(student, num_classes=dataset.num_classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        for batch in dataset.batches(batch_size=batch_size, epoch=epoch, drop_last=True, num_workers=4):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            logits = model(batch["pixels"].permute(0, 3, 1, 2) / 127.5 - 1)
            loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
            loss = loss + kd_loss(logits, batch["teacher_logits"], temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, losses


if __name__ == "__main__":
    for update, value in enumerate(train(*sys.argv[1:3])[1]):
        print(f"update {update}: loss {value:.4f}")
