"""Unrolling environments, and statistics of the episodes they finish."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp

from purerl.envs import Env, Step
from purerl.pieces import packing
from purerl.pieces.packing import make_packing, packed_scan
from purerl.records import PyTree, Rollout, num_rows

UNROLL = 4  # steps in a turn of the loop, on accelerators
LITTLE = 1000  # bytes of an observation and a state, whose resets accelerators draw ahead


class Episodes(NamedTuple):
    """The running episode of each environment.

    Attributes:
        ret: ``[N]`` sum of its rewards so far, undiscounted.
        length: ``[N]`` int32, its steps so far.
    """

    ret: jax.Array
    length: jax.Array


class EpisodeStatistics(NamedTuple):
    """Sums over the episodes that ended during a rollout; their size never grows.

    Attributes:
        ended: ``[]`` int32, how many.
        return_sum: ``[]`` of their undiscounted returns.
        length_sum: ``[]`` int32, of their steps.
    """

    ended: jax.Array
    return_sum: jax.Array
    length_sum: jax.Array

    def mean_return(self) -> jax.Array:
        """Mean return of the episodes that ended; NaN if none did."""
        return self.return_sum / self.ended

    def mean_length(self) -> jax.Array:
        """Mean length of the episodes that ended; NaN if none did."""
        return self.length_sum / self.ended


class Actors(NamedTuple):
    """N environments in the middle of their episodes.

    Attributes:
        env_state: Their states, leaves ``[N, ...]``.
        obs: ``[N, *O]`` what to act on next, not normalized.
        episodes: The running episodes.
        memory: Of a policy that has one, leaves ``[N, ...]``; else None.
    """

    env_state: PyTree
    obs: PyTree
    episodes: Episodes
    memory: PyTree = None


def reset(env: Env, num_envs: int, key: jax.Array) -> Actors:
    """Starts an episode in each environment.

    Args:
        env: Environment.
        num_envs: N.
        key: PRNG key.
    """
    obs, env_state = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return Actors(env_state, obs, Episodes(jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32)))


def unroll(
    act: Callable[[PyTree, PyTree], tuple[jax.Array, Any]],
    env: Env,
    actors: Actors,
    key: jax.Array,
    length: int,
    first_only: bool = False,
    noise: PyTree = None,
) -> tuple[Actors, Rollout, EpisodeStatistics]:
    """Lets a policy act for ``length`` steps in every environment.

    Each new episode begins with a reset of its own, whose key is that of its environment and step:
    no two episodes share a start, and ``env.resets`` changes the cost and not the numbers.

    Args:
        act: ``(obs [N, *O], key) -> (action [N, *A], {"log_prob": [N]})``; without one the
            rollout's is None. Where the actors have a memory, ``(obs, key, memory, start)`` with
            ``start`` bool ``[N]``, and ``"memory"`` is the one after the step.
        env: Environment.
        actors: Where the environments are.
        key: PRNG key.
        length: T, the number of steps.
        first_only: Whether the statistics are of each environment's first episode only: among
            later ones, those that end within the rollout are the short ones.
        noise: What ``act`` gets instead of a key, leaves ``[T, ...]``: its random numbers, drawn
            ahead.

    Returns:
        ``(actors, rollout [T, N], statistics)``.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = purerl.a2c(purerl.A2CConfig(), env.action_space)
        >>> actors = reset(env, 4, jax.random.key(0))
        >>> state = algorithm.init(actors.obs, jax.random.key(1))
        >>> act = lambda obs, key: algorithm.act(state, obs, key)
        >>> actors, rollout, statistics = unroll(act, env, actors, jax.random.key(2), length=16)
        >>> rollout.obs.shape, rollout.terminated.shape
        ((16, 4, 4), (16, 4))
    """
    num_envs = num_rows(actors.obs)
    # All of a rollout's keys at once: one hash over a long array instead of T over short ones. On a
    # CPU the hashes were a third of the time of a rollout of CartPole.
    act_key, env_key, reset_key = jax.random.split(key, 3)
    noise = jax.random.split(act_key, length) if noise is None else noise
    env_keys = jax.random.split(env_key, (length, num_envs))
    numbers = jnp.arange(length * num_envs).reshape(length, num_envs)
    resets = _resets(env, actors)
    ahead = resets == "ahead"
    words, starts_of = _starts(env, reset_key)
    drawn = jax.vmap(starts_of, (None, 0))(words, numbers) if ahead else ()
    # One step is no loop, which would gain by fewer arrays.
    starts, carried = make_packing(drawn, 2), make_packing(actors, 1, packing.pays() and length > 1)

    def step(carry, inputs):
        actors = carried.unpack(carry)
        noise, env_keys, number, drawn = inputs
        # Without resets ahead, anything of their shape: it is not looked at, or replaced below.
        fresh = starts.unpack(drawn) if ahead else (actors.obs, actors.env_state)
        remembered = () if actors.memory is None else (actors.memory, actors.episodes.length == 0)
        action, extras = act(actors.obs, noise, *remembered)
        result, env_state = jax.vmap(env.step)(actors.env_state, action, env_keys, fresh)
        done = result.terminated | result.truncated
        obs = result.obs
        if resets == "due":
            obs, env_state = _reset_where(starts_of, done, words, number, (obs, env_state))
        ret, steps = actors.episodes.ret + result.reward, actors.episodes.length + 1
        episodes = Episodes(jnp.where(done, 0, ret), jnp.where(done, 0, steps))
        after = Actors(env_state, obs, episodes, extras["memory"] if remembered else None)
        return carried.pack(after), (_row(actors, action, extras, result), ret)

    inputs = (noise, env_keys, numbers, starts.pack(drawn))
    start = carried.pack(actors)
    carry, (rollout, ret) = packed_scan(step, start, inputs, length, axes=1, unroll=UNROLL)
    actors = carried.unpack(carry)
    rollout = rollout._replace(
        memory=jax.tree.map(  # before each step, and after the last
            lambda x, last: jnp.concatenate([x, last[None]]), rollout.memory, actors.memory
        )
    )
    return actors, rollout, _statistics(rollout, ret, first_only)


@jax.custom_batching.custom_vmap
def any_of_all(x: jax.Array) -> jax.Array:
    """Whether any is true, under ``vmap`` of all that are mapped: a predicate is not batched.

    Args:
        x: bool ``[...]``.
    """
    return jnp.any(x)


@any_of_all.def_vmap
def _(axis_size, in_batched, x):
    return any_of_all(x), False


def _row(actors: Actors, action: jax.Array, extras: Any, result: Step) -> Rollout:
    """One step's row of a rollout."""
    return Rollout(
        obs=actors.obs,
        action=action,
        log_prob=extras.get("log_prob"),  # nothing off-policy reads it
        reward=result.reward,
        terminated=result.terminated,
        truncated=result.truncated,
        next_obs=result.next_obs,
        episode_step=actors.episodes.length,
        memory=actors.memory,
    )


