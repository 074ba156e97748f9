"""Configurations: a field is declared once, with its type, range and meaning.

.. code-block:: python

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class A2CConfig(Config):
        "Configuration of :func:`a2c`."

        learning_rate: Schedule = field(7e-4, "Step size.", "(0, inf)")
        n_step: int | None = field(None, "Rewards in a return.")

From there ``help()`` and the command line have it, and so have the messages about what is out of
range. Concrete numbers, NumPy's and JAX's too, are checked and stored as Python's. Where the
annotation is :data:`Number` or :data:`Schedule`, tracers pass unchecked, so that a sweep may put
them in; everything else is static.
"""

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Number = float | jax.Array  # a tracer where it is swept
Schedule = Number | Callable[[Number], Number]  # or a function of the run's progress in [0, 1]
Shape = Literal["constant", "linear", "cosine"]  # of a schedule
NOUNS = {float: "a number", int: "an integer", bool: "True or False", str: "a word"}
INTERVALS = {float: "(-inf, inf)", int: "[1, inf)"}  # where none is given


class Spec(NamedTuple):
    """What a field of a configuration may be.

    Attributes:
        meaning: What it is, with its unit, as a sentence.
        kind: float, int, bool, str, a ``Literal``, an enumeration of texts or integers, or a class
            of configurations.
        interval: Where a number must be: "(0, inf)", "[0, 1]".
        several: Whether it is a tuple of these.
        optional: Whether it may be None.
        swept: Whether it may be a tracer.
        schedule: Whether it may be a function of the run's progress.
    """

    meaning: str
    kind: Any
    interval: str
    several: bool
    optional: bool
    swept: bool
    schedule: bool

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a ``Literal`` or an enumeration; nothing of other kinds."""
        if isinstance(self.kind, enum.EnumType):
            members: Iterable[enum.Enum] = self.kind
            return tuple(member.value for member in members)
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def wanted(self) -> str:
        """Type and range in words: ``a number in (0, inf), or None``."""
        if self.choices:
            words = "one of " + ", ".join(map(str, self.choices))
        else:
            words = NOUNS.get(self.kind, f"a {self.kind.__name__}")
            words += f" in {self.interval}" if self.kind in INTERVALS else ""
        words = f"a tuple, each {words}" if self.several else words
        words += ", or None" if self.optional else ""
        return words + (", or a function of progress" if self.schedule else "")

    def text(self) -> str:
        """Meaning, type and range, for a help."""
        return f"{self.meaning} ({self.wanted}{', swept' if self.swept else ''})"

    def check(self, where: str, name: str, value: Any) -> Any:
        """The value to store: numbers as Python's, several values as a tuple.

        Args:
            where: Whose field it is, for the message.
            name: The field's name.
            value: What was given.

        Raises:
            ValueError: If it is of another type, or out of range.
        """
        value = python_number(value)
        traced = isinstance(value, jax.core.Tracer)
        if (value is None and self.optional) or (traced and self.swept):
            return value
        if callable(value) and self.schedule:
            return value
        if self.several:
            listed = isinstance(value, Iterable) and getattr(value, "ndim", 1) == 1
            if listed and not isinstance(value, str):
                one = self._replace(several=False)
                # What else it holds is for others to check.
                known = self.kind in INTERVALS or self.choices
                return tuple(one.check(where, f"one of {name}", x) if known else x for x in value)
        elif self.choices:
            check_choice(f"{where}: unknown {name}", value, self.choices)
            return self.kind(value) if isinstance(self.kind, enum.EnumType) else value
        elif self.kind is int:
            return check_integer(where, name, value, self.interval)
        elif self.kind is float and type(value) in (int, float):
            return check_range(where, name, value, self.interval)
        elif isinstance(value, self.kind):
            return value
        raise ValueError(f"{where}: {name}={value!r}, wanted {self.wanted}.")


def field(default: Any, meaning: str, interval: str | None = None) -> Any:
    """A field of a :class:`Config`; its annotation says the rest.

    It is ``float``, ``int``, ``bool``, ``str``, a ``Literal``, a configuration, or a tuple
    ``tuple[X, ...]`` of these; :data:`Number`, which may be swept; or :data:`Schedule`, which may
    also be a function of the run's progress. With ``| None`` it may be None.

    Args:
        default: Its default value.
        meaning: What it is, with its unit, as a sentence.
        interval: Where a number must be: "(0, inf)", "[0, 1]"; a round bracket leaves the end out.
            By default a float is finite, and an integer at least 1.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "interval": interval})


