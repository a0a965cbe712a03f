"""Training a plan: the trainer, interruption and resumption, and the results at the end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from rankgap.data.encoded import BrokenImageError
from rankgap.errors import InterruptedRunError, NonFiniteError, UserError, unusable
from rankgap.model.joint_norm import join_norms
from rankgap.run.beat import check_at_rest
from rankgap.run.checkpoint import Checkpoint
from rankgap.run.checkpoints import SAMPLE, Checkpoints, Restore, SpectraFile
from rankgap.run.config import TrainConfig
from rankgap.run.feed import TrainingData
from rankgap.run.folder import RunFolder
from rankgap.run.heartbeat import Heartbeat
from rankgap.run.interruption import stops_on_signals
from rankgap.run.loggers import close_loggers, open_loggers
from rankgap.run.module import SelfSupervised
from rankgap.run.plan import Given, Plan, resolve
from rankgap.run.processes import is_main_process
from rankgap.run.reader import plain
from rankgap.run.restored import evaluate_plan
from rankgap.run.resuming import BegunRun
from rankgap.watch.doctor import alarms
from rankgap.watch.reading import readings
from rankgap.watch.verdict import Use, judge

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


@contextmanager
def _using_threads(count: int | None) -> Iterator[None]:
    """Compute with a number of threads, and restore the previous number afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        other_data: whether a run may be resumed on images other than those it was started with. The new images
            then decide the steps per epoch; mean and standard deviation are kept.
        own: images and an encoder from Python, in place of those that the configuration names.

    Returns:
        The contents of `results.json`.

    Raises:
        UserError: the configuration cannot be carried out, a file of the run to resume is damaged (its folder is
            then unchanged), or a file cannot be written.
        NonFiniteError: training met non-finite numbers; the message names the step and the last good checkpoint.
        InterruptedRunError: Ctrl-C was pressed; the run can be resumed.
    """
    with _using_threads(config.threads):
        folder = RunFolder(config.path)
        if is_main_process():
            check_at_rest(folder)
            if not config.resume:
                folder.check_free(overwrite=config.overwrite)
        begun = BegunRun.read(config) if config.resume else None
        plan = resolve(config, saved=begun.saved if begun else None, given=own)
        change: tuple[str, ...] = ()
        if begun is not None:
            if not other_data:
                begun.check_images(plan)
            change = begun.change_of_length(plan)
            plan = replace(plan, notes=(*plan.notes, *change))
        module = SelfSupervised(
            plan.model,
            plan.views(),
            plan.recipe.optimizer,
            plan.work,
            seed=config.seed,
            rank_every=config.rank_every or plan.work.rank_every,
        )
        if begun is not None:
            begun.restore(module)
        if is_main_process():
            if begun is not None:
                begun.rewind(plan, change)
            else:
                _create(folder, plan)
            announce(plan)
        return _run(plan, module, folder, begun.state if begun else None, callbacks)


def _create(folder: RunFolder, plan: Plan) -> None:
    folder.create()
    folder.write_config(plan.saved())
    folder.write_skipped([image for images in (plan.train, *plan.tests.values()) for image in images.skipped])


def _run(
    plan: Plan,
    module: SelfSupervised,
    folder: RunFolder,
    state: Checkpoint | None,
    callbacks: Sequence[L.Callback],
) -> dict[str, Any]:
    """Train from the module's step to the end, and evaluate."""
    config = plan.config
    if config.devices > 1:
        join_norms(module.model, cuda=plan.device.type == "cuda")
    if config.compile:
        for encoder in {module.model.encoder("online"), module.model.encoder("target")}:
            encoder.compile(fullgraph=True)
    checkpoints = Checkpoints(plan, folder, state)
    with Heartbeat(folder, step=module.step, seconds=checkpoints.seconds) as heartbeat:
        if config.init is not None and state is None and is_main_process():
            heartbeat.state = "evaluating"
            start = evaluate_plan(_rated(plan))
            folder.write_results({"start": start})  # at once, so that an interrupted run keeps it
            heartbeat.state = "training"
        if module.step < plan.work.steps:
            _fit(plan, module, checkpoints, [heartbeat, *([Restore(state)] if state else []), *callbacks])
        heartbeat.state = "evaluating"
        return _results(plan, module, checkpoints)


def _results(plan: Plan, module: SelfSupervised, checkpoints: Checkpoints) -> dict[str, Any]:
    """Evaluate a trained run, and write its `results.json`."""
    config, folder = plan.config, checkpoints.folder
    images = module.step * plan.work.images_per_step
    results: dict[str, Any] = _last_reading(folder) | {
        "seconds": checkpoints.seconds,
        "images_per_second": images / checkpoints.seconds,
        "views_per_second": len(plan.recipe.views) * images / checkpoints.seconds,
    }
    if config.threads is not None:
        results["threads"] = config.threads
    if is_main_process():
        history = readings(folder.metrics())
        rated = _rated(plan)
        results |= evaluate_plan(rated) | folder.start()
        features = Use(rank=results["erank_features"], of=min(len(rated.train), plan.work.features))
        results["alarms"] = plain(alarms(history, steps=plan.work.steps))
        if history and not config.fast_dev_run:  # two steps tell nothing
            results["verdict"] = plain(judge(history, features))
        folder.write_results(results)
    return results


def _rated(plan: Plan) -> Plan:
    """The plan with the images to score; without a protocol, a sample is enough for the ranks."""
    return plan if plan.config.protocol else replace(plan, train=plan.train.sample(SAMPLE), tests={})


def _fit(plan: Plan, module: SelfSupervised, checkpoints: Checkpoints, callbacks: Sequence[L.Callback]) -> None:
    config, folder = plan.config, checkpoints.folder
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with stops_on_signals() as interruption, _known_warnings_silenced():
        trainer = L.Trainer(
            max_steps=plan.work.steps - module.step,
            max_epochs=-1,
            accumulate_grad_batches=plan.work.accumulate,
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
                f"{error}; repair it (or remove it, and add --data {config.data}), then continue with: "
                f"rankgap train --out {folder.path} --resume"
            ) from error
        except OSError as error:  # from a logger; it may not name its file
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
