"""The files that commands write for people to look at: which names they may have."""

from __future__ import annotations

from pathlib import Path

from rankgap.errors import UserError

PAGE = (".html",)
PICTURE = (".png", ".pdf", ".svg")


def output_file(out: str | Path, suffixes: tuple[str, ...]) -> Path:
    """The path of a file that is to be written; its suffix chooses the format. Call it before any work is done.

    Args:
        out: the name as it was given, with a suffix in upper or lower case.
        suffixes: what can be written.

    Raises:
        UserError: the name is a directory's, or ends in another suffix or in none.

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
