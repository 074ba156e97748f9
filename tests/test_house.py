"""The layout: imports point upwards only, and the pure half stands without the host."""

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import purerl
from purerl.envs.families import FAMILIES

ROOT = pathlib.Path(purerl.__file__).parent
# Each may import from itself and from those before it.
ORDER = (
    *(
        "config",
        "records",
        "threefry",
        "checks",
        "envs",
        "policies",
        "pieces",
        "second_order",
        "replay",
    ),
    *("algorithms", "training", "host", "__init__", "cli", "__main__"),
)
HEAVY = (
    *("gymnax", "brax", "mujoco", "jumanji", "navix", "craftax", "orbax", "matplotlib"),
    *("scipy.stats", "wandb", "tqdm", "tyro", "purerl.host"),
)
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
)
# An adapter of a family of environments is imported when one of them is made.
PURE = [
    name
    for name in MODULES
    if name.split(".")[1] not in ("host", "cli", "__main__") and not name.endswith("_adapter")
]


def imported(path):
    """The modules of purerl that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("purerl"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            if (node.module or "").partition(".")[0] == "purerl":
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from names if node.module == "purerl" else [node.module]


def loaded(statement):
    """The modules that a process has after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not output.returncode, output.stderr
    return set(output.stdout.split())


def test_imports_point_upwards_only():
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT).with_suffix("").parts[0]
        if place == "__init__":
            continue
        for name in imported(path):
            other = name.partition(".")[2].partition(".")[0] or "__init__"
            assert ORDER.index(other) <= ORDER.index(place), f"{path} imports {name}"


def test_the_pure_half_stands_without_the_host():
    statement = "\n".join(f"import {name}" for name in PURE)
    found = loaded(statement)
    assert set(PURE) <= found
    assert not found & set(HEAVY)


def test_importing_purerl_loads_nothing_that_is_not_used_yet():
    found = loaded("import purerl\nassert purerl.__version__\ndir(purerl)")
    assert not found & set(HEAVY)
    found = loaded("import purerl\npurerl.make_experiment\npurerl.plot_curves\npurerl.ppo_clip")
    assert not found & {"gymnax", "matplotlib", "scipy.stats", "orbax", "wandb", "tqdm", "tyro"}


@pytest.mark.parametrize("name", sorted({path.stem for path in ROOT.rglob("*.py")}))
def test_no_file_is_named_as_a_module_of_the_standard_library(name):
    assert name in ("__init__", "__main__") or name not in sys.stdlib_module_names


def test_no_public_name_hides_a_module():
    """``import purerl.a.b`` and the attributes ``purerl.a.b`` are the same thing."""
    for name in purerl.__all__:
        getattr(purerl, name)
    packages = pkgutil.walk_packages(purerl.__path__, "purerl.")
    optional = [family.adapter for family in FAMILIES.values() if family.extra]
    names = [info.name for info in packages if not info.name.endswith("__main__")]
    for name in (name for name in names if name not in optional):
        module, thing = importlib.import_module(name), purerl
        for part in name.split(".")[1:]:
            thing = getattr(thing, part)
        assert thing is module, name


def test_every_public_name_is_seen_and_listed_once():
    assert len(set(purerl.__all__)) == len(purerl.__all__)
    assert set(purerl.__all__) <= set(dir(purerl))
    assert {"run", "sweep", "ppo_clip", "gae"} <= set(purerl.__all__)
    with pytest.raises(AttributeError, match=r"has no attribute 'ppo_clib'. Did you mean ppo_clip"):
        purerl.ppo_clib  # noqa: B018


def test_no_test_patches_what_is_private_in_the_host_half():
    """What it depends on (clock, signals, length of chunks, memory) is an argument."""
    here = pathlib.Path(__file__).parent
    for path in (*here.glob("test_*.py"), *(here / "host").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
                words = [x.value for x in node.args if isinstance(x, ast.Constant)]
                names = [x.rpartition(".")[2] for x in words if isinstance(x, str)]
                assert not any(x.startswith("_") for x in names), f"{path}:{node.lineno}"
