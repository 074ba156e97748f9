"""Configurations: a field is declared once, with its range, meaning, and whether it can be swept.

.. code-block:: python

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class A2CConfig(Config):
        "Configuration of :func:`a2c`."

        learning_rate: Schedule = number(7e-4, "(0, inf)", "Step size.", schedule=True)
        num_epochs: int = count(4, "Passes over a rollout's samples.")

From there ``help()`` and the command line have it, and so have the messages about what is out of
range. Concrete numbers, NumPy's and JAX's too, are checked and stored as Python's; tracers pass
unchecked, so that a sweep may put them in.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

Number = float | jax.Array  # a tracer where it is swept
Schedule = Number | Callable[[Number], Number]  # or a function of the run's progress in [0, 1]


class Spec(NamedTuple):
    """What is known of a field of a configuration, or of an option."""

    meaning: str
    wanted: str  # "a number in (0, inf)"
    check: Callable[[str, str, Any], Any]  # (where, name, value) -> the value to store
    swept: bool = False  # whether it may be a tracer

    def text(self) -> str:
        """Meaning and range, for a help."""
        return f"{self.meaning} ({self.wanted}{', swept' if self.swept else ''})"


def number(
    default: Any,
    interval: str,
    meaning: str,
    *,
    optional: bool = False,
    swept: bool = True,
    schedule: bool = False,
) -> Any:
    """A field for a real number.

    Args:
        default: Its default value.
        interval: Where it must be: "(0, inf)", "[0, 1]"; a round bracket leaves the end out.
        meaning: What it is, with its unit, as a sentence.
        optional: Whether it may be None.
        swept: Whether it may be a tracer.
        schedule: Whether it may also be a function of the run's progress.
    """

    def check(where: str, name: str, value: Any) -> Any:
        if schedule and callable(value):
            return value
        return check_range(where, name, value, interval, optional=optional, swept=swept)

    wanted = f"a number in {interval}{', or None' if optional else ''}"
    wanted += ", or a function of progress" if schedule else ""
    return _field(default, Spec(meaning, wanted, check, swept))


def count(default: Any, meaning: str, *, least: int = 1, optional: bool = False) -> Any:
    """A field for a whole number, which is static.

    Args:
        default: Its default value.
        meaning: What it is, as a sentence.
        least: The smallest allowed value.
        optional: Whether it may be None.
    """

    def check(where: str, name: str, value: Any) -> Any:
        return check_integer(where, name, value, least, optional=optional)

    wanted = f"an integer, at least {least}{', or None' if optional else ''}"
    return _field(default, Spec(meaning, wanted, check))


def switch(default: bool, meaning: str) -> Any:
    """A field that is on or off.

    Args:
        default: Its default value.
        meaning: What it switches on, as a sentence.
    """

    def check(where: str, name: str, value: Any) -> bool:
        if isinstance(value, np.bool_):
            return bool(value)
        if not isinstance(value, bool):
            raise ValueError(f"{where}: {name}={value!r}, wanted True or False.")
        return value

    return _field(default, Spec(meaning, "True or False", check))


def choice(default: Any, choices: Any, meaning: str) -> Any:
    """A field for one of a few words.

    Args:
        default: Its default value.
        choices: A ``Literal`` type, or the words.
        meaning: What they choose, as a sentence.
    """
    words = typing.get_args(choices) or tuple(choices)

    def check(where: str, name: str, value: Any) -> str:
        check_choice(where, name, value, words)
        return value

    return _field(default, Spec(meaning, "one of " + ", ".join(words), check))


def widths(default: tuple[int, ...], meaning: str) -> Any:
    """A field for the widths of layers.

    Args:
        default: Their default.
        meaning: What they are, as a sentence.
    """

    def check(where: str, name: str, value: Any) -> tuple[int, ...]:
        none = isinstance(value, str) or not isinstance(value, Iterable)
        if none or getattr(value, "ndim", 1) != 1:
            raise ValueError(f"{where}: {name}={value!r}, wanted a tuple of integers: (64, 64).")
        return tuple(check_integer(where, f"a width in {name}", x, 1) for x in value)

    return _field(default, Spec(meaning, "a tuple of integers, each at least 1", check))


def part(default: "Config", meaning: str) -> Any:
    """A field for a configuration within this one.

    Args:
        default: Its default value.
        meaning: What it is of, as a sentence.
    """

    def check(where: str, name: str, value: Any) -> Any:
        if not isinstance(value, type(default)):
            kind = type(default).__name__
            raise ValueError(f"{where}: {name}={value!r}, wanted a {kind}: {name}={kind}(...).")
        return value

    return _field(default, Spec(meaning, f"a {type(default).__name__}", check))


def _field(default: Any, spec: Spec) -> Any:
    return dataclasses.field(default=default, metadata={"spec": spec})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations: checks its fields, and puts them into its docstring."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        inherited = {f.name: f for f in dataclasses.fields(cls)}  # of the bases
        own = {k: f for k, f in vars(cls).items() if isinstance(f, dataclasses.Field)}
        lines = [
            f"    {name}: {f.metadata['spec'].text()}"
            for name, f in (inherited | own).items()
            if "spec" in f.metadata
        ]
        cls.__doc__ = "\n".join([cls.__doc__ or cls.__name__, "", "Attributes:", *lines])

    def __post_init__(self):
        where = type(self).__name__
        for field in dataclasses.fields(self):
            if "spec" in field.metadata:
                value = field.metadata["spec"].check(where, field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Raises ValueError where fields do not fit each other; subclasses say what that is."""


