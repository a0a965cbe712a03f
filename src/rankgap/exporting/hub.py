"""Uploading an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from rankgap.data.names import said
from rankgap.errors import UserError

# Whichever library the installed huggingface_hub speaks HTTP with: a lost connection is an error of its own.
_HTTP: tuple[Any, ...] = HfHubHTTPError.__bases__


def check_name(name: str) -> None:
    """Refuse a name that the Hub does not take, or a push without a token, before any work is done.

    Raises:
        UserError: the name is not one, or nobody is logged in.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push takes a name such as you/encoder: {said(error)}") from error
    if get_token() is None:
        raise UserError("--push needs a token of the Hugging Face Hub: log in with hf auth login, or set HF_TOKEN")


def push(folder: Path, name: str, replaced: Iterable[str]) -> str:
    """Upload a folder, into a repository that is made if there is none; returns its address.

    Args:
        folder: the folder.
        name: of the repository.
        replaced: patterns of names: such files of the repository that are not in the folder are deleted.

    Raises:
        UserError: the Hub refuses, or cannot be reached. The folder stays.
    """
    api = HfApi()
    try:
        place = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=place.repo_id,
            folder_path=folder,
            commit_message="An export of rankgap",
            delete_patterns=list(replaced),
        )
    except (*_HTTP, OSError, ValueError) as error:
        raise UserError(
            f"{folder} is written, but not pushed to {name}: {said(error)}; try hf upload {name} {folder}"
        ) from error
    return str(place)
