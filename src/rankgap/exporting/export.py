"""Exporting: from a run folder to a folder that other tools load."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import shutil
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from rankgap.choices import FormatName, Side
from rankgap.errors import UserError
from rankgap.exporting import preprocessing as shipped
from rankgap.exporting.architecture import architecture_of
from rankgap.exporting.card import card, warnings_of
from rankgap.exporting.folder import CONFIG, OURS, check_replaceable, replacing_folder
from rankgap.exporting.format import Format
from rankgap.exporting.formats import format_called
from rankgap.exporting.source import Exported
from rankgap.run.encoder import encoder_of
from rankgap.run.folder import RunFolder

CARD = "README.md"
# What the files of an export are, by name or pattern.
_FILES = {
    "model.safetensors": "the weights",
    CONFIG: "the architecture, the preprocessing, and where the encoder comes from",
    "preprocessing.py": "the preprocessing in torch",
    CARD: "this card",
    "model.onnx": "the graph",
    "model.onnx.data": "the graph's weights",
    "model.pt2": "the graph",
    "encoder.py": "the class, for PyTorchModelHubMixin",
    "rankgap_*.py": "registers the architecture with timm",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A folder that was written.

    Args:
        folder: the folder.
        files: its files.
        notes: what was found on the way, one sentence each: the largest difference to PyTorch.
        warnings: why the encoder may be of little use, one sentence each.
        address: where it is on the Hugging Face Hub, if it was pushed.
    """

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    address: str | None = None


def export_run(
    run: str | Path,
    *,
    to: FormatName,
    out: str | Path | None = None,
    checkpoint: str = "last",
    branch: Side = "online",
    preprocessing: bool = False,
    license: str = "unknown",
    overwrite: bool = False,
    push: str | None = None,
    model: nn.Module | None = None,
) -> Export:
    """Export the trained encoder of a run as a folder that loads without rankgap. No data are needed.

    Args:
        run: the run folder.
        to: timm, safetensors, onnx, torch-export or hf.
        out: the folder to write; by default exports/RUN-FORMAT.
        checkpoint: last, best, or one like epoch-0010.
        branch: the branch whose encoder is exported.
        preprocessing: put the preprocessing inside the graph, which then takes images of any size.
        license: the licence of the weights, for the card: an identifier of the Hugging Face Hub.
        overwrite: replace an earlier export.
        push: a name of the Hugging Face Hub to upload the folder to.
        model: another instance of your own model, if the run trained one.

    Raises:
        UserError: there is no such run, checkpoint or format, the format cannot hold this network, the place is
            taken, or the exported graph gives other features than PyTorch.
    """
    form = format_called(to)
    if preprocessing and not form.graph:
        raise UserError(
            f"--to {to} holds no graph, so no preprocessing goes inside: use onnx or torch-export, or leave out "
            "--preprocessing (preprocessing.py is written beside the weights)"
        )
    if model is not None and not form.own:
        raise UserError(
            f"{to} cannot build {type(model).__name__}, a model of your own: use onnx or torch-export, which hold "
            "the network itself, or safetensors, which you load into your own class"
        )
    folder = RunFolder(Path(run))
    place = Path("exports") / f"{folder.name}-{to}" if out is None else Path(out)
    check_replaceable(place, overwrite=overwrite)
    if push is not None:
        from rankgap.exporting.hub import check_name

        check_name(push)
    saved = folder.saved()
    state = folder.load_checkpoint(folder.checkpoint_called(checkpoint))
    encoder = encoder_of(saved, state, branch=branch, model=copy.deepcopy(model)).cpu()
    exported = Exported(
        folder=folder,
        saved=saved,
        checkpoint=checkpoint,
        step=state.step,
        branch=branch,
        encoder=encoder,
        architecture=architecture_of(saved.model, encoder.encoder.network, own=model is not None),
        inside=preprocessing,
        licence=license,
        hub=push,
    )
    made = _write(exported, to, form, place)
    if push is None:
        return made
    from rankgap.exporting.hub import push as upload

    return replace(made, address=upload(made.folder, push, _FILES))


def _write(exported: Exported, to: FormatName, form: Format, place: Path) -> Export:
    """Write the folder: what is particular to the format, and what every folder holds."""
    history, verdict = exported.folder.history(exported.step).metrics, exported.folder.verdict()
    ranks = {name: values[-1] for name, values in history.items() if values}
    warnings = warnings_of(exported, verdict, ranks)
    with replacing_folder(place) as folder:
        notes = form.write(exported, folder)
        state = exported.network.state_dict(prefix=form.prefix)
        # Tensors that share memory, as tied weights do, are written each.
        weights = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(str(shipped.__file__), folder / "preprocessing.py")
        files = sorted({path.name for path in folder.iterdir()} | {CONFIG, CARD})
        origin = {
            "version": importlib.metadata.version("rankgap"),
            "format": to,
            "run": exported.folder.name,
            "method": exported.saved.title,
            "checkpoint": exported.checkpoint,
            "step": exported.step,
            "branch": exported.branch,
            "files": files,
        }
        shutil.copymode(folder / "preprocessing.py", folder / "model.safetensors")  # only we could read it
        (folder / CONFIG).write_text(json.dumps(exported.config() | {OURS: origin}, indent=2) + "\n")
        about = {name: next(what for known, what in _FILES.items() if fnmatch(name, known)) for name in files}
        text = card(exported, form, about, warnings=warnings, notes=notes, ranks=ranks, verdict=verdict)
        (folder / CARD).write_text(text, encoding="utf-8")
    return Export(folder=place, files=tuple(files), notes=tuple(notes), warnings=tuple(warnings))
