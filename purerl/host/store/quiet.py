"""Silences Orbax: a run reports trouble with its checkpoints itself, once."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_late_noise() -> Iterator[None]:
    """Context manager that drops what Python prints when Orbax's other writers find their event
    loop closed after an error: hundreds of tracebacks on a full disk.
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
    """Drops Orbax's log records: one for each step, and many for each error."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_of_orbax)  # the same function is added once


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()
