"""What a run shows while it runs: a progress bar, and in a notebook a live learning curve."""

import importlib.util
import io
import sys
from typing import Any

import numpy as np
import tqdm
import tqdm.auto
from matplotlib.figure import Figure

from purerl.plotting import plot_curves
from purerl.statistics import iqm


class Progress:
    """Steps a second, time left, the return (IQM over seeds), and which seeds failed."""

    def __init__(self, label: str, total: int, done: int, enabled: bool):
        """Shows the bar.

        Args:
            label: What is trained.
            total: Environment steps of all seeds.
            done: Of them, those that a run that is resumed had finished.
            enabled: Whether to show anything.
        """
        self._label, self._enabled = label, enabled
        self._return = self._failed = ""
        kind = tqdm.auto.tqdm if _widgets() else tqdm.tqdm
        self._bar = kind(
            total=total, initial=done, unit="step", unit_scale=True, disable=not enabled
        )
        self._curve = _LiveCurve() if enabled and _in_notebook() else None

    def advance(self, steps: int, train_return: np.ndarray, failed: np.ndarray) -> None:
        """After a chunk.

        Args:
            steps: Environment steps of all seeds in it.
            train_return: ``[S]`` since the last row of the log; NaN where no episode ended.
            failed: ``[S]`` bool.
        """
        if not self._return.startswith("return") and np.isfinite(train_return).all():
            self._return = f"training return {iqm(train_return):.1f}"
        self._failed = _named(failed)
        self._show()
        self._bar.update(steps)

    def evaluated(self, steps: np.ndarray, returns: np.ndarray) -> None:
        """After an evaluation.

        Args:
            steps: Environment steps ``[E]`` of all evaluations so far.
            returns: ``[S, E]``.
        """
        self._return = f"return {iqm(returns[:, -1]):.1f}"
        self._show()
        if self._curve is not None:
            self._curve.show(plot_curves({self._label: (steps, returns)}))

    def say(self, what: str) -> None:
        """A line above the bar.

        Args:
            what: In words.
        """
        if self._enabled:
            tqdm.tqdm.write(what, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def _show(self) -> None:
        parts = [self._return, self._failed]
        self._bar.set_postfix_str(", ".join(x for x in parts if x), refresh=False)


class _LiveCurve:
    """One picture in a notebook's page, replaced at every evaluation."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, figure: Figure) -> None:
        """Draws it.

        Args:
            figure: The learning curve so far.
        """
        from IPython.display import Image, display

        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=100)
        picture = Image(png.getvalue())
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


def _named(failed: np.ndarray) -> str:
    """How many seeds failed, and which (the first few)."""
    seeds = np.flatnonzero(failed)
    if not len(seeds):
        return ""
    names = ", ".join(map(str, seeds[:5])) + (", ..." if len(seeds) > 5 else "")
    return f"{len(seeds)} failed (seed {names})"


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _widgets() -> bool:
    if not _in_notebook():
        return False
    return importlib.util.find_spec("ipywidgets") is not None
