"""Tables as text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns of equal width.

    Args:
        rows: Of equal length, the head first.
        left: How many columns are flush left, the first ones; the others are flush right.

    Example:
        >>> print(aligned([["name", "x"], ["a", "10.5"]]))
        name     x
        a     10.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = ([side(x, w) for side, x, w in zip(sides, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def number(x: float, digits: int | None = None) -> str:
    """A return or a score.

    Args:
        x: The number.
        digits: After the point; by default one, or two of a small number.

    Example:
        >>> number(-83.4567), number(0.2)
        ('-83.5', '0.20')
    """
    return f"{x:.{(1 if abs(x) >= 10 else 2) if digits is None else digits}f}"


def interval(x: float, low: float, high: float, digits: int | None = None) -> str:
    """A number with its interval.

    Args:
        x: The number.
        low: The lower end.
        high: The higher end.
        digits: As of :func:`number`.

    Example:
        >>> interval(12.0, 11.04, 13.5)
        '12.0 [11.0, 13.5]'
    """
    return f"{number(x, digits)} [{number(low, digits)}, {number(high, digits)}]"
