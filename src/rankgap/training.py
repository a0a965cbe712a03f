"""Training from Python or a notebook: `rankgap train` with your own images and model."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from rankgap.choices import FormatName
from rankgap.data.given import given_source
from rankgap.data.sources import GIVEN
from rankgap.errors import InterruptedRunError, UserError
from rankgap.exporting.export import Export, export_run
from rankgap.run.config import TrainConfig, config_fields
from rankgap.run.encoder import TrainedEncoder, load_encoder
from rankgap.run.folder import RunFolder
from rankgap.run.imports import import_all
from rankgap.run.plan import Given
from rankgap.run.reader import plain
from rankgap.run.resuming import resumed
from rankgap.run.trainer import train as run
from rankgap.show.progress import Progress


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run.

    Args:
        folder: its run folder, which every command takes: `rankgap report FOLDER`.
        results: the contents of its `results.json`: accuracies, ranks, alarms.
        model: the user's own module, if one was trained.
    """

    folder: Path
    results: dict[str, Any] = field(repr=False)
    model: nn.Module | None = None

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def encoder(self) -> TrainedEncoder:
        """The trained encoder, as `load_encoder` gives it."""
        return load_encoder(self.folder, model=copy.deepcopy(self.model))

    def _repr_html_(self) -> str:
        """The run as a notebook shows it."""
        return RunFolder(self.folder)._repr_html_()


def train(
    images: Any,
    labels: Any = None,
    *,
    test: Any = None,
    test_labels: Any = None,
    model: nn.Module | str | None = None,
    **config: Any,
) -> TrainedRun:
    """Train an encoder on images, without labels, and fill a run folder.

    This does what `rankgap train` does, with the same presets. Labels are used only for the kNN and linear
    accuracy at the end, which also need test images. To finish a run that was stopped (by Ctrl-C, or a notebook's
    stop button), repeat the call with `resume=True`, and pass the images and your own model again.

    Args:
        images: a data set as `--data` names it ("folder:photos"); a stack (N, H, W, C), (N, C, H, W) or (N, H, W)
            of uint8, or of deep values (`data.levels`); or a sequence of PIL images, paths, arrays or tensors,
            such as a torchvision data set without transforms.
        labels: N labels of any kind; None if there are none.
        test: test images, as `images`.
        test_labels: their labels.
        model: a timm name; or a module (B, C, H, W) -> (B, F), which is trained in place, from the weights it has.
            By default `resnet_tiny` on a CPU, and `resnet18` elsewhere.
        config: fields of `TrainConfig`, that is, the flags of `rankgap train`: method="byol",
            target="power:-0.5", epochs=20, out="runs/mine", settings={"optimizer.lr": 0.1}.

    Returns:
        The run: its folder, results and encoder.

    Raises:
        UserError: a field is unknown, or the configuration cannot be carried out.
        NonFiniteError: training met non-finite numbers.
        InterruptedRunError: training was stopped; the run can be resumed.

    Example:
        >>> import rankgap as rg
        >>> run = rg.train(images, method="simsiam", epochs=20, out="runs/mine")  # doctest: +SKIP
        >>> features = run.encoder(images)  # doctest: +SKIP
    """
    if taken := {"data", "backbone"} & config.keys():
        raise UserError(f"train takes no keyword {taken.pop()}: pass the images first, and a network as model")
    if isinstance(model, nn.Module) and not any(p.requires_grad for p in model.parameters()):
        raise UserError("no parameter of model wants a gradient, so it cannot be trained: model.requires_grad_()")
    if not isinstance(model, nn.Module | str | None):
        raise UserError(f"model must be a module or a timm name, got {model!r:.60}")
    if isinstance(images, str):
        if any(each is not None for each in (labels, test, test_labels)):
            raise UserError(f"{images} has its own labels and test images: leave out labels, test and test_labels")
        source, config["data"] = None, images
    else:
        source, config["data"] = given_source(images, labels, test, test_labels), GIVEN
    if isinstance(model, str):
        config["backbone"] = model
    if "out" in config:
        config["out"] = str(config["out"])
    # Worker processes import the calling script again on some systems; decoding runs in threads in any case.
    fields = {"workers": 0} | config_fields(plain(config))
    settings = TrainConfig(**fields)
    import_all(settings.imports)
    if settings.resume:
        settings = resumed(settings.path, fields)
    module = model if isinstance(model, nn.Module) else None
    try:
        progress = Progress(settings.title)
        results = run(
            settings,
            callbacks=[progress],
            announce=progress.announce,
            other_data=source is not None,  # images that are passed again are meant
            own=Given(source, module),
        )
    except InterruptedRunError as error:
        if source is None and module is None:  # the command can resume it too
            raise
        begun, _, _ = str(error).partition(";")
        again = f"{begun}; to finish it, repeat the call with out={str(settings.path)!r} and resume=True"
        raise InterruptedRunError(again, error.signal) from error
    done = TrainedRun(settings.path, results, module)
    progress.give_way(done)
    return done


def export(
    run: TrainedRun | str | Path, *, to: FormatName, model: nn.Module | None = None, **options: Any
) -> Export:
    """Export a run's encoder as a folder that loads without rankgap, as `rankgap export` does.

    Args:
        run: a run folder, or what `train` returned.
        to: timm, safetensors, onnx, torch-export or hf.
        model: another instance of your own model, if the run trained one; it is left as it is.
        options: the other flags of `rankgap export`: out, checkpoint, branch, preprocessing, license, overwrite,
            push.

    Raises:
        UserError: as in `export_run`.

    Example:
        >>> import rankgap as rg
        >>> rg.export("runs/mine", to="onnx", preprocessing=True).folder  # doctest: +SKIP
        PosixPath('exports/mine-onnx')
    """
    folder, own = (run.folder, run.model) if isinstance(run, TrainedRun) else (run, None)
    made = export_run(folder, to=to, model=own if model is None else model, **options)
    for text in made.warnings:
        warnings.warn(text, stacklevel=2)
    return made
