"""What an installation brings: the extras, the core without them, and the lowest versions."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rankgap.errors import EXTRAS
from tests.test_architecture import PACKAGE, imports

ROOT = Path(__file__).parents[1]
CORE_LOOP = (ROOT / "tests" / "core_loop.py").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("train", "export", "notebook", "wandb", "mlflow")
CORE = {"torch", "torchmetrics", "numpy", "rich"}
OF_TORCH = {"typing_extensions"}
PEERS = {"transformers"}  # of an adapter, whose users have it

# As if no library of an extra were installed. torchmetrics looks for their distributions too.
WITHOUT = f"""
import importlib.metadata, sys

absent = {" ".join(EXTRAS.values()).split()!r}
sys.modules.update(dict.fromkeys(absent))
from_name = importlib.metadata.Distribution.from_name

def looked_up(name):
    if name.lower().replace("-", "_") in absent:
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)

importlib.metadata.Distribution.from_name = looked_up
"""


def floors(requirements: list[str]) -> dict[str, str]:
    """Each requirement's lowest version, by the distribution's name."""
    found = [re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\w.]+)", text) for text in requirements]
    return {match[1].lower(): match[2] for match in found if match}


def core(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True)


def test_the_core_watches_a_loop_without_any_library_of_the_extras() -> None:
    done = core(CORE_LOOP)
    assert done.returncode == 0, done.stderr
    assert "effective rank" in done.stdout


@pytest.mark.parametrize(
    ("name", "needs"),
    [("train", "train"), ("load_encoder", "train"), ("RankCallback", "train"), ("plot", "train")],
)
def test_a_name_of_an_extra_says_how_to_install_it(name: str, needs: str) -> None:
    done = core(f"import rankgap; rankgap.{name}")
    assert re.search(
        rf"rankgap\.{name} needs \w+, which is not installed: pip install 'rankgap\[{needs}\]'", done.stderr
    )


def test_a_command_without_its_part_says_in_one_line_how_to_install_it() -> None:
    for command in ("train", "methods", "--help"):
        done = core(f"from rankgap.cli import main; sys.exit(main([{command!r}]))")
        assert done.returncode == 2
        assert done.stderr.startswith("rankgap: rankgap")
        assert "pip install 'rankgap[train]'" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = core("from rankgap.cli import main; sys.exit(main(['--version']))")
    assert (done.returncode, done.stdout.split()[0]) == (0, "rankgap")


def test_every_library_that_is_imported_comes_with_the_core_or_with_an_extra() -> None:
    used = {found.target.partition(".")[0] for found in imports(PACKAGE) if not found.inside}
    extras = set(" ".join(EXTRAS.values()).split())
    assert used - sys.stdlib_module_names - CORE - OF_TORCH - PEERS <= extras
    assert set(floors(PROJECT["dependencies"])) == CORE


def test_the_extras_in_the_errors_are_those_of_the_project() -> None:
    assert EXTRAS.keys() == set(OURS)
    modules = importlib.metadata.packages_distributions()
    for extra in OURS:
        for module in EXTRAS[extra].split():
            brought = {name.lower().replace("_", "-") for name in modules.get(module, [])}
            asked = floors(PROJECT["optional-dependencies"][extra]).keys()
            others = {"docstring-parser", "pydantic-core", "pyarrow", "ipython"}  # what those bring
            assert not brought or brought & (asked | others), f"{module} is not of the extra {extra}"


def test_all_brings_every_extra_of_users() -> None:
    assert PROJECT["optional-dependencies"]["all"] == [f"rankgap[{','.join(OURS)}]"]


def test_the_file_of_lowest_versions_holds_the_floors() -> None:
    extras = (PROJECT["optional-dependencies"][extra] for extra in ("train", "export", "notebook"))
    wanted = floors([*PROJECT["dependencies"], *itertools.chain(*extras)])
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    assert [line for line in lines if line and line[0] != "#"] == [f"{n}=={v}" for n, v in sorted(wanted.items())]
