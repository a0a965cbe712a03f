"""Loading exported folders as others do: by the snippets of their cards, in a process that has no rankgap."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_PROGRAM = """
import os, sys
import torch

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rankgap":
            raise ImportError("rankgap is blocked")

sys.meta_path.insert(0, Blocked())
given = torch.load(sys.argv[1])
for folder, (snippet, images) in given.items():
    os.chdir(folder)
    for name in ("preprocessing", "encoder"):  # of the folder before
        sys.modules.pop(name, None)
    sys.path[:] = [place for place in sys.path if place != "."]
    made = {}
    exec(snippet, made)
    kind, made["given"] = made["images"].dtype, images
    assert str(kind).rpartition(".")[2] == str(images.dtype).rpartition(".")[2], (kind, images.dtype)
    if not isinstance(made["images"], torch.Tensor):
        made["given"] = images.numpy()
    lines = ["images = given" if line.startswith("images =") else line for line in snippet.splitlines()]
    exec("\\n".join(lines), made)
    given[folder] = torch.as_tensor(made["features"]).detach()
torch.save(given, sys.argv[1])
"""


def snippet(folder: Path) -> str:
    """The code of a folder's card."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    return str(code)


def load_all(images: Mapping[Path, Tensor], home: Path) -> dict[Path, Tensor]:
    """The features that each folder's snippet makes of images.

    Args:
        images: by folder.
        home: a folder for files.
    """
    file = home / "given.pt"
    torch.save({str(folder): (snippet(folder), each) for folder, each in images.items()}, file)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "-c", _PROGRAM, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {Path(folder): features for folder, features in torch.load(file).items()}
