"""Learning curves; matplotlib is imported when one is drawn."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from purerl.host.report.aggregate import coverage, iqm, iqm_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_curves(curves: Mapping[str, Any], title: str = "", ylabel: str = "return") -> "Figure":
    """IQM over seeds of each curve, with its 95 % bootstrap interval, or the range of so few.

    Args:
        curves: By label: environment steps ``[E]`` and returns ``[S, E]``, or what has both as
            ``steps`` and ``returns``, such as a run's result. ``SweepResult.curves()`` gives those
            of a sweep.
        title: Above the plot.
        ylabel: What the returns are.

    Returns:
        The figure; a notebook shows it, ``figure.savefig(path)`` writes it.

    Example:
        >>> import numpy as np
        >>> steps, returns = np.array([100, 200]), np.array([[1.0, 2.0], [3.0, 4.0]])  # [E], [S, E]
        >>> figure = plot_curves({"two seeds": (steps, returns)}, "CartPole-v1")
        >>> figure.axes[0].get_xlabel()
        'environment steps'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    draw_curves(figure.add_subplot(), curves)
    figure.axes[0].set(
        title=title, xlabel="environment steps", ylabel=f"{ylabel}, IQM and 95 % interval"
    )
    return figure


def draw_curves(axes: "Axes", curves: Mapping[str, Any]) -> None:
    """The same into a part of another figure.

    Args:
        axes: Where to.
        curves: By label: ``[E]``, of environment steps or of seconds, and returns ``[S, E]``.
    """
    for label, curve in curves.items():
        along, returns = (curve.steps, curve.returns) if hasattr(curve, "returns") else curve
        low, high = iqm_interval(returns)
        band = ", range" if coverage(len(returns)) == "range" else ""
        (line,) = axes.plot(along, iqm(returns), label=f"{label} ({len(returns)} seeds{band})")
        axes.fill_between(along, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(_thousands)
    axes.grid(alpha=0.3)
    axes.legend()


def save_plot(figure: "Figure", path: str | pathlib.Path) -> None:
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
