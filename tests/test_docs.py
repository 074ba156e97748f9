"""What README and docs/ print works as printed, at small sizes; and help() says all."""

import importlib
import inspect
import pathlib
import re
import shlex
import sys

import jax.numpy as jnp
import pytest

import purerl
from purerl.cli import main
from purerl.host.presets import preset

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text()
# Sizes of what is printed, and those at which it is run here.
SMALLER = {
    r"brax:(hopper|inverted_pendulum)": "brax:fast",  # which compiles at once
    r"\b(10_000_000|20_000|50_000|200_000)\b": "4_096",  # one size: programs are found in the cache
    r"\b10000000\b": "4096",
    r"evaluation_episodes=64": "evaluation_episodes=2",
    r"\b20_000_000\b": "8_192",
    r"\b600000\b": "8192",
    r"\b(500000|200000|20000)\b": "4096",
    r", 16\)\)": ", 2))",
    r"seeds=(64|16)": "seeds=2",
    r"--seeds (64|32|16)": "--seeds 2",
    r"--samples 32": "--samples 2",
    r"--episodes 1000": "--episodes 2",
    r"\.gif --episodes 2": ".gif --episodes 1",
    r"\[3e-4, 1e-3, 3e-3\]": "[1e-3]",
    r"1e-4,3e-4,1e-3,3e-3": "1e-3,3e-3",
}
GIVEN = {"README.md": {}, "long_runs.md": {"obs": jnp.zeros((3, 4))}}
BLOCKS = re.compile(r"<!-- hidden\n(.*?)-->|```python\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```bash\n(.*?)```", re.DOTALL)
PLACEHOLDER = re.compile(r"\b(ALGORITHM|RUN|FOLDER|mypackage)\b")


sys.path.append(str(ROOT / "docs" / "hooks"))
import check  # noqa: E402
import directives  # noqa: E402


def named(path):
    return str(path.relative_to(ROOT))


def pages_with(pattern, pages=PAGES):
    pages = [page for page in pages if pattern.search(page.read_text())]
    return pytest.mark.parametrize("page", pages, ids=named)


def smaller(text):
    for printed, small in SMALLER.items():
        text = re.sub(printed, small, text)
    return text


@pytest.fixture
def few_episodes(monkeypatch):
    """Evaluations of two episodes, where a page does not say how many."""
    few = {"evaluation_episodes": 2}
    monkeypatch.setattr("purerl.host.experiment.preset", lambda *of: preset(*of) | few)


@pages_with(BLOCKS)
@pytest.mark.usefixtures("few_episodes")
def test_python_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(GIVEN.get(page.name, {}))
    for hidden, block in BLOCKS.findall(page.read_text()):
        if block.startswith("algorithm.init(obs, key)"):  # README's three functions, as a list
            assert re.findall(r"algorithm\.(\w+)", block) == ["init", "act", "update"]
            continue
        exec(compile(smaller(hidden or block), str(page), "exec"), names)


@pages_with(COMMANDS, PAGES[1:])
@pytest.mark.usefixtures("few_episodes")
def test_commands_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in COMMANDS.findall(page.read_text()):
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


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=named)
def test_links_of_a_page_point_to_files(page):
    for link in re.findall(r"\]\(([^)h#][^)]*)\)", page.read_text()):
        assert (page.parent / link.partition("#")[0]).exists(), link


def test_messages_send_their_readers_to_pages_and_headings_that_exist():
    source = "\n".join(path.read_text() for path in (ROOT / "purerl").rglob("*.py"))
    found = re.findall(r"\bsee\(['\"]([^'\"]+)['\"]\)", source)
    assert len(found) >= 6
    for place in found:
        page, _, anchor = place.partition("#")
        heads = re.findall(r"^#+ (.*)", (ROOT / "docs" / page).read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}
        assert not anchor or anchor in slugs, place


def test_help_of_a_public_name_has_arguments_results_and_fields():
    for name in set(purerl.__all__) - set(directives.ATTRIBUTES):
        thing = getattr(purerl, name)
        text = inspect.getdoc(thing) or ""
        if inspect.isclass(thing):
            methods = [x for k, x in vars(thing).items() if inspect.isfunction(x) and k[0] != "_"]
            documented = bool(methods) and all(x.__doc__ for x in methods)
            assert "Attributes:" in text or documented, name
            continue
        for argument in inspect.signature(thing).parameters:
            assert re.search(rf"^ +\**{argument}: ", text, re.MULTILINE), (name, argument)
        assert "Returns:" in text or inspect.isgeneratorfunction(inspect.unwrap(thing)), name
        assert re.search(r"^Example:", text, re.MULTILINE) or name in NO_EXAMPLE, name


# Those that write a film, or change the process.
NO_EXAMPLE = {"play", "use_all_cores", "evaluate_run", "resume_sweep", "from_equinox"}


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    modules = re.findall(r"^::: (\S+)", pages, re.MULTILINE)
    assert len(modules) == len(set(modules))
    assert set(directives.HOMES.values()) <= set(modules)
    for module in modules:
        assert importlib.import_module(module).__doc__, module


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_inclusions_of_a_page_are_there(page):
    text = page.read_text().replace("<!-- help: ", "<!-- not here: ")  # others test what they print
    text = re.sub(r"<!-- curves: (\w+) -->", "", text)  # drawn when the site is built
    assert not directives.DIRECTIVE.search(directives.expand(text, {}))


def test_what_is_not_in_the_source_any_more_cannot_be_included():
    assert "linear_recurrence(delta" in directives.source("purerl.pieces.returns.gae")
    assert "Args" not in directives.source("purerl.pieces.returns.gae")
    for gone in ("pieces.returns.gea", "pieces.nothing.gae", 'pieces.returns.gae "no such line"'):
        with pytest.raises(LookupError):
            directives.expand(f"<!-- source: purerl.{gone} -->", {})
    with pytest.raises(LookupError):
        directives.results("sarsa")


def test_the_check_of_the_site_finds_what_is_loaded_from_elsewhere_and_dead_links(tmp_path):
    page = tmp_path / "index.html"
    page.write_text('<a href="#here"></a><p id="here"></p><a href="https://elsewhere.org"></a>')
    assert check.faults(tmp_path) == []
    page.write_text('<script src="https://elsewhere.org/a.js"></script><a href="b.html#c"></a>')
    (tmp_path / "style.css").write_text("@font-face { src: url(//elsewhere.org/font.woff2) }")
    assert len(check.faults(tmp_path)) == 3


def test_options_are_completed_by_the_shell(capsys):
    with pytest.raises(SystemExit):
        main(["train", "ppo_clip", "CartPole-v1", "--tyro-print-completion", "bash"])
    printed = capsys.readouterr().out
    assert "complete -F" in printed
    assert "--learning-rate-schedule" in printed
