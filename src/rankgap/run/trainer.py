"""Fitting an experiment: the trainer, checkpoints, interruption and resumption, and the results at the end."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch

import rankgap
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError
from rankgap.evaluate import extract_features
from rankgap.run.config import TrainConfig, device, flag, protocols, resolve_precision
from rankgap.run.feed import TrainingData
from rankgap.run.folder import RunFolder
from rankgap.run.loggers import close_loggers, open_loggers
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Experiment, evaluate_model, load_weights, prepare, reopen, resolved
from rankgap.spectra.effective_rank import rankme
from rankgap.spectra.pair import pair_spectrum
from rankgap.watch.doctor import alarms
from rankgap.watch.reading import readings

# What may change on resumption.
_FREE = {
    "out",
    "resume",
    "overwrite",
    "workers",
    "accelerator",
    "protocol",
    "eval",
    "loggers",
    "keep_every",
    "compile",
}
SNAPSHOTS = 40  # of the spectra in a run, about
BEST_OF = 2048  # images whose features rate an epoch
_REPORTED = {
    "loss",
    "erank_online",
    "erank_target",
    "rank_difference",
    "erank_online_features",
    "erank_target_features",
}


def is_first_process() -> bool:
    """Whether this process speaks and writes for a run (the others of a distributed run only compute)."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def _resumed(config: TrainConfig) -> TrainConfig:
    """The configuration a run was started with; what the user says anew must agree with it."""
    where = f"{config.folder.path}/config.yaml"
    saved = TrainConfig.from_dict(config.folder.config()["run"], where)
    default = TrainConfig()
    kept: dict[str, Any] = {}
    for name in (f.name for f in dataclasses.fields(TrainConfig)):
        new, old = getattr(config, name), getattr(saved, name)
        if new == getattr(default, name):
            continue
        if name not in _FREE and new != old:
            raise UserError(
                f"{config.folder.path} was started with {flag(name)} {old}, not {new}: leave it out to resume"
            )
        kept[name] = new
    return dataclasses.replace(saved, **kept | {"out": str(config.folder.path), "resume": True})


class _Checkpoints(L.Callback):
    """Writes `last.ckpt` after each epoch, keeps those that were asked for, and the clock of the wall.

    Args:
        experiment: the run; its configuration says which checkpoints to keep.
        state: of the checkpoint to go on from.
    """

    def __init__(self, experiment: Experiment, state: dict[str, Any] | None) -> None:
        config = experiment.config
        self.folder, self.keep_every, self.size = config.folder, config.keep_every, experiment.size
        # RankMe of these images' features says which epoch is the best.
        self.sample = experiment.train.sample(BEST_OF) if config.save_best else None
        self.seconds: float = state["seconds"] if state else 0.0
        self.best: float = state.get("best", 0.0) if state else 0.0
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SelfSupervised)
        epoch, rest = divmod(pl_module.step, pl_module.work.steps_per_epoch)
        if rest:
            return
        names = []
        if self.keep_every and epoch % self.keep_every == 0:
            names.append(f"epoch-{epoch:04d}")
        # An encoder that has hardly trained has the high rank of its random weights.
        late = 2 * pl_module.step >= pl_module.work.steps
        if self.sample is not None and late and self._is_best(pl_module):
            names.append("best")
        self.save(trainer, pl_module, *names)

    def _is_best(self, module: SelfSupervised) -> bool:
        assert self.sample is not None
        features, _ = extract_features(module.model.encoder(), self.sample, size=self.size)
        rank = float(rankme(features)) if features.isfinite().all() and features.any() else 0.0
        better = rank > self.best
        self.best = max(rank, self.best)
        return better

    def elapsed(self) -> float:
        """Seconds of training, earlier parts of the run counted in."""
        return self.seconds + time.perf_counter() - self._started

    def save(self, trainer: L.Trainer, module: SelfSupervised, *names: str) -> None:
        """Write a checkpoint, under further names too, unless the weights are spoilt."""
        module.check_finite(weights=True)
        if trainer.is_global_zero:
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            self.folder.save_checkpoint(
                {
                    "rankgap": rankgap.__version__,
                    "step": module.step,
                    "seconds": self.elapsed(),
                    "best": self.best,
                    "model": module.model.state_dict(),
                    "optimizer": trainer.optimizers[0].state_dict(),
                    "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
                },
                *names,
            )


class _Spectra(L.Callback):
    """Writes both branches' spectra, over all views of the batch, at some of the steps whose ranks are read.

    Online view i is paired with target view i: the directions of a batch are partly its noise, which another
    view of the same images does not share, so that weak ones would seem to be passed on too well.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SelfSupervised)
        outputs, work, step = pl_module.outputs, pl_module.work, pl_module.step - 1
        every = pl_module.rank_every * max(work.steps // (SNAPSHOTS * pl_module.rank_every), 1)
        if outputs is not None and trainer.is_global_zero and (step % every == 0 or step == work.steps - 1):
            pair = pair_spectrum(outputs.online.flatten(0, 1), outputs.target.flatten(0, 1))
            self.folder.add_spectra(step, step / work.steps_per_epoch, pair)


class _Restore(L.Callback):
    """Puts a checkpoint's optimiser and random state back once the trainer has made the optimiser."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.optimizers[0].load_state_dict(self.state["optimizer"])
        torch.set_rng_state(self.state["random"]["cpu"])
        if torch.cuda.is_available() and self.state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(self.state["random"]["cuda"])