def _statistics(rollout: Rollout, ret: jax.Array, first_only: bool) -> EpisodeStatistics:
    """Of the episodes that end in a rollout, whose returns so far are ``ret`` ``[T, N]``."""
    ended = rollout.terminated | rollout.truncated
    if first_only:
        ended &= jnp.cumsum(ended, axis=0) == 1
    return EpisodeStatistics(
        jnp.sum(ended, dtype=jnp.int32),
        jnp.sum(jnp.where(ended, ret, 0)),
        jnp.sum(jnp.where(ended, rollout.episode_step + 1, 0), dtype=jnp.int32),
    )


def _resets(env: Env, actors: Actors) -> str:
    """``env.resets``, chosen where that is ``auto``."""
    if env.resets != "auto":
        return env.resets
    of_all = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((actors.obs, actors.env_state)))
    return "ahead" if packing.pays() and of_all <= LITTLE * num_rows(actors.obs) else "due"


def _starts(env: Env, key: jax.Array) -> tuple[jax.Array, Callable[..., PyTree]]:
    """A key's words, and the function of these and of numbers ``[n]`` that draws episodes' starts.

    A number is that of the step and environment where one ended, so it is folded in once, which
    JAX's checker of keys cannot see: hence the words.
    """
    impl = jax.random.key_impl(key)

    def start_of(words, number):
        return env.reset(jax.random.fold_in(jax.random.wrap_key_data(words, impl=impl), number))

    return jax.random.key_data(key), jax.vmap(start_of, (None, 0))


def _reset_where(
    starts_of: Callable[..., PyTree],
    done: jax.Array,
    words: jax.Array,
    number: jax.Array,
    current: PyTree,
) -> PyTree:
    """``current`` with starts where an episode ended, a few environments at a time.

    A loop and not a ``cond``, which under ``vmap`` would draw resets at every step.
    """
    num_envs = len(done)
    few = -(-num_envs // 16)

    # JAX cannot go backwards through such a loop, through which nothing has to go.
    @jax.custom_jvp
    def replaced(current, done, words, number):
        def some(carry):
            left, current = carry
            (rows,) = jnp.nonzero(left, size=few, fill_value=num_envs)
            fresh = starts_of(words, number[rows])
            current = jax.tree.map(lambda x, new: x.at[rows].set(new, mode="drop"), current, fresh)
            return left.at[rows].set(False, mode="drop"), current

        # Seeds that have none left do nothing; a predicate of each would select all states again.
        return jax.lax.while_loop(lambda carry: any_of_all(carry[0]), some, (done, current))[1]

    @replaced.defjvp
    def _(primals, tangents):
        goes_on = ~primals[1]

        def cut(x, tangent):
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                return tangent
            return jnp.where(goes_on.reshape(-1, *[1] * (x.ndim - 1)), tangent, 0)

        return replaced(*primals), jax.tree.map(cut, primals[0], tangents[0])

    return replaced(current, done, words, number)
