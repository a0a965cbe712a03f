"""File names are bytes, kept as they are. They, and the messages of libraries, are shown as one line of text."""

from __future__ import annotations

import os
from pathlib import Path


def shown(name: str) -> str:
    r"""A name as one line of text that any terminal and any file of ours takes.

    What cannot be printed is escaped: line breaks, and the bytes of a name that is not UTF-8, which Python holds
    as lone surrogates.

    Example:
        >>> print(shown("caf\udce9 1\n.png"), shown("Größe 图片.png"))
        caf\xe9 1\n.png Größe 图片.png
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def said(error: Exception) -> str:
    """An exception's message as one such line; its type if it has no message."""
    return shown(" ".join(str(error).split())) or type(error).__name__


def plural(count: int, noun: str) -> str:
    """The noun for a count: plural unless the count is 1.

    Example:
        >>> plural(1, "image"), plural(2, "image")
        ('image', 'images')
    """
    return noun if count == 1 else f"{noun}s"


def without_folders(spec: str) -> str:
    """Where data or weights come from, without this machine's folders: for what is handed to others.

    Example:
        >>> without_folders("folder:/home/me/photos"), without_folders("hf:timm/resnet18.a1_in1k")
        ('folder:.../photos', 'hf:timm/resnet18.a1_in1k')
    """
    kind, colon, rest = spec.rpartition(":")
    local = kind not in ("", "hf") or os.path.isabs(rest) or Path(rest).exists()
    return f"{kind}{colon}.../{Path(rest).name}" if local else spec


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
