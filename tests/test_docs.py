"""What README and docs/ print works as printed, at small sizes."""

import pathlib
import re
import shlex

import jax.numpy as jnp
import nbformat
import pytest
from nbclient import NotebookClient

import purerl
from purerl.cli import main

pytestmark = pytest.mark.trains
ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
# Sizes of what is printed, and those at which it is run here.
SMALLER = {
    r"brax:hopper": "brax:fast",  # which compiles at once
    r"\b10_000_000\b": "2_048",
    r"\b10000000\b": "2048",
    r"\b(20_000|50_000|200_000)\b": "4_096",
    r"evaluation_episodes=64": "evaluation_episodes=2",
    r"\b20_000_000\b": "4_096",
    r"\b600000\b": "8192",
    r"\b(500000|200000)\b": "4096",
    r", 16\)\)": ", 2))",
    r"seeds=(64|16)": "seeds=2",
    r"--seeds (64|32|16)": "--seeds 2",
    r"--samples 32": "--samples 2",
    r"--episodes 1000": "--episodes 2",
    r"\[3e-4, 1e-3, 3e-3\]": "[1e-3]",
    r"1e-4,3e-4,1e-3,3e-3": "1e-3,3e-3",
}
GIVEN = {"README.md": {}, "long_runs.md": {"obs": jnp.zeros((3, 4))}}
PLACEHOLDER = re.compile(r"\b(ALGORITHM|RUN|FOLDER|mypackage)\b")


def smaller(text):
    for printed, small in SMALLER.items():
        text = re.sub(printed, small, text)
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(GIVEN.get(page.name, {}))
    pattern = r"<!-- hidden\n(.*?)-->|```python\n(.*?)```"
    for hidden, block in re.findall(pattern, page.read_text(), re.DOTALL):
        if block.startswith("algorithm.init(obs, key)"):  # README's three functions, as a list
            assert re.findall(r"algorithm\.(\w+)", block) == ["init", "act", "update"]
            continue
        exec(compile(smaller(hidden or block), str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_commands_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in smaller(block).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["purerl"] or PLACEHOLDER.search(line):
                continue
            begins = words[1] in ("train", "sweep") and "--resume" not in words
            if begins and "--help" not in words:
                words += ["--evaluations", "1", "--evaluation-episodes", "2", "--no-progress"]
                words += [] if "--steps" in words else ["--steps", "4096"]
                words += [] if "--seeds" in words else ["--seeds", "2"]
            try:
                status = main(words[1:])
            except SystemExit as end:  # a help
                status = end.code or 0
            assert status == 0, line


def test_readme_is_short_and_has_two_commands_that_name_what_exists():
    assert len(README.splitlines()) < 150
    commands = re.findall(r"```bash\n(python3 -m venv.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    assert "purerl train ppo_clip CartPole-v1" in commands[0]
    assert README.index("<!-- test command -->") < README.index(commands[1])


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda p: p.name)
def test_links_of_a_page_point_to_files(page):
    for link in re.findall(r"\]\(([^)h#][^)]*)\)", page.read_text()):
        assert (page.parent / link.partition("#")[0]).exists(), link


def test_public_names_are_all_there_and_have_docstrings():
    for name in purerl.__all__:
        thing = getattr(purerl, name)
        assert thing.__doc__ or name in ("ALGORITHMS", "ActionSpace", "__version__"), name


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebook_runs_and_shows_its_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = smaller(cell.source)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2


def test_quickstart_needs_at_most_15_lines_from_import_to_learning_curves():
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert "plot_curves" in lines[-1]
