"""Which modules may import which (DESIGN.md, section 3), by their imports; and how long files and classes are."""

from __future__ import annotations

import ast
import graphlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "rankgap"

BELOW_RUN = "spectra filters views data watch model theory evaluate"
# Each folder or module, and what it may import besides itself, `errors` and `choices`. `rankgap` is the public
# list.
ARROWS = {
    "errors": "",
    "choices": "",
    "notebook": "",
    "spectra": "notebook",
    "views": "",
    "data": "",
    "filters": "spectra",
    "watch": "spectra notebook",
    "model": "spectra filters",
    "theory": "spectra filters notebook",
    "evaluate": "spectra views data",
    "run": f"{BELOW_RUN} notebook",
    "exporting": f"{BELOW_RUN} run",
    "embed": f"{BELOW_RUN} run",
    "show": f"{BELOW_RUN} notebook run exporting embed",
    "demo": "watch run show",
    "training": "data run exporting show",
    "commands": f"{BELOW_RUN} run exporting embed show demo",
    "cli": "commands run rankgap",
    "__main__": "cli",
    "rankgap": f"{BELOW_RUN} run show training",
}

IN_A_PLAIN_LOOP = {"spectra", "filters", "views", "watch", "model"}
HEAVY = {"lightning", "pytorch_lightning", "timm", "torchvision", "transformers", "pydantic", "yaml"}
DRAWING = {"rich", "matplotlib", "plotly"}
EXCEPTIONS = {
    ("watch.lightning", "lightning"),
    ("watch.huggingface", "transformers"),
    ("model.backbones", "timm"),
}

MOST_LINES = 400
MOST_LINES_OF_A_CLASS = 200  # without its docstring
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}


class Import(NamedTuple):
    """One import, including those in functions and under TYPE_CHECKING.

    Modules of the package are named below it: `run.plan`, `cli`; the package itself is `rankgap`.

    Attributes:
        source: the module that imports.
        target: what is imported, a module of the package or of another library.
        name: what is imported from it, if anything.
        inside: whether it is a module of the package.
        where: file and line.
    """

    source: str
    target: str
    name: str | None
    inside: bool
    where: str


