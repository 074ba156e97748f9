r"""Returns and advantages of a rollout.

Every function takes arrays with time on the leading axis, ``[T]`` or ``[T, N]`` (any trailing
axes), and returns one array of the same shape. A rollout may hold many episodes and end inside one.

``terminated`` and ``truncated`` have different meanings: a sum stops at either, but only a
truncated episode would have gone on, so there the sum goes on with ``next_value``, the value
:math:`V(s_{t+1})` of the observation *before* the reset. It is also what the rollout's last step is
continued with. After ``terminated`` the bootstrap is zero, also if ``truncated`` is set too.

References:
    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation" (GAE), eqs. 10-16. Sutton and Barto 2018, eqs. 3.8, 7.1, 12.2.

Differs from:
    The documents' recursion for GAE (002, 003, 004) has neither the termination mask nor the value
    of the final observation; both are needed as soon as a rollout crosses an episode's end.
    Document 002 has bias and variance of the n-step estimate reversed: one step has much bias and
    little variance, many steps little bias and much variance.
"""

import jax
import jax.numpy as jnp


def linear_recurrence(a: jax.Array, b: jax.Array, last: jax.Array) -> jax.Array:
    r"""Solves :math:`x_t = a_t + b_t x_{t+1}` backwards in time from :math:`x_T` = ``last``.

    Args:
        a: Inhomogeneous terms, ``[T, ...]``.
        b: Factors, ``[T, ...]``.
        last: The value after the last step, ``[...]``.

    Returns:
        The solution ``x``, ``[T, ...]``.
    """

    def step(following, terms):
        a_t, b_t = terms
        x_t = a_t + b_t * following
        return x_t, x_t

    # Unrolled: the body is two flops, so a loop iteration on its own is nearly all overhead.
    return jax.lax.scan(step, last, (a, b), reverse=True, unroll=8)[1]


def _not(flag: jax.Array, like: jax.Array) -> jax.Array:
    return 1 - flag.astype(like.dtype)


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
    return lambda_return(reward, next_value, terminated, truncated, gamma, 1.0)


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
    done = terminated | truncated
    start = jnp.concatenate([jnp.ones_like(done[:1]), done[:-1]]).astype(to_go.dtype)
    # x_t = G_t where an episode starts, else x_{t-1}: the same recurrence, forwards.
    filled = linear_recurrence((start * to_go)[::-1], (1 - start)[::-1], jnp.zeros_like(to_go[0]))
    return filled[::-1]


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
    done = terminated | truncated
    one_step = reward + gamma * _not(terminated, reward) * next_value
    result = one_step
    for _ in range(n - 1):
        # One reward more where the episode goes on and the rollout holds the next step.
        longer = reward[:-1] + gamma * result[1:]
        result = jnp.concatenate([jnp.where(done[:-1], one_step[:-1], longer), one_step[-1:]])
    return result


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
    carry_on = lam * _not(terminated | truncated, reward)
    bootstrap = _not(terminated, reward) * next_value
    return linear_recurrence(
        reward + gamma * (1 - carry_on) * bootstrap, gamma * carry_on, next_value[-1]
    )


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
    delta = reward + gamma * _not(terminated, reward) * next_value - value
    decay = gamma * lam * _not(terminated | truncated, reward)
    return linear_recurrence(delta, decay, jnp.zeros_like(value[-1]))
