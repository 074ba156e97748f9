"""The display of a run in progress: a bar, and in a notebook a live learning curve."""

import importlib.util
import io
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
import tqdm.auto

from purerl.host.report.aggregate import iqm
from purerl.host.report.plotting import plot_curves

REST = 50  # times as long as drawing a picture took, nothing is drawn


class Progress:
    """Steps a second, time left, the return (IQM over seeds), and which seeds failed."""

    def __init__(self, label: str, total: int, done: int, enabled: bool, title: str = ""):
        """Shows the bar.

        Args:
            label: What is trained.
            total: Environment steps of all seeds.
            done: Of them, those that a run that is resumed had finished.
            enabled: Whether to show anything.
            title: What the bar begins with.
        """
        self._enabled = enabled
        self._return = self._failed = ""
        widgets = _in_notebook() and importlib.util.find_spec("ipywidgets") is not None
        numbers = {"total": total, "initial": done, "unit": "step", "unit_scale": True}
        bar = tqdm.auto.tqdm if widgets else tqdm.tqdm
        self._bar = bar(desc=title or None, disable=not enabled, **numbers)
        self._curve = _LiveCurve(label) if enabled and _in_notebook() else None

    def advance(self, steps: int, train_return: np.ndarray, failed: str) -> None:
        """After a chunk.

        Args:
            steps: Environment steps of all seeds in it.
            train_return: ``[S]`` since the last row of the log; NaN where no episode ended.
            failed: How many seeds failed and which, in words; empty if none did.
        """
        if not self._return.startswith("return") and np.isfinite(train_return).all():
            self._return = f"training return {iqm(train_return):.1f}"
        self._failed = failed
        self._show()
        self._bar.update(steps)

    def evaluated(self, steps: Sequence[int], returns: Sequence[np.ndarray]) -> None:
        """After an evaluation.

        Args:
            steps: Environment steps of all evaluations so far.
            returns: Of each of them ``[S]``.
        """
        self._return = f"return {iqm(returns[-1]):.1f}"
        self._show()
        if self._curve is not None:
            self._curve.show(steps, returns)

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
        if self._curve is not None:
            self._curve.finish()

    def _show(self) -> None:
        parts = [self._return, self._failed]
        self._bar.set_postfix_str(", ".join(x for x in parts if x), refresh=False)


class _LiveCurve:
    """One picture in a notebook's page, replaced after evaluations: as often as drawing it takes a
    fiftieth of the time, and at the end.
    """

    def __init__(self, label: str):
        self._label = label
        self._handle: Any = None
        self._next = 0.0  # when the next picture is drawn
        self._missing: Any = None  # steps and returns that were not drawn yet

    def show(self, steps: Sequence[int], returns: Sequence[np.ndarray]) -> None:
        """Draws the curve, or keeps it for later.

        Args:
            steps: Environment steps of all evaluations so far.
            returns: Of each of them ``[S]``.
        """
        self._missing = steps, returns
        begin = time.perf_counter()
        if begin >= self._next:
            self.finish()
            end = time.perf_counter()
            self._next = end + REST * (end - begin)

    def finish(self) -> None:
        """Draws what was not drawn yet."""
        if self._missing is None:
            return
        from IPython.display import Image, display

        steps, returns = self._missing
        self._missing, png = None, io.BytesIO()
        figure = plot_curves({self._label: (np.array(steps), np.stack(returns, axis=1))})
        figure.savefig(png, format="png", dpi=100)
        picture = Image(png.getvalue())
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
