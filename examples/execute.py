"""Executes notebooks and stores their outputs.

python examples/execute.py               # all of them, some minutes each
python examples/execute.py trpo_by_hand  # one

The sizes are the full ones; the tests execute the same cells with what the metadata of a cell gives
as ``small``: texts, and what they are replaced by.
"""

import pathlib
import sys
import tempfile
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def code_cells(notebook: Any, small: bool = False) -> list[str]:
    """The sources of the cells with code.

    Args:
        notebook: As nbformat reads it.
        small: Whether to put in the small sizes.
    """
    sources = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        source = cell.source
        for full, little in cell.metadata.get("small", {}).items() if small else ():
            if full not in source:
                raise ValueError(f"a cell without {full!r}, which its metadata replaces: {source}")
            source = source.replace(full, little)
        sources.append(source)
    return sources


def execute(path: pathlib.Path) -> None:
    """Runs a notebook in a folder of its own, and writes it with its outputs.

    Args:
        path: Of the ``.ipynb``.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        how = {"timeout": 3600, "startup_timeout": 600, "kernel_name": "python3"}
        client = NotebookClient(notebook, resources=resources, **how)
        client.execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # so that executing it again changes outputs only
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            # Warnings are about the machine, and name its folders.
            cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.ipynb"))
    for name in names:
        execute(HERE / f"{name}.ipynb")
        print(f"{name} executed")
