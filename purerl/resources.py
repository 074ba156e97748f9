"""Memory: what arrays take, and what there is."""

import os
import pathlib

import jax

from purerl.train.loop import Train
from purerl.types import PyTree


def tree_bytes(tree: PyTree) -> int:
    """Bytes that arrays take.

    Args:
        tree: Arrays, or their shapes and dtypes.
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_bytes() -> int:
    """Memory of all devices; on a CPU the host's, as far as this process may use it."""
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    if all(limits):
        return sum(limits) * jax.process_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = pathlib.Path("/sys/fs/cgroup/memory.max")
    limit = container.read_text().strip() if container.exists() else "max"
    return memory if limit == "max" else min(memory, int(limit))


def check_replay(train: Train, seeds: int, copies: int = 1) -> int:
    """Bytes of all seeds' replay buffers.

    Args:
        train: The run.
        seeds: How many of it.
        copies: How often the buffers are in memory at the same time: while a checkpoint is
            written, twice.

    Raises:
        ValueError: If the memory is smaller.
    """
    replay = jax.eval_shape(train.init, jax.random.key(0)).replay
    if replay is None:
        return 0
    each, memory = seeds * tree_bytes(replay), memory_bytes()
    if copies * each > memory:
        capacity = replay.replay.items.count
        twice = ", and as much again while a checkpoint is written," if copies == 2 else ","
        raise ValueError(
            f"the replay buffers of {seeds} seeds need {format_bytes(each)}{twice} but there are "
            f"{format_bytes(memory)}; set capacity to {int(capacity * memory / copies / each):,} "
            "or less (--capacity), or train fewer seeds at a time, or hold observations as bytes "
            "(replay_obs)."
        )
    return each


def format_bytes(count: int) -> str:
    """A number of bytes, in a unit that suits it.

    Args:
        count: Bytes.
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"
