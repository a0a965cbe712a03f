"""Docstrings as Sphinx reads them: their plain text is not reStructuredText.

In a docstring `|P v|` is a length and `views.*` a name; reStructuredText would see a substitution and emphasis.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_CODE = re.compile(r"(`+.*?`+)")
_MARKUP = re.compile(r"[|*]|(?<=\w)_(?!\w)")
_BEFORE_NAPOLEON, _AFTER_NAPOLEON = 400, 600  # the order in which Sphinx calls handlers; 500 is the default


def plain(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Escape what reStructuredText would take for markup, outside of code and of examples."""
    inside = False
    for number, line in enumerate(lines):
        inside = bool(line.strip()) and (inside or line.lstrip().startswith(">>>"))
        if not inside:
            parts = _CODE.split(line)
            parts[::2] = [_MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def whole(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Undo that Napoleon takes what stands before a colon in a property's docstring for its type."""
    if what == "property" and lines and lines[-1].startswith(":type: "):
        lines[0] = f"{lines.pop().removeprefix(':type: ')}: {lines[0]}"


def skip(app: Sphinx, what: str, name: str, value: object, skipped: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples and the methods of dataclasses that Python writes."""
    return True if str(getattr(value, "__doc__", "")).startswith("Alias for field") else None


def by_its_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement) -> Any:
    """Link a class that is named without its module, as docstrings do: `UserError`."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not re.fullmatch(r"[A-Z]\w+", target):
        return None
    node["refspecific"] = True
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, shown)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the handlers."""
    app.connect("autodoc-process-docstring", plain, priority=_BEFORE_NAPOLEON)
    app.connect("autodoc-process-docstring", whole, priority=_AFTER_NAPOLEON)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", by_its_name)
    return {"parallel_read_safe": True}
