"""Learning curves."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from purerl.statistics import iqm, iqm_interval


def plot_curves(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str = "", ylabel: str = "return"
) -> Figure:
    """IQM over seeds of each curve, with its 95 % bootstrap interval.

    Args:
        curves: By label: environment steps ``[E]`` and returns ``[S, E]``.
        title: Above the plot.
        ylabel: What the returns are.

    Returns:
        The figure; a notebook shows it, ``figure.savefig(path)`` writes it.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, (steps, returns) in curves.items():
        low, high = iqm_interval(returns)
        (line,) = axes.plot(steps, iqm(returns), label=f"{label} ({len(returns)} seeds)")
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel="environment steps", ylabel=f"{ylabel}, IQM and 95 % interval")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(_thousands)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def save_plot(figure: Figure, path: str | pathlib.Path) -> None:
    """Writes a figure as PNG.

    Args:
        figure: A figure.
        path: Where to.
    """
    figure.savefig(path, dpi=130)


def _thousands(x: float, _position: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:g}{unit}"
    return f"{x:g}"
