"""Training a plan: the trainer, interruption and resumption, and the results at the end."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

from rankgap.data.encoded import BrokenImageError
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError
from rankgap.run.checkpoints import Checkpoints, Restore, SpectraFile
from rankgap.run.config import TrainConfig
from rankgap.run.feed import TrainingData
from rankgap.run.flags import flag
from rankgap.run.folder import RunFolder
from rankgap.run.loggers import close_loggers, open_loggers
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Plan, resolve
from rankgap.run.processes import is_main_process
from rankgap.run.reader import plain
from rankgap.run.restored import evaluate_plan, load_weights
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
_REPORTED = {
    "loss",
    "erank_online",
    "erank_target",
    "rank_difference",
    "erank_online_features",
    "erank_target_features",
}


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


def resumed(path: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a run to go on with: the saved one, and what the user says anew.

    Args:
        path: the run folder.
        given: fields that the user gives; only what leaves the numbers alone may differ from the saved run.

    Raises:
        UserError: no run, or a field that was another when the run was started.
    """
    saved = RunFolder(path).saved().run
    for name, value in given.items():
        if name not in _FREE and value != (old := getattr(saved, name)):
            raise UserError(f"{path} was started with {flag(name)} {old}, not {value}: leave it out to resume")
    return replace(saved, **dict(given) | {"out": str(path), "resume": True})


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[L.Callback] = (),
    announce: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Any]:
    """Train and evaluate a run, and fill its folder.

    Args:
        config: what to train; to go on with a run, the one that `resumed` gives.
        callbacks: further Lightning callbacks (a progress bar).
        announce: called once with what was chosen, before the first step.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: the configuration cannot be done.
        NonFiniteError: training met what is not finite; the message names step and last good checkpoint.
        InterruptedRunError: Ctrl-C; the run can be resumed.
    """
    folder, state = RunFolder(config.path), None
    if config.resume:
        state = folder.load_checkpoint()
    elif is_main_process():
        folder.check_free(overwrite=config.overwrite)
    plan = resolve(config, recipe=folder.saved().recipe if config.resume else None)
    if is_main_process():
        if state is None:
            folder.create()
            folder.write_config(plan.saved())
            folder.write_skipped(
                [image for images in (plan.train, *plan.tests.values()) for image in images.skipped]
            )
        announce(plan)
    module = SelfSupervised(
        plan.model,
        plan.views(),
        plan.recipe.optimizer,
        plan.work,
        seed=config.seed,
        rank_every=config.rank_every,
    )
    if state is not None:
        load_weights(module.model, state["model"], folder.checkpoint)
        module.step = state["step"]
        module.monitor.resume(r for r in readings(folder.metrics()) if r.step < module.step)
        if is_main_process():
            folder.forget_spectra(module.step)
    if config.compile:
        for encoder in {module.model.encoder("online"), module.model.encoder("target")}:
            encoder.compile(fullgraph=True)
    checkpoints = Checkpoints(plan, folder, state)
    if module.step < plan.work.steps:
        _fit(plan, module, checkpoints, [*([Restore(state)] if state else []), *callbacks])
    images = module.step * config.batch_size
    results: dict[str, Any] = _last_reading(folder) | {
        "seconds": checkpoints.seconds,
        "images_per_second": images / checkpoints.seconds,
        "views_per_second": len(plan.recipe.views) * images / checkpoints.seconds,
    }
    results["alarms"] = [plain(alarm) for alarm in alarms(readings(folder.metrics()))]
    if is_main_process():
        if config.protocol:
            results |= evaluate_plan(plan)
        folder.write_results(results)
    return results


def _fit(plan: Plan, module: SelfSupervised, checkpoints: Checkpoints, callbacks: Sequence[L.Callback]) -> None:
    config, folder = plan.config, checkpoints.folder
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with _stops_on_interrupt() as interruption, _known_warnings_silenced():
        trainer = L.Trainer(
            max_steps=plan.work.steps - module.step,
            max_epochs=-1,
            accelerator=plan.device.type,
            devices=config.devices,
            strategy="ddp" if config.devices > 1 else "auto",
            precision=plan.precision,
            logger=open_loggers(config, folder, step=module.step),
            callbacks=[*callbacks, SpectraFile(folder), interruption, checkpoints],
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            sync_batchnorm=config.devices > 1 and plan.device.type == "cuda",
        )
        data = TrainingData(plan.train, plan.work, seed=config.seed, workers=plan.workers)
        try:
            trainer.fit(module, datamodule=data)
            if module.step < plan.work.steps:
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
        except BrokenImageError as error:
            checkpoints.save(trainer, module)
            raise BrokenImageError(
                f"{error}; mend or remove it, then go on with: rankgap train --out {folder.path} --resume"
            ) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"torch.compile cannot do the encoder {plan.backbone} here ({reason}): leave --compile out"
            ) from error
        finally:
            close_loggers(trainer.loggers)
    checkpoints.seconds = checkpoints.elapsed()
    if module.step < plan.work.steps:
        raise InterruptedRunError(
            f"interrupted at step {module.step} of {plan.work.steps}; "
            f"go on with: rankgap train --out {folder.path} --resume"
        )


def _last_reading(folder: RunFolder) -> dict[str, float]:
    """The last row of the metrics, by the names that results.json uses."""
    return {name: value for name, value in folder.last_reading().items() if name in _REPORTED}
