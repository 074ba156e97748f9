"""Names of arrays, and a checksum of each seed's part of them."""

import zlib
from typing import Any

import jax
import numpy as np

from purerl.checks import by_path
from purerl.host.devices import from_hosts, gathered, is_key
from purerl.records import PyTree


def checksums(tree: PyTree) -> list[int]:
    """CRC-32 of each seed's part; all hosts call it where arrays are spread over them.

    Args:
        tree: Leaves ``[S, ...]``; Clocks, the same for all, count for each.
    """
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    seeds = max((len(x) for x in leaves if x.ndim), default=0)
    sums = dict.fromkeys(range(seeds), 0)  # of the seeds on this host
    for leaf in leaves:
        rows = _rows(leaf) if leaf.ndim else dict.fromkeys(sums, np.asarray(leaf).data)
        sums = {seed: zlib.crc32(row, sums[seed]) for seed, row in rows.items()}
    found = np.zeros(seeds, np.uint32)
    found[[*sums]] = [*sums.values()]
    if not all(getattr(x, "is_fully_addressable", True) for x in leaves):
        found = from_hosts(found).max(axis=0)
    return found.tolist()


def by_name(tree: PyTree) -> dict[str, Any]:
    """:func:`by_path`, but for arrays without elements, which TensorStore does not hold.

    Args:
        tree: Arrays, or their shapes and dtypes, or their shardings.
    """
    return {name: x for name, x in by_path(tree).items() if getattr(x, "size", 1)}


def _rows(leaf: jax.Array | np.ndarray) -> dict[int, Any]:
    """Bytes of the rows that are on this host, by number; without a copy of them."""
    shards = [(0, leaf)]
    if isinstance(leaf, jax.Array) and leaf.sharding.shard_shape(leaf.shape)[1:] != leaf.shape[1:]:
        shards = [(0, jax.device_get(gathered(leaf)))]  # its environments are sharded
    elif isinstance(leaf, jax.Array):
        shards = [(x.index[0].start or 0, x.data) for x in leaf.addressable_shards]
    return {
        first + i: row
        for first, data in shards
        for i, row in enumerate(np.ascontiguousarray(data).reshape(len(data), -1).view(np.uint8))
    }
