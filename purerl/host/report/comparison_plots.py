"""Pictures of a comparison; matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from purerl.host.report.aggregate import performance_profile, stratified_interval
from purerl.host.report.plotting import draw_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
XLABELS = {"steps": "environment steps", "seconds": "seconds of training"}


def sample_efficiency(
    curves: Mapping[str, Mapping[str, Any]],
    tasks: Sequence[str],
    along: Literal["steps", "seconds"],
) -> "Figure":
    """Returns against steps or seconds, IQM and 95 % interval, a part for each task.

    Args:
        curves: By algorithm and task, with ``steps``, ``seconds`` (or None) and ``returns``.
        tasks: Which.
        along: What is on the horizontal axis.
    """
    from matplotlib.figure import Figure

    columns = min(len(tasks), COLUMNS)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(4.2 * columns, 6), 3.6 * rows), layout="constrained")
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(rows, columns, place + 1)
        found = {name: of[task] for name, of in curves.items()}
        known = {
            name: (getattr(curve, along), curve.returns)
            for name, curve in found.items()
            if getattr(curve, along) is not None
        }
        axes.set(title=task, xlabel=XLABELS[along], ylabel="return, IQM and 95 % interval")
        if known:
            draw_curves(axes, known)
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, f"{along} not known", ha="center", transform=axes.transAxes)
    return figure


def profiles(scores: Mapping[str, Sequence[np.ndarray]]) -> "Figure":
    """The fraction of runs above each score, with its 95 % interval.

    Args:
        scores: By algorithm, those of each task, ``[S]``.
    """
    from matplotlib.figure import Figure

    every = np.concatenate([np.concatenate([*x]) for x in scores.values()])
    thresholds = np.linspace(min(0.0, every.min()), max(1.0, every.max()), 101)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, tasks in scores.items():
        low, high = stratified_interval(lambda x: performance_profile(x, thresholds), tasks)
        (line,) = axes.plot(thresholds, performance_profile(tasks, thresholds), label=name)
        axes.fill_between(thresholds, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="score", ylabel="fraction of runs above it", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def improvements(names: Sequence[str], found: np.ndarray) -> "Figure":
    """A matrix of the probabilities that the row is better than the column.

    Args:
        names: Of the algorithms, A.
        found: Probabilities and the ends of their intervals, ``[A, A, 3]``.
    """
    from matplotlib.figure import Figure

    size = max(4.0, 1.1 * len(names) + 1.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(found[..., 0], vmin=0, vmax=1, cmap="RdBu")
    for (i, j), value in np.ndenumerate(found[..., 0]):
        low, high = found[i, j, 1:]
        color = "black" if 0.2 < value < 0.8 else "white"
        text = "" if i == j else f"{value:.2f}\n[{low:.2f}, {high:.2f}]"
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize="small")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("probability that the row is better than the column", fontsize="medium")
    figure.colorbar(image, shrink=0.8)
    return figure
