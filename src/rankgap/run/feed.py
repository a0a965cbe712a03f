"""The batches of each epoch, in the order in which a run sees its images."""

from __future__ import annotations

import copy

import lightning as L
import torch
from torch.utils.data import Dataset

from rankgap.data import Batch, Crops, ImageSet
from rankgap.data.batch_loader import BatchLoader
from rankgap.evaluate.batches import batch_for
from rankgap.model.schedule import order_seed, views_seed
from rankgap.run.module import SelfSupervised
from rankgap.run.work import Work
from rankgap.views import Views


class EpochBatches(Dataset[Batch | Crops]):
    """The batches of one epoch, from a given step of the run. Their order depends only on seed and epoch.

    The random crops of photographs are drawn here. They depend on seed, batch and process alone, so the number of
    worker processes does not matter.

    Args:
        images: the training set.
        work: batch size and steps.
        seed: seed of the order.
        step: the run's step to start from.
        views: the random views, on the CPU; without them, batches are as evaluation takes them.
        process: index of this process, which takes its share of each batch.
        processes: number of processes.
    """

    def __init__(
        self,
        images: ImageSet,
        work: Work,
        seed: int,
        step: int,
        *,
        views: Views | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        epoch, offset = divmod(step, work.steps_per_epoch)
        count = work.steps_per_epoch * work.accumulate
        generator = torch.Generator().manual_seed(order_seed(seed, epoch))
        order = torch.randperm(len(images), generator=generator)
        used = order[: count * work.batch_size].view(count, -1)
        self.images, self.batches = images, used[offset * work.accumulate :, process::processes]
        self.views, self.seed, self.process, self.first = views, seed, process, step * work.accumulate

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch | Crops:
        if self.views is None:
            return self.images.batch(self.batches[index])
        generator = torch.Generator().manual_seed(views_seed(self.seed, self.first + index, self.process))
        return batch_for(self.views, self.images, self.batches[index], generator)


class TrainingData(L.LightningDataModule):
    """Feeds `SelfSupervised` with uint8 batches; views are finished on the model's device.

    Args:
        images: the training set.
        work: batch size and steps.
        seed: seed of the order.
        workers: processes that decode files ahead; 0 if the set is in memory.
    """

    def __init__(self, images: ImageSet, work: Work, *, seed: int = 0, workers: int = 0) -> None:
        super().__init__()
        self.images, self.work, self.seed, self.workers = images, work, seed, workers

    def train_dataloader(self) -> BatchLoader:
        """The rest of the current epoch (the trainer asks again each epoch)."""
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, SelfSupervised)
        batches = EpochBatches(
            self.images,
            self.work,
            self.seed,
            module.step,
            views=copy.deepcopy(module.views).cpu(),
            process=self.trainer.global_rank,
            processes=self.trainer.world_size,
        )
        return BatchLoader(batches, workers=self.workers, pin_memory=torch.cuda.is_available())
