"""A run's folder, readable while the run goes on.

``config.json``      the experiment with versions, commit and hardware
``evaluations.csv``  a row for each seed and evaluation; what else was asked for (``writers.py``)
``checkpoints/``     the newest states of the whole run, on request the best (``checkpoint.py``)
``learning_curve.png``
``lock``             held by the process that trains
"""

import contextlib
import csv
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from purerl.host.experiment import dumps
from purerl.host.store.provenance import provenance

CONFIG, ROWS, PLOT = "config.json", "evaluations.csv", "learning_curve.png"
CHECKPOINTS = "checkpoints"
PART = CONFIG + ".part"
LOCK = "lock"
REPLACED = ".replaced"  # a run that is being overwritten
GLOB = "*?["  # Orbax takes them for patterns, and then cannot read what it wrote


class RunFolder:
    """A folder of one run."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).expanduser()

    def check(self, overwrite: bool) -> None:
        """Whether a new run can go here, before any time is spent on it.

        Args:
            overwrite: Whether a run that is there may be deleted.

        Raises:
            FileExistsError: If the folder exists and is not empty, and ``overwrite`` is False, or
                it holds something else than a run.
            ValueError: If checkpoints in it could not be read again.
            OSError: If it cannot be written.
        """
        if patterns := sorted({x for x in str(self.path.absolute()) if x in GLOB}):
            raise ValueError(
                f"{self.path.absolute()} has {' '.join(patterns)} in its name, which would make "
                "its checkpoints unreadable; choose another --out."
            )
        self._put_back()
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file, wanted a folder; choose another --out.")
        # A process that was killed while it made the folder leaves what is as good as nothing.
        if self.path.exists() and any(path.name != PART for path in self.path.iterdir()):
            if not overwrite:
                raise FileExistsError(
                    f"{self.path} exists and is not empty; choose another --out, or give "
                    "--overwrite to delete the run in it."
                )
            if not (self.path / CONFIG).exists():
                raise FileExistsError(
                    f"{self.path} holds no run ({CONFIG} is missing), so it is not overwritten; "
                    "choose another --out."
                )
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise OSError(f"{self.path} cannot be written below {there}; choose another --out.")

    def create(self, description: dict[str, Any], options: dict[str, Any]) -> None:
        """Makes the folder and writes what is being run; only then deletes a run that was there.

        Args:
            description: What is run, JSON-ready.
            options: How it is driven; what resumes it does it in the same way.
        """
        text = dumps({**description, "options": options, **provenance()})
        if self.begun():
            with self.lock():
                pass
        part, replaced = self.path / PART, self.path / REPLACED
        shutil.rmtree(replaced, ignore_errors=True)  # of a process that was killed after it began
        self.path.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        for path in [path for path in self.path.iterdir() if path != part]:
            replaced.mkdir(exist_ok=True)
            path.replace(replaced / path.name)
        part.replace(self.path / CONFIG)
        shutil.rmtree(replaced, ignore_errors=True)

    def update(self, description: dict[str, Any]) -> None:
        """Writes what is being run, where it has changed: a run that is extended.

        Args:
            description: What is run, JSON-ready.
        """
        config = self.read_config()
        text = dumps({**config, **description})
        if text != dumps(config):
            (self.path / PART).write_text(text)
            (self.path / PART).replace(self.path / CONFIG)

    def _put_back(self) -> None:
        """The run that a process was overwriting when it was killed."""
        replaced = self.path / REPLACED
        if replaced.is_dir() and not self.begun():
            for path in list(replaced.iterdir()):
                path.replace(self.path / path.name)
            replaced.rmdir()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from training in this folder until it is left, or killed.

        Raises:
            OSError: If another process does.
        """
        with (self.path / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(
                    f"{self.path} is in use by another process; wait for its end, or end it."
                ) from None
            except OSError:  # a file system without locks
                pass
            yield

    def begun(self) -> bool:
        """Whether there is a run in the folder."""
        return (self.path / CONFIG).exists()

    def iterations(self) -> list[int]:
        """Iterations after which there are checkpoints, as far as their names tell."""
        names = (path.name for path in (self.path / CHECKPOINTS).glob("*"))
        return sorted(int(name) for name in names if name.isdigit())

    def read_config(self) -> dict[str, Any]:
        """Reads ``config.json``.

        Raises:
            FileNotFoundError: If this is no run's folder.
        """
        if not (self.path / CONFIG).exists():
            raise FileNotFoundError(
                f"{self.path} is no run: it has no {CONFIG}; give the folder that "
                "'purerl train ... --out FOLDER' wrote."
            )
        return json.loads((self.path / CONFIG).read_text())

    def read_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps ``[E]`` and returns ``[S, E]`` of the evaluations that every seed has.

        Raises:
            FileNotFoundError: If nothing was evaluated yet.
        """
        return self._read_column("return")

    def read_seconds(self) -> np.ndarray:
        """Seconds of training until each of these evaluations, ``[E]``.

        Raises:
            FileNotFoundError: If nothing was evaluated yet.
        """
        return self._read_column("seconds")[1].max(axis=0)

    def _read_column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps ``[E]``, and a column ``[S, E]``."""
        path = self.path / ROWS
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this run was never evaluated.")
        found: dict[int, list[float]] = {}  # by step; each row is a seed, in their order
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(int(row["step"]), []).append(float(row[name]))
        seeds = max(map(len, found.values()), default=0)
        whole = {step: x for step, x in found.items() if len(x) == seeds}
        return np.array([*whole], int), np.array([*whole.values()]).T


def read_run(folder: RunFolder) -> dict[str, Any]:
    """Reads the ``config.json`` of a run.

    Args:
        folder: The run's.

    Raises:
        FileNotFoundError: If it holds no run.
        ValueError: If it is a sweep's.
    """
    config = folder.read_config()
    if "points" in config:
        raise ValueError(
            f"{folder.path} is a sweep, or a part of one, wanted a run; go on with a sweep by "
            "purerl sweep --resume SWEEP, or purerl.resume_sweep; "
            "purerl.load_policy(SWEEP, point=...) gives its policies."
        )
    return config


def read_sweep(folder: RunFolder) -> dict[str, Any]:
    """Reads the ``config.json`` of a sweep.

    Args:
        folder: The sweep's.

    Raises:
        FileNotFoundError: If it holds no sweep.
    """
    config = folder.read_config()
    if "experiments" not in config:
        raise FileNotFoundError(f"{folder.path} is no sweep, wanted the folder of one.")
    return config


def check_same(
    mine: dict[str, Any],
    other: dict[str, Any],
    where: str,
    advice: str = "; give the same numbers, or begin another run with another --out",
) -> None:
    """Compares what is to be run with what a run holds, field by field.

    Args:
        mine: What is to be run, JSON-ready.
        other: What the run holds; fields that ``mine`` does not have are ignored at the top.
        where: The run, for the message.
        advice: How to mend it, for the message.

    Raises:
        ValueError: If a field differs; the first few are named with both values.
    """
    mine, other = json.loads(json.dumps(mine)), {k: other.get(k) for k in mine}
    if told := differences(_flat(other), _flat(mine), show=repr):
        raise ValueError(f"{where} is another run: {told}{advice}.")


def differences(
    there: dict[str, Any], here: dict[str, Any], *, show: Callable[[Any], str] = str
) -> str:
    """What differs between two dictionaries, in words; the first five, nothing if they are equal.

    Args:
        there: What was found.
        here: What is wanted.
        show: How a value is written.
    """
    names = sorted({*there, *here})
    pairs = [(name, there.get(name, "nothing"), here.get(name, "nothing")) for name in names]
    told = [f"{name} is {show(x)} there, {show(y)} here" for name, x, y in pairs if x != y]
    return ", ".join(told[:5]) + (f", and {len(told) - 5} more" if told[5:] else "")


def check_run(mine: dict[str, Any], other: dict[str, Any], where: str) -> None:
    """:func:`check_same` for a checkpoint, which may be of the run before it was extended.

    Args:
        mine: What is to be run, JSON-ready.
        other: What the checkpoint says it is of.
        where: The checkpoint, for the message.
    """
    if "loop" in mine and other.get("loop", {}).get("steps", 0) < mine["loop"]["steps"]:
        other = {**other, "loop": other["loop"] | {"steps": mine["loop"]["steps"]}}
    check_same(mine, other, where)


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """Values by their paths; a list is one, unless it is of dictionaries."""

    def is_value(x: Any) -> bool:
        return not x or (isinstance(x, list) and not isinstance(x[0], dict))

    return {
        jax.tree_util.keystr(path, simple=True, separator="."): x
        for path, x in jax.tree.leaves_with_path(data, is_leaf=is_value)
    }
