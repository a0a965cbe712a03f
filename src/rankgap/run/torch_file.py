"""Reading a torch file that may hold anything: it may be an incomplete copy, or hostile."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from rankgap.data.names import shown
from rankgap.errors import UserError, attempt, unusable

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # in torch's message: the class that a file asks for


def read_torch_file(path: Path, what: str, *, legacy: bool = False) -> object:
    """The contents of a torch file, on the CPU. No code in it is run, and it takes no more memory than its size.

    Args:
        path: the file.
        what: what it should be, for an error: "a rankgap checkpoint".
        legacy: also read files from before torch 1.6, which are no zip archives, and the command-line arguments
            (`argparse.Namespace`) that published checkpoints hold.

    Raises:
        UserError: the file cannot be read, or loads more than weights.
    """

    def load() -> object:
        size = path.stat().st_size
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else size
        if size > memory:
            raise UserError(f"{path} is {size:,} bytes, more than this machine's memory ({memory:,})")
        if not legacy or zipfile.is_zipfile(path):
            _check_archive(path, size)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace] if legacy else []):
            warnings.simplefilter("ignore")  # about kinds of tensors that are rejected anyway
            return torch.load(path, map_location="cpu", weights_only=True)

    def refusal(error: Exception) -> UserError:
        if isinstance(error, OSError):
            return unusable(error, path)
        return UserError(f"{path} is not {what}: {_reason(error)}")

    return attempt(load, refusal, own=UserError)


def is_plain(value: object) -> bool:
    """Whether a value from a file is a tensor with its numbers in it, as parameters are."""
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_quantized
    )


def _reason(error: Exception) -> str:
    """Why torch cannot load a file, in words for its user; torch's own advise to switch its safety off."""
    if isinstance(error, pickle.UnpicklingError) and (kind := _GLOBAL.search(str(error))):
        return f"it holds Python objects ({kind[1]}), which could run code, where tensors alone can be loaded"
    if isinstance(error, pickle.UnpicklingError | LookupError | EOFError):
        return "it is not in torch.save's format"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"it cannot be loaded as weights ({shown(reason)[:200]})"


def _check_archive(path: Path, size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not stored or sum(record.file_size for record in records) > size:
            raise ValueError("its parts are larger than the file")
        if torn := archive.testzip():  # torch does not check the checksums
            raise ValueError(f"its part {torn} is damaged")
