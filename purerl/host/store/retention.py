"""Which checkpoints a run keeps: the newest few, and on request that of its best evaluation."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from purerl.host.devices import Layout
from purerl.host.options import RunOptions
from purerl.host.report.aggregate import iqm
from purerl.host.store.checkpoint import BEST, NEWEST, Checkpoints, Snapshot
from purerl.host.store.folder import check_run, check_same
from purerl.host.store.provenance import circumstances

INEXACT = (
    "; the run would not be bitwise the same: continue it where it began (on a CPU with "
    "purerl.use_all_cores() called first), or accept differences of rounding with --inexact "
    "(inexact=True)"
)


class Retention:
    """Which checkpoints of a run are kept; trouble in writing them does not end the run."""

    def __init__(
        self,
        folder: pathlib.Path,
        description: dict[str, Any],
        options: RunOptions,
        note: Callable[[str, str | None], None],
    ):
        """Opens the folders.

        Args:
            folder: The run's.
            description: What is run, JSON-ready; what is resumed must be the same.
            options: How.
            note: ``(where, trouble)`` is called with what could not be written, or with None when
                it could.
        """
        self._note, self._inexact = note, options.inexact
        self._about = {"run": description, "circumstances": circumstances(options.shard)}
        self._newest = Checkpoints(folder / NEWEST, options.keep)
        self._best = Checkpoints(folder / BEST, 1) if options.keep_best else None
        self._best_iqm = self._best_kept()
        self._wished: dict[str, int] = {}  # the last iteration that was to be written, by folder

    def newest(self) -> dict[str, Any] | None:
        """What the newest checkpoint says of itself; None if there is none.

        Raises:
            ValueError: If it is damaged, of another run, or of other versions or devices.
        """
        iterations = self._newest.iterations()
        if not iterations:
            return None
        where = str(self._newest.path / str(iterations[-1]))
        host = self._newest.read_host(iterations[-1])
        check_run(self._about["run"], host["run"], where)
        if not self._inexact:
            check_same(self._about["circumstances"], host["circumstances"], where, INEXACT)
        return host

    def restore(self, iteration: int, template: Snapshot, layout: Layout) -> Snapshot:
        """See :meth:`Checkpoints.restore`."""
        return self._newest.restore(iteration, template, layout)

    def save(self, iteration: int, snapshot: Snapshot) -> None:
        """Begins to write one of the newest.

        Args:
            iteration: Iterations finished.
            snapshot: Its arrays must not be donated to anything.
        """
        if self._best is not None:  # what is resumed from the newest would not see it again
            self._wait(self._best)
        self._save(self._newest, iteration, snapshot)

    def beats_best(self, returns: np.ndarray) -> bool:
        """Whether the best checkpoint is wished, and this evaluation is better than its.

        Args:
            returns: ``[S]``.
        """
        return self._best is not None and bool(iqm(returns) > self._best_iqm)  # not if it is NaN

    def save_best(self, iteration: int, snapshot: Snapshot) -> None:
        """Begins to write the best one.

        Args:
            iteration: Iterations finished.
            snapshot: Its last returns are those of its evaluation.
        """
        assert self._best is not None
        if self._save(self._best, iteration, snapshot):
            self._best_iqm = float(iqm(snapshot.host["returns"][-1]))

    @property
    def keeps_best(self) -> bool:
        """Whether the best one is kept."""
        return self._best is not None

    def wait(self) -> None:
        """Returns when all are written, or cannot be."""
        for checkpoints in self._all():
            self._wait(checkpoints)

    def close(self) -> None:
        """Ends the threads that write."""
        for checkpoints in self._all():
            checkpoints.close()

    def _all(self) -> list[Checkpoints]:
        return [x for x in (self._newest, self._best) if x is not None]

    def _save(self, checkpoints: Checkpoints, iteration: int, snapshot: Snapshot) -> bool:
        """Whether it was begun."""
        self._wait(checkpoints)  # trouble with the one before it; this one may fare better
        self._wished[checkpoints.path.name] = iteration
        try:
            checkpoints.save(iteration, snapshot._replace(host=self._about | snapshot.host))
        except OSError as error:
            self._note(checkpoints.path.name, str(error))
            return False
        self._note(checkpoints.path.name, None)
        return True

    def _wait(self, checkpoints: Checkpoints) -> None:
        try:
            checkpoints.wait()
            if self._wished.get(checkpoints.path.name) in checkpoints.iterations():
                self._note(checkpoints.path.name, None)
        except OSError as error:
            self._note(checkpoints.path.name, str(error))
            if checkpoints is self._best:  # what is better than the one that is there is wished
                self._best_iqm = self._best_kept()

    def _best_kept(self) -> float:
        """IQM of the evaluation whose state is kept as the best."""
        if self._best is None or not (iterations := self._best.iterations()):
            return -np.inf
        return float(iqm(self._best.read_host(iterations[-1])["returns"][-1]))
