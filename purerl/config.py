"""Checks of numbers and choices; messages say what was got, what was wanted and how to mend it.

Configurations may hold tracers (a sweep puts them there), so values are checked only where they
are Python numbers.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any


def check_range(
    where: str,
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raises ValueError unless ``low <= value <= high`` (``<`` at an open end) and finite.

    Args:
        where: Whose field it is, for the message.
        name: The field's name.
        value: Only Python numbers are checked; None and arrays (tracers) pass.
        low: Smallest allowed value, or None.
        high: Largest allowed value, or None.
        low_open: Whether ``low`` itself is excluded.
        high_open: Whether ``high`` itself is excluded.
    """
    if isinstance(value, bool | str):
        raise ValueError(f"{where}: {name}={value!r} is no number; give one.")
    if not isinstance(value, int | float):
        return
    above = low is None or (value > low if low_open else value >= low)
    below = high is None or (value < high if high_open else value <= high)
    if not (above and below and math.isfinite(value)):  # written so that NaN fails
        left = "(-inf" if low is None else f"{'(' if low_open else '['}{low:g}"
        right = "inf)" if high is None else f"{high:g}{')' if high_open else ']'}"
        raise ValueError(f"{where}: {name}={value} is out of range; set it within {left}, {right}.")


def check_integer(where: str, name: str, value: Any, low: int) -> None:
    """Raises ValueError unless ``value`` is an integer of at least ``low``.

    Args:
        where: Whose field it is, for the message.
        name: The field's name.
        value: Anything; sizes and counts are static, so arrays and tracers are refused too.
        low: Smallest allowed value.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: {name}={value!r} is no integer; give a Python int.")
    check_range(where, name, value, low)


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
