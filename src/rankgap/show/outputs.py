"""The names that a page or a picture may have."""

from __future__ import annotations

from pathlib import Path

from rankgap.errors import UserError

PAGE = (".html",)
PICTURE = (".png", ".pdf", ".svg")


def output_file(out: str | Path, suffixes: tuple[str, ...]) -> Path:
    """Check the name of an output file, whose suffix chooses the format. Call it before doing any work.

    Args:
        out: the name that the user gave, with a suffix in upper or lower case.
        suffixes: the suffixes that can be written.

    Raises:
        UserError: the name is a directory, or has another suffix or none.

    Example:
        >>> output_file("new/picture.SVG", PICTURE).name
        'picture.SVG'
    """
    path = Path(out)
    if path.is_dir():
        raise UserError(f"{out} is a directory: name a file in it")
    if path.suffix.lower() not in suffixes:
        ending = f"ends in {path.suffix}" if path.suffix else "has no suffix"
        known = ", ".join(suffixes[:-1]) + " or " * (len(suffixes) > 1) + suffixes[-1]
        raise UserError(f"{out} {ending}: the file name must end in {known}")
    return path
