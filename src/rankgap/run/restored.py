"""Restoring a trained run, to evaluate or score it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rankgap.choices import Side
from rankgap.evaluate import evaluate
from rankgap.run.folder import RunFolder
from rankgap.run.plan import Plan, resolve


def restore(path: str | Path, checkpoint: Path | None = None, **changes: Any) -> Plan:
    """The plan of a run with its trained model, from a run folder.

    The recipe, mean and standard deviation are the run's own, whatever would be chosen now.

    Args:
        path: the run folder.
        checkpoint: the checkpoint's file; the last one by default.
        changes: fields of the configuration to replace.

    Raises:
        UserError: there is no run, no checkpoint or no data, or the checkpoint is of another model.
    """
    folder = RunFolder(Path(path))
    saved = folder.saved()
    state = folder.load_checkpoint(checkpoint)
    # The machine may be another than the one that trained the run.
    here = {"devices": 1, "workers": None, "loggers": (), "accelerator": "auto"}
    if saved.run.accelerator == "cpu":
        here["accelerator"] = "cpu"
    plan = resolve(replace(saved.run, **here | {"out": str(path)} | changes), saved=saved)
    state.load_model(plan.model)
    return plan


def evaluate_plan(plan: Plan, *, branch: Side = "online") -> dict[str, Any]:
    """Evaluate a branch's encoder on the run's evaluation sets; returns what `results.json` keeps."""
    found: dict[str, Any] = evaluate(
        plan.model.encoder(branch),
        plan.train,
        plan.tests,
        size=plan.size,
        protocol=plan.config.protocol,
        branch=branch,
        device=plan.device,
        workers=plan.workers,
        seed=plan.config.seed,
    )
    return found | {"notes": [*found["notes"], *plan.differences]}
