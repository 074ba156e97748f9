r"""Deep Q-learning (DQN), with Double, Dueling, prioritized replay and n-step returns as switches.

One update is one step of gradient descent on the mean over a batch from the replay buffer of

.. math::
    w \, \ell(q(s, a; \theta) - y), \qquad
    y = r + d \max_{a'} q(s', a'; \theta^-)

(Mnih et al. 2015, algorithm 1), where :math:`\ell` is Huber's loss or half the square, and w is 1
without prioritized replay. :math:`\theta^-` follows :math:`\theta`, and no gradient reaches it. The
switches change one thing each, in any combination:

* ``double``: :math:`y = r + d \, q(s', \arg\max_{a'} q(s', a'; \theta); \theta^-)` (van Hasselt et
  al. 2016, eq. 4).
* ``dueling``: the network's last layers, :math:`q = v + A - mean A` (Wang et al. 2016, eq. 9).
* ``prioritized``: which transitions are replayed, and w (Schaul et al. 2016, section 3).
* ``n_step``: r and s' reach over so many steps (Watkins 1989), without a correction for actions
  that the greedy policy would not have taken.

The discount d is zero after termination only; after truncation s' is the observation before the
reset.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from purerl import records
from purerl.checks import REPLAYED, check_action_space, check_fields
from purerl.config import Config, Number, Schedule, Shape, check_kind, field, scheduled
from purerl.pieces import gradient, losses
from purerl.policies import acting, networks, q_networks
from purerl.records import ActionSpace, Clock, Discrete, Info, OffPolicyAlgorithm, PyTree
from purerl.replay import buffers

LossName = Literal["huber", "squared"]


class DQNState(NamedTuple):
    """State of DQN.

    Attributes:
        params: The online network's parameters.
        target_params: The target network's.
        opt_state: State of Adam.
        clock: Updates finished; unbatched under :func:`purerl.vectorize`.
    """

    params: PyTree
    target_params: PyTree
    opt_state: Any
    clock: Clock


def make_loss(network: Any, config: "DQNConfig", target_params: PyTree) -> losses.Loss:
    """``loss(params, batch) -> (scalar, info)``: the equation in the module's docstring.

    Args:
        network: ``obs [B, *O] -> q [B, K]``.
        config: Hyper-parameters.
        target_params: Parameters of the target network; constant.
    """

    def loss(params: PyTree, batch: records.OffPolicyBatch) -> tuple[jax.Array, Info]:
        q = losses.taken(acting.apply_network(network, params, batch.obs), batch.action)
        next_q = acting.apply_network(network, target_params, batch.next_obs)
        if config.double:
            selector = acting.apply_network(network, params, batch.next_obs)
            y = losses.double_q_target(batch.reward, batch.discount, next_q, selector)
        else:
            y = losses.q_target(batch.reward, batch.discount, next_q)
        error_loss = optax.losses.huber_loss if config.loss == "huber" else losses.value_loss
        total = jnp.mean(batch.weight * error_loss(q, y))
        return total, {"loss": total, "q": jnp.mean(q), "td_error": q - y}

    return loss


def follow(config: "DQNConfig", target: PyTree, params: PyTree, clock: Clock) -> PyTree:
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

        def towards(old, new):
            return (old + config.target_tau * (new - old)).astype(old.dtype)

        return jax.tree.map(towards, target, params)

    if config.target_every == 1:
        return move(target)
    due = clock.iteration % config.target_every == 0
    return jax.lax.cond(due, move, lambda target: target, target)


def epsilon_at(config: "DQNConfig", progress: Number) -> Number:
    """The probability of a random action.

    Args:
        config: Hyper-parameters.
        progress: Finished fraction of the run.

    Returns:
        ``epsilon_start(progress)`` if that is a function; else what goes from ``epsilon_start`` to
        ``epsilon_end`` in the shape of ``epsilon_schedule``, within the fraction ``exploration``.

    Example:
        >>> config = DQNConfig(epsilon_start=0.9, epsilon_end=0.1, exploration=0.5)
        >>> [round(float(epsilon_at(config, progress)), 3) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.9, 0.5, 0.1, 0.1]
    """
    if callable(config.epsilon_start):
        return config.epsilon_start(progress)
    over = progress >= config.exploration
    done = jnp.where(over, 1.0, progress / jnp.where(over, 1.0, config.exploration))
    fall = config.epsilon_start - config.epsilon_end
    return config.epsilon_end + scheduled(fall, config.epsilon_schedule, done)


def exploration_noise(
    key: jax.Array, shape: tuple[int, ...], num_actions: int, masked: bool = False
) -> tuple[jax.Array, jax.Array]:
    """What :func:`epsilon_greedy` takes: numbers in [0, 1) and actions, of a shape.

    Args:
        key: PRNG key.
        shape: ``[..., N]``.
        num_actions: K.
        masked: Whether some actions may be forbidden: then, instead of an action, a number in
            [0, 1) for each, ``[..., N, K]``.
    """
    chance, other = jax.random.split(key)
    if masked:
        return jax.random.uniform(chance, shape), jax.random.uniform(other, (*shape, num_actions))
    anything = jax.random.bits(other, shape, jnp.uint32) % num_actions  # as even as 2^32 numbers
    return jax.random.uniform(chance, shape), anything.astype(jnp.int32)


def epsilon_greedy(
    best: jax.Array,
    epsilon: Number,
    num_actions: int,
    noise: tuple[jax.Array, jax.Array],
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Info]:
    """``best``, or with probability epsilon any of the actions that are allowed; and the action's
    log-probability.

    Args:
        best: ``[N]`` int32.
        epsilon: In [0, 1].
        num_actions: K.
        noise: Of :func:`exploration_noise`, ``[N]``.
        mask: What is allowed, bool ``[N, K]``; None: all.
    """
    chance, anything = noise
    allowed: Any = num_actions
    if mask is not None:
        anything = jnp.argmax(jnp.where(mask, anything, -1), axis=-1)
        allowed = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    action = jnp.where(chance < epsilon, anything, best).astype(jnp.int32)
    probability = epsilon / allowed + (1 - epsilon) * (action == best)
    return action, {"log_prob": jnp.log(probability)}


def dqn(config: "DQNConfig", action_space: ActionSpace, network: Any = None) -> OffPolicyAlgorithm:
    """Deep Q-learning, with the switches of its configuration.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment; discrete.
        network: ``obs [B, *O] -> q [B, K]``; by default :class:`purerl.QNetwork`.

    Returns:
        The algorithm. Both ``act`` and ``update`` take ``progress``, the finished fraction of the
        run: epsilon and the learning rate follow it. By default ``act`` is at the end of the run,
        ``progress=1.0``, where little exploration is left; ``greedy=True`` leaves none. ``update``
        is at its beginning, ``progress=0.0``. Its info: ``td_error`` ``[B]``, ``loss``, ``q`` (mean
        of the values of the actions that were taken), ``finite``.

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
    check_kind("dqn", config, DQNConfig)
    check_action_space(action_space)
    if not isinstance(action_space, Discrete):
        what = type(action_space).__name__
        raise TypeError(
            f"DQN takes the maximum over all actions, but the actions are a {what}; choose an "
            "environment with Discrete actions, or a policy-gradient algorithm."
        )
    count = action_space.num_actions
    acting.check_memoryless("dqn", config.network, network)
    default = q_networks.QNetwork(action_space, config.network, config.dueling)
    network = default if network is None else acting.Legal(acting.check_network(network))
    optimizer = gradient.make_optimizer(
        "adam", eps=config.adam_eps, max_grad_norm=config.max_grad_norm
    )

    replay = buffers.uniform(config.capacity)
    if config.prioritized:
        exponents = {"alpha": config.alpha, "beta": config.beta}
        replay = buffers.prioritized(config.capacity, **exponents, eps=config.priority_eps)

    def init(obs: PyTree, key: jax.Array) -> DQNState:
        params = acting.init_q_params(network, action_space, obs, key)
        copy = jax.tree.map(jnp.copy, params)  # of its own, so that both may be donated
        return DQNState(params, copy, optimizer.init(params), Clock(jnp.zeros((), jnp.int32)))

    def explore(state, obs, noise, epsilon):
        q = acting.apply_network(network, state.params, obs)
        best = jnp.argmax(q, axis=-1).astype(jnp.int32)
        return epsilon_greedy(best, epsilon, count, noise, records.action_mask(obs))

    def draw(key, obs, lead=()):
        masked = records.action_mask(obs) is not None
        return exploration_noise(key, (*lead, records.num_rows(obs)), count, masked)

    def act(state, obs, key, *, greedy: bool = False, progress: Number = 1.0):
        epsilon = 0.0 if greedy else epsilon_at(config, progress)
        return explore(state, obs, draw(key, obs), epsilon)

    def noise(state, obs, key, length):
        return draw(key, obs, (length,))

    def act_by_noise(state, obs, noise, *, progress: Number):
        return explore(state, obs, noise, epsilon_at(config, progress))[0], None

    def update(
        state: DQNState, batch: records.OffPolicyBatch, key: jax.Array, *, progress: Number = 0.0
    ) -> tuple[DQNState, Info]:
        check_fields("batch", batch, REPLAYED)
        # 1. One gradient step on the batch's loss; what is not finite is refused.
        old = state.params, state.opt_state
        loss = make_loss(network, config, state.target_params)
        grads, info = jax.grad(loss, has_aux=True)(state.params, batch)
        rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
        new = gradient.gradient_step(optimizer, grads, state.opt_state, state.params, rate)
        (params, opt_state), finite = gradient.keep_if_finite(new, old)
        # 2. The target network follows.
        clock = Clock(state.clock.iteration + 1)
        target_params = follow(config, state.target_params, params, clock)
        return DQNState(params, target_params, opt_state, clock), info | {"finite": finite}

    drawn = replay, config.batch_size, config.n_step, config.gamma
    return OffPolicyAlgorithm(init, act, update, *drawn, records.Ahead(noise, act_by_noise))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DQNConfig(Config):
    """Configuration of :func:`dqn`."""

    double: bool = field(False, "Online network selects, target network evaluates the action.")
    dueling: bool = field(False, "Separate streams for the state's value and for advantages.")
    prioritized: bool = field(False, "Replay in proportion to a power of the TD error.")
    n_step: int = field(1, "Rewards in a return.")
    learning_rate: Schedule = field(1e-3, "Adam's step size.", "(0, inf)")
    learning_rate_schedule: Shape = field("constant", "How it falls to 0 at the run's end.")
    adam_eps: Number = field(1e-5, "Adam's epsilon.", "(0, inf)")
    max_grad_norm: Number | None = gradient.norm_bound(10.0)
    gamma: Number = field(0.99, "Discount factor.", "[0, 1]")
    loss: LossName = field(
        "huber", "Of the TD error: Huber's, linear beyond 1, or half the square."
    )
    batch_size: int = field(128, "Transitions in one update.")
    capacity: int = field(50_000, "Transitions that the replay buffer holds.")
    target_every: int = field(500, "Updates between two changes of the target network.")
    target_tau: Number = field(
        1.0, "How far the target network then goes towards the online one; 1: a copy.", "(0, 1]"
    )
    epsilon_start: Schedule = field(
        1.0, "Probability of a random action at the run's start.", "[0, 1]"
    )
    epsilon_end: Number = field(0.05, "The same at the end of the exploration.", "[0, 1]")
    epsilon_schedule: Shape = field("linear", "Its way from start to end; constant: it stays.")
    exploration: Number = field(0.2, "Fraction of the run in which epsilon changes.", "[0, 1]")
    alpha: Number = field(0.6, "Exponent of the priorities.", "[0, 1]")
    beta: Number = field(
        0.4, "Exponent of the importance weights at the start; rises linearly to 1.", "[0, 1]"
    )
    priority_eps: Number = field(1e-6, "Added to a priority's absolute TD error.", "(0, inf)")
    network: networks.NetworkConfig = field(networks.NetworkConfig(), "Of the default network.")

    def check(self) -> None:
        """Refuses a buffer that holds less than a batch, or than the steps of a return."""
        for name in ("batch_size", "n_step"):
            if self.capacity < (least := getattr(self, name)):
                raise ValueError(
                    f"DQNConfig: capacity={self.capacity} is less than {name}={least}; enlarge it."
                )
