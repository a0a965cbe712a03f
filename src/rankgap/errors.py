"""Errors that a user can act on, and the error for an unknown name."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


class UserError(ValueError):
    """The request cannot be carried out as given; the message says what to change (commands exit with 2)."""


class NonFiniteError(RuntimeError):
    """Training met a loss or a spectrum that is not finite (commands exit with 3)."""


class InterruptedRunError(Exception):
    """Training was interrupted and can be resumed (commands exit with 128 + the signal: 130 for Ctrl-C).

    Args:
        message: how to resume.
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int = 2) -> None:
        super().__init__(message)
        self.signal = signal


_REMEDIES = (
    ({errno.ENOSPC, errno.EDQUOT, errno.EFBIG}, "free some space there, or choose another place"),
    ({errno.EACCES, errno.EPERM, errno.EROFS}, "change its permissions, or choose another place"),
    ({errno.ENOTDIR, errno.EEXIST}, "expected a folder, found a file; choose another place"),
    ({errno.EISDIR}, "name a file in it"),
    ({errno.ENAMETOOLONG}, "choose a shorter name"),
    ({errno.ENOENT}, "check its name, or choose another place"),
)


def unusable(error: OSError, place: str | os.PathLike[str] | None = None) -> UserError:
    """A `UserError` for a file or folder that cannot be read or written: its name, the reason and a remedy.

    Args:
        error: the operating system's error.
        place: the file or folder; by default the one that the error names, if any.

    Example:
        >>> print(unusable(OSError(errno.ENOSPC, "No space left on device"), "runs/a"))
        runs/a: No space left on device; free some space there, or choose another place
    """
    where = error.filename if place is None else place
    named = "" if where is None else f"{os.fsdecode(where) if isinstance(where, bytes) else where}: "
    remedy = next((f"; {text}" for numbers, text in _REMEDIES if error.errno in numbers), "")
    return UserError(f"{named}{error.strerror or error}{remedy}")


# The libraries that each extra of the package brings, by the names under which they are imported.
EXTRAS = {
    "train": (
        "torchvision timm lightning datasets jsonargparse docstring_parser shtab matplotlib plotly sklearn scipy "
        "tensorboard PIL tifffile imagecodecs pydantic pydantic_core yaml safetensors "
        "huggingface_hub pyarrow"
    ),
    "export": "onnx onnxruntime onnxscript",
    "notebook": "ipywidgets IPython",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def missing(module: str | None, what: str) -> str | None:
    """A sentence about a library that is not installed, with the extra that brings it; None if no extra does.

    Args:
        module: the module that could not be imported, as `ModuleNotFoundError.name` gives it.
        what: what needs it, such as "rankgap export".

    Example:
        >>> missing("onnx.checker", "rankgap export")
        "rankgap export needs onnx, which is not installed: pip install 'rankgap[export]'"
    """
    library = (module or "").partition(".")[0]
    extra = next((extra for extra, libraries in EXTRAS.items() if library in libraries.split()), None)
    if extra is None:
        return None
    return f"{what} needs {library}, which is not installed: pip install 'rankgap[{extra}]'"


def attempt(work: Callable[[], _T], refusal: Callable[[Exception], Exception], *, own: type[Exception]) -> _T:
    """Run what may raise anything. Whatever it raises becomes one error.

    This is the only place that catches every exception, for two reasons. On damaged or hostile bytes, Pillow,
    libtiff, zlib and the parsers of NumPy and torch raise nearly anything, MemoryError and RecursionError
    included; no list of types has been complete. And watching must never end a training, whatever goes wrong.

    Args:
        work: what to run.
        refusal: the error to raise in place of the one that was met.
        own: the type of our own verdicts, which are raised as they are.
    """
    try:
        return work()
    except own:
        raise
    except Exception as error:
        raise refusal(error) from error


def check_within(options: object, **bounds: tuple[float, float]) -> None:
    """Check the bounds of dataclass fields that hold a number, or a tuple of numbers.

    Args:
        options: the dataclass.
        bounds: field name -> its smallest and its largest value.

    Raises:
        UserError: a number is outside its bounds, or is not a number.
    """
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number <= most:
                raise UserError(f"{name} must be from {least:g} to {most:g}, got {number}")


def unknown(kind: str, name: str, known: Iterable[str], *, listed: str | None = None) -> UserError:
    """A `UserError` that lists the known names and suggests the nearest one, if one is close.

    Args:
        kind: what the name stands for: "method", "gain", "data set", "backbone".
        name: the unknown name.
        known: the known names.
        listed: the command that lists the known names, if there are too many for a message.

    Example:
        >>> print(unknown("method", "simsam", ["byol", "simsiam"]))
        unknown method 'simsam': did you mean 'simsiam'? Expected one of byol, simsiam
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    expected = f"{'Expected' if near else 'expected'} one of {', '.join(names)}"
    choices = f"{'See' if near else 'see'} {listed}" if listed else expected
    return UserError(f"unknown {kind} {name!r}: {guess}{choices}")