def place(module: str) -> str:
    """The folder that a module is in, or the module itself if it is in no folder."""
    return module.partition(".")[0]


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names below it."""
    files = sorted(package.rglob("*.py"))
    names = [".".join(file.relative_to(package).with_suffix("").parts) for file in files]
    return {
        package.name if name == "__init__" else name.removesuffix(".__init__"): file
        for name, file in zip(names, files, strict=True)
    }


def imports(package: Path) -> Iterator[Import]:
    """Every import of every module of a package."""
    known = modules(package)
    for source, file in known.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                taken: list[tuple[str, str | None]] = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno}: a relative import; write the module's whole name"
                taken = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            for module, name in taken:
                root, _, below = module.partition(".")
                inside, target = root == package.name, module
                if inside:
                    deeper = f"{below}.{name}".removeprefix(".")
                    target, name = (deeper, None) if deeper in known else (below or root, name)
                yield Import(source, target, name, inside, f"{file.relative_to(package.parent)}:{node.lineno}")


def forbidden_arrows(package: Path) -> Iterator[str]:
    """Imports between folders that the table does not allow."""
    for found in imports(package):
        source, target = place(found.source), place(found.target)
        if not found.inside or source == target:
            continue
        if source not in ARROWS:
            yield f"{found.where}: {source} has no row in ARROWS"
        elif target not in ("errors", "choices", *ARROWS[source].split()):
            yield f"{found.where}: {source} must not import {target} ({found.source} -> {found.target})"


def circles(package: Path) -> Iterator[str]:
    """An import cycle, within a folder or across folders; the public list names everything and does not count."""
    inside = [found for found in imports(package) if found.inside]
    arrows = {(f.source, f.target): f.where for f in inside if package.name not in (f.source, f.target)}
    graph: dict[str, set[str]] = {}
    for source, target in arrows:
        graph.setdefault(source, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        ring = error.args[1][::-1]  # from the one that imports to the one that is imported
        steps = [f"{a} -> {b} ({arrows[a, b]})" for a, b in itertools.pairwise(ring)]
        yield f"a cycle: {', '.join(steps)}"


def heavy_libraries(package: Path) -> Iterator[str]:
    """Trainers, file formats and model zoos in code for plain loops, and drawing outside `show`."""
    for found in imports(package):
        folder, library = place(found.source), place(found.target)
        if found.inside or (found.source, library) in EXCEPTIONS:
            continue
        if folder in IN_A_PLAIN_LOOP and library in HEAVY | DRAWING:
            yield f"{found.where}: {folder} must work in a plain loop, without {library}"
        elif folder != "show" and library in DRAWING:
            yield f"{found.where}: only show draws, so {folder} must not import {library}"


def private_imports(package: Path) -> Iterator[str]:
    """Names with a leading underscore that another module imports."""
    for found in imports(package):
        parts = [*found.target.split("."), *([found.name] if found.name else [])]
        private = [part for part in parts if part.startswith("_") and not part.endswith("__")]
        if found.inside and private:
            yield f"{found.where}: {private[0]} is private to {found.target}"


def long_files(package: Path) -> Iterator[str]:
    """Files that are too long to keep in mind."""
    for file in sorted(package.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            lines = len(file.read_text().splitlines())
            if lines >= MOST_LINES:
                yield f"{file.relative_to(package.parent)}:{lines}: {lines} lines; {MOST_LINES - 1} at most"


def long_classes(package: Path) -> Iterator[str]:
    """Classes that are too long to keep in mind."""
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                first = node.body[0]
                said = _lines(first) if ast.get_docstring(node, clean=False) is not None else 0
                if (lines := _lines(node) - said) >= MOST_LINES_OF_A_CLASS:
                    yield (
                        f"{file.relative_to(package.parent)}:{node.lineno}: {node.name} has {lines} lines without "
                        f"its docstring; {MOST_LINES_OF_A_CLASS - 1} at most"
                    )


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def empty_names(package: Path) -> Iterator[str]:
    """Modules and folders whose name does not say what is inside."""
    for module, file in modules(package).items():
        if empty := EMPTY_NAMES & set(module.split(".")):
            yield f"{file.relative_to(package.parent)}:1: {empty.pop()} says nothing about what is inside"


def unmirrored(tests: Path, package: Path) -> Iterator[str]:
    """Folders of tests that match no folder of the package."""
    for folder in sorted(tests.iterdir()):
        if any(folder.glob("*.py")) and not (package / folder.name).is_dir():
            yield f"{folder.relative_to(tests.parent)}: the package has no folder {folder.name}"


CHECKS = (forbidden_arrows, circles, heavy_libraries, private_imports, long_files, long_classes, empty_names)
Check = Callable[[Path], Iterable[str]]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_to_the_design(check: Check) -> None:
    assert (PACKAGE / "errors.py").is_file()
    found = dict.fromkeys(check(PACKAGE))  # each once, however many names a line imports
    assert not found, "\n" + "\n".join(found)


def test_the_tests_mirror_the_package() -> None:
    assert list(unmirrored(PACKAGE.parents[1] / "tests", PACKAGE)) == []


def test_every_folder_and_module_has_its_row() -> None:
    assert {place(module) for module in modules(PACKAGE)} == ARROWS.keys()


def test_the_table_itself_has_no_cycle() -> None:
    graph = {source: targets.split() for source, targets in ARROWS.items() if source != "rankgap"}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("spectra") < order.index("model") < order.index("run") < order.index("cli")


def write(home: Path, files: dict[str, str]) -> Path:
    """A package named rankgap with these files."""
    package = home / "rankgap"
    for name, text in {"__init__.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


@pytest.mark.parametrize(
    ("check", "files", "says"),
    [
        (
            forbidden_arrows,
            {"model/row.py": "import torch\n\nfrom rankgap.run.plan import Plan\n", "run/plan.py": ""},
            "rankgap/model/row.py:3: model must not import run (model.row -> run.plan)",
        ),
        (
            forbidden_arrows,
            {"spectra/a.py": "def f():\n    import rankgap.filters.b\n", "filters/b.py": ""},
            "rankgap/spectra/a.py:2: spectra must not import filters (spectra.a -> filters.b)",
        ),
        (
            forbidden_arrows,
            {"data/a.py": "if TYPE_CHECKING:\n    from rankgap import views\n", "views/__init__.py": ""},
            "rankgap/data/a.py:2: data must not import views (data.a -> views)",
        ),
        (
            forbidden_arrows,
            {"model/a.py": "import rankgap as rg\n"},
            "rankgap/model/a.py:1: model must not import rankgap (model.a -> rankgap)",
        ),
        (
            forbidden_arrows,
            {"more/a.py": "from rankgap.spectra import b\n", "spectra/b.py": ""},
            "rankgap/more/a.py:1: more has no row in ARROWS",
        ),
        (
            circles,
            {
                "run/a.py": "from rankgap.run import b\n",
                "run/b.py": "\nfrom rankgap.run.c import x\n",
                "run/c.py": "def f():\n    from rankgap.run.a import y\n",
            },
            "run.b -> run.c (rankgap/run/b.py:2)",
        ),
        (
            heavy_libraries,
            {"watch/monitor.py": "import lightning as L\n", "watch/lightning.py": "import lightning as L\n"},
            "rankgap/watch/monitor.py:1: watch must work in a plain loop, without lightning",
        ),
        (
            heavy_libraries,
            {"model/backbones.py": "import timm\nfrom torchvision.models import resnet18\n"},
            "rankgap/model/backbones.py:2: model must work in a plain loop, without torchvision",
        ),
        (
            heavy_libraries,
            {"run/a.py": "from rich.table import Table\nimport yaml\n", "show/a.py": "import rich\n"},
            "rankgap/run/a.py:1: only show draws, so run must not import rich",
        ),
        (
            private_imports,
            {"run/a.py": "from rankgap.run.b import _c, d\n", "run/b.py": ""},
            "rankgap/run/a.py:1: _c is private to run.b",
        ),
        (
            private_imports,
            {"run/a.py": "from rankgap.run._b import c\n", "run/_b.py": ""},
            "rankgap/run/a.py:1: _b is private to run._b",
        ),
        (
            long_files,
            {"run/a.py": "x = 1\n" * 400, "run/b.py": "x = 1\n" * 399},
            "rankgap/run/a.py:400: 400 lines",
        ),
        (
            long_classes,
            {
                "run/a.py": "\nclass Long:\n" + "    x = 1\n" * 199,
                "run/b.py": 'class Told:\n    """Told.\n\n    At length.\n    """\n' + "    x = 1\n" * 198,
            },
            "rankgap/run/a.py:2: Long has 200 lines without its docstring; 199 at most",
        ),
        (empty_names, {"run/utils.py": ""}, "rankgap/run/utils.py:1: utils says nothing about what is inside"),
        (empty_names, {"common/a.py": ""}, "rankgap/common/a.py:1: common says nothing about what is inside"),
    ],
)
def test_a_violation_is_named_with_file_and_line(
    check: Check, files: dict[str, str], says: str, tmp_path: Path
) -> None:
    (found,) = check(write(tmp_path, files))
    assert says in found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_package_that_keeps_to_the_design_passes(check: Check, tmp_path: Path) -> None:
    files = {
        "__init__.py": "from rankgap.run.plan import Plan\n",
        "errors.py": "",
        "spectra/__init__.py": "from rankgap.spectra.a import x\n",
        "spectra/a.py": "import math\n\nfrom rankgap.errors import UserError\n",
        "model/backbones.py": "import timm\n\nfrom rankgap.spectra import x\n",
        "run/plan.py": "import lightning\n\nfrom rankgap import spectra\n",
        "show/page.py": "import plotly\n\nfrom rankgap.run.plan import Plan\n",
        "show/page.css": "b { color: red; }\n",
    }
    assert list(check(write(tmp_path, files))) == []


def test_a_folder_of_tests_without_its_folder_of_the_package_is_named(tmp_path: Path) -> None:
    package = write(tmp_path, {"run/a.py": ""})
    for name in ("run", "walk"):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / "test_a.py").touch()
    assert list(unmirrored(tmp_path / "tests", package)) == ["tests/walk: the package has no folder walk"]
