r"""Deep Q-learning (DQN), with Double, Dueling, prioritized replay and n-step returns as switches.

One step of gradient descent on the mean over a batch from the replay buffer of

.. math::
    w \, \ell(q(s, a; \theta) - y), \qquad
    y = r + d \max_{a'} q(s', a'; \theta^-)

(Mnih et al. 2015), where :math:`\ell` is Huber's loss or half the square, and w is 1 without
prioritized replay. :math:`\theta^-` follows :math:`\theta`, and no gradient reaches it. The
switches change one thing each, in any combination:

* ``double``: :math:`y = r + d \, q(s', \arg\max_{a'} q(s', a'; \theta); \theta^-)` (van Hasselt et
  al. 2016).
* ``dueling``: the network's last layers, :math:`q = v + A - mean A` (Wang et al. 2016).
* ``prioritized``: which transitions are replayed, and w (Schaul et al. 2016).
* ``n_step``: r and s' reach over so many steps (Watkins 1989), without a correction for actions
  that the greedy policy would not have taken.

The discount d is zero after termination only; after truncation s' is the observation before the
reset.

Differs from:
    Document 002 prints the loss with both values of the frozen parameters and without the square,
    Double DQN without the terminal mask, and prioritized replay with alpha applied twice; see
    :mod:`purerl.replay.buffers` and :class:`purerl.QNetwork`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import check_action_space, check_batch
from purerl.config import (
    Config,
    Number,
    Schedule,
    choice,
    count,
    number,
    part,
    switch,
)
from purerl.pieces.gradient import gradient_step, keep_if_finite, make_optimizer
from purerl.pieces.losses import double_q_target, huber_loss, q_target, taken, value_loss
from purerl.pieces.schedules import Shape, scheduled
from purerl.policies.acting import apply_network, init_q_params
from purerl.policies.networks import NetworkConfig, QNetwork
from purerl.records import (
    ActionSpace,
    Clock,
    Discrete,
    Info,
    OffPolicyAlgorithm,
    OffPolicyBatch,
    PyTree,
)
from purerl.replay import buffers as replays


@dataclasses.dataclass(frozen=True, kw_only=True)
class DQNConfig(Config):
    """Configuration of :func:`dqn`."""

    double: bool = switch(
        False, "The online network selects the action that the target network evaluates."
    )
    dueling: bool = switch(
        False, "Separate streams for the state's value and the actions' advantages."
    )
    prioritized: bool = switch(
        False, "Replay transitions in proportion to a power of their TD error."
    )
    n_step: int = count(1, "Rewards in a return.")
    learning_rate: Schedule = number(1e-3, "(0, inf)", "Adam's step size.", schedule=True)
    learning_rate_schedule: Shape = choice("constant", Shape, "How it falls to 0 at the run's end.")
    adam_eps: Number = number(1e-5, "(0, inf)", "Added to the root of the mean squared gradient.")
    max_grad_norm: Number | None = number(
        10.0,
        "(0, inf)",
        "Global gradient norm is clipped to this; None: not clipped.",
        optional=True,
    )
    gamma: Number = number(0.99, "[0, 1]", "Discount factor.")
    loss: Literal["huber", "squared"] = choice(
        "huber",
        Literal["huber", "squared"],
        "Of the TD error: Huber's, linear beyond 1, or half the square.",
    )
    batch_size: int = count(128, "Transitions in one update.")
    capacity: int = count(50_000, "Transitions that the replay buffer holds.")
    target_every: int = count(500, "Updates between two changes of the target network.")
    target_tau: Number = number(
        1.0,
        "(0, 1]",
        "How far the target network then goes towards the online one: 1 is a copy; with "
        "target_every=1 and a small number it is Polyak averaging.",
    )
    epsilon_start: Schedule = number(
        1.0, "[0, 1]", "Probability of a random action at the start of the run.", schedule=True
    )
    epsilon_end: Number = number(0.05, "[0, 1]", "The same at the end of the exploration.")
    exploration: Number = number(
        0.2, "[0, 1]", "Fraction of the run in which epsilon falls linearly."
    )
    alpha: Number = number(0.6, "[0, 1]", "Exponent of the priorities.")
    beta: Number = number(
        0.4, "[0, 1]", "Exponent of the importance weights at the start; rises linearly to 1."
    )
    priority_eps: Number = number(
        1e-6, "(0, inf)", "Added to the absolute TD error of each priority."
    )
    network: NetworkConfig = part(NetworkConfig(), "Shape of the default network.")

    def check(self) -> None:
        """A buffer must hold at least one batch."""
        if self.capacity < self.batch_size:
            raise ValueError(
                f"DQNConfig: capacity={self.capacity} is less than batch_size={self.batch_size}; "
                "a buffer must hold at least one batch."
            )


class DQNState(NamedTuple):
    """What DQN learns."""

    params: PyTree
    target_params: PyTree
    opt_state: Any
    clock: Clock  # updates finished; unbatched under purerl.vectorize


def dqn(config: DQNConfig, action_space: ActionSpace, network: Any = None) -> OffPolicyAlgorithm:
    """Deep Q-learning, with the switches of its configuration.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment; discrete.
        network: Flax module ``obs [B, *O] -> q [B, K]``; by default :class:`purerl.QNetwork`.

    Returns:
        The algorithm. ``update``'s info: ``td_error`` ``[B]``, ``loss``, ``q`` (mean of the
        values of the actions that were taken), ``finite``.

    Raises:
        TypeError: If the actions are not discrete.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = dqn(DQNConfig(double=True, dueling=True), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> sorted(state.params["params"])
        ['advantage', 'advantage_head', 'torso', 'value', 'value_head']
    """
    check_action_space(action_space)
    if not isinstance(action_space, Discrete):
        raise TypeError(
            "DQN takes the maximum over all actions, but the actions are a Box; choose an "
            "environment with Discrete actions, or a policy-gradient algorithm."
        )
    if network is None:
        network = QNetwork(action_space, config.network, config.dueling)
    optimizer = make_optimizer("adam", eps=config.adam_eps, max_grad_norm=config.max_grad_norm)

    def init(obs: jax.Array, key: jax.Array) -> DQNState:
        params = init_q_params(network, action_space, obs, key)
        copy = jax.tree.map(jnp.copy, params)  # of its own, so that both may be donated
        return DQNState(params, copy, optimizer.init(params), Clock(jnp.zeros((), jnp.int32)))

    def act(state, obs, key, *, greedy=False, progress=0.0):
        q = apply_network(network, state.params, obs)
        best = jnp.argmax(q, axis=-1).astype(jnp.int32)
        epsilon = 0.0 if greedy else epsilon_at(config, progress)
        return epsilon_greedy(best, epsilon, q.shape[-1], key)

    def update(
        state: DQNState, batch: OffPolicyBatch, key: jax.Array, *, progress: float | jax.Array = 0.0
    ) -> tuple[DQNState, Info]:
        check_batch(batch)
        loss = make_loss(network, config, state.target_params)
        gradient, info = jax.grad(loss, has_aux=True)(state.params, batch)
        learning_rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
        params, opt_state = gradient_step(
            optimizer, gradient, state.opt_state, state.params, learning_rate
        )
        (params, opt_state), finite = keep_if_finite(
            (params, opt_state), (state.params, state.opt_state)
        )
        clock = Clock(state.clock.iteration + 1)
        target_params = follow(config, state.target_params, params, clock)
        return DQNState(params, target_params, opt_state, clock), info | {"finite": finite}

    return OffPolicyAlgorithm(
        init, act, update, make_replay(config), config.batch_size, config.n_step, config.gamma
    )


def make_replay(config: DQNConfig) -> replays.Replay:
    """The buffer that a configuration asks for.

    Args:
        config: Hyper-parameters.
    """
    if not config.prioritized:
        return replays.uniform(config.capacity)
    return replays.prioritized(
        config.capacity, alpha=config.alpha, beta=config.beta, eps=config.priority_eps
    )


def make_loss(
    network: Any, config: DQNConfig, target_params: PyTree
) -> Callable[[PyTree, OffPolicyBatch], tuple[jax.Array, Info]]:
    """``loss(params, batch) -> (scalar, info)``: the equation in the module's docstring.

    Args:
        network: Flax module ``obs [B, *O] -> q [B, K]``.
        config: Hyper-parameters.
        target_params: Parameters of the target network; constant.
    """

    def loss(params: PyTree, batch: OffPolicyBatch) -> tuple[jax.Array, Info]:
        q = taken(apply_network(network, params, batch.obs), batch.action)
        next_q = apply_network(network, target_params, batch.next_obs)
        if config.double:
            selector = apply_network(network, params, batch.next_obs)
            y = double_q_target(batch.reward, batch.discount, next_q, selector)
        else:
            y = q_target(batch.reward, batch.discount, next_q)
        each = huber_loss(q, y) if config.loss == "huber" else value_loss(q, y)
        total = jnp.mean(batch.weight * each)
        return total, {"loss": total, "q": jnp.mean(q), "td_error": q - y}

    return loss


def follow(config: DQNConfig, target: PyTree, params: PyTree, clock: Clock) -> PyTree:
    r""":math:`\theta^- \leftarrow \theta^- + \tau (\theta - \theta^-)`, every so many updates.

    Args:
        config: Hyper-parameters.
        target: The target network's parameters.
        params: The online network's parameters.
        clock: Updates finished.
    """

    def move(target):
        if isinstance(config.target_tau, float | int) and config.target_tau == 1:
            return params  # bit for bit
        return jax.tree.map(lambda old, new: old + config.target_tau * (new - old), target, params)

    if config.target_every == 1:
        return move(target)
    due = clock.iteration % config.target_every == 0
    return jax.lax.cond(due, move, lambda target: target, target)


def epsilon_at(config: DQNConfig, progress: float | jax.Array) -> jax.Array:
    """The probability of a random action.

    Args:
        config: Hyper-parameters.
        progress: Finished fraction of the run.
    """
    done = jnp.minimum(progress / jnp.maximum(config.exploration, 1e-8), 1)
    return config.epsilon_start + done * (config.epsilon_end - config.epsilon_start)


def epsilon_greedy(
    best: jax.Array, epsilon: float | jax.Array, num_actions: int, key: jax.Array
) -> tuple[jax.Array, Info]:
    """``best``, or with probability epsilon any of the actions; and the action's log-probability.

    Args:
        best: ``[N]`` int32.
        epsilon: In [0, 1].
        num_actions: K.
        key: PRNG key.
    """
    chance, other = jax.random.split(key)
    anything = jax.random.randint(other, best.shape, 0, num_actions)
    action = jnp.where(jax.random.uniform(chance, best.shape) < epsilon, anything, best)
    probability = epsilon / num_actions + (1 - epsilon) * (action == best)
    return action, {"log_prob": jnp.log(probability)}
