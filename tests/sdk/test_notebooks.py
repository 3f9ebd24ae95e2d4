"""The notebooks run from top to bottom, over few photos; `image` and other values of the first cell are the test's."""

import socket
from pathlib import Path

import local
import nbformat
import pytest
from conftest import IMAGE, ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """Execute a notebook with its files below `folder`; nothing but this machine may be reached."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        values = {"image": IMAGE, "photos": 40, "epochs": 1, "port": free.getsockname()[1]}
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it a kernel does not show what its commands print
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    notebook = nbformat.read(path, as_version=4)
    first = next(index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    given = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(first + 1, new_code_cell(given))
    notebook.cells.insert(first, new_code_cell("import loopback\nloopback.guard()"))
    notebook.cells.append(new_code_cell("assert loopback.refused == []"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def printed(notebook: NotebookNode) -> str:
    """What its cells print and show, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(each.get("text", "") + each.get("data", {}).get("text/plain", "") for each in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(run(path, tmp_path, monkeypatch))
    assert "Training finished: best validation mAP " in text or path.stem == "tuning"  # which keeps its logs to itself
    assert local.containers(tmp_path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_as_it_is_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert "image = " in code[0].source
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert f"]({path.name})" in (ROOT / "examples" / "README.md").read_text()
