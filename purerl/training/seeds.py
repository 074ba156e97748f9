"""Many seeds at once: ``vmap``, sharded over the devices."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import scipy.linalg  # noqa: F401  (its LAPACK is what JAX calls; loaded, it can be limited)
from jax.sharding import PartitionSpec
from threadpoolctl import threadpool_limits

from purerl.records import Clock, Cursor

GROUP = 8  # seeds that one CPU core trains side by side


def use_all_cores() -> int:
    """Makes as many CPU devices as there are cores, so that seeds can be sharded over them.

    One XLA program does not fill the cores with small networks; one program a core does. Call it
    before anything is computed with JAX (making an environment computes): afterwards the number of
    devices is fixed. The command line calls it.

    BLAS is kept to one thread from then on, NumPy's and SciPy's too, whose LAPACK JAX calls: the
    devices' calls would each start threads on all cores, and wait for one another (16 seeds of
    ACKTR took 1.8 times as long).

    Returns:
        The number of devices there are.
    """
    threadpool_limits(1, user_api="blas")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        jax.config.update("jax_num_cpu_devices", cores or 1)
    except RuntimeError:  # JAX has been used: the number of devices is fixed
        return jax.device_count()
    return jax.device_count()


def vectorize(function: Callable[..., Any], *, shard: bool = True) -> Callable[..., Any]:
    """``jax.vmap`` over the leading axis of all arguments, but not over a Clock or Cursor in them.

    The mapped axis, usually seeds, is also sharded over the devices of all hosts (over the largest
    number of them that divides it). Each device runs its own loops and waits for no other. A Clock
    goes in and comes out unbatched, so that a ``lax.cond`` on it stays one under vmap; so does a
    replay buffer's Cursor.

    Args:
        function: Of arguments that are pytrees of arrays.
        shard: Whether to shard the mapped axis; if not, where the computation goes is left to
            ``jax.jit`` and its shardings (:func:`purerl.host.devices.Layout`).

    Returns:
        A function of the same arguments with a leading axis on every leaf outside those. Wrap it
        in ``jax.jit``.

    Raises:
        ValueError: If the leading axes differ, or their size is zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> clock = Clock(jnp.int32(3))
        >>> scaled, clock = jax.jit(vectorize(lambda x, c: (x * c.iteration, c)))(
        ...     jnp.arange(2.0), clock
        ... )
        >>> scaled.tolist(), clock.iteration.shape
        ([0.0, 3.0], ())
    """

    def mapped(*args):
        leaves, treedef = jax.tree.flatten(args, is_leaf=is_clock)
        batched, clocks = _partition(leaves)
        size = _leading_axis(batched)
        out_structure: list[Any] = []

        def of_one(batched, clocks):
            out = function(*jax.tree.unflatten(treedef, _merge(leaves, batched, clocks)))
            out_leaves, out_treedef = jax.tree.flatten(out, is_leaf=is_clock)
            out_structure[:] = [(out_leaves, out_treedef)]
            return _partition(out_leaves)

        of_many = jax.vmap(of_one, in_axes=(0, None), out_axes=(0, None))
        mesh = seed_mesh(size) if shard else None
        each = size // (mesh.size if mesh else 1)
        groups = each // GROUP if each % GROUP == 0 else 1
        buffers = any(isinstance(clock, Cursor) for clock in clocks)  # groups would copy them
        if shard and jax.default_backend() == "cpu" and groups > 1 and not buffers:
            of_many = _in_groups(of_many, groups)
        if size == 1:  # a batch of one is slower than none, and compiles for longer
            of_many = _alone(of_one)
        elif mesh and mesh.size > 1:
            seeds, everyone = PartitionSpec("seeds"), PartitionSpec()
            of_many = jax.shard_map(
                of_many,
                mesh=mesh,
                in_specs=(seeds, everyone),
                out_specs=(seeds, everyone),
                check_vma=False,
            )
        out_batched, out_clocks = of_many(batched, clocks)
        out_leaves, out_treedef = out_structure[0]
        return jax.tree.unflatten(out_treedef, _merge(out_leaves, out_batched, out_clocks))

    return mapped


def _in_groups(of_many: Callable[..., Any], groups: int) -> Callable[..., Any]:
    """A CPU core trains its seeds eight at a time: more of them do not fit into its caches."""

    def grouped(batched, clocks):
        apart = [x.reshape(groups, len(x) // groups, *x.shape[1:]) for x in batched]
        out, out_clocks = jax.lax.map(lambda group: of_many(group, clocks), apart)
        out = [x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in out]
        return out, jax.tree.map(lambda x: x[0], out_clocks)

    return grouped


def _alone(of_one: Callable[..., Any]) -> Callable[..., Any]:
    """What ``vmap`` over one element gives, without a batch axis inside."""

    def of_many(batched, clocks):
        out, out_clocks = of_one([x[0] for x in batched], clocks)
        return [jnp.asarray(x)[None] for x in out], out_clocks

    return of_many


def is_clock(x: Any) -> bool:
    """Whether this part of a state is never batched.

    Args:
        x: A node of a pytree.
    """
    return isinstance(x, Clock | Cursor)


def _partition(leaves: list[Any]) -> tuple[list[Any], list[Clock | Cursor]]:
    return [x for x in leaves if not is_clock(x)], [x for x in leaves if is_clock(x)]


def _merge(template: list[Any], batched: list[Any], clocks: list[Clock | Cursor]) -> list[Any]:
    rest, times = iter(batched), iter(clocks)
    return [next(times) if is_clock(x) else next(rest) for x in template]


def _leading_axis(leaves: list[Any]) -> int:
    sizes = {jnp.shape(x)[:1] for x in leaves}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"vectorize got leading axes {sorted(sizes)}, wanted one size on every array; give "
            "keys of shape [S], as jax.random.split(jax.random.key(0), S) makes them."
        )
    ((size,),) = sizes
    if size == 0:
        raise ValueError("vectorize got an empty leading axis (zero seeds), wanted at least one.")
    return size


def seed_mesh(size: int) -> jax.sharding.Mesh:
    """The devices that so many seeds are sharded over; its only axis is ``seeds``.

    Args:
        size: Number of seeds.

    Raises:
        ValueError: If there are several hosts, and seeds that their devices do not divide: a host
            without a seed would leave the computation that the others wait in.
    """
    devices = jax.devices()
    count = next(n for n in range(min(size, len(devices)), 0, -1) if size % n == 0)
    if count < len(devices) and jax.process_count() > 1:
        raise ValueError(
            f"{size} seeds cannot be shared evenly by {len(devices)} devices of "
            f"{jax.process_count()} hosts; ask for a multiple of {len(devices)} seeds."
        )
    return jax.sharding.Mesh(devices[:count], ("seeds",))


def take_seeds(tree: Any, seeds: Any) -> Any:
    """Some seeds out of a state or result of many.

    Args:
        tree: Leaves ``[S, ...]``; Clocks and Cursors, the same for all seeds, are left alone.
        seeds: An int takes one seed and drops the axis; a slice or an array of numbers keeps it.

    Example:
        >>> import jax.numpy as jnp
        >>> take_seeds({"x": jnp.arange(3.0)}, 1)["x"].item()
        1.0
    """
    return jax.tree.map(lambda x: x if is_clock(x) else x[seeds], tree, is_leaf=is_clock)
