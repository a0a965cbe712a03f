"""Pretrained weights as they are found: timm's, on the Hugging Face Hub, in another run, or in a file."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rankgap.choices import Side
from rankgap.data.names import said
from rankgap.errors import UserError, unusable
from rankgap.run.folder import RunFolder, no_run
from rankgap.run.reader import read_json
from rankgap.run.torch_file import is_plain, read_torch_file

SOURCES = "timm, hf:REPO, run:FOLDER, teacher:FOLDER, or a file (.safetensors, .pt, .pth)"
_BRANCHES: Mapping[str, Side] = {"run": "online", "teacher": "target"}  # of a run, by the prefix of --init
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_PATIENCE = 1.0  # seconds
_DEEPEST = 3  # dictionaries inside one another that are searched for tensors

Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weights:
    """Pretrained weights, not yet fitted to an encoder.

    Args:
        place: where they come from, for notes and errors.
        states: tensors by name, for each dictionary found, by its key; the key of the outermost one is "".
        backbone: the network they were trained in; None if unknown.
        mean: mean of each channel in [0, 1] that their images were normalised with; None if unknown.
        std: standard deviation of each channel, as `mean`.
    """

    place: str
    states: Mapping[str, Mapping[str, Tensor]]
    backbone: str | None = None
    mean: Numbers | None = None
    std: Numbers | None = None


def find_weights(init: str, backbone: str) -> Weights:
    """The weights that `--init` names.

    Args:
        init: timm, hf:REPO, run:FOLDER, teacher:FOLDER, or a file.
        backbone: the run's backbone, of which `timm` takes the weights; a tag may follow it.

    Raises:
        UserError: there are no such weights, or they cannot be read or downloaded.
    """
    kind, _, rest = init.partition(":")
    if init == "timm":
        return _of_timm(backbone)
    if kind == "hf" and rest:
        return _of_hub(rest)
    if kind in _BRANCHES and rest:
        return _of_run(Path(rest), _BRANCHES[kind])
    path = Path(init)
    if path.is_dir() and RunFolder(path).config_file.is_file():
        raise UserError(f"--init {init} is a run folder: write run:{init}")
    if not path.is_file():
        raise UserError(f"--init takes {SOURCES}; there is no file {init!r}")
    return Weights(place=init, states=_states_of_file(path))


def _of_timm(backbone: str) -> Weights:
    """The pretrained weights that timm has of a backbone, as timm loads them into its own network."""
    network = pretrained_network(backbone, "--init timm")
    config = network.pretrained_cfg
    name = ".".join(part for part in (config["architecture"], config["tag"]) if part)
    return Weights(
        place=f"timm's {name}",
        states={"": network.state_dict()},
        backbone=config["architecture"],
        **_moments(config),
    )


def pretrained_network(name: str, asked: str, **options: Any) -> Any:
    """A timm network with its pretrained weights, and a description of them in `pretrained_cfg`.

    Args:
        name: the architecture; a tag may follow it.
        asked: what asked for it, for errors.
        options: of `timm.create_model`.

    Raises:
        UserError: timm has no such weights, or they cannot be downloaded.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UserError(
            f"{asked}: timm has no weights of {name}: choose a model that it has, such as resnet18 "
            "or vit_tiny_patch16_224"
        )
    try:
        with _asking_the_hub(name):
            return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{asked}: the weights of {name} cannot be loaded: {said(error).rstrip('.')}; choose one from "
            "timm.list_pretrained(), or check the connection"
        ) from error


@contextlib.contextmanager
def _asking_the_hub(name: str) -> Iterator[None]:
    """Say once what the wait is for. The Hub's library reports each attempt to connect, and sets no limit."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    line = f"waiting for the weights of {name}: without a connection, the Hugging Face Hub is tried for a minute"
    timer = threading.Timer(_PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    before = get_verbosity()
    set_verbosity(logging.ERROR)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        set_verbosity(before)


def _of_hub(repo: str) -> Weights:
    """The weights of a repository of the Hub, and what its config.json says of them if timm wrote it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = repo.partition("@")

    def download(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None))
        except LocalEntryNotFoundError:  # no connection, which is no statement about the file
            raise
        except EntryNotFoundError:
            return None

    try:
        with _asking_the_hub(name):
            path = next((found for file in _HUB_FILES if (found := download(file))), None)
            described = download("config.json") if path else None
    except (OSError, ValueError) as error:
        raise UserError(
            f"--init hf:{repo} cannot be downloaded: {said(error).rstrip('.')}; check its name and the connection"
        ) from error
    if path is None:
        raise UserError(
            f"--init hf:{repo} has none of {', '.join(_HUB_FILES)}: download a file, and give its path"
        )
    config = read_json(described) if described else {}
    known = config if isinstance(config, dict) and isinstance(config.get("architecture"), str) else {}
    return Weights(
        place=f"hf:{repo}",
        states=_states_of_file(path),
        backbone=known.get("architecture"),
        **_moments(known.get("pretrained_cfg", known)),
    )


def _of_run(path: Path, branch: Side) -> Weights:
    """The encoder of a run's last checkpoint."""
    folder = RunFolder(path)
    if not folder.config_file.is_file():
        kind = "run" if branch == "online" else "teacher"
        raise UserError(f"--init {kind}:{path}: {no_run(path)}")
    saved = folder.saved()
    if branch == "target" and not saved.method().ema:
        raise UserError(f"--init teacher:{path}: {saved.title} has no EMA teacher; write run:{path}")
    prefix = f"{'online' if branch == 'online' else 'teacher'}.encoder.network."
    state = folder.load_checkpoint().model
    tensors = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix) and is_plain(t)}
    return Weights(
        place=f"the {'online encoder' if branch == 'online' else 'teacher'} of {path}",
        states={"": tensors},
        backbone=saved.model.backbone,
        mean=saved.model.mean,
        std=saved.model.std,
    )


def _states_of_file(path: Path) -> dict[str, dict[str, Tensor]]:
    """Every dictionary of tensors in a file, by its key.

    Raises:
        UserError: the file cannot be read, or holds no tensors.
    """
    is_safe = path.suffix == ".safetensors"
    contents = _safetensors(path) if is_safe else read_torch_file(path, "a file of weights", legacy=True)
    states = dict(_states(contents, "", _DEEPEST))
    if not states:
        holds = f"it holds a {type(contents).__name__}"
        if isinstance(contents, Mapping):
            keys = ", ".join(map(str, list(contents)[:8]))
            holds = f"it has no tensor under {keys}" if keys else "it holds nothing"
        raise UserError(
            f"{path} has no weights: expected a state_dict, tensors by name, but {holds}; "
            "save model.state_dict() again"
        )
    return states


def _safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise unusable(error, path) from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {said(error)}") from error


def _states(found: object, key: str, depth: int) -> Any:
    """Dictionaries of tensors, the outermost first."""
    if not isinstance(found, Mapping) or not depth:
        return
    tensors = {name: each for name, each in found.items() if isinstance(name, str) and is_plain(each)}
    if tensors:
        yield key, tensors
    for name, each in found.items():
        yield from _states(each, f"{key}.{name}".removeprefix("."), depth - 1)


def _moments(config: object) -> dict[str, Numbers]:
    """Mean and standard deviation from timm's description of weights; empty if they are not whole."""
    found: dict[str, Numbers] = {}
    for name in ("mean", "std"):
        values = config.get(name) if isinstance(config, Mapping) else None
        if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
            return {}
        found[name] = tuple(map(float, values))
    whole = len(found["mean"]) == len(found["std"]) and all(each > 0 for each in found["std"])
    return found if whole else {}
