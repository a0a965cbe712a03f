"""BYOL on scikit-learn's digits, top to bottom: a high-pass filter on the target takes the predictor's place.

Plain PyTorch, no trainer, no download. 300 steps take 30 s on one core of an AMD EPYC.
kNN accuracy on 355 test digits, mean of three seeds: 83% with random weights, 97% after training.

python -m examples.from_scratch
"""

from __future__ import annotations

import torch
from torch import nn

import rankgap as rg
from rankgap.data import ImageSet, load_data
from rankgap.evaluate import extract_features, knn

BATCH, SIZE = 128, 8  # images per step, pixels per side


def accuracy(encoder: nn.Module, train: ImageSet, test: ImageSet) -> float:
    """The kNN accuracy of an encoder's features on the test images, in [0, 1]."""
    bank, labels = extract_features(encoder, train, size=SIZE)
    queries, answers = extract_features(encoder, test, size=SIZE, mean=train.mean, std=train.std)
    assert labels is not None
    assert answers is not None
    return knn(bank, labels, queries, answers).top1


def main(steps: int = 300) -> rg.RankMonitor:
    """Train for some steps, and print kNN before and after, and both ranks."""
    torch.manual_seed(0)
    train, test = load_data("digits")
    assert test is not None
    view = rg.ViewConfig(scale=(0.5, 1.0), flip=0.0)  # a mirrored digit, or less than half of one, may be another
    views = rg.Views([view, view], SIZE, train.mean, train.std)
    model = rg.build("byol", target="power:-0.5", backbone="resnet_tiny", channels=train.channels, size=SIZE)
    print(f"kNN {accuracy(model.encoder(), train, test):.1%} before training")

    learned = [p for p in model.parameters() if p.requires_grad]  # the teacher is an average and learns nothing
    optimizer = torch.optim.SGD(learned, lr=0.03, momentum=0.9, weight_decay=5e-4)
    monitor = rg.RankMonitor()
    for step in range(steps):
        clock = rg.Clock(step=step, steps=steps, steps_per_epoch=len(train) // BATCH)
        model.prepare(clock)
        images = train.batch(torch.randperm(len(train))[:BATCH]).images  # uint8 (B, C, H, W)
        outputs = model(views(images))  # two views of each, (2, B, C, SIZE, SIZE)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        model.update_teacher(clock)
        monitor.update(outputs.online, outputs.target)
        if step % 50 == 0:
            now = monitor.history[-1]
            ranks = f"erank online {now.erank_online:.1f}, target {now.erank_target:.1f}"
            print(f"step {step}: loss {float(outputs.loss.detach()):.3f}, {ranks}, {monitor.diagnosis}")
    print(f"kNN {accuracy(model.encoder(), train, test):.1%} after {steps} steps")
    return monitor


if __name__ == "__main__":
    main()
