"""What tests read from a run's folder."""

import csv
import pathlib
from typing import Any

from purerl.host.store.checkpoint import Checkpoints


def read_rows(folder: pathlib.Path) -> list[dict[str, str]]:
    """The rows of its log."""
    with (folder / "evaluations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def final(folder: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Everything that a run came to: its last checkpoint, and its rows but for their wall time."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=None)
    host = checkpoints.read_host(checkpoints.iterations()[-1])
    checkpoints.close()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder)]
    return {k: host[k] for k in ("iteration", "checksums", "steps", "returns")}, rows
