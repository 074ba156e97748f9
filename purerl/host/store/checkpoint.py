"""Checkpoints: everything that the rest of a run depends on, by Orbax.

A run's folder holds ``checkpoints/ITERATION/``: the newest few and, on request, that of the best
evaluation. Each has two parts: ``state`` (all arrays by name: learners, normalizers, clock, keys,
environments, replay buffers, sums for the next row of the log) and ``host`` (what is being run,
versions, evaluations so far, a checksum of each seed). Orbax writes it to a temporary folder, in
the background, and renames it when it is whole.
"""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from purerl.checks import described
from purerl.config import see
from purerl.host.devices import any_host
from purerl.host.experiment import FORMAT, check_format
from purerl.host.options import RunOptions
from purerl.host.report.aggregate import iqm
from purerl.host.store.arrays import by_name, checksums
from purerl.host.store.folder import CHECKPOINTS, RunFolder, check_run, check_same, differences
from purerl.host.store.provenance import circumstances
from purerl.records import PyTree
from purerl.training.state import Totals, TrainState

# What the error of a file that may be whole says.
UNDAMAGED = (
    *("MemoryError", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("Timeout", "Input/output error", "Stale file handle", "Too many open files"),
)
POLICY = ("[0].learner", "[0].normalizer")  # names of what acting needs of (state, totals)
INEXACT = (
    "; the run would not be bitwise the same: continue it where it began (on a CPU with "
    "purerl.use_all_cores() called first), or accept differences of rounding with --inexact "
    "(inexact=True)"
)


class Checkpoints:
    """The checkpoints of one run; trouble in writing them is returned, so that a run goes on."""

    def __init__(
        self,
        folder: pathlib.Path,
        description: dict[str, Any] | None = None,
        options: RunOptions | None = None,
    ):
        """Opens the folder, and makes it where it does not exist.

        Args:
            folder: The run's.
            description: What is run, JSON-ready; what is resumed must be the same.
            options: How it is driven; None: only to read.
        """
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_not_of_orbax)  # the same function is added once
        self.path, self._read_only = folder / CHECKPOINTS, options is None
        self._options = options or RunOptions()
        self._about: dict[str, Any] = {}
        if options is not None:
            self._about = {"run": description, "circumstances": circumstances(options.shard)}
        self._unseen: int | None = None  # iteration whose files were not looked at yet
        self._trouble: str | None = None  # with the last checkpoint
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        newest = keep.LatestN(self._options.keep)
        best = keep.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy([newest, best]),
            best_fn=_score,
            read_only=self._read_only,
            cleanup_tmp_directories=True,  # of a process that was killed while writing
            save_root_metadata=False,
        )
        return ocp.CheckpointManager(self.path.absolute(), options=options)

    def save(
        self, iteration: int, state: TrainState, totals: Totals, host: dict[str, Any]
    ) -> str | None:
        """Begins to write a checkpoint; the one before it is finished first.

        Args:
            iteration: Iterations finished.
            state: Leaves ``[S, ...]``, not to be donated to anything before :meth:`wait` returns.
            totals: Since the last row of the log; the same holds for it.
            host: What else is known of the run, JSON-ready.

        Returns:
            Why this one, or the one before it, could not be written; None if there is no trouble.
        """
        before = self.wait()
        if iteration in self._manager.all_steps():  # the same bits
            return before
        arrays = by_name((state, totals))
        host = self._about | host
        host |= {
            "format": FORMAT,
            "arrays": described(arrays),
            "checksums": checksums((state, totals)),
            "policy_checksums": checksums((state.learner, state.normalizer)),
        }
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), host=ocp.args.JsonSave(host))
        score = np.nan
        if self._options.keep_best and host["steps"][-1:] == [host["step"]]:  # it was evaluated
            score = float(iqm(host["returns"][-1]))
        metrics = None if np.isnan(score) else {"iqm": score}
        self._trouble = self._attempt(
            lambda: self._manager.save(iteration, args=args, metrics=metrics, force=True)
        )
        self._unseen = None if self._trouble else iteration
        return self._trouble or before

    def wait(self) -> str | None:
        """Returns when the last checkpoint is written, or cannot be; all hosts call it.

        Returns:
            Why it could not be written, and what was written of it is deleted; None if it was.
        """
        self._trouble = self._attempt(self._finish) or self._trouble
        return self._trouble

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        if (iteration := self._unseen) is None or jax.process_index() != 0:
            return
        self._unseen = None
        manifest = self.path / str(iteration) / "state" / "manifest.ocdbt"
        if not manifest.exists():
            shutil.rmtree(self.path / str(iteration), ignore_errors=True)
            raise OSError(f"{manifest} is missing")

    def _attempt(self, write: Callable[[], Any]) -> str | None:
        """Why this host could not write; after trouble on any host the folder is opened anew."""
        why = None
        try:
            write()
        except Exception as error:  # TensorStore's are ValueErrors
            full = os.strerror(errno.ENOSPC)  # at the end of a long story
            why = full if full in str(error) else _first_line(error)
            why = f"{self.path}: no checkpoint could be written: {why}"
        if any_host(why is not None):
            # Orbax leaves the torn folder, which takes space, and loses count of older ones.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._manager, self._unseen = self._open(), None
        return why

    def close(self) -> None:
        """Ends the threads that write; what trouble they had, :meth:`wait` tells."""
        with contextlib.suppress(Exception):
            self._manager.close()
        if not self._read_only and jax.process_index() == 0:
            # A thread may have gone on to write what was given up and deleted.
            for path in self.path.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def is_best(self, returns: np.ndarray) -> bool:
        """Whether an evaluation's state is to be kept as the best; all hosts call it.

        Args:
            returns: ``[S]``, whose IQM must be higher than that of each checkpoint.
        """
        if not self._options.keep_best:
            return False
        self.wait()  # it counts when it is written
        best = self._manager.best_step()
        least = -np.inf if best is None else _score(self._manager.metrics(best))
        return bool(iqm(returns) > least)  # not if it is NaN

    def find(self, which: str = "newest") -> int | None:
        """The iteration of a checkpoint that is whole; None if there is none.

        Args:
            which: ``newest`` or ``best``.
        """
        return self._manager.best_step() if which == "best" else self._manager.latest_step()

    def newest(self) -> dict[str, Any] | None:
        """Host data of the newest checkpoint, from which the run can go on; None if there is none.

        Raises:
            ValueError: If it is damaged, of another run, or of other versions or devices.
        """
        if (iteration := self.find()) is None:
            return None
        host, where = self.read_host(iteration), str(self.path / str(iteration))
        check_run(self._about["run"], host["run"], where)
        if not self._options.inexact:
            check_same(self._about["circumstances"], host["circumstances"], where, INEXACT)
        return host

    def read_host(self, iteration: int) -> dict[str, Any]:
        """Host data of a checkpoint: what was run, versions, evaluations so far, checksums.

        Args:
            iteration: Of a checkpoint.

        Raises:
            ValueError: If it is torn, or of another format.
        """
        with self._reading(iteration):
            args = ocp.args.Composite(host=ocp.args.JsonRestore())
            host = dict(self._manager.restore(iteration, args=args)["host"])
        check_format(host, str(self.path / str(iteration)))
        return host

    def restore(
        self, iteration: int, template: tuple[PyTree, ...], places: PyTree
    ) -> tuple[PyTree, dict[str, Any]]:
        """Arrays of a checkpoint, all of them or none, and its host data.

        Args:
            iteration: Of a checkpoint.
            template: Shapes and dtypes of ``(state, totals)``; or of ``(state,)`` with learners and
                normalizers, and all else None.
            places: Where each of them goes.

        Raises:
            ValueError: If it is torn, of another format, or its arrays are not the template's.
        """
        host, where = self.read_host(iteration), self.path / str(iteration)
        # Which checksums, and how the arrays' names begin.
        sums, part = ("checksums", "") if len(template) == 2 else ("policy_checksums", POLICY)
        there = {name: x for name, x in host["arrays"].items() if name.startswith(part)}
        wanted, sharding = by_name(template), by_name(places)
        if told := differences(there, described(wanted)):
            raise ValueError(
                f"{where} does not hold this run's arrays: {told}. Continue the run with the "
                f"version of purerl that began it. {see('long_runs.md#exact-resume')}"
            )
        restore_args = ocp.checkpoint_utils.construct_restore_args(
            wanted, {name: sharding[name] for name in wanted}
        )
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        found: Any = {}
        if wanted:  # a learner may hold nothing, for which Orbax has no template
            with self._reading(iteration):
                composite = ocp.args.Composite(state=args)
                found = self._manager.restore(iteration, args=composite)["state"]

        def leaf(path: Any, x: Any) -> Any:
            return found[jax.tree_util.keystr(path)] if x.size else jnp.zeros(x.shape, x.dtype)

        arrays = jax.tree_util.tree_map_with_path(leaf, template)
        pairs = zip(checksums(arrays), host[sums], strict=True)
        if damaged := [str(seed) for seed, (x, y) in enumerate(pairs) if x != y]:
            why = f"the checksums of seeds {', '.join(damaged)} are wrong"
            raise self._torn(iteration, why)
        return arrays, host

    def _torn(self, iteration: int, why: str) -> ValueError:
        others = [i for i in self._manager.all_steps() if i != iteration]
        advice = "there is no other: begin the run again, with --overwrite"
        if others:
            advice = f"move that folder away to continue from {self.path / str(max(others))}"
        return ValueError(f"{self.path / str(iteration)} is damaged ({why}); {advice}.")

    @contextlib.contextmanager
    def _reading(self, iteration: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            why, text = _first_line(error), f"{type(error).__name__} {error}"
            passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if passing or any(word in text for word in UNDAMAGED):
                raise OSError(f"{self.path / str(iteration)} cannot be read: {why}") from error
            raise self._torn(iteration, why) from error


def read_host(folder: RunFolder, which: str = "newest") -> dict[str, Any] | None:
    """Host data of a run's checkpoint; None if there is none.

    Args:
        folder: The run's.
        which: ``newest`` or ``best``.
    """
    with contextlib.closing(Checkpoints(folder.path)) as checkpoints:
        iteration = checkpoints.find(which)
        return None if iteration is None else checkpoints.read_host(iteration)


@contextlib.contextmanager
def without_late_noise() -> Iterator[None]:
    """Context manager that drops what Python prints when Orbax's other writers find their event
    loop closed after an error: hundreds of tracebacks on a full disk.
    """
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = quiet
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """A filter: Orbax logs once for each step, and much for each error, which a run reports."""
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()


def _score(metrics: dict[str, float]) -> float:
    return metrics["iqm"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
