"""From raw measurements of ``speed.py`` to medians, tables and the targets."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LABELS = {
    "purerl": "purerl",
    "rejax": "Rejax 0.1.3",
    "rejax-sharded": "Rejax, seeds sharded by us",
    "sb3": "stable-baselines3 2.9.2",
    "ceiling-gradient": "ceiling: bare gradients",
    "ceiling-environment": "ceiling: environment only",
}


class Cell(NamedTuple):
    """One contender at one number of seeds."""

    steps_per_s: float  # median over all executions
    low: float
    high: float
    compile_s: float | None  # median over the rounds


Cells = Mapping[tuple[str, int], Cell]


def summarize(measurements: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Cell]:
    """Medians by contender and number of seeds."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for line in measurements:
        groups.setdefault((line["contender"], line["seeds"]), []).append(line)
    return {key: _cell(lines) for key, lines in groups.items()}


def _cell(lines: Sequence[Mapping[str, Any]]) -> Cell:
    rates = [rate for line in lines for rate in line["steps_per_s"]]
    compiles = [line["compile_s"] for line in lines if line["compile_s"] is not None]
    return Cell(
        steps_per_s=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        compile_s=statistics.median(compiles) if compiles else None,
    )


def markdown(cells: Cells) -> str:
    """Two tables, steps a second (lowest - highest) and seconds to compile."""
    seeds = sorted({count for _, count in cells})
    names = [name for name in LABELS if any(name == contender for contender, _ in cells)]
    compiled = [
        name for name in names if any(c.compile_s for (n, _), c in cells.items() if n == name)
    ]
    rates = _table("environment steps/s", names, seeds, cells, _rate)
    compiles = _table("trace and compile, cold", compiled, seeds, cells, _compile)
    return f"{rates}\n\n{compiles}\n"


def _table(title: str, names: Sequence[str], seeds: Sequence[int], cells: Cells, text) -> str:
    header = [title, *(f"{count} seed{'s' * (count > 1)}" for count in seeds)]
    rows = [header, ["---"] * len(header)]
    for name in names:
        found = (cells.get((name, count)) for count in seeds)
        rows.append([LABELS[name], *(text(cell) if cell else "-" for cell in found)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _rate(cell: Cell) -> str:
    return f"{_thousands(cell.steps_per_s)} ({_thousands(cell.low)} - {_thousands(cell.high)})"


def _thousands(rate: float) -> str:
    return f"{rate / 1e3:,.1f} k" if rate < 20e3 else f"{rate / 1e3:,.0f} k"


def _compile(cell: Cell) -> str:
    return "-" if cell.compile_s is None else f"{cell.compile_s:.1f} s"


class Target(NamedTuple):
    """A demand on the numbers."""

    demand: str
    measured: float
    met: bool


def targets(cells: Cells) -> list[Target]:
    """Every demand that can be judged by what was measured."""
    found = []
    for seeds, least in ((1, 1.2), (16, 1.5), (16, 2.0)):
        ratio = _ratio(cells, ("purerl", seeds), ("rejax", seeds))
        found.append((f"at least {least} x Rejax at {seeds} seed(s)", ratio, least))
    for seeds in sorted({count for _, count in cells}):
        ratio = _ratio(cells, ("purerl", seeds), ("ceiling-gradient", seeds))
        found.append((f"at least 0.7 x bare gradients at {seeds} seed(s)", ratio, 0.7))
    ratio = _ratio(cells, ("purerl", 64), ("purerl", 16))
    found.append(("steps/s at 64 seeds not below those at 16", ratio, 1.0))
    judged = [Target(demand, ratio, ratio >= least) for demand, ratio, least in found if ratio]
    return judged + _compile_targets(cells)


def _ratio(cells: Cells, numerator: tuple[str, int], denominator: tuple[str, int]) -> float | None:
    if numerator not in cells or denominator not in cells:
        return None
    return cells[numerator].steps_per_s / cells[denominator].steps_per_s


def _compile_targets(cells: Cells) -> list[Target]:
    found = []
    for (name, seeds), cell in sorted(cells.items()):
        peer = cells.get(("rejax", seeds))
        if name == "purerl" and peer:
            ratio = cell.compile_s / peer.compile_s
            demand = f"compilation at most 1 x Rejax's at {seeds} seed(s)"
            found.append(Target(demand, ratio, ratio <= 1))
    return found
