r"""Returns and advantages of a rollout.

Every function takes arrays with time on the leading axis, ``[T]`` or ``[T, N]`` (any trailing
axes), and returns one array of the same shape. A rollout may hold many episodes and end inside one.

``terminated`` and ``truncated`` have different meanings: a sum stops at either, but only a
truncated episode would have gone on, so there the sum goes on with ``next_value``, the value
:math:`V(s_{t+1})` of the observation *before* the reset. It is also what the rollout's last step is
continued with. After ``terminated`` the bootstrap is zero, also if ``truncated`` is set too. What
these masks exclude has no part in a result or in its gradient, NaN included: an environment may
give NaN as its terminal observation.

Lecture notes in circulation print GAE's recursion without the termination mask and the value of the
final observation; both are needed as soon as a rollout crosses an episode's end.

References:
    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation" (GAE), eqs. 10-16. Sutton and Barto 2018, eqs. 3.8, 7.1, 12.2.
"""

import jax
import jax.numpy as jnp

UNROLL = 8  # turns of a loop whose body is a few flops


def linear_recurrence(
    a: jax.Array, factor: float | jax.Array, goes_on: jax.Array, last: jax.Array
) -> jax.Array:
    r"""Solves :math:`x_t = a_t + b \, x_{t+1}` backwards in time; :math:`x_t = a_t` at an end.

    Args:
        a: Inhomogeneous terms, ``[T, ...]``.
        factor: :math:`b`, a scalar.
        goes_on: bool ``[T, ...]``; False at an end: what follows is not looked at.
        last: :math:`x_T`, the value after the last step, ``[...]``.

    Returns:
        The solution ``x``, ``[T, ...]``, in the common dtype of all three.
    """
    dtype = jnp.result_type(a, factor, last)

    def step(following, terms):
        a_t, on = terms
        # The mask is on the factor's argument: a product with a masked NaN has a NaN gradient.
        x_t = a_t + jnp.asarray(factor, dtype) * jnp.where(on, following, 0)
        return x_t, x_t

    # Unrolled: the body is two flops, so a loop iteration on its own is nearly all overhead.
    start, terms = jnp.asarray(last, dtype), (jnp.asarray(a, dtype), goes_on)
    return jax.lax.scan(step, start, terms, reverse=True, unroll=UNROLL)[1]


def return_to_go(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    next_value: jax.Array | None = None,
) -> jax.Array:
    r"""The discounted return from each step on, :math:`G_t = \sum_{k \ge t} \gamma^{k-t} r_k`.

    Args:
        reward: ``[T, ...]``.
        terminated: Whether the step ended its episode, bool ``[T, ...]``.
        truncated: Whether the step was its episode's last by a time limit, bool ``[T, ...]``.
        gamma: Discount factor in [0, 1].
        next_value: :math:`V(s_{t+1})` before any reset, ``[T, ...]``; without it a truncated or
            unfinished episode counts as if nothing followed.

    Returns:
        ``[T, ...]``.

    Example:
        >>> import jax.numpy as jnp
        >>> no = jnp.zeros(3, bool)
        >>> return_to_go(jnp.array([1.0, 2.0, 4.0]), no, no, 0.5).tolist()
        [3.0, 4.0, 4.0]
    """
    reward = jnp.asarray(reward, jnp.result_type(reward, float))
    if next_value is None:
        next_value = jnp.zeros_like(reward)
    done = jnp.logical_or(terminated, truncated)
    cut_off = jnp.logical_and(done, jnp.logical_not(terminated))
    bootstrap = gamma * jnp.where(cut_off, next_value, 0)
    return linear_recurrence(reward + bootstrap, gamma, ~done, next_value[-1])


def discounted_return(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    next_value: jax.Array | None = None,
) -> jax.Array:
    r"""The whole episode's return :math:`\sum_k \gamma^k r_k`, repeated at each of its steps.

    Time counts from the episode's start, or from the rollout's start for an episode that had begun
    before it.

    Args:
        reward: ``[T, ...]``.
        terminated: Whether the step ended its episode, bool ``[T, ...]``.
        truncated: Whether the step was its episode's last by a time limit, bool ``[T, ...]``.
        gamma: Discount factor in [0, 1].
        next_value: As in :func:`return_to_go`.

    Returns:
        ``[T, ...]``, constant within each episode.

    Example:
        >>> import jax.numpy as jnp
        >>> no = jnp.zeros(3, bool)
        >>> discounted_return(jnp.array([1.0, 2.0, 4.0]), no, no, 0.5).tolist()
        [3.0, 3.0, 3.0]
    """
    to_go = return_to_go(reward, terminated, truncated, gamma, next_value)
    done = jnp.logical_or(terminated, truncated)
    start = jnp.concatenate([jnp.ones_like(done[:1]), done[:-1]])
    # x_t = G_t where an episode starts, else x_{t-1}: the same recurrence, forwards.
    filled = jnp.where(start, to_go, 0)[::-1]
    return linear_recurrence(filled, 1.0, ~start[::-1], jnp.zeros_like(to_go[0]))[::-1]


