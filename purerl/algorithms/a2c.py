r"""Advantage actor-critic (A2C), with the one-step actor-critic of document 002 as a special case.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", algorithm S3, in its
synchronous form: one gradient step a rollout on

.. math::
    -\log \pi_\theta(a_t|s_t) \hat A_t + c_1 \tfrac12 (V(s_t) - \hat G_t)^2
    - c_2 H(\pi_\theta(\cdot|s_t)).

The paper's estimate :math:`\hat A_t` is the n-step return to the rollout's end minus V, which is
GAE with lambda = 1 (the default); ``n_step=1`` is document 002's one-step actor-critic, whose
:math:`\hat A_t` is the TD error.

Differs from:
    Document 002 prints the critic's semi-gradient as the gradient of the squared TD error; it is
    that only with V(s_{t+1}) held constant, as it is here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from purerl.checks import check_rollout
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
from purerl.pieces.advantages import advantage_batch, explained_variance, standardize, values
from purerl.pieces.gradient import (
    OptimizerName,
    gradient_step,
    keep_if_finite,
    make_optimizer,
)
from purerl.pieces.losses import actor_critic_loss
from purerl.pieces.returns import n_step_return
from purerl.pieces.schedules import Shape, scheduled
from purerl.policies.acting import default_network, init_params, make_act
from purerl.policies.networks import NetworkConfig
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class A2CConfig(Config):
    """Configuration of :func:`a2c`."""

    learning_rate: Schedule = number(7e-4, "(0, inf)", "Step size.", schedule=True)
    learning_rate_schedule: Shape = choice("linear", Shape, "How it falls to 0 at the run's end.")
    optimizer: OptimizerName = choice(
        "rmsprop", OptimizerName, "rmsprop (the paper's), adam or sgd."
    )
    optimizer_eps: Number = number(
        1e-5, "(0, inf)", "Added to the root of the mean squared gradient."
    )
    rmsprop_decay: Number = number(0.99, "[0, 1)", "RMSProp's decay.")
    max_grad_norm: Number | None = number(
        0.5,
        "(0, inf)",
        "Global gradient norm is clipped to this; None: not clipped.",
        optional=True,
    )
    gamma: Number = number(0.99, "[0, 1]", "Discount factor.")
    gae_lambda: Number = number(
        1.0, "[0, 1]", "GAE's lambda; 1: n-step returns to the rollout's end, as in the paper."
    )
    n_step: int | None = count(
        None,
        "Instead of GAE: returns of so many rewards; 1 is the one-step actor-critic.",
        optional=True,
    )
    normalize_advantage: bool = switch(
        False, "Bring a rollout's advantages to mean 0 and standard deviation 1."
    )
    value_coef: Number = number(0.5, "[0, inf)", "c1.")
    entropy_coef: Schedule = number(0.0, "[0, inf)", "c2.", schedule=True)
    entropy_coef_schedule: Shape = choice("constant", Shape, "How it falls to 0 at the run's end.")
    network: NetworkConfig = part(NetworkConfig(), "Shape of the default network.")


class A2CState(NamedTuple):
    """What A2C learns."""

    params: PyTree
    opt_state: Any


def a2c(config: A2CConfig, action_space: ActionSpace, network: Any = None) -> OnPolicyAlgorithm:
    """Advantage actor-critic.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm. ``update``'s info: ``loss``, ``policy_loss``, ``value_loss``, ``entropy``,
        ``explained_variance``, ``finite``.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = a2c(A2CConfig(n_step=1), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> sorted(state.params["params"])
        ['actor', 'critic', 'policy_head', 'value_head']
    """
    network = default_network(action_space, config.network, network)
    optimizer = make_optimizer(
        config.optimizer,
        eps=config.optimizer_eps,
        decay=config.rmsprop_decay,
        max_grad_norm=config.max_grad_norm,
    )

    def init(obs: jax.Array, key: jax.Array) -> A2CState:
        params = init_params(network, action_space, obs, key)
        return A2CState(params, optimizer.init(params))

    def update(
        state: A2CState, rollout: Rollout, key: jax.Array, *, progress: float | jax.Array = 0.0
    ) -> tuple[A2CState, Info]:
        check_rollout(rollout, action_space)
        batch = make_batch(network, config, state.params, rollout)
        loss = make_loss(network, config, progress=progress)
        gradient, info = jax.grad(loss, has_aux=True)(state.params, batch)
        learning_rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
        learned = gradient_step(optimizer, gradient, state.opt_state, state.params, learning_rate)
        state, finite = keep_if_finite(A2CState(*learned), state)
        info["explained_variance"] = explained_variance(batch.value, batch.target)
        return state, info | {"finite": finite}

    return OnPolicyAlgorithm(init, make_act(network), update, gamma=config.gamma)


def make_batch(network: Any, config: A2CConfig, params: PyTree, rollout: Rollout) -> OnPolicyBatch:
    """A rollout as samples with advantages and targets, under the current parameters.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        params: Parameters that collected the rollout.
        rollout: ``[T, N]``.

    Returns:
        Samples ``[T * N]``.
    """
    batch = advantage_batch(network, params, rollout, config.gamma, config.gae_lambda)
    if config.n_step is not None:
        flags = rollout.terminated, rollout.truncated
        _, next_value = values(network, params, rollout)
        target = n_step_return(rollout.reward, next_value, *flags, config.gamma, config.n_step)
        target = target.reshape(-1)
        batch = batch._replace(target=target, advantage=target - batch.value)
    if config.normalize_advantage:
        batch = batch._replace(advantage=standardize(batch.advantage))
    return batch


def make_loss(
    network: Any, config: A2CConfig, *, progress: float | jax.Array = 0.0
) -> Callable[[PyTree, OnPolicyBatch], tuple[jax.Array, Info]]:
    """``loss(params, batch) -> (scalar, info)``: the equation in the module's docstring.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        progress: Finished fraction of the run, for the annealed entropy coefficient.
    """
    entropy_coef = scheduled(config.entropy_coef, config.entropy_coef_schedule, progress)

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        distribution, value = network.apply(params, batch.obs)
        return actor_critic_loss(distribution, value, batch, config.value_coef, entropy_coef)

    return loss
