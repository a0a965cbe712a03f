"""Run the code of docs/mechanism.md from top to bottom, which draws the page's figures.

python -m benchmarks.page
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

PAGE = Path(__file__).parent.parent / "docs" / "mechanism.md"


def run(page: Path = PAGE) -> dict[str, Any]:
    """Execute the page's blocks in one namespace, in the current folder, and return the namespace."""
    matplotlib.use("agg")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)
    return names


if __name__ == "__main__":
    run()
