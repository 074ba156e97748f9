"""Packages whose own ``__init__`` runs when something of it is asked for.

Importing one environment of gymnax's runs the ``__init__`` of the packages that it is in, which
import all others, one of which imports seaborn for its picture, and that pandas and SciPy's
statistics: 1.6 of the 1.7 seconds that ``import gymnax`` takes.
"""

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any


def defer(*names: str) -> None:
    """Imports packages without running their ``__init__``, which runs at the first attribute.

    They are the packages themselves, in ``sys.modules`` and with their modules as ever: who imports
    one later and uses anything of it finds all of it. One that is imported already stays as it is.

    Args:
        names: Packages, each after the one that holds it.
    """
    for name in names:
        if name not in sys.modules:
            _defer(name)


def _defer(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return  # who needs it will say so
    module, loader, lock = importlib.util.module_from_spec(spec), spec.loader, threading.RLock()

    def complete() -> ModuleType:
        with lock:
            if module.__dict__.pop("__getattr__", None) is not None:
                del module.__dir__
                loader.exec_module(module)
        return module

    def get(attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__all__":  # asked of any
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        if importlib.util.find_spec(f"{name}.{attribute}") is not None:
            return importlib.import_module(f"{name}.{attribute}")
        return getattr(complete(), attribute)

    vars(module).update(__getattr__=get, __dir__=lambda: dir(complete()))
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
