"""A SimSiam training step, data loading included: our trainer against lightly's modules in Lightning.

Both train the same network with heads of the same widths, on the same images in memory, by SGD, in batches of the
same size. lightly's side is the code that its documentation shows for SimSiam in Lightning, with its own transform
(without blur, as for CIFAR-10) on PIL images and one loader worker per core. It runs once at Lightning's default
precision, as documented, and once with two things that a user can add in a line each: bf16 and channels-last.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2.functional import to_pil_image

import rankgap as rg
from benchmarks.machine import matrix_rate
from benchmarks.suites.timing import Row, Settings, compared, itself
from rankgap.data import ImageSet
from rankgap.model.backbones import Encoder, build_encoder
from rankgap.run.feed import TrainingData
from rankgap.run.module import SelfSupervised
from rankgap.run.presets import adapt
from rankgap.run.recipes import Recipe, load_recipe
from rankgap.run.work import Work

WARM = 2  # steps before the clock starts


@dataclass(frozen=True, slots=True)
class Case:
    """A network to measure.

    Args:
        backbone: the name of the encoder.
        batch: the number of images per step.
        steps: the number of steps in a measurement.
        faster: the bar for the ratio of lightly's time to ours.
        share: the bar for the share of the machine's rate.
    """

    backbone: str
    batch: int
    steps: int
    faster: float
    share: float


CASES = (Case("resnet_tiny", 256, 14, 4.0, 0.45), Case("resnet18", 128, 5, 1.9, 0.7))


class Clock(L.Callback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def step(self) -> float:
        """Seconds a step, after the first ones."""
        return (self.ends[-1] - self.ends[WARM - 1]) / (len(self.ends) - WARM)


class Pictures(Dataset[Any]):
    """PIL images with a transform, as in lightly's data sets."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = [to_pil_image(image) for image in images], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index])


class LightlySimSiam(L.LightningModule):
    """SimSiam as in lightly's documentation, with our encoder and widths."""

    def __init__(self, encoder: Encoder, recipe: Recipe, *, channels_last: bool) -> None:
        super().__init__()
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        widths, predictor = recipe.projector.widths, recipe.options("online", rg.MAPS["predictor"])
        self.backbone: nn.Module = encoder
        self.projection_head = SimSiamProjectionHead(encoder.features, widths[0], widths[-1])
        self.prediction_head = SimSiamPredictionHead(widths[-1], predictor.widths[0], widths[-1])
        self.criterion = NegativeCosineSimilarity()
        self.channels_last = channels_last
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding of a view without gradient, and its prediction."""
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss, as in the documentation."""
        (z0, p0), (z1, p1) = self(batch[0]), self(batch[1])
        loss: Tensor = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser, as in the documentation."""
        return torch.optim.SGD(self.parameters(), lr=0.06)


def fit(module: L.LightningModule, steps: int, precision: Any, data: Any) -> float:
    """The seconds per step of a Lightning trainer that does nothing else."""
    clock = Clock()
    trainer = L.Trainer(
        max_steps=steps,
        precision=precision,
        devices=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    return clock.step


def our_step(module: SelfSupervised, data: TrainingData) -> float:
    """The seconds per step of our trainer, which starts its run again."""
    module.step = 0
    return fit(module, module.work.steps, "bf16-mixed", data)


def bare_step(
    module: SelfSupervised,
    images: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    bf16: bool = True,
    layout: Callable[[Tensor], Tensor] = lambda views: views,
) -> Callable[[], None]:
    """A training step without a trainer: views, both branches, gradients and the optimiser."""
    generator = torch.Generator(images.device)

    def step() -> None:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = module.model(layout(module.views(images, None, generator)))
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()

    return step


def our_side(case: Case, method: rg.Method, *, small: bool = True) -> tuple[SelfSupervised, TrainingData, Recipe]:
    """The module and data of our trainer, with the published recipe or with the preset for small work."""
    images = torch.randint(0, 256, (case.batch * case.steps, 3, 32, 32), dtype=torch.uint8)
    work = Work(images=len(images), batch_size=case.batch, epochs=1, features=128)
    recipe = load_recipe("cifar", method.body)
    if small:
        recipe, _ = adapt(recipe, method, work)
    model = rg.build(method, backbone=case.backbone, heads=recipe)
    mean, std = (0.5,) * 3, (0.25,) * 3
    module = SelfSupervised(model, rg.Views(recipe.views, 32, mean, std), recipe.optimizer, work)
    return module, TrainingData(ImageSet("random", images, None, mean, std), work), recipe


def lightly_sides(case: Case, images: Tensor, recipe: Recipe) -> dict[str, Callable[[], float]]:
    """Calls that measure the seconds per step of lightly's SimSiam, by the way in which it runs."""
    from lightly.transforms import SimSiamTransform

    cores = os.cpu_count() or 1
    pictures = Pictures(images, SimSiamTransform(input_size=32, gaussian_blur=0.0))
    loader = DataLoader(pictures, case.batch, shuffle=True, drop_last=True, num_workers=cores)
    sides: dict[str, Callable[[], float]] = {}
    for precision, channels_last in (("32-true", False), ("bf16-mixed", True)):
        module = LightlySimSiam(build_encoder(case.backbone), recipe, channels_last=channels_last)
        layout = ", channels-last" if channels_last else ""
        name = f"lightly in Lightning, {precision}{layout}, {cores} workers"
        sides[name] = partial(fit, module, case.steps, precision, loader)
    return sides


def work_of_a_step(module: SelfSupervised, images: Tensor) -> float:
    """The floating-point operations of a step's products and convolutions, forward and backward."""
    few = images[:32]  # the number grows with the batch
    with FlopCounterMode(display=False) as counter:
        module.model(module.views(few)).loss.backward()
    module.zero_grad()
    return float(counter.get_total_flops()) * len(images) / len(few)


def share_of_the_machine(what: str, case: Case, step: Callable[[], float], flops: float, repeats: int) -> Row:
    """The rate of a whole training step as a share of that of one large product, measured before and after it."""
    times, rates = [], [matrix_rate()]
    for _ in range(repeats):
        times.append(step())
        rates.append(matrix_rate())
    shares = [2 * flops / t / (a + b) for t, (a, b) in zip(times, pairwise(rates), strict=True)]
    seconds, share = statistics.median(times), statistics.median(shares)
    return Row(
        what=f"{what}: {case.batch / seconds:,.0f} images a second, {flops / seconds / 1e12:.2f} Tflop/s",
        against=f"the machine's bf16 product, {statistics.median(rates) / 1e12:.2f} Tflop/s",
        seconds=seconds,
        ratio=share,
        spread=(min(shares), max(shares)),
        bar=f"{case.share:g} of it at least",
        met=share >= case.share,
    )


def measure(settings: Settings) -> list[Row]:
    """One row for each network against each way to run lightly, and one for its share of the machine's rate."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    for case in CASES:
        module, data, recipe = our_side(case, rg.design("simsiam"))
        what = f"SimSiam step, {case.backbone}, 32 px, batch {case.batch}"
        step = partial(our_step, module, data)
        images = data.images.batch(range(len(data.images))).images
        if settings.peers:
            rows += [
                compared(what, name, step, side, bar=case.faster, repeats=settings.repeats, clock=itself)
                for name, side in lightly_sides(case, images, recipe).items()
            ]
        flops = work_of_a_step(module, images[: case.batch])
        rows.append(share_of_the_machine(what, case, step, flops, settings.repeats))
    return rows
