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
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError
from rankgap.model.joint_norm import join_norms
from rankgap.run.checkpoints import SAMPLE, Checkpoints, Restore, SpectraFile
from rankgap.run.config import TrainConfig
from rankgap.run.feed import TrainingData
from rankgap.run.flags import flag
from rankgap.run.folder import RunFolder
from rankgap.run.heartbeat import Heartbeat
from rankgap.run.interruption import stops_on_signals
from rankgap.run.loggers import close_loggers, open_loggers
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Given, Plan, resolve
from rankgap.run.processes import is_main_process
from rankgap.run.reader import plain
from rankgap.run.restored import evaluate_plan, load_weights
from rankgap.run.saved import SavedRun
from rankgap.watch.doctor import alarms
from rankgap.watch.reading import readings
from rankgap.watch.verdict import Use, judge

# Fields that may change when a run is resumed.
_FREE = {
    "out",
    "data",
    "resume",
    "overwrite",
    "workers",
    "accelerator",
    "protocol",
    "eval",
    "threads",
    "imports",
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
        given: fields that the user sets; only those that do not affect the numbers may differ from the saved run,
            and `epochs`, which sets another length for the rest of it.

    Raises:
        UserError: no run, or a field that had another value when the run was started.
    """
    saved = RunFolder(path).saved().run
    _check_unchanged(saved, given, path)
    return replace(saved, **dict(given) | {"out": str(path), "resume": True})


def _check_unchanged(saved: TrainConfig, given: Mapping[str, Any], path: Path) -> None:
    for name, value in given.items():
        if name not in {*_FREE, "epochs"} and value != (old := getattr(saved, name)):
            before = f"with {flag(name)} {old}, not {value}" if old or old == 0 else f"without {flag(name)}"
            raise UserError(f"{path} was started {before}: leave it out to resume")


@contextmanager
def _using_threads(count: int | None) -> Iterator[None]:
    """Compute with a number of threads, and go back to the one from before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _change_of_length(plan: Plan, saved: SavedRun, step: int) -> str | None:
    """What another number of epochs does to a run that has come to a step; None where the number stays.

    Raises:
        UserError: the run has already trained for longer.
    """
    old, new = saved.work, plan.work
    if new.epochs == old.epochs:
        return None
    done = new.clock(step).epoch
    if done > new.epochs:
        raise UserError(f"--epochs {new.epochs}: {plan.config.path} has trained for {done:.4g} epochs already")
    before, after = (plan.recipe.optimizer.rate(work.clock(step), work.batch_size) for work in (old, new))
    return (
        f"{new.epochs} epochs in place of {old.epochs}: learning rate and momentum go on along the schedules of "
        f"{new.epochs} epochs, the rate from {after:.2g} in place of {before:.2g} at epoch {done:.4g}; the recipe "
        f"stays the one for {old.epochs}"
    )


def _check_same_images(saved: SavedRun, plan: Plan) -> None:
    """Refuse other names, which would be shuffled otherwise; other files of the same names may be mended ones."""
    then, now = saved.data, plan.train.fingerprint
    if then is not None and now is not None and not then.train.same_order(now):
        raise UserError(
            f"{plan.differences[0]}; put them back, or resume with what is there by --data {plan.config.data}"
        )


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[L.Callback] = (),
    announce: Callable[[Plan], None] = lambda plan: None,
    other_data: bool = False,
    own: Given | None = None,
) -> dict[str, Any]:
    """Train and evaluate a run, and fill its folder.

    Args:
        config: what to train; to resume a run, the configuration that `resumed` returns.
        callbacks: further Lightning callbacks, such as a progress bar.
        announce: called once with the plan, before the first step.
        other_data: whether a run may be resumed on images other than those it was started with. Its steps per
            epoch are then those of the new images; mean and standard deviation stay.
        own: images and an encoder from Python, in place of those that the configuration names.

    Returns:
        The contents of `results.json`.

    Raises:
        UserError: the configuration cannot be carried out.
        NonFiniteError: training met non-finite numbers; the message names the step and the last good checkpoint.
        InterruptedRunError: Ctrl-C was pressed; the run can be resumed.
    """
    with _using_threads(config.threads):
        return _train(config, callbacks, announce, other_data, own)


def _train(
    config: TrainConfig,
    callbacks: Sequence[L.Callback],
    announce: Callable[[Plan], None],
    other_data: bool,
    own: Given | None,
) -> dict[str, Any]:
    folder, saved, state = RunFolder(config.path), None, None
    if config.resume:
        given = {f.name: getattr(config, f.name) for f in fields(config)}
        saved = folder.saved()
        _check_unchanged(saved.run, given, folder.path)
        state = folder.load_checkpoint()
    elif is_main_process():
        folder.check_free(overwrite=config.overwrite)
    plan = resolve(config, saved=saved, given=own)
    change = None
    if saved is not None and state is not None:
        if not other_data:
            _check_same_images(saved, plan)
        change = _change_of_length(plan, saved, state["step"])
        if change:
            plan = replace(plan, notes=(*plan.notes, change))
    if is_main_process():
        if saved is not None:
            notes = (*saved.notes, *([change] if change else []))
            folder.write_config(replace(plan.resumed(saved), notes=notes))
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
        rank_every=config.rank_every or plan.work.rank_every,
    )
    if state is not None:
        load_weights(module.model, state["model"], folder.checkpoint)
        module.step = state["step"]
        module.monitor.resume(r for r in readings(folder.metrics()) if r.step < module.step)
        if is_main_process():
            if change:
                folder.write_results({})  # those of the earlier end are not this run's
            folder.forget_spectra(module.step)
    if config.devices > 1:
        join_norms(module.model, cuda=plan.device.type == "cuda")
    if config.compile:
        for encoder in {module.model.encoder("online"), module.model.encoder("target")}:
            encoder.compile(fullgraph=True)
    checkpoints = Checkpoints(plan, folder, state)
    with Heartbeat(folder, step=module.step, seconds=checkpoints.seconds) as heartbeat:
        if module.step < plan.work.steps:
            _fit(plan, module, checkpoints, [heartbeat, *([Restore(state)] if state else []), *callbacks])
        heartbeat.state = "evaluating"
        return _results(plan, module, checkpoints)


def _results(plan: Plan, module: SelfSupervised, checkpoints: Checkpoints) -> dict[str, Any]:
    """Evaluate a trained run, and write its `results.json`."""
    config, folder = plan.config, checkpoints.folder
    images = module.step * config.batch_size
    results: dict[str, Any] = _last_reading(folder) | {
        "seconds": checkpoints.seconds,
        "images_per_second": images / checkpoints.seconds,
        "views_per_second": len(plan.recipe.views) * images / checkpoints.seconds,
    }
    if config.threads is not None:
        results["threads"] = config.threads
    if is_main_process():
        history = readings(folder.metrics())
        # Without a protocol, a sample is enough for the ranks.
        rated = plan if config.protocol else replace(plan, train=plan.train.sample(SAMPLE), tests={})
        results |= evaluate_plan(rated)
        features = Use(rank=results["erank_features"], of=min(len(rated.train), plan.work.features))
        results["alarms"] = plain(alarms(history))
        results["verdict"] = plain(judge(history, features))
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
            logger=open_loggers(config, folder, step=module.step),
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
                f"{error}; mend it (or remove it, and add --data {config.data}), then go on with: "
                f"rankgap train --out {folder.path} --resume"
            ) from error
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
