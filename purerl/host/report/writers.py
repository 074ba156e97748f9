"""Writers of a run's rows: CSV, JSON lines, TensorBoard, Weights & Biases.

A row is one seed at one evaluation. A writer is anything with the three functions of
:class:`Writer`.
"""

import contextlib
import csv
import importlib
import io
import json
import math
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from purerl.config import check_choice, plain

# Columns [S]: what names a seed ("seed"; in a sweep "point" and its hyper-parameters before it),
# "step", and after it the values.
Rows = dict[str, np.ndarray]


class Writer(Protocol):
    """Receives the rows of a run."""

    def open(self, folder: pathlib.Path, config: dict[str, Any], step: int | None) -> None:
        """Before the first row.

        Args:
            folder: The run's.
            config: What ``config.json`` holds.
            step: None at the beginning of a run; else it goes on after this many environment
                steps, and rows of later ones, which an interrupted run wrote, are to be forgotten.
        """

    def write(self, rows: Rows) -> None:
        """One row a seed; the same columns, in the same order, at every call.

        Args:
            rows: Columns ``[S]``.
        """

    def close(self) -> None:
        """After the last row."""


class TextWriter:
    """A text file with a line a row, whole after every call, even one that was killed."""

    name: str  # of the file in the run's folder

    def open(self, folder: pathlib.Path, config: dict[str, Any], step: int | None) -> None:
        """See :class:`Writer`."""
        self.path = folder / self.name
        if step is None or not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        rows = zip(whole, self._steps(whole), strict=True)
        # With no row goes the header: what begins again may have other columns.
        kept = [line for line, at in rows if at <= step] if step >= 0 else []
        temporary = self.path.with_suffix(self.path.suffix + ".part")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)

    def write(self, rows: Rows) -> None:
        """See :class:`Writer`."""
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(self._format(rows, size == 0))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # a part of a row is worse than none
            raise

    def close(self) -> None:
        """See :class:`Writer`."""

    # What its kinds differ in.
    _format: Callable[[Rows, bool], str]  # the lines of rows, after a header if they are the first
    _steps: Callable[[list[str]], list[int]]  # of each line; -1 of a header


class CSVWriter(TextWriter):
    """``evaluations.csv``."""

    name = "evaluations.csv"

    def _format(self, rows: Rows, first: bool) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if first:
            writer.writerow(rows)
        writer.writerows(zip(*rows.values(), strict=True))
        return text.getvalue()

    def _steps(self, lines: list[str]) -> list[int]:
        return [-1, *(int(row["step"]) for row in csv.DictReader(lines))][: len(lines)]


class JSONLWriter(TextWriter):
    """``evaluations.jsonl``; what is not finite is null."""

    name = "evaluations.jsonl"

    def _format(self, rows: Rows, first: bool) -> str:
        lines = (dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True))
        return "".join(json.dumps({k: _json(x) for k, x in line.items()}) + "\n" for line in lines)

    def _steps(self, lines: list[str]) -> list[int]:
        return [json.loads(line)["step"] for line in lines]


class TensorBoardWriter:
    """``tensorboard/seed-NNN``: a run of TensorBoard for each seed."""

    def __init__(self) -> None:
        self._make = _import("tensorboardX", "tensorboard").SummaryWriter
        self._writers: dict[str, Any] = {}

    def open(self, folder: pathlib.Path, config: dict[str, Any], step: int | None) -> None:
        """See :class:`Writer`."""
        self._folder = folder / "tensorboard"
        self._purge = None if step is None else step + 1

    def write(self, rows: Rows) -> None:
        """See :class:`Writer`."""
        for seed, step, values in _by_seed(rows):
            if seed not in self._writers:
                path = str(self._folder / seed)
                self._writers[seed] = self._make(path, purge_step=self._purge)
            for name, x in values.items():
                self._writers[seed].add_scalar(name, x, step)
            self._writers[seed].flush()

    def close(self) -> None:
        """See :class:`Writer`."""
        for writer in self._writers.values():
            writer.close()


class WandbWriter:
    """One run of Weights & Biases, with ``seed-NNN/...`` for each seed.

    Project and mode are taken from the environment (``WANDB_PROJECT``, ``WANDB_MODE=offline``). A
    resumed run goes on under the same id.
    """

    def __init__(self) -> None:
        self._wandb = _import("wandb", "wandb")
        self._run: Any = None

    def open(self, folder: pathlib.Path, config: dict[str, Any], step: int | None) -> None:
        """See :class:`Writer`."""
        file = folder / "wandb-id.txt"
        if step is None or not file.exists():
            file.write_text(uuid.uuid4().hex[:8])
        self._run = self._wandb.init(
            id=file.read_text(), resume="allow", name=folder.name, dir=str(folder), config=config
        )

    def write(self, rows: Rows) -> None:
        """See :class:`Writer`."""
        logged: dict[str, float] = {}
        for seed, _, values in _by_seed(rows):
            logged |= {f"{seed}/{name}": x for name, x in values.items()}
        self._run.log(logged, step=int(rows["step"][0]))

    def close(self) -> None:
        """See :class:`Writer`."""
        if self._run is not None:
            self._run.finish()


WRITERS = {
    "csv": CSVWriter,
    "jsonl": JSONLWriter,
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
}


def make_writers(writers: Sequence[str | Writer]) -> list[Writer]:
    """Writers by name.

    Args:
        writers: Names out of ``WRITERS``, or writers.

    Raises:
        ValueError: If a name is unknown.
    """
    for writer in writers:
        if isinstance(writer, str):
            check_choice("run: unknown writers", writer, WRITERS)
    made: list[Any] = [WRITERS[x]() if isinstance(x, str) else x for x in writers]
    return made


def _by_seed(rows: Rows) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Name, step and values of each row."""
    names = list(rows)[list(rows).index("step") + 1 :]
    for i, (seed, step) in enumerate(zip(rows["seed"], rows["step"], strict=True)):
        point = f"point-{rows['point'][i]:03d}-" if "point" in rows else ""
        yield f"{point}seed-{seed:03d}", int(step), {name: float(rows[name][i]) for name in names}


def _json(x: Any) -> Any:
    value = plain(x)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"the writer needs {module}, which is not installed: pip install 'purerl[{extra}]'."
        ) from error
