"""Memory: what arrays take, what there is, and what fits."""

import math
import os
import pathlib
import platform
import zlib

import jax
import numpy as np

from purerl.host.devices import from_hosts
from purerl.records import PyTree


def tree_bytes(tree: PyTree) -> int:
    """Bytes that arrays take.

    Args:
        tree: Arrays, or their shapes and dtypes.
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_bytes() -> int:
    """Memory of all devices of all hosts, the same figure on each of them; of CPUs the hosts', as
    far as their processes may use it.
    """
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    host = zlib.crc32(platform.node().encode()) if not all(limits) else jax.process_index()
    memory = sum(limits) if all(limits) else _host_memory()
    told = from_hosts(np.array([host, memory // 2**20], np.uint32))
    # Processes of one host share its memory.
    return 2**20 * sum(int(told[told[:, 0] == x, 1].min()) for x in np.unique(told[:, 0]))


def _host_memory() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = pathlib.Path("/sys/fs/cgroup/memory.max")
    limit = container.read_text().strip() if container.exists() else "max"
    return memory if limit == "max" else min(memory, int(limit))


def check_replay(replay: PyTree, seeds: int, *, checkpoints: bool, replicas: int = 1) -> int:
    """Bytes of all seeds' replay buffers.

    Args:
        replay: Shapes and dtypes of all seeds' buffers (:attr:`TrainState.replay`), or None.
        seeds: How many.
        checkpoints: Whether there are any: while one is written the buffers are there twice.
        replicas: Devices that hold all buffers each, which is what sharding environments does.

    Raises:
        ValueError: If the memory is smaller.
    """
    if replay is None:
        return 0
    each, memory = tree_bytes(replay) * replicas, memory_bytes()
    copies = 2 if checkpoints else 1
    if copies * each > memory:
        capacity = replay.replay.items.count
        twice = ", and as much again while a checkpoint is written," if checkpoints else ","
        twice = (f" on {replicas} devices together" if replicas > 1 else "") + twice
        raise ValueError(
            f"the replay buffers of {seeds} seeds need {format_bytes(each)}{twice} but there are "
            f"{format_bytes(memory)}; set capacity to {int(capacity * memory / copies / each):,} "
            "or less (--capacity), or train fewer seeds at a time, or hold observations as bytes "
            "(replay_obs)."
        )
    return each


def fitting(rows: int, all_rows: int, needed: float, there: float, devices: int) -> int:
    """How many rows fit into memory side by side, in parts as equal as they can be.

    Args:
        rows: Of the program that was analysed.
        all_rows: That are to be trained.
        needed: Bytes that the program takes on each device.
        there: Bytes that each device has.
        devices: Among which rows are shared evenly.

    Raises:
        ValueError: If not even one row a device fits.

    Example:
        >>> fitting(10, 10, needed=1000, there=600, devices=2)
        6
    """
    if needed <= there:
        return rows
    most = int(rows * there / needed) // devices * devices
    if most < 1:
        raise ValueError(
            f"sweep: one seed a device needs about {needed * devices / rows:.3g} bytes, but a "
            f"device has {there:.3g}; make num_envs, rollout_length, the network or the replay "
            "buffer smaller."
        )
    even = math.ceil(all_rows / math.ceil(all_rows / most))
    return min(most, math.ceil(even / devices) * devices)


def format_bytes(count: int) -> str:
    """A number of bytes, in a unit that suits it.

    Args:
        count: Bytes.
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"
