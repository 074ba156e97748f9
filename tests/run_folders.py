"""What tests read from a run's folder, and how they drive a run."""

import csv
import os
import pathlib
import signal
from typing import Any, ClassVar

import jax

from purerl.host.programs import Driver
from purerl.host.store.checkpoint import read_host
from purerl.host.store.folder import RunFolder


def read_rows(folder: pathlib.Path) -> list[dict[str, str]]:
    """The rows of its log."""
    with (folder / "evaluations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def final(folder: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Everything that a run came to: its last checkpoint, and its rows but for their wall time."""
    host = read_host(RunFolder(folder))
    assert host is not None
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder)]
    return {
        k: host[k] for k in ("iteration", "checksums", "policy_checksums", "steps", "returns")
    }, rows


class NotedDriver(Driver):
    """Notes its chunks; interrupts the process at one of them; shares its programs."""

    chunks: list[int]
    programs_of: ClassVar[dict[Any, Any]] = {}
    at: int | None = None
    number = signal.SIGINT
    share: Any = None

    def compile(self):
        if self.share in self.programs_of:
            self.programs = self.programs_of[self.share]
            return
        super().compile()
        if self.share is not None:
            self.programs_of[self.share] = self.programs

    def advance(self, iterations):
        self.chunks.append(iterations)
        if len(self.chunks) == self.at:
            os.kill(os.getpid(), self.number)
        return super().advance(iterations)


def driven(
    *,
    at: int | None = None,
    number: signal.Signals = signal.SIGINT,
    chunk: int = 1,
    share: Any = None,
    base: type = NotedDriver,
) -> Any:
    """A driver whose chunks have a length, and the n-th of them a signal.

    Args:
        at: Number of the chunk at whose beginning the process gets a signal.
        number: Of the signal.
        chunk: Iterations of a chunk; 0: measured.
        share: Runs of equal programs have the same; they are compiled once.
        base: What holds the programs.

    Returns:
        The class; its ``chunks`` are the lengths of the chunks so far.
    """
    attributes = {"at": at, "number": number, "share": share, "chunk": chunk, "chunks": []}
    return type("Driven", (base,), attributes)


def child_environment(*folders: pathlib.Path) -> dict[str, str]:
    """Environment variables of a child process that imports purerl and the tests.

    Args:
        *folders: More places to import from.
    """
    tests = pathlib.Path(__file__).parent
    places = (tests.parent, tests, tests / "host", *folders)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}
    # Of each program that it reads from a cache XLA writes lines that fill the pipe: a child whose
    # output nobody reads meanwhile would wait for ever.
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if (cache := jax.config.jax_compilation_cache_dir) is not None:  # "None" would be a folder
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return environment
