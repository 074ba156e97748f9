"""A checksum of each seed's part of a state, by which damage is found."""

import zlib
from typing import Any

import jax
import numpy as np

from purerl.host.devices import from_hosts, gathered, without_keys
from purerl.records import PyTree


def checksums(tree: PyTree) -> list[int | None]:
    """CRC-32 of each seed's part; None of a seed of another host.

    Args:
        tree: Leaves ``[S, ...]``; Clocks, the same for all, count for each.
    """
    leaves = [_whole_rows(x) for x in jax.tree.leaves(without_keys(tree))]
    seeds = max(x.shape[0] for x in leaves if x.ndim)
    sums: list[int | None] = [0] * seeds
    for leaf in leaves:
        if not leaf.ndim:
            value = np.asarray(leaf).tobytes()
            sums = [None if x is None else zlib.crc32(value, x) for x in sums]
            continue
        rows = _rows(leaf)
        sums = [
            None if x is None or row is None else zlib.crc32(row, x)
            for x, row in zip(sums, rows, strict=True)
        ]
    return sums


def of_all_hosts(sums: list[int | None]) -> list[int | None]:
    """The checksums that any host knows.

    Args:
        sums: Those that this host knows.
    """
    known = np.array([[x is not None, x or 0] for x in sums], np.uint32)
    gathered = from_hosts(known).max(axis=0)
    return [int(x) if is_known else None for is_known, x in gathered]


def _whole_rows(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """An array whose shards hold whole rows: one of sharded environments is put together."""
    if not isinstance(leaf, jax.Array) or not leaf.ndim:
        return leaf
    if leaf.addressable_shards[0].data.shape[1:] == leaf.shape[1:]:
        return leaf
    return jax.device_get(gathered(leaf))


def _rows(leaf: jax.Array | np.ndarray) -> list[Any]:
    """Bytes of each row that is on this host, without a copy of them."""
    rows: list[Any] = [None] * leaf.shape[0]
    shards = [(0, leaf)]
    if isinstance(leaf, jax.Array):
        shards = [(x.index[0].start or 0, x.data) for x in leaf.addressable_shards]
    for first, data in shards:
        flat = np.ascontiguousarray(data).reshape(len(data), -1).view(np.uint8)
        rows[first : first + len(flat)] = flat
    return rows
