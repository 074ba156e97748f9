"""Run folders: what was done, readable while it is being done.

``config.json``   the experiment with versions, commit and hardware
``evaluations.csv``  a row for each seed and evaluation
``learner.msgpack``  learners and normalizers of all seeds
``learning_curve.png``
"""

import csv
import json
import os
import pathlib
import shutil
from typing import Any

import flax.serialization
import numpy as np

from purerl.experiment import Experiment, dumps
from purerl.provenance import provenance
from purerl.types import PyTree

CONFIG, ROWS, LEARNER, PLOT = (
    "config.json",
    "evaluations.csv",
    "learner.msgpack",
    "learning_curve.png",
)


class RunFolder:
    """A folder of one run."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)

    def check(self, overwrite: bool) -> None:
        """Whether a new run can go here, before any time is spent on it.

        Args:
            overwrite: Whether a run that is there may be deleted.

        Raises:
            FileExistsError: If the folder exists and is not empty, and ``overwrite`` is False, or
                it holds something else than a run.
            OSError: If it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(
                f"{self.path} is a file, wanted a new folder; choose another --out."
            )
        if self.path.exists() and any(self.path.iterdir()):
            if not overwrite:
                raise FileExistsError(
                    f"{self.path} exists and is not empty, wanted a new folder; choose another "
                    "--out, or give --overwrite to delete the run in it."
                )
            if not (self.path / CONFIG).exists():
                raise FileExistsError(
                    f"{self.path} is not empty and holds no run ({CONFIG} is missing), so it is "
                    "not overwritten; choose another --out."
                )
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise OSError(f"{self.path} cannot be written below {there}; choose another --out.")

    def create(self, experiment: Experiment, seeds: int, seed: int) -> None:
        """Makes the folder, in place of a run that was there, and writes what is being run.

        Args:
            experiment: What is run.
            seeds: How many seeds.
            seed: The first key's seed.
        """
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        description = {**experiment.to_json(), "seeds": seeds, "seed": seed, **provenance()}
        (self.path / CONFIG).write_text(dumps(description))

    def read_config(self) -> dict[str, Any]:
        """What ``config.json`` holds.

        Raises:
            FileNotFoundError: If this is no run's folder.
        """
        if not (self.path / CONFIG).exists():
            raise FileNotFoundError(
                f"{self.path} is no run: it has no {CONFIG}; give the folder that "
                "'purerl train ... --out FOLDER' wrote."
            )
        return json.loads((self.path / CONFIG).read_text())

    def write_rows(self, columns: dict[str, np.ndarray]) -> None:
        """Appends one row a seed to the CSV, and flushes it to the disk.

        Args:
            columns: Arrays ``[S]``; the same names, in the same order, at every call.
        """
        path = self.path / ROWS
        first = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if first:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def read_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps ``[E]`` and returns ``[S, E]`` of the evaluations that every seed has.

        Raises:
            FileNotFoundError: If nothing was evaluated yet.
        """
        path = self.path / ROWS
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this run was never evaluated.")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        by_step: dict[int, dict[int, float]] = {}
        for row in rows:
            by_step.setdefault(int(row["step"]), {})[int(row["seed"])] = float(row["return"])
        seeds = sorted(by_step[min(by_step)])
        steps = [step for step in sorted(by_step) if sorted(by_step[step]) == seeds]
        return np.array(steps), np.array([[by_step[step][s] for step in steps] for s in seeds])

    def write_learner(self, learner: PyTree) -> None:
        """Saves learners, by way of a temporary file, so that no half-written one can be found.

        Args:
            learner: Arrays ``[S, ...]``.
        """
        temporary = self.path / (LEARNER + ".part")
        temporary.write_bytes(flax.serialization.to_bytes(learner))
        temporary.replace(self.path / LEARNER)

    def read_learner(self, template: PyTree) -> PyTree:
        """Loads learners.

        Args:
            template: A pytree of the same structure.

        Raises:
            FileNotFoundError: If none was saved.
        """
        path = self.path / LEARNER
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the run was stopped before its first evaluation."
            )
        return flax.serialization.from_bytes(template, path.read_bytes())
