"""Run the code of docs/mechanism.md from top to bottom, which draws the page's figures.

python -m benchmarks.page
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

PAGE = Path(__file__).parent.parent / "docs" / "mechanism.md"


def run(page: Path = PAGE, names: Mapping[str, Any] = types.MappingProxyType({})) -> None:
    """Execute a page's blocks in one namespace, which begins with these names, in the current folder."""
    matplotlib.use("agg")
    names = dict(names)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)


if __name__ == "__main__":
    run()
