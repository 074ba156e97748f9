"""Virtual environments for the libraries purerl is compared with, which are never dependencies."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

STAMP = "requirements.stamp"

# A folder's name, and groups of pip requirements, installed one after the other.
Environment = tuple[str, Sequence[Sequence[str]]]

# pip's settings decide which build of PyTorch.
SB3: Environment = (
    "sb3-contrib",
    (("torch==2.13.0",), ("stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "gymnasium")),
)


def default_cache() -> Path:
    """The user's cache folder of these environments."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "purerl-benchmarks"


def python_with(name: str, requirements: Sequence[Sequence[str]], cache: Path) -> Path:
    """The interpreter of an environment that holds exactly what was asked for.

    An environment is used again if its stamp, written last, lists the same requirements and the
    same Python; otherwise, also after an interrupted installation, it is made anew.

    Args:
        name: Folder below ``cache``.
        requirements: Groups of pip requirements, installed one after the other.
        cache: Where environments are kept.

    Raises:
        RuntimeError: If pip fails; the message ends with what it said.
    """
    folder = cache / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = "\n".join([f"python {sys.version}", *(" ".join(group) for group in requirements)])
    if (folder / STAMP).is_file() and (folder / STAMP).read_text() == stamp:
        return python
    print(f"making the isolated environment {name!r}: {requirements}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    for group in requirements:
        _pip_install(python, group)
    (folder / STAMP).write_text(stamp)
    return python


def _pip_install(python: Path, requirements: Sequence[str]) -> None:
    """One call of pip."""
    command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean_environment()
    )
    if done.returncode:
        raise RuntimeError(f"pip could not install {list(requirements)}:\n{done.stderr[-3000:]}")


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would make the contenders unequal."""
    unwanted = ("XLA_FLAGS", "JAX_", "PYTHONPATH", "PYTHONHOME", "OMP_NUM_", "MKL_NUM_")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(unwanted) or key == "JAX_PLATFORMS"
    }
    # Compilation is measured cold; an ambient cache would make it look free.
    return {**kept, "JAX_ENABLE_COMPILATION_CACHE": "false", **changes}