def n_step_return(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    n: int,
) -> jax.Array:
    r"""The n-step return :math:`\sum_{k<n} \gamma^k r_{t+k} + \gamma^n V(s_{t+n})`.

    Shorter where the episode or the rollout ends sooner.

    Args:
        reward: ``[T, ...]``.
        next_value: :math:`V(s_{t+1})` before any reset, ``[T, ...]``.
        terminated: Whether the step ended its episode, bool ``[T, ...]``.
        truncated: Whether the step was its episode's last by a time limit, bool ``[T, ...]``.
        gamma: Discount factor in [0, 1].
        n: Number of rewards, a Python integer of at least 1.

    Returns:
        ``[T, ...]``.

    Raises:
        ValueError: If ``n`` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> no, value = jnp.zeros(3, bool), jnp.array([8.0, 8.0, 8.0])
        >>> n_step_return(jnp.array([1.0, 2.0, 4.0]), value, no, no, 0.5, n=2).tolist()
        [4.0, 6.0, 8.0]
    """
    if n < 1:
        raise ValueError(f"n_step_return needs n >= 1, got n={n}; n=1 is the one-step TD target.")
    n = min(n, reward.shape[0])  # the rollout holds no more
    goes_on = ~jnp.logical_or(terminated, truncated)[:-1]
    bootstrap = jnp.where(terminated, 0, next_value)

    def one_more(_: int, result: jax.Array) -> jax.Array:
        """A reward more, where the episode goes on and the rollout holds the next step."""
        following = jnp.where(goes_on, result[1:], bootstrap[:-1])
        return jnp.concatenate([reward[:-1] + gamma * following, result[-1:]])

    # A loop: XLA ends the process by a crash where some forty of these are written out.
    return jax.lax.fori_loop(1, n, one_more, reward + gamma * bootstrap, unroll=UNROLL)


def lambda_return(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    lam: float | jax.Array,
) -> jax.Array:
    r"""The exponentially weighted mean of all n-step returns.

    .. math:: G_t = r_t + \gamma \left[(1 - \lambda) V(s_{t+1}) + \lambda G_{t+1}\right]

    Args:
        reward: ``[T, ...]``.
        next_value: :math:`V(s_{t+1})` before any reset, ``[T, ...]``.
        terminated: Whether the step ended its episode, bool ``[T, ...]``.
        truncated: Whether the step was its episode's last by a time limit, bool ``[T, ...]``.
        gamma: Discount factor in [0, 1].
        lam: Trace parameter in [0, 1]: 0 is the one-step target, 1 the full return.

    Returns:
        ``[T, ...]``.

    Example:
        >>> import jax.numpy as jnp
        >>> no, value = jnp.zeros(2, bool), jnp.array([4.0, 4.0])
        >>> lambda_return(jnp.array([1.0, 2.0]), value, no, no, 0.5, 0.5).tolist()
        [3.0, 4.0]
    """
    goes_on = ~jnp.logical_or(terminated, truncated)
    bootstrap = jnp.where(terminated, 0, next_value)
    one_step = reward + gamma * jnp.where(goes_on, 1 - lam, 1) * bootstrap
    return linear_recurrence(one_step, gamma * lam, goes_on, next_value[-1])


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    lam: float | jax.Array,
) -> jax.Array:
    r"""Generalized advantage estimation.

    .. math::
        \delta_t &= r_t + \gamma (1 - \text{terminated}_t) V(s_{t+1}) - V(s_t) \\
        \hat A_t &= \delta_t + \gamma \lambda (1 - \text{done}_t) \hat A_{t+1}

    Args:
        reward: ``[T, ...]``.
        value: :math:`V(s_t)`, ``[T, ...]``.
        next_value: :math:`V(s_{t+1})` before any reset, ``[T, ...]``.
        terminated: Whether the step ended its episode, bool ``[T, ...]``.
        truncated: Whether the step was its episode's last by a time limit, bool ``[T, ...]``.
        gamma: Discount factor in [0, 1].
        lam: Trace parameter in [0, 1]: 0 has high bias and low variance, 1 the reverse.

    Returns:
        Advantages ``[T, ...]``; ``advantage + value`` is the lambda-return.

    Example:
        >>> import jax.numpy as jnp
        >>> no, value = jnp.zeros(2, bool), jnp.array([1.0, 1.0])
        >>> gae(jnp.array([1.0, 2.0]), value, jnp.array([1.0, 4.0]), no, no, 0.5, 0.5).tolist()
        [1.25, 3.0]

    References:
        Schulman et al. 2016 (GAE), eqs. 11, 12 and 16.
    """
    goes_on = ~jnp.logical_or(terminated, truncated)
    delta = reward + gamma * jnp.where(terminated, 0, next_value) - value
    return linear_recurrence(delta, gamma * lam, goes_on, jnp.zeros_like(value[-1]))
