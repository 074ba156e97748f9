"""What algorithms with an actor-critic network share: initialization, acting, advantages."""

from collections.abc import Callable
from typing import Any

import jax
from flax.errors import ScopeParamShapeError

from purerl.checks import check_action_space
from purerl.policies.distributions import Categorical, DiagGaussian
from purerl.policies.networks import ActorCritic, NetworkConfig
from purerl.records import ActionSpace, Box, Discrete, PyTree


def default_network(action_space: ActionSpace, config: NetworkConfig, network: Any = None) -> Any:
    """The network to use: the user's, if there is one, else the default one.

    Args:
        action_space: Of the environment.
        config: Of the default network.
        network: A flax module ``obs [B, *O] -> (distribution, value [B])``, or None.
    """
    check_action_space(action_space)
    return ActorCritic(action_space, config) if network is None else network


def apply_network(network: Any, params: PyTree, obs: jax.Array, *args: Any) -> Any:
    """``network.apply`` with a message that names the observations if their shape is wrong.

    Args:
        network: A flax module for ``[B, *O]``.
        params: Its parameters.
        obs: ``[B, *O]``.
        *args: Passed on.

    Raises:
        ValueError: If the parameters are for observations of another shape.
    """
    try:
        return network.apply(params, obs, *args)
    except ScopeParamShapeError as error:
        raise ValueError(
            f"obs has shape {obs.shape}, but the parameters were made for observations of another "
            f"shape; give observations [B, *O] as given to init. ({error})"
        ) from error


def check_policy(distribution: Any, action_space: ActionSpace) -> None:
    """Raises TypeError if a known distribution does not fit the action space.

    Args:
        distribution: What the network returned.
        action_space: Of the environment.
    """
    if isinstance(distribution, DiagGaussian) and not isinstance(action_space, Box):
        raise TypeError(
            "the network returns a DiagGaussian, but the actions are Discrete; return a "
            "Categorical, or choose an environment with Box actions."
        )
    if isinstance(distribution, Categorical) and not isinstance(action_space, Discrete):
        raise TypeError(
            "the network returns a Categorical, but the actions are a Box; return a DiagGaussian, "
            "or choose an environment with Discrete actions."
        )


def init_params(network: Any, action_space: ActionSpace, obs: jax.Array, key: jax.Array) -> PyTree:
    """Parameters of a network.

    Args:
        network: A flax module ``obs [B, *O] -> (distribution, value)``.
        action_space: Of the environment; the distribution is checked against it.
        obs: ``[N, *O]``.
        key: PRNG key.

    Raises:
        TypeError: If the network's distribution does not fit the action space.
    """
    (distribution, _), params = network.init_with_output(key, obs)
    check_policy(distribution, action_space)
    return params


def make_act(network: Any) -> Callable[..., Any]:
    """An algorithm's ``act``, for states with a field ``params``.

    Args:
        network: A flax module ``obs [B, *O] -> (distribution, value)``.
    """

    def act(state, obs, key, *, greedy=False, progress=0.0):
        distribution, _ = apply_network(network, state.params, obs)
        action = distribution.mode() if greedy else distribution.sample(key)
        return action, {"log_prob": distribution.log_prob(action)}

    return act
