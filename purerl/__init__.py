"""purerl: reinforcement learning as pure functions, in JAX.

Whole training runs are pure functions of a key, under ``jit`` and ``vmap``; algorithms are records
of pure functions; every piece is usable alone.

``import purerl`` loads nothing: each name is loaded when it is used first. The names and their
modules are listed in ``__init__.pyi``, which type checkers read too.
"""

import ast
import importlib
import pathlib
from typing import Any

_STUB = ast.parse(pathlib.Path(__file__).with_suffix(".pyi").read_text())
_HOME = {
    alias.name: node.module
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("purerl")
    if name not in _HOME:
        from purerl.config import suggest

        raise AttributeError(f"module 'purerl' has no attribute {name!r}. {suggest(name, _HOME)}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
