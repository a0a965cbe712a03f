"""The notebooks of the docs, executed; and what training shows in a notebook while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def executed(notebook: Any, folder: Path) -> list[Any]:
    """The outputs of a notebook's cells, run by a new kernel in a folder; an error in a cell is raised."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def html(outputs: list[Any]) -> list[str]:
    return [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_bare_and_explains_each_cell(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    first, *_ = notebook.cells
    assert first.source.startswith("# ")
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    outputs = executed(nbformat.read(path, as_version=4), tmp_path)
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert any("<svg" in shown for shown in html(outputs))


TRAIN = """
import sys, warnings
sys.modules["ipywidgets"] = None
warnings.simplefilter("error")
import rankgap as rg
run = rg.train("digits", epochs=2, batch_size=64, limit=256, protocol=["knn"], loggers=[], out="run")
"""


@pytest.mark.slow
def test_training_has_one_output_that_ends_with_the_results_without_widgets(tmp_path: Path) -> None:
    seen: list[str] = []

    class Client(NotebookClient):
        def process_message(self, message: Any, *rest: Any) -> Any:
            if message["msg_type"] == "update_display_data":
                seen.append(message["content"]["data"]["text/html"])
            return super().process_message(message, *rest)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAIN)])
    Client(notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = notebook.cells[0].outputs
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    (card,) = (shown for shown in html(outputs) if "<svg" in shown)
    assert card == seen[-1]
    assert "kNN" in card
    assert "progressbar" not in card
    assert "8 of 8, in" in seen[-2]
    assert "progressbar" in seen[-2]
