"""What Orbax tells, and is not to be shown: a run tells of its checkpoints itself."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_late_noise() -> Iterator[None]:
    """While Orbax writes: after an error its other writers find their event loop closed, and Python
    prints a traceback for each of them, hundreds on a full disk.
    """
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = quiet
    try:
        yield
    finally:
        sys.unraisablehook = hook


def quieten() -> None:
    """Orbax tells of every step it takes, and of each error many times in many lines."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_of_orbax)  # the same function is added once


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()
