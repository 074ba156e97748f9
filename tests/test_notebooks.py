"""The notebooks of examples/ run at small sizes, and hold the outputs of the full ones.

Without the mark "trains": what they compile is optimized as little as possible.
"""

import pathlib
import re
import sys

import jax
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
sys.path.append(str(ROOT / "examples"))
import execute  # noqa: E402


@pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if path.stem != "quickstart"],  # which is run in a kernel
    ids=lambda path: path.stem,
)
def test_cells_of_a_notebook_run_one_after_another(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    x64 = jax.config.jax_enable_x64
    names = {"__name__": "notebook"}
    try:
        for source in execute.code_cells(nbformat.read(path, as_version=4), small=True):
            code = "\n".join(line for line in source.splitlines() if line[:1] != "%")
            exec(compile(code, path.name, "exec"), names)
    finally:
        jax.config.update("jax_enable_x64", x64)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_its_aim_has_exercises_and_holds_its_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert "**You will be able to**" in cells[0].source
    assert re.search(r"^## Exercises\n\n1\. ", cells[-1].source, re.MULTILINE)
    outputs = [x for cell in cells for x in cell.get("outputs", [])]
    assert not [x for x in outputs if x.output_type == "error"]
    assert any("image/png" in x.get("data", {}) for x in outputs)
    assert not re.search(r"/(tmp|work|root|home)/", str(outputs))


def test_a_notebook_runs_in_a_kernel_of_its_own_and_shows_its_pictures():
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    kept = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, source in zip(kept, execute.code_cells(notebook, small=True), strict=True):
        cell.source = source
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    outputs = [output for cell in kept for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_quickstart_needs_at_most_15_lines_from_import_to_learning_curves():
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert "plot_curves" in lines[-1]
