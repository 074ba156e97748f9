"""From raw measurements of ``speed.py`` to medians, tables and the targets."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from suites import Demand, Suite


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


def markdown(suite: Suite, cells: Cells) -> str:
    """Two tables, steps a second (lowest - highest) and seconds to compile."""
    measured = {name for name, _ in cells}
    compiled = {name for (name, _), cell in cells.items() if cell.compile_s}
    tables = [_table("environment steps/s", suite, measured, cells, _rate)]
    if compiled:
        tables.append(_table("trace and compile, cold", suite, compiled, cells, _compile))
    return "\n\n".join(tables) + "\n"


def _table(title: str, suite: Suite, names: Collection[str], cells: Cells, text) -> str:
    seeds = sorted({count for _, count in cells})
    header = [title, *(f"{count} seed{'s' * (count > 1)}" for count in seeds)]
    rows = [header, ["---"] * len(header)]
    for name, contender in suite.contenders.items():
        if name in names:
            found = (cells.get((name, count)) for count in seeds)
            rows.append([contender.label, *(text(cell) if cell else "-" for cell in found)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _rate(cell: Cell) -> str:
    return f"{_thousands(cell.steps_per_s)} ({_thousands(cell.low)} - {_thousands(cell.high)})"


def _thousands(rate: float) -> str:
    return f"{rate / 1e3:,.1f} k" if rate < 20e3 else f"{rate / 1e3:,.0f} k"


def _compile(cell: Cell) -> str:
    return "-" if cell.compile_s is None else f"{cell.compile_s:.1f} s"


class Target(NamedTuple):
    """A demand beside what was measured."""

    demand: str
    measured: float
    met: bool


def targets(suite: Suite, cells: Cells) -> list[Target]:
    """Every demand that can be judged by what was measured."""
    every = sorted({count for _, count in cells})
    return [
        target
        for demand in suite.demands
        for seeds in (every if demand.seeds is None else [demand.seeds])
        if (target := _judge(suite, demand, seeds, cells))
    ]


def _judge(suite: Suite, demand: Demand, seeds: int, cells: Cells) -> Target | None:
    other_seeds = demand.other_seeds or seeds
    ours, theirs = (
        getattr(cells.get(key), demand.figure, None)
        for key in ((demand.of, seeds), (demand.contender, other_seeds))
    )
    if ours is None or theirs is None:
        return None
    ratio = ours / theirs
    speed = demand.figure == "steps_per_s"
    whose = "" if demand.of == "purerl" else f"of {suite.contenders[demand.of].label} "
    text = (
        f"{'steps/s' if speed else 'compilation'} {whose}at {seeds} seed(s) "
        f"{'at least' if speed else 'at most'} {demand.bound:.3g} x "
        f"{suite.contenders[demand.contender].label} at {other_seeds}"
    )
    return Target(text, ratio, ratio >= demand.bound if speed else ratio <= demand.bound)
