"""How programs are compiled: XLA's options by backend, and a cache of them on disk."""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from purerl.algorithms import ALGORITHMS
from purerl.config import check_choice

VARIABLE = "PURERL_CACHE"
LIMIT = 1 << 30  # bytes
XLA_LEVELS = {"0": "INFO", "1": "WARNING", "2": "ERROR", "3": "CRITICAL"}
# On a CPU levels 2 and 3 take longer to compile. They are for what is slower by more than two
# hundredths without them, the training of some algorithms (benchmarks/compilation.py), and for
# whatever was not measured. Level 0 takes two thirds of the time of level 1; its programs are ten
# times as slow, which is for what plays nothing.
LEVELS = {
    "cpu": {"start": 0} | dict.fromkeys(("once", "policy_gradient", "acktr", "trpo", "npg"), 1)
}


def compiler_options(program: Any = None) -> dict[str, Any]:
    """XLA's options for a program, on the default backend.

    Args:
        program: ``"start"`` for an initialization that plays nothing; ``"once"`` for what else runs
            once, such as an evaluation; the name of the algorithm for what trains. For others there
            are none.

    Returns:
        By name, for ``jax.jit(f).lower(x).compile(...)``; without those that ``XLA_FLAGS`` has:
        the user's own win.
    """
    levels = LEVELS.get(jax.default_backend(), {}) if isinstance(program, str) else {}
    options = {"xla_backend_optimization_level": levels[program]} if program in levels else {}
    own = os.environ.get("XLA_FLAGS", "")
    return {name: x for name, x in options.items() if name not in own}


def compile(function: Callable[..., Any], *args: Any, program: str = "", cache: str = "") -> Any:
    """A function compiled for arguments such as these, as :func:`purerl.run` compiles its own.

    That is with the same options of XLA and the same cache of programs on the disk.

    Args:
        function: Of arrays, and pytrees of them; without ``jax.jit``.
        *args: Arguments, or their shapes and dtypes (``jax.ShapeDtypeStruct``).
        program: What it is: ``"once"``, the name of the algorithm that it trains, or something
            else; see :func:`compiler_options`.
        cache: The folder of the cache, or "off"; if empty, see :func:`cache_folder`.

    Returns:
        What is called with arguments of these shapes and dtypes, and no others.

    Raises:
        ValueError: If ``program`` is neither empty, nor "once", nor an algorithm's name.

    Example:
        >>> import jax, jax.numpy as jnp, purerl
        >>> norm = purerl.compile(lambda x: jnp.sqrt(jnp.sum(x**2)), jnp.zeros(2), cache="off")
        >>> float(norm(jnp.array([3.0, 4.0])))
        5.0
    """
    if program:
        check_choice("unknown program", program, ("once", *ALGORITHMS))
    with cached_programs(cache):
        return jax.jit(function).lower(*args).compile(compiler_options(program))


def cache_folder(where: str = "") -> pathlib.Path | None:
    """The folder of the cache of compiled programs.

    JAX's keys leave out what the CPU can do, so the folder's name has it: a home directory may be
    shared by machines that differ.

    Args:
        where: A folder, or "off"; if empty, the environment variable ``PURERL_CACHE`` says which,
            and by default it is ``purerl`` in the user's cache folder (``XDG_CACHE_HOME``).

    Returns:
        None: there is to be no cache.
    """
    where = where or os.environ.get(VARIABLE, "")
    if where.lower() in ("off", "0", "false", "no"):
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = pathlib.Path(where or f"{home}/purerl").expanduser()
    about = importlib.metadata.version("jaxlib") + about_cpu("flags") + about_cpu("Features")
    return base / hashlib.sha256(about.encode()).hexdigest()[:16]


@contextlib.contextmanager
def cached_programs(where: str = "") -> Iterator[None]:
    """Context manager in which compiled programs are read from the disk and written to it.

    The cache holds a gigabyte; what was used longest ago goes first. Processes may share it. JAX's
    configuration is restored at the end; where the user has set a cache of JAX, that one is used.
    A cache that cannot be written, or a damaged one, costs a warning and the time to compile.

    Args:
        where: A folder, or "off"; if empty, see :func:`cache_folder`.

    Example:
        >>> import jax, purerl
        >>> with purerl.cached_programs("off"):
        ...     value = jax.jit(lambda x: x + 1)(1)
    """
    folder = None if jax.config.jax_compilation_cache_dir else cache_folder(where)  # type: ignore[attr-defined]
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lockfile").touch()
    except OSError as error:
        warnings.warn(f"programs are compiled without a cache: {error}", stacklevel=3)
        folder = None
    if folder is None:
        yield
        return
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": LIMIT,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    if jax.config.jax_logging_level in (None, "NOTSET"):  # type: ignore[attr-defined]
        # Of each program it reads XLA says that the CPU lacks what are no features of a CPU.
        settings["jax_logging_level"] = "CRITICAL"
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        _configure(settings)
        yield
    finally:
        if "jax_logging_level" in settings:  # "NOTSET" leaves XLA's own level as it is
            level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")
            jax.config.update("jax_logging_level", XLA_LEVELS.get(level, "WARNING"))
        _configure(before)


def about_cpu(what: str) -> str:
    """What Linux says of the first CPU core; empty if nothing.

    Args:
        what: ``model name``, ``flags``, and the like.
    """
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(what)), "")


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it takes its settings when it is first used
