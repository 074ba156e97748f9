"""Checkpoints: everything that the rest of a run depends on, by Orbax.

A run's folder holds ``checkpoints/ITERATION/``, the newest few, and on request ``best/ITERATION/``.
Each has three parts: ``policy`` (learners and normalizers, all that acting needs), ``rest`` (clock,
keys, environments, replay buffers, sums for the next row of the log) and ``host`` (what is being
run, versions, evaluations so far, a checksum of each seed). Orbax writes it to a temporary folder,
in the background, and renames it when it is whole.
"""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from purerl.host.devices import Layout, any_host, with_keys, without_keys
from purerl.host.store.checksums import checksums, of_all_hosts
from purerl.host.store.folder import differences
from purerl.records import PyTree
from purerl.training.state import TrainState

FORMAT = 2
# What the error of a file that may be whole says.
UNDAMAGED = (
    *("MemoryError", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("Timeout", "Input/output error", "Stale file handle", "Too many open files"),
)
NEWEST, BEST = "checkpoints", "best"  # folders
POLICY = ("[0].learner", "[0].normalizer")  # what acting needs of (state, totals)


class Snapshot(NamedTuple):
    """A run between two iterations."""

    state: Any  # TrainState, leaves [S, ...]
    totals: Any  # purerl.training.train.Totals, [S, ...], since the last row of the log
    host: dict[str, Any]  # JSON-ready


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, path: pathlib.Path, keep: int | None):
        """Opens the folder, and makes it where it does not exist.

        Args:
            path: The folder.
            keep: How many checkpoints stay, older ones are deleted; None: only to read.
        """
        _quieten()
        self.path, self._keep = path, keep
        self._unseen: int | None = None  # iteration whose files were not looked at yet
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(self._keep),
            read_only=self._keep is None,
            # What a process that was killed while writing has left.
            cleanup_tmp_directories=self._keep is not None,
            save_root_metadata=False,
            # Hosts wait for one another by names, which two folders must not share.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=self.path.name
            ),
        )
        return ocp.CheckpointManager(self.path.absolute(), options=options)

    def save(self, iteration: int, snapshot: Snapshot) -> None:
        """Begins to write a checkpoint; the one before it is finished first.

        Args:
            iteration: Iterations finished.
            snapshot: Its arrays must not be donated to anything before :meth:`wait` returns.

        Raises:
            OSError: If this one, or the one before it, cannot be written.
        """
        self.wait()
        if iteration in self._manager.all_steps():  # the same bits
            return
        policy, rest = _parts(snapshot)
        host = {
            **snapshot.host,
            "format": FORMAT,
            "arrays": {name: describe(x) for name, x in {**policy, **rest}.items()},
            "checksums": of_all_hosts(checksums((snapshot.state, snapshot.totals))),
            "policy_checksums": of_all_hosts(checksums(_acting(snapshot.state))),
        }
        args = ocp.args.Composite(
            policy=ocp.args.StandardSave(policy),
            rest=ocp.args.StandardSave(rest),
            host=ocp.args.JsonSave(host),
        )
        self._write(lambda: self._manager.save(iteration, args=args, force=True))
        self._unseen = iteration

    def wait(self) -> None:
        """Returns when the last checkpoint is written; all hosts call it.

        Raises:
            OSError: If it cannot be written; what was written of it is deleted.
        """
        self._write(self._finish)

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        if (iteration := self._unseen) is None or jax.process_index() != 0:
            return
        self._unseen = None
        for part in ("policy", "rest"):
            manifest = self.path / str(iteration) / part / "manifest.ocdbt"
            if not manifest.exists():
                shutil.rmtree(self.path / str(iteration), ignore_errors=True)
                raise OSError(f"{manifest} is missing")

    def close(self) -> None:
        """Ends the threads that write; what trouble they had, :meth:`wait` tells."""
        with contextlib.suppress(Exception):
            self._manager.close()
        if self._keep is not None and jax.process_index() == 0:
            # A thread may have gone on to write what was given up and deleted.
            for path in self.path.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def iterations(self) -> list[int]:
        """Of the checkpoints that are whole, ascending."""
        return sorted(self._manager.all_steps())

    def read_host(self, iteration: int) -> dict[str, Any]:
        """What a checkpoint says of itself.

        Args:
            iteration: One of :meth:`iterations`.

        Raises:
            ValueError: If it is torn, or of another format.
        """
        with self._reading(iteration):
            args = ocp.args.Composite(host=ocp.args.JsonRestore())
            host = self._manager.restore(iteration, args=args)["host"]
        if not isinstance(host, dict) or host.get("format") != FORMAT:
            found = host.get("format") if isinstance(host, dict) else None
            raise ValueError(
                f"{self.path / str(iteration)} has the format {found}, this version of purerl "
                f"reads format {FORMAT}; continue the run with the version that began it."
            )
        return host

    def restore(self, iteration: int, template: Snapshot, layout: Layout) -> Snapshot:
        """Reads a checkpoint, all of it or nothing.

        Args:
            iteration: One of :meth:`iterations`.
            template: Shapes and dtypes.
            layout: Where the arrays go.

        Raises:
            ValueError: If it is torn, of another format, or its arrays are not the template's.
        """
        host = self.read_host(iteration)
        both = (template.state, template.totals)
        places = _split(layout.shardings(both))
        policy, rest = _parts(template)
        self._check_arrays(iteration, {**policy, **rest}, host["arrays"])
        arrays = self._restore_part(iteration, "policy", policy, places[0].__getitem__)
        arrays |= self._restore_part(iteration, "rest", rest, places[1].__getitem__)
        state, totals = _unnamed(both, arrays)
        snapshot = Snapshot(state, totals, host)
        self._check_sums(iteration, checksums((state, totals)), host["checksums"])
        return snapshot

    def restore_policy(self, iteration: int, template: TrainState) -> TrainState:
        """A checkpoint's learners and normalizers, as NumPy's arrays.

        Args:
            iteration: One of :meth:`iterations`.
            template: Shapes and dtypes ``[S, ...]`` of these; all else is None.

        Raises:
            ValueError: If it is torn, of another format, or its arrays are not the template's.
        """
        host = self.read_host(iteration)
        policy, _ = _parts(Snapshot(template, (), {}))
        there = {k: x for k, x in host["arrays"].items() if k.startswith(POLICY)}
        self._check_arrays(iteration, policy, there)
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        restored = jax.device_get(self._restore_part(iteration, "policy", policy, lambda _: place))
        state = _unnamed((template, ()), restored)[0]
        self._check_sums(iteration, checksums(_acting(state)), host["policy_checksums"])
        return state

    def _restore_part(
        self, iteration: int, part: str, wanted: dict[str, Any], place: Callable[[str], Any]
    ) -> dict[str, Any]:
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(name))
            for name, x in wanted.items()
        }
        with self._reading(iteration):
            args = ocp.args.Composite(**{part: ocp.args.StandardRestore(target)})
            return self._manager.restore(iteration, args=args)[part]

    def _check_arrays(self, iteration: int, wanted: dict[str, Any], found: dict[str, str]) -> None:
        described = {name: describe(x) for name, x in wanted.items()}
        if told := differences(found, described):
            raise ValueError(
                f"{self.path / str(iteration)} does not hold this run's arrays: {told}. Continue "
                "the run with the version of purerl that began it."
            )

    def _check_sums(
        self, iteration: int, found: list[int | None], wanted: list[int | None]
    ) -> None:
        damaged = [
            seed
            for seed, (x, y) in enumerate(zip(found, wanted, strict=True))
            if None not in (x, y) and x != y
        ]
        if damaged:
            seeds = ", ".join(map(str, damaged))
            raise self._torn(iteration, f"the checksums of seeds {seeds} are wrong")

    def _torn(self, iteration: int, why: str) -> ValueError:
        others = [i for i in self.iterations() if i != iteration]
        advice = "there is no other: begin the run again, with --overwrite"
        if others:
            advice = f"move that folder away to continue from {self.path / str(others[-1])}"
        elif self.path.name == BEST:
            advice = "move that folder away to go on without it"
        return ValueError(f"{self.path / str(iteration)} is damaged ({why}); {advice}.")

    @contextlib.contextmanager
    def _reading(self, iteration: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            why = str(error).strip().splitlines() or [type(error).__name__]
            text = f"{type(error).__name__} {error}"
            passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if passing or any(word in text for word in UNDAMAGED):
                raise OSError(f"{self.path / str(iteration)} cannot be read: {why[0]}") from error
            raise self._torn(iteration, why[0][:200]) from error

    def _write(self, write: Callable[[], Any]) -> None:
        trouble = None
        try:
            write()
        except Exception as error:  # TensorStore's are ValueErrors
            trouble = error
        if any_host(trouble is not None):
            # Orbax leaves the torn folder, which takes space, and loses count of older ones.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._manager, self._unseen = self._open(), None
        if trouble is not None:
            lines = str(trouble).strip().splitlines() or [type(trouble).__name__]
            why = os.strerror(errno.ENOSPC)
            why = why if why in str(trouble) else lines[0][:300]  # at the end of a long story
            raise OSError(f"{self.path}: no checkpoint could be written: {why}") from trouble


def _acting(state: Any) -> PyTree:
    """What acting needs of a state."""
    return state.learner, state.normalizer


def _unnamed(template: PyTree, arrays: dict[str, Any]) -> PyTree:
    """The inverse of :func:`_parts`; arrays without any element are made anew."""
    plain = jax.eval_shape(without_keys, template)
    paths, treedef = jax.tree_util.tree_flatten_with_path(plain)
    leaves = [arrays[_name(path)] if x.size else jnp.zeros(x.shape, x.dtype) for path, x in paths]
    return with_keys(template, jax.tree.unflatten(treedef, leaves))


def _parts(snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arrays by name: those that acting needs, and the rest."""
    both = (snapshot.state, snapshot.totals)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(both)):
        return _split(jax.eval_shape(without_keys, both))
    return _split(without_keys(both))


def _split(both: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    policy: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(both)[0]:
        if getattr(leaf, "size", 1) == 0:
            continue  # TensorStore holds no empty arrays
        name = _name(path)
        part = policy if name.startswith(POLICY) else rest
        part[name] = leaf
    return policy, rest


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def describe(array: Any) -> str:
    """Dtype and shape, for a message.

    Args:
        array: An array, or its shape and dtype.
    """
    return f"{np.dtype(array.dtype).name}[{', '.join(map(str, array.shape))}]"


@contextlib.contextmanager
def without_late_noise() -> Iterator[None]:
    """While Orbax writes: after an error its other writers find their event loop closed, and Python
    prints a traceback for each of them, hundreds on a full disk.
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


def _quieten() -> None:
    """Orbax tells of every step it takes, and of each error many times in many lines."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_of_orbax)  # the same function is added once


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()
