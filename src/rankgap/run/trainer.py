"""Training a plan: the trainer, interruption and resumption, and the results at the end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from rankgap.data.encoded import BrokenImageError
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError, unusable
from rankgap.model.joint_norm import join_norms
from rankgap.run.checkpoints import Checkpoints, Restore, SpectraFile
from rankgap.run.config import TrainConfig
from rankgap.run.feed import TrainingData
from rankgap.run.files import check_writable
from rankgap.run.flags import flag
from rankgap.run.folder import History, RunFolder
from rankgap.run.interruption import stops_on_signals
from rankgap.run.loggers import close_loggers, open_loggers
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Plan, resolve
from rankgap.run.processes import is_main_process
from rankgap.run.reader import plain
from rankgap.run.restored import evaluate_plan
from rankgap.watch.doctor import alarms
from rankgap.watch.reading import readings

# Fields that may change when a run is resumed.
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


@contextmanager
def _known_warnings_silenced() -> Iterator[None]:
    """Silence those of Lightning's warnings that do not apply to our loop."""
    with warnings.catch_warnings():
        # Sets in memory are fed by index: a worker process would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning 2.6 uses a name that torch 2.14 has deprecated.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


def resumed(path: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration with which to resume a run: the saved one, with the user's changes.

    Args:
        path: the run folder.
        given: fields that the user sets; only those that do not affect the numbers may differ from the saved run.

    Raises:
        UserError: no run, or a field that had another value when the run was started.
    """
    saved = RunFolder(path).saved().run
    _check_unchanged(saved, given, path)
    return replace(saved, **dict(given) | {"out": str(path), "resume": True})


def _check_unchanged(saved: TrainConfig, given: Mapping[str, Any], path: Path) -> None:
    for name, value in given.items():
        if name not in _FREE and value != (old := getattr(saved, name)):
            raise UserError(f"{path} was started with {flag(name)} {old}, not {value}: leave it out to resume")


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[L.Callback] = (),
    announce: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Any]:
    """Train and evaluate a run, and fill its folder.

    Args:
        config: what to train; to resume a run, the configuration that `resumed` returns.
        callbacks: further Lightning callbacks, such as a progress bar.
        announce: called once with the plan, before the first step.

    Returns:
        The contents of `results.json`.

    Raises:
        UserError: the configuration cannot be carried out, a file of the run to resume is spoilt (nothing in its
            folder has changed then), or the system refuses to write one.
        NonFiniteError: training met non-finite numbers; the message names the step and the last good checkpoint.
        InterruptedRunError: Ctrl-C was pressed; the run can be resumed.
    """
    folder, state, history = RunFolder(config.path), None, History({}, [])
    if config.resume:
        given = {f.name: getattr(config, f.name) for f in fields(config)}
        _check_unchanged(folder.saved().run, given, folder.path)
        state = folder.load_checkpoint()
        history = folder.history(state.step)
        check_writable(folder.path)
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
        if state.step > plan.work.steps:
            raise UserError(f"{state.path}: its step {state.step:,} is beyond the run's {plan.work.steps:,} steps")
        state.load_model(module.model)
        state.load_optimizer(module.configure_optimizers())  # before a file changes, though training has its own
        module.step = state.step
        module.monitor.resume(readings(history.metrics))
        if is_main_process():
            folder.rewind(history)
    if config.devices > 1:
        join_norms(module.model, cuda=plan.device.type == "cuda")
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
    with stops_on_signals() as interruption, _known_warnings_silenced():
        trainer = L.Trainer(
            max_steps=plan.work.steps - module.step,
            max_epochs=-1,
            accelerator=plan.device.type,
            devices=config.devices,
            # Every buffer of ours is computed from all processes, and so is the same in each: the batch norms'
            # statistics, DINO's centre, SwAV's queue, running correlations.
            strategy=DDPStrategy(broadcast_buffers=False) if config.devices > 1 else "auto",
            precision=plan.precision,
            logger=open_loggers(config, folder),
            callbacks=[*callbacks, SpectraFile(folder), interruption, checkpoints],
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
        )
        data = TrainingData(plan.train, plan.work, seed=config.seed, workers=plan.workers)
        try:
            trainer.fit(module, datamodule=data)
            if module.step < plan.work.steps:
                checkpoints.save(trainer, module)
        except NonFiniteError as error:
            kept = (
                f"the last good checkpoint is {folder.checkpoint} (step {folder.load_checkpoint().step})"
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
        except OSError as error:  # a logger's, which need not name its file
            raise unusable(error, error.filename or folder.path) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"torch.compile cannot compile the encoder {plan.backbone} ({reason}): leave --compile out"
            ) from error
        finally:
            close_loggers(trainer.loggers)
    checkpoints.seconds = checkpoints.elapsed()
    if module.step < plan.work.steps:
        raise InterruptedRunError(
            f"interrupted at step {module.step} of {plan.work.steps}; "
            f"resume with: rankgap train --out {folder.path} --resume",
            interruption.signal,
        )


def _last_reading(folder: RunFolder) -> dict[str, float]:
    """The last row of the metrics, limited to what results.json reports."""
    return {name: value for name, value in folder.last_reading().items() if name in _REPORTED}