class _Interruption(L.Callback):
    """Ends training after the step that runs, once it is asked to."""

    def __init__(self) -> None:
        self.asked = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or self.asked


@contextmanager
def _stops_on_interrupt() -> Iterator[_Interruption]:
    """Ctrl-C ends training after the step that runs; a second one ends it at once."""
    interruption = _Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        interruption.asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _known_warnings_silenced() -> Iterator[None]:
    """Without the warnings of Lightning that are meant for other loops than ours."""
    with warnings.catch_warnings():
        # Sets in memory are fed by index: a worker process would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning 2.6 asks torch 2.14 by a name that torch has deprecated.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[L.Callback] = (),
    announce: Callable[[Experiment], None] = lambda experiment: None,
) -> dict[str, Any]:
    """Train and evaluate a run, and fill its folder.

    Args:
        config: what to train.
        callbacks: further Lightning callbacks (a progress bar).
        announce: called once with what was chosen, before the first step.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: the configuration cannot be.
        NonFiniteError: training met what is not finite; the message names step and last good checkpoint.
        InterruptedRunError: Ctrl-C; the run can be resumed.
    """
    config.check()
    folder, state = config.folder, None
    if config.resume:
        config = _resumed(config)
        state = folder.load_checkpoint()
    elif is_first_process():
        folder.check_free(overwrite=config.overwrite)
    experiment = prepare(config) if state is None else reopen(config)
    if is_first_process():
        if state is None:
            folder.create()
            folder.write_config(resolved(experiment))
        announce(experiment)
    module = SelfSupervised(
        experiment.model(),
        experiment.views(),
        experiment.recipe.optimizer,
        experiment.work,
        seed=config.seed,
        rank_every=config.rank_every,
    )
    if state is not None:
        load_weights(module.model, state["model"], folder.checkpoint)
        module.step = state["step"]
        for reading in readings(folder.metrics()):
            if reading.step < module.step:
                module.diagnosis = module.doctor(reading)
        if is_first_process():
            folder.forget_spectra(module.step)
    if config.compile:
        for encoder in {module.model.encoder("online"), module.model.encoder("target")}:
            encoder.compile(fullgraph=True)
    checkpoints = _Checkpoints(experiment, state)
    if module.step < experiment.work.steps:
        _fit(experiment, module, checkpoints, [*([_Restore(state)] if state else []), *callbacks])
    images = module.step * config.batch_size
    results: dict[str, Any] = _last_reading(folder) | {
        "seconds": checkpoints.seconds,
        "images_per_second": images / checkpoints.seconds,
        "views_per_second": len(experiment.recipe.views) * images / checkpoints.seconds,
    }
    results["alarms"] = [dataclasses.asdict(alarm) for alarm in alarms(readings(folder.metrics()))]
    if is_first_process():
        if protocols(config.protocol):
            results |= evaluate_model(experiment, module.model)
        folder.write_results(results)
    return results


def _fit(
    experiment: Experiment, module: SelfSupervised, checkpoints: _Checkpoints, callbacks: Sequence[L.Callback]
) -> None:
    config, folder, where = experiment.config, checkpoints.folder, device(experiment.config.accelerator)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with _stops_on_interrupt() as interruption, _known_warnings_silenced():
        trainer = L.Trainer(
            max_steps=experiment.work.steps - module.step,
            max_epochs=-1,
            accelerator=where.type,
            devices=config.devices,
            strategy="ddp" if config.devices > 1 else "auto",
            precision=resolve_precision(config.precision, where),
            logger=open_loggers(config, step=module.step),
            callbacks=[*callbacks, _Spectra(folder), interruption, checkpoints],
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            sync_batchnorm=config.devices > 1 and where.type == "cuda",
        )
        data = TrainingData(experiment.train, experiment.work, seed=config.seed, workers=experiment.workers)
        try:
            trainer.fit(module, datamodule=data)
            if module.step < experiment.work.steps:
                checkpoints.save(trainer, module)
        except NonFiniteError as error:
            kept = (
                f"the last good checkpoint is {folder.checkpoint} (step {folder.load_checkpoint()['step']})"
                if folder.checkpoint.is_file()
                else "there is no checkpoint yet"
            )
            raise NonFiniteError(
                f"training stopped at step {module.step}: {error}; {kept}. Lower --lr, or train with "
                "--precision 32-true"
            ) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"torch.compile cannot do the encoder {experiment.backbone} here ({reason}): leave --compile out"
            ) from error
        finally:
            close_loggers(trainer.loggers)
    checkpoints.seconds = checkpoints.elapsed()
    if module.step < experiment.work.steps:
        raise InterruptedRunError(
            f"interrupted at step {module.step} of {experiment.work.steps}; "
            f"go on with: rankgap train --out {folder.path} --resume"
        )


def _last_reading(folder: RunFolder) -> dict[str, float]:
    """The last row of the metrics, by the names that results.json uses."""
    return {name: value for name, value in folder.last_reading().items() if name in _REPORTED}
