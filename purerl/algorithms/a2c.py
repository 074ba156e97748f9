r"""Advantage actor-critic (A2C), with the one-step actor-critic as a special case.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", algorithm S3, in its
synchronous form. One update:

1. Advantages :math:`\hat A_t` and targets :math:`\hat G_t` of the rollout. The paper's estimate is
   the n-step return to the rollout's end minus V, which is GAE with lambda = 1 (the default);
   ``n_step=1`` is the one-step actor-critic (Sutton and Barto 2018, section 13.5), whose
   :math:`\hat A_t` is the TD error.
2. One gradient step on

   .. math::
       -\log \pi_\theta(a_t|s_t) \hat A_t + c_1 \tfrac12 (V(s_t) - \hat G_t)^2
       - c_2 H(\pi_\theta(\cdot|s_t))

   with :math:`\hat G_t` held constant: where it holds :math:`V(s_{t+1})`, this is the critic's
   semi-gradient, not the gradient of the squared TD error.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from purerl.checks import check_rollout
from purerl.config import Config, Number, Schedule, Shape, check_kind, field, scheduled
from purerl.pieces import advantages, gradient, losses
from purerl.policies import acting, networks
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout


class A2CState(NamedTuple):
    """State of A2C.

    Attributes:
        params: The network's parameters.
        opt_state: State of the optimizer.
    """

    params: PyTree
    opt_state: Any


def make_loss(network: Any, config: "A2CConfig", *, progress: Number = 0.0) -> losses.Loss:
    """``loss(params, batch) -> (scalar, info)``: the mean of step 2's equation.

    Args:
        network: ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        progress: Finished fraction of the run, which the entropy coefficient follows.
    """
    entropy_coef = scheduled(config.entropy_coef, config.entropy_coef_schedule, progress)

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        distribution, value = network.apply(params, batch.obs)
        return losses.actor_critic_loss(distribution, value, batch, config.value_coef, entropy_coef)

    return loss


def a2c(config: "A2CConfig", action_space: ActionSpace, network: Any = None) -> OnPolicyAlgorithm:
    """Advantage actor-critic.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm. Learning rate and entropy coefficient follow ``update``'s ``progress``, the
        finished fraction of the run. Its info: ``loss``, ``policy_loss``, ``value_loss``,
        ``entropy``, ``explained_variance``, ``finite``.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = a2c(A2CConfig(n_step=1), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> sorted(state.params["params"])
        ['actor', 'critic', 'policy_head', 'value_head']
    """
    check_kind("a2c", config, A2CConfig)
    network = acting.default_network(action_space, config.network, network)
    optimizer = gradient.make_optimizer(
        config.optimizer,
        eps=config.optimizer_eps,
        decay=config.rmsprop_decay,
        max_grad_norm=config.max_grad_norm,
    )

    def init(obs: jax.Array, key: jax.Array) -> A2CState:
        params = acting.init_params(network, action_space, obs, key)
        return A2CState(params, optimizer.init(params))

    def update(
        state: A2CState, rollout: Rollout, key: jax.Array, *, progress: Number = 0.0
    ) -> tuple[A2CState, Info]:
        check_rollout(rollout, action_space)
        # 1. Advantages and targets.
        settings = config.gamma, config.gae_lambda, config.normalize_advantage, config.n_step
        batch = advantages.on_policy_batch(network, state.params, rollout, *settings)
        # 2. One gradient step.
        loss = make_loss(network, config, progress=progress)
        grads, info = jax.grad(loss, has_aux=True)(state.params, batch)
        rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
        learned = gradient.gradient_step(optimizer, grads, state.opt_state, state.params, rate)
        state, finite = gradient.keep_if_finite(A2CState(*learned), state)
        explained = advantages.explained_variance(batch.value, batch.target, batch.valid)
        info["explained_variance"] = explained
        return state, info | {"finite": finite}

    act, ahead = acting.make_act(network), acting.make_ahead(network)
    return OnPolicyAlgorithm(init, act, update, gamma=config.gamma, ahead=ahead)


@dataclasses.dataclass(frozen=True, kw_only=True)
class A2CConfig(Config):
    """Configuration of :func:`a2c`."""

    learning_rate: Schedule = field(7e-4, "Step size.", "(0, inf)")
    learning_rate_schedule: Shape = field("linear", "How it falls to 0 at the run's end.")
    optimizer: gradient.OptimizerName = field("rmsprop", "The optimizer; the paper's is rmsprop.")
    optimizer_eps: Number = field(1e-5, "Added to the root of the squared gradient.", "(0, inf)")
    rmsprop_decay: Number = field(0.99, "RMSProp's decay.", "[0, 1)")
    max_grad_norm: Number | None = gradient.norm_bound(0.5)
    gamma: Number = field(0.99, "Discount factor.", "[0, 1]")
    gae_lambda: Number = field(1.0, "GAE's lambda; 1, as in the paper: n-step returns.", "[0, 1]")
    n_step: int | None = field(
        None, "Instead of GAE: returns of so many rewards; 1: one-step actor-critic."
    )
    normalize_advantage: bool = field(False, "Standardize the advantages of a rollout.")
    value_coef: Number = field(0.5, "c1.", "[0, inf)")
    entropy_coef: Schedule = field(0.0, "c2.", "[0, inf)")
    entropy_coef_schedule: Shape = field("constant", "How it falls to 0 at the run's end.")
    network: networks.NetworkConfig = field(networks.NetworkConfig(), "Of the default network.")

    def check(self) -> None:
        """Refuses a ``gae_lambda`` beside ``n_step``."""
        given = isinstance(self.gae_lambda, jax.core.Tracer) or self.gae_lambda != 1
        if self.n_step is not None and given:
            raise ValueError(
                f"A2CConfig: n_step={self.n_step} replaces GAE: leave it out or set gae_lambda=1.0."
            )