def _make_spec(where: str, hint: Any, meaning: str, interval: str | None) -> Spec:
    members = _members(hint)
    several = typing.get_origin(members[0]) is tuple
    kind = _members(typing.get_args(members[0])[0])[0] if several else members[0]
    swept = jax.Array in members
    schedule = any(typing.get_origin(x) is Callable for x in members)
    plain_type = isinstance(kind, type) and issubclass(kind, Config | float | int | str)
    known = plain_type or typing.get_origin(kind) is Literal
    if not known or len(members) > 1 + swept + schedule:
        raise ValueError(
            f"{where} is a {getattr(hint, '__name__', hint)}, wanted float, int, bool, str, "
            "Literal or a tuple of these."
        )
    optional = types.NoneType in typing.get_args(hint)
    interval = interval or INTERVALS.get(kind, "")
    return Spec(meaning, kind, interval, several, optional, swept, schedule)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, without None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return (hint,)
    return tuple(x for x in typing.get_args(hint) if x is not types.NoneType)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations: checks its fields, and puts them into its docstring."""

    specs: ClassVar[dict[str, Spec]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        hints = typing.get_type_hints(cls)
        own = {
            name: _make_spec(f"{cls.__name__}.{name}", hints[name], **declared.metadata)
            for name, declared in vars(cls).items()
            if isinstance(declared, dataclasses.Field)
        }
        cls.specs = cls.specs | own
        lines = [f"    {name}: {spec.text()}" for name, spec in cls.specs.items()]
        cls.__doc__ = "\n".join([cls.__doc__ or cls.__name__, "", "Attributes:", *lines])

    def __post_init__(self):
        for name, spec in self.specs.items():
            value = spec.check(type(self).__name__, name, getattr(self, name))
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raises ValueError where fields do not fit each other; subclasses say what that is."""


def scheduled(value: Schedule, shape: Shape, progress: Number) -> Number:
    r"""A number's value at a point of the run.

    .. math::
        \text{constant: } x, \qquad \text{linear: } x (1 - p), \qquad
        \text{cosine: } \tfrac12 x (1 + \cos \pi p)

    Args:
        value: :math:`x` at the run's beginning, which a sweep may vary; or a function of progress,
            such as ``optax.linear_schedule(1e-3, 1e-4, 1)``, and then the shape says nothing.
        shape: How it falls to zero at the run's end, or does not.
        progress: p, the finished fraction of the run, in [0, 1].

    Example:
        >>> scheduled(0.5, "linear", 0.25), float(scheduled(0.5, "cosine", 0.5).round(3))
        (0.375, 0.25)
    """
    if callable(value):
        return value(progress)
    if shape == "linear":
        return value * (1.0 - progress)
    if shape == "cosine":
        return value * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return value


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


def plain(value: Any) -> Any:
    """A value as JSON has it.

    Args:
        value: A configuration or what its fields hold. A function becomes the values of a schedule
            at five points of a run.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value))
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


def check_range(where: str, name: str, value: Any, interval: str) -> Any:
    """Raises ValueError unless ``value`` is a finite number in an interval.

    Args:
        where: Whose field it is, for the message.
        name: The field's name.
        value: A number, Python's, NumPy's or JAX's; a tracer passes unchecked.
        interval: "(0, inf)", "[0, 1]"; a round bracket leaves the end out.

    Returns:
        The number, as Python's.
    """
    value = python_number(value)
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {name}={value!r}, wanted a number in {interval}.")
    low, high = map(float, interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below and math.isfinite(value)):  # written so that NaN fails
        raise ValueError(f"{where}: {name}={value} is out of range; set it within {interval}.")
    return value


def check_integer(where: str, name: str, value: Any, interval: str = INTERVALS[int]) -> int:
    """Raises ValueError unless ``value`` is an integer in an interval.

    Args:
        where: Whose field it is, for the message.
        name: The field's name.
        value: Python's or NumPy's; sizes and counts are static, so tracers are refused.
        interval: As in :func:`check_range`; by default it is at least 1.

    Returns:
        The number, as Python's.
    """
    value = python_number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        whole = isinstance(value, float) and value.is_integer()
        mend = f"write {int(value)}" if whole else "give a Python int"
        raise ValueError(f"{where}: {name}={value!r} is no integer; {mend}.")
    return check_range(where, name, value, interval)


def see(page: str) -> str:
    """The last sentence of a message: where the documentation says more.

    Args:
        page: Of ``docs/``, with a heading's anchor or without: ``"concepts.md#memory"``.
    """
    return f"See docs/{page}."


def check_choice(what: str, value: Any, choices: Collection[Any]) -> None:
    """Raises ValueError, with close matches, unless ``value`` is one of ``choices``.

    Args:
        what: How the message begins: ``run: unknown shard``.
        value: What was given.
        choices: What is allowed.
    """
    if value not in choices:
        raise ValueError(f"{what} {value!r}. {suggest(value, choices)}")


def suggest(name: Any, choices: Collection[Any], show: Callable[[Any], str] = str) -> str:
    """One sentence that lists the choices closest to ``name``, or all of them.

    Close are those that begin with it, whose words do ("lr": learning_rate), or that are spelled
    alike.

    Args:
        name: What was asked for.
        choices: What there is.
        show: How a choice is written.

    Example:
        >>> suggest("lr", ["clip", "learning_rate"])
        'Did you mean learning_rate?'
    """
    asked, folded = str(name).lower(), {str(choice).lower(): choice for choice in choices}
    close = difflib.get_close_matches(asked, folded, n=3, cutoff=0.8)
    close += [x for x in folded if asked and x.startswith(asked)]
    close += [x for x in folded if "".join(word[:1] for word in x.split("_")) == asked]
    close = [*dict.fromkeys(close)] or difflib.get_close_matches(asked, folded, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(show(folded[c]) for c in close[:3])}?"
    return f"Choose one of {', '.join(map(show, choices))}."