def check_kind(where: str, config: Any, kind: type) -> None:
    """Raises TypeError unless ``config`` is a configuration of that kind.

    Args:
        where: The builder that was called, for the message.
        config: What was given to it.
        kind: The class it wants.
    """
    if not isinstance(config, kind):
        got = repr(config) if isinstance(config, type) else f"of type {type(config).__name__}"
        raise TypeError(f"{where}: config is {got}, wanted an object {kind.__name__}(...).")


def swept_fields(config: Any) -> tuple[str, ...]:
    """The fields of a configuration that may be tracers.

    Args:
        config: A configuration, or its class.
    """
    fields = dataclasses.fields(config)
    return tuple(f.name for f in fields if "spec" in f.metadata and f.metadata["spec"].swept)


def plain(value: Any) -> Any:
    """A value as JSON has it.

    Args:
        value: A configuration or what its fields hold. A function becomes the path it can be
            imported by, or, if it has none, the values of a schedule at five points of a run.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if callable(value):
        return {"schedule": [float(value(progress)) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]}
    return python_number(value)


def python_number(value: Any) -> Any:
    """NumPy's and JAX's scalars as Python's; everything else, tracers too, as it is.

    Args:
        value: Anything.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0:
        return value.item()
    return value


def check_range(
    where: str,
    name: str,
    value: Any,
    interval: str,
    *,
    optional: bool = False,
    swept: bool = True,
) -> Any:
    """Raises ValueError unless ``value`` is a finite number in an interval.

    Args:
        where: Whose field it is, for the message.
        name: The field's name.
        value: A number, Python's, NumPy's or JAX's; a tracer passes unchecked.
        interval: "(0, inf)", "[0, 1]"; a round bracket leaves the end out.
        optional: Whether None passes.
        swept: Whether a tracer passes.

    Returns:
        The number, as Python's.
    """
    value = python_number(value)
    if (value is None and optional) or (swept and isinstance(value, jax.core.Tracer)):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        none = ", or None" if optional else ""
        raise ValueError(f"{where}: {name}={value!r}, wanted a number in {interval}{none}.")
    low, high = map(float, interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below and math.isfinite(value)):  # written so that NaN fails
        raise ValueError(f"{where}: {name}={value} is out of range; set it within {interval}.")
    return value


def check_integer(
    where: str, name: str, value: Any, least: int, *, optional: bool = False
) -> int | Any:
    """Raises ValueError unless ``value`` is an integer of at least ``least``.

    Args:
        where: Whose field it is, for the message.
        name: The field's name.
        value: Python's or NumPy's; sizes and counts are static, so tracers are refused.
        least: Smallest allowed value.
        optional: Whether None passes.

    Returns:
        The number, as Python's.
    """
    value = python_number(value)
    if value is None and optional:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        whole = isinstance(value, float) and value.is_integer()
        mend = f"write {int(value)}" if whole else "give a Python int"
        raise ValueError(f"{where}: {name}={value!r} is no integer; {mend}.")
    return check_range(where, name, value, f"[{least}, inf)")


def check_choice(where: str, name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ValueError, with close matches, unless ``value`` is one of ``choices``.

    Args:
        where: Whose field it is, for the message.
        name: The field's name.
        value: What was given.
        choices: What is allowed.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{where}: unknown {name} {value!r}. {suggest(value, choices)}")


def suggest(name: Any, choices: Iterable[str]) -> str:
    """One sentence that lists the choices closest to ``name``, or all of them.

    Args:
        name: What was asked for.
        choices: What there is.
    """
    choices = list(choices)
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(folded[c] for c in close)}?"
    return f"Choose one of {', '.join(choices)}."
