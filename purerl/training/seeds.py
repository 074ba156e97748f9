"""Many seeds at once: ``vmap``, sharded over the devices."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  (its LAPACK is what JAX calls; loaded, it can be limited)
from jax.sharding import PartitionSpec
from threadpoolctl import threadpool_limits

from purerl.records import Clock, Cursor, is_clock

GROUP = 8  # seeds that one CPU core trains side by side, at most
_AXIS = "seeds"


def use_all_cores() -> int:
    """Makes as many CPU devices as there are cores, so that seeds can be sharded over them.

    One XLA program does not fill the cores with small networks; one program a core does. Call it
    before anything is computed with JAX (making an environment computes): afterwards the number of
    devices is fixed, which a warning says. ``run``, ``sweep`` and the command line call it.

    BLAS is kept to one thread from then on, NumPy's and SciPy's too, whose LAPACK JAX calls: the
    devices' calls would each start threads on all cores, and wait for one another (16 seeds of
    ACKTR took 1.8 times as long).

    Returns:
        The number of devices there are.
    """
    threadpool_limits(1, user_api="blas")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # On JAX 0.11 Shardy crashes while it reads some programs, a while_loop around a Brax step.
    if jax.__version_info__ >= (0, 10) and hasattr(jax.config, "jax_use_shardy_partitioner"):
        jax.config.update("jax_use_shardy_partitioner", False)
    try:
        jax.config.update("jax_num_cpu_devices", cores or 1)
    except RuntimeError:  # JAX has been used
        devices = jax.device_count()
        if jax.default_backend() == "cpu" and devices < (cores or 1):
            warnings.warn(
                f"use_all_cores: JAX was used before, with {devices} CPU devices for {cores} "
                f"cores: many seeds take up to {cores}/{devices} times as long. Call it first.",
                stacklevel=2,
            )
    return jax.device_count()


def vectorize(
    function: Callable[..., Any], *, shard: bool = True, pad: bool = True
) -> Callable[..., Any]:
    """``jax.vmap`` over the leading axis of all arguments, but not over a Clock or Cursor in them.

    The mapped axis, usually seeds, is also sharded over the devices of all hosts. Each device runs
    its own loops and waits for no other. A Clock goes in and comes out unbatched, so that a
    ``lax.cond`` on it stays one under vmap; so does a replay buffer's Cursor. A CPU device takes
    its seeds in groups of 5 to 8, where such a number divides them. Within a function that is
    mapped already, ``vectorize`` shards no further.

    What a seed gives is to rounding what it gives alone, and the same bits whenever the same
    compiled program runs it, next to whatever other seeds.

    Args:
        function: Of arguments that are pytrees of arrays.
        shard: Whether to shard the mapped axis; if not, where the computation goes is left to
            ``jax.jit`` and its shardings (:func:`purerl.host.devices.Layout`).
        pad: Whether seeds that the devices do not divide are padded with copies of the last one,
            whose results are dropped; else, and where there is a replay buffer, which would be
            copied, the largest number of devices that divides the seeds is used.

    Returns:
        A function of the same arguments with a leading axis on every leaf outside those. Wrap it
        in ``jax.jit``.

    Raises:
        ValueError: If the leading axes differ, their size is zero, or a Clock has one.

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
        batched, clocks, join = _split(args)
        size = _leading_axis(batched)
        if any(jnp.ndim(x) for x in jax.tree.leaves(clocks)):
            raise ValueError(
                "vectorize got a Clock or Cursor with an axis of seeds; it must not be batched: "
                "use jax.jit(purerl.vectorize(train.init)), not jax.vmap."
            )
        join_out: Callable[..., Any] = join

        def of_one(batched, clocks):
            nonlocal join_out
            batched, clocks, join_out = _split(function(*join(batched, clocks)))
            return batched, clocks

        buffers = any(isinstance(clock, Cursor) for clock in clocks)  # never copied
        mesh = None
        if shard and _AXIS not in jax.sharding.get_abstract_mesh().axis_names:
            mesh = seed_mesh(size, pad=pad and not buffers and jax.process_count() == 1)
        devices = mesh.size if mesh else 1
        each = -(-size // devices)
        extra = each * devices - size
        of_many = jax.vmap(of_one, in_axes=(0, None), out_axes=(0, None))
        group = next((n for n in range(GROUP, GROUP // 2, -1) if each % n == 0), each)
        if mesh and jax.default_backend() == "cpu" and group < each and not buffers:
            of_many = _in_groups(of_many, each // group)
        if size == 1:  # a batch of one is slower than none, and compiles for longer
            of_many = _alone(of_one)
        elif mesh and mesh.size > 1:
            specs = PartitionSpec(_AXIS), PartitionSpec()
            of_many = jax.shard_map(
                of_many, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False
            )
        if extra:
            batched = [jnp.concatenate([x, *[x[-1:]] * extra]) for x in batched]
        out_batched, out_clocks = of_many(batched, clocks)
        if extra:
            out_batched = [x[:size] for x in out_batched]
        return join_out(out_batched, out_clocks)

    return mapped


def take_seeds(tree: Any, seeds: Any) -> Any:
    """Some seeds out of a state or result of many.

    Args:
        tree: Leaves ``[S, ...]``; Clocks and Cursors, the same for all seeds, are left alone.
        seeds: An int takes one seed and drops the axis; a slice or an array of numbers, or of
            booleans ``[S]``, keeps it.

    Returns:
        The same tree, without the axis of seeds for an int, else with the seeds taken.

    Raises:
        IndexError: If there is no such seed.
        ValueError: If the leading axes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> state = {"x": jnp.arange(3.0), "clock": Clock(jnp.int32(7))}
        >>> one = take_seeds(state, 1)
        >>> one["x"].item(), one["clock"].iteration.item()
        (1.0, 7)
    """
    batched = _split(tree)[0]
    if batched and not isinstance(seeds, jax.core.Tracer):  # JAX clips what is beyond
        seeds = np.arange(_leading_axis(batched, "take_seeds"))[seeds]
    return jax.tree.map(lambda x: x if is_clock(x) else x[seeds], tree, is_leaf=is_clock)


def _in_groups(of_many: Callable[..., Any], groups: int) -> Callable[..., Any]:
    """Maps groups of seeds one after another: more do not fit into a CPU core's caches."""

    def grouped(batched, clocks):
        apart = [x.reshape(groups, len(x) // groups, *x.shape[1:]) for x in batched]
        out, out_clocks = jax.lax.map(lambda group: of_many(group, clocks), apart)
        out = [x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in out]
        return out, jax.tree.map(lambda x: x[0], out_clocks)

    return grouped


def _alone(of_one: Callable[..., Any]) -> Callable[..., Any]:
    """``vmap`` over one element, without a batch axis inside."""

    def of_many(batched, clocks):
        out, out_clocks = of_one([x[0] for x in batched], clocks)
        return [jnp.asarray(x)[None] for x in out], out_clocks

    return of_many


def _split(tree: Any) -> tuple[list[Any], list[Clock | Cursor], Callable[..., Any]]:
    """The arrays of a tree, its Clocks and Cursors, and the function that joins such again."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_clock)
    unbatched = [is_clock(x) for x in leaves]

    def join(batched, clocks):
        rest, times = iter(batched), iter(clocks)
        parts = [next(times) if x else next(rest) for x in unbatched]
        return jax.tree.unflatten(treedef, parts)

    clocks = [x for x in leaves if is_clock(x)]
    return [x for x in leaves if not is_clock(x)], clocks, join


def _leading_axis(leaves: list[Any], where: str = "vectorize") -> int:
    sizes = {jnp.shape(x)[:1] for x in leaves}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"{where} got leading axes {sorted(sizes)}, wanted one size on every array; give "
            "keys of shape [S], as jax.random.split(jax.random.key(0), S) makes them."
        )
    ((size,),) = sizes
    if size == 0:
        raise ValueError(f"{where} got an empty leading axis (zero seeds), wanted at least one.")
    return size


def seed_mesh(size: int, *, pad: bool = False) -> jax.sharding.Mesh:
    """The devices that so many seeds are sharded over; its only axis is ``seeds``.

    Args:
        size: Number of seeds.
        pad: Whether the devices need not divide the seeds, which will be padded.

    Raises:
        ValueError: If there are several hosts, and seeds that their devices do not divide: a host
            without a seed would leave the computation that the others wait in.
    """
    devices = jax.devices()
    if pad:
        count = -(-size // -(-size // len(devices)))
    else:
        count = next(n for n in range(min(size, len(devices)), 0, -1) if size % n == 0)
    if count < len(devices) and jax.process_count() > 1:
        raise ValueError(
            f"{size} seeds cannot be shared evenly by {len(devices)} devices of "
            f"{jax.process_count()} hosts; ask for a multiple of {len(devices)} seeds."
        )
    return jax.sharding.Mesh(devices[:count], (_AXIS,))
