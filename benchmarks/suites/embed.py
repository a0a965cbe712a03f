"""Features of 2,000 JPEG photographs of 500 x 375 in a file: `rankgap embed`, and a plain torchvision loop.

The loop is what one writes: ImageFolder, torchvision's resize, crop and normalisation, a DataLoader with two
workers, the same network, batches of 64 without gradients, and np.save. Ours includes finding and checking the
files, and loading the run, and takes the workers that it chooses. Both sides use all cores.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import rankgap as rg
from benchmarks.suites.photos import BATCH, WORKERS, write_photos
from benchmarks.suites.timing import Row, Settings, compared
from rankgap.choices import Precision
from rankgap.embed import embed_images, read_features

PHOTOS = 2_000
CASES = (("resnet18", 224), ("resnet_tiny", 224), ("resnet_tiny", 96))
PRECISIONS: tuple[Precision, ...] = ("32-true", "bf16-mixed")


def plain_loop(run: Path, folder: Path, out: Path) -> None:
    """The loop that one writes by hand."""
    trained = rg.load_encoder(run)
    resized = round(trained.size / trained.centre)
    view = transforms.Compose(
        [
            transforms.Resize(resized, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(trained.size),
            transforms.ToTensor(),
            transforms.Normalize(trained.mean, trained.std),
        ]
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = trained.encoder.to(device)
    loader = DataLoader(ImageFolder(folder, view), BATCH, num_workers=WORKERS)
    with torch.no_grad():
        np.save(out, torch.cat([network(images.to(device)).cpu() for images, _ in loader]).numpy())


def ours(run: Path, folder: Path, out: Path, precision: Precision) -> None:
    """`rankgap embed` with the same batches."""
    embed_images(
        run,
        f"folder:{folder}",
        out,
        batch_size=BATCH,
        precision=precision,
        overwrite=True,
    ).run()


def measure(settings: Settings) -> list[Row]:
    """Measure networks in float32, where 2x is required, and in bfloat16."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        photos = home / "photos"
        (photos / "all").mkdir(parents=True)
        write_photos(photos / "all", PHOTOS)
        for backbone, size in CASES:
            run = home / f"{backbone}-{size}"
            rg.train(f"folder:{photos}", model=backbone, size=size, fast_dev_run=True, out=str(run), loggers=())
            theirs = partial(plain_loop, run, photos, home / "theirs.npy")
            for precision in PRECISIONS:
                mine = partial(ours, run, photos, home / "ours.npy", precision)
                row = compared(
                    f"embed {PHOTOS:,} photographs with {backbone} at {size} px, {precision}",
                    f"torchvision, {WORKERS} workers, float32",
                    mine,
                    theirs,
                    bar=2.0,
                    repeats=settings.repeats,
                )
                # JPEG is decoded at a smaller scale on our side, so features are near, not equal.
                a, b = read_features(home / "ours.npy").features, np.load(home / "theirs.npy")
                cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
                assert cosine.min() > 0.9, cosine.min()
                rows.append(row)
    return rows
