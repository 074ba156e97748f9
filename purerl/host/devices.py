"""Placement of a run's arrays: seeds or environments over the devices of one or several hosts."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from purerl.config import check_choice
from purerl.pieces.rollout import Actors
from purerl.records import Clock, Cursor, PyTree
from purerl.training.seeds import seed_mesh, vectorize

Shard = Literal["seeds", "environments"]


class Layout(NamedTuple):
    """How the runs of S seeds are spread over a mesh; :func:`make_layout` makes one.

    ``seeds``: every device has seeds of its own and runs its own loops; no device ever waits for
    another, and no collective is in the program. ``environments``: every device has all learners
    and a part of each seed's environments; XLA adds what has to be gathered and summed.
    """

    mesh: jax.sharding.Mesh
    shard: Shard

    def vectorize(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` for all seeds; what it returns lies where :meth:`shardings` says.

        Args:
            function: Of one seed.
        """
        if self.shard == "seeds":
            return vectorize(function, pad=False)  # the mesh divides the seeds
        mapped = vectorize(function, shard=False)

        def placed(*args):
            out = mapped(*args)
            return jax.lax.with_sharding_constraint(out, self.shardings(out))

        return placed

    def shardings(self, tree: PyTree) -> PyTree:
        """Where each array of a tree lies.

        Args:
            tree: Arrays ``[S, ...]``, or their shapes; Clocks ``[]``.
        """
        by_seed = self.shard == "seeds"
        part = (Clock, Cursor) if by_seed else Actors  # all that is not spread; all that is
        axes = ("seeds",) if by_seed else (None, "environments")

        def of(x):
            spread = isinstance(x, part) != by_seed
            place = NamedSharding(self.mesh, PartitionSpec(*axes) if spread else PartitionSpec())
            return jax.tree.map(lambda _: place, x)

        return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, part))

    def put(self, tree: PyTree) -> PyTree:
        """Arrays of this host, the same on every host, as arrays of all hosts.

        Args:
            tree: Arrays ``[S, ...]``; Clocks ``[]``.
        """

        def put(x, sharding):
            if is_key(x):
                return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(put, tree, self.shardings(tree))


def make_layout(shard: Shard, seeds: int, num_envs: int) -> Layout:
    """How so many seeds are spread over all devices there are.

    Args:
        shard: What is spread: whole seeds, or the environments of each.
        seeds: S.
        num_envs: N, environments of a seed.

    Raises:
        ValueError: If the devices do not divide what is spread.
    """
    check_choice("run: unknown shard", shard, ("seeds", "environments"))
    if shard == "seeds":
        return Layout(seed_mesh(seeds), shard)
    devices = jax.devices()
    if num_envs % len(devices):
        raise ValueError(
            f"num_envs={num_envs} cannot be shared evenly by {len(devices)} devices; make it a "
            "multiple of them, or shard seeds."
        )
    return Layout(jax.sharding.Mesh(devices, ("environments",)), shard)


def is_key(x: Any) -> bool:
    """Whether an array holds PRNG keys.

    Args:
        x: An array, or its shape and dtype.
    """
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def gathered(tree: PyTree) -> PyTree:
    """All-gathers sharded arrays so that every host can address them; asynchronous.

    Args:
        tree: Arrays of one mesh, sharded in any way.
    """
    if jax.process_count() == 1:
        return tree
    return _replicate(jax.tree.leaves(tree)[0].sharding.mesh)(tree)


@functools.cache
def _replicate(mesh: jax.sharding.Mesh) -> Callable[[PyTree], PyTree]:
    """One program that gathers all arrays of a tree, instead of one for each."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def from_hosts(value: np.ndarray) -> np.ndarray:
    """All-gathers a value over processes, ``[hosts, ...]``; waits for all of them.

    Args:
        value: This process's; of 32 bits at most.
    """
    if jax.process_count() == 1:
        return value[None]
    return np.asarray(multihost_utils.process_allgather(value))


def begin_from_devices(value: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """All-gathers a value over devices, ``[devices, ...]``; asynchronous.

    Args:
        value: This process's.
        mesh: Of all hosts' devices.
    """
    each = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    shape = (mesh.size, *value.shape)
    return _replicate(mesh)(jax.make_array_from_callback(shape, each, lambda _: value[None]))


def agreed(flag: bool) -> bool:
    """Broadcasts process 0's flag to all processes.

    Args:
        flag: This process's.
    """
    return bool(from_hosts(np.array(flag))[0])


def any_host(flag: bool) -> bool:
    """Whether a flag is set in any process.

    Args:
        flag: This process's.
    """
    return bool(from_hosts(np.array(flag)).any())
