from __future__ import annotations

import pickle
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rankgap.errors import UserError
from rankgap.watch.callbacks import Watcher
from rankgap.watch.doctor import Diagnosis, Thresholds
from rankgap.watch.lightning import RankCallback


class TwoBranches(L.LightningModule):
    """A Siamese network as someone might write it, with nothing that keeps it from collapsing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
        self.predictor = nn.Identity()
        self.logged: list[float] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        views = [batch[0] + 0.1 * torch.randn_like(batch[0]) for _ in range(2)]
        (p1, _), (_, z2) = ((self.predictor(z), z) for z in map(self.projector, views))
        return -nn.functional.cosine_similarity(p1, z2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=5.0)

    def on_train_batch_end(self, *_: Any) -> None:
        if "rank_difference" in self.trainer.callback_metrics:
            self.logged.append(float(self.trainer.callback_metrics["rank_difference"]))


def fit(callback: RankCallback, steps: int = 300) -> tuple[TwoBranches, L.Trainer]:
    data = TensorDataset(torch.randn(512, 12, generator=torch.Generator().manual_seed(0)))
    module = TwoBranches()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(module, DataLoader(data, batch_size=64))
    return module, trainer


QUICK = Thresholds(patience=3, apart=1, constant=0.05, pull=-1)  # the last: not as soon as ranks fall


def test_it_logs_the_ranks_and_calls_back_once_a_diagnosis() -> None:
    found: list[Diagnosis] = []
    callback = RankCallback(every=2, thresholds=QUICK, on_alarm=found.append)
    module, _ = fit(callback)
    assert callback.monitor is not None
    assert len(callback.monitor.history) == 150
    assert len(module.logged) >= 149
    assert [d.kind for d in found] == ["complete"]
    assert not module.projector._forward_hooks
    assert not module.predictor._forward_hooks


def test_it_can_stop_training_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="complete at step"):
        _, trainer = fit(RankCallback(every=2, thresholds=QUICK, on_alarm="stop"))
    assert 0 < trainer.global_step < 300


def test_the_doctor_knows_how_long_the_trainer_runs() -> None:
    found: list[Diagnosis] = []
    callback = RankCallback(every=1, thresholds=Thresholds(constant=0.9, pull=-1), on_alarm=found.append)
    fit(callback, steps=48)
    assert callback.monitor.doctor.steps == 48
    assert [(d.kind, d.step) for d in found] == [("complete", 4)]  # in a long run, at step 40


def test_where_warnings_are_errors_an_alarm_does_not_end_the_training() -> None:
    model = nn.ModuleDict({"projector": nn.Linear(4, 4), "predictor": nn.Linear(4, 4)})
    watcher = Watcher(every=1, thresholds=QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watcher.attach(model)
        for _ in range(5):
            z = model["projector"](torch.randn(8, 4)) * 0 + 1
            model["predictor"](z).mean().backward()
            watcher.look()
        watcher.detach()
    assert watcher.monitor.diagnosis.kind == "one branch constant"


def test_a_training_that_an_error_ended_leaves_no_hooks_in_the_next() -> None:
    model = nn.ModuleDict({"projector": nn.Linear(4, 4), "predictor": nn.Linear(4, 4)})
    watcher = Watcher(every=1)
    watcher.attach(model)
    with pytest.warns(UserWarning, match="no step has been read"):
        watcher.attach(model)
    assert len(model["predictor"]._forward_hooks) == 1


def test_a_callback_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(RankCallback(every=3))).monitor.every == 3


def test_a_module_or_an_action_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'stop'"):
        RankCallback(on_alarm="stopp")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nearest: predictor"):
        fit(RankCallback(online="predictr"), steps=1)
