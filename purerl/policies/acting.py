"""What algorithms do with a network: check it, initialize it, apply it, act with it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError, ScopeParamShapeError

from purerl.checks import by_path, check_action_space, described, shape_of
from purerl.config import see
from purerl.policies.distributions import (
    Categorical,
    DiagGaussian,
    MultiCategorical,
    forbid,
    forbid_values,
)
from purerl.policies.memory import RecurrentActorCritic, apply_sequences, has_memory
from purerl.policies.networks import ActorCritic, NetworkConfig
from purerl.records import (
    ActionSpace,
    Ahead,
    Box,
    Discrete,
    MultiDiscrete,
    PyTree,
    Sequences,
    action_mask,
    num_rows,
)
from purerl.threefry import as_others_draw, rolled

# By the action space: which distribution fits, and what the actions are, in words.
FITTING = {
    Discrete: ("Categorical", "Discrete"),
    MultiDiscrete: ("MultiCategorical", "MultiDiscrete"),
    Box: ("DiagGaussian", "a Box"),
}
METHODS = ("sample", "mode", "log_prob", "entropy", "kl")
STATELESS = (
    "but a network here is a function of parameters and observations alone, so it can have no "
    "BatchNorm and no Dropout; use LayerNorm, or normalize_obs of the run."
)


def default_network(action_space: ActionSpace, config: NetworkConfig, network: Any = None) -> Any:
    """The network to use: the user's, if there is one, else the default one.

    Args:
        action_space: Of the environment.
        config: Of the default network.
        network: A :class:`purerl.Network`, or None.

    Returns:
        A network: ``init(key, obs) -> params`` and ``apply(params, obs) -> (distribution, value)``.

    Raises:
        TypeError: If the network has no ``init`` and ``apply``.

    Example:
        >>> import purerl
        >>> type(default_network(purerl.Discrete(2), purerl.NetworkConfig())).__name__
        'ActorCritic'
    """
    check_action_space(action_space)
    if network is None:
        default = ActorCritic if config.memory == "none" else RecurrentActorCritic
        return default(action_space, config)
    return Legal(check_network(network), getattr(action_space, "counts", None))


def check_memoryless(where: str, config: NetworkConfig, network: Any) -> None:
    """Raises ValueError if a network has a memory.

    Args:
        where: The algorithm that has none.
        config: Of the default network.
        network: The user's network, or None.
    """
    if has_memory(network) or (network is None and config.memory != "none"):
        raise ValueError(
            f"{where} cannot learn with a memory; give it a network without one (memory='none'), "
            "or take policy_gradient, a2c, ppo_clip, ppo_penalty, trpo or npg. "
            f"{see('concepts.md#memory')}"
        )


class Legal(NamedTuple):
    """A user's network whose output has nothing that observations forbid; a :class:`Network`.

    Attributes:
        network: ``apply(params, obs, ...)`` to a tuple that begins with a distribution, or to
            action values ``[B, K]``.
        counts: Of a MultiDiscrete.
    """

    network: Any
    counts: tuple[int, ...] | None = None

    @property
    def init_memory(self) -> Any:
        """The network's, or None."""
        return getattr(self.network, "init_memory", None)

    @property
    def unroll(self) -> Any:
        """The network's, without what observations forbid; None: it has none."""
        unroll = getattr(self.network, "unroll", None)
        return None if unroll is None else lambda *args: self._legal(unroll(*args), args[1])

    def init(self, key: jax.Array, obs: PyTree, *args: Any) -> PyTree:
        """As the network does it."""
        return self.network.init(as_others_draw(self.network, key), obs, *args)

    def apply(self, params: PyTree, obs: PyTree, *args: Any, **kwargs: Any) -> Any:
        """As the network does it, without what an ``action_mask`` in ``obs`` forbids."""
        return self._legal(self.network.apply(params, obs, *args, **kwargs), obs)

    def _legal(self, output: Any, obs: PyTree) -> Any:
        mask = action_mask(obs)
        if mask is None:
            return output
        if isinstance(output, tuple | list):
            return forbid(output[0], mask, self.counts), *output[1:]
        return forbid_values(output, mask)


def check_network(network: Any) -> Any:
    """Returns the network; raises TypeError unless it has ``init`` and ``apply``.

    Args:
        network: A :class:`purerl.Network`.

    Raises:
        TypeError: If not.
    """
    if isinstance(network, type):
        raise TypeError(f"network is the class {network.__name__}; give an instance of it.")
    if not all(callable(getattr(network, name, None)) for name in ("init", "apply")):
        raise TypeError(
            f"network is a {type(network).__name__}, wanted init(key, obs) and apply(params, obs), "
            "as flax.linen modules have; wrap others by purerl.from_nnx or purerl.from_equinox; a "
            f"NetworkConfig goes into the algorithm's configuration. {see('own.md#a-network')}"
        )
    return network


def apply_network(network: Any, params: PyTree, obs: PyTree | Sequences, *args: Any) -> Any:
    """The outputs ``[B]`` of a network, with a memory or without: no loss knows the difference.

    Args:
        network: For ``[B, *O]``.
        params: Its parameters.
        obs: ``[B, *O]``; or sequences of B observations, for a network with a memory.
        *args: Passed on, ``[B, ...]``.

    Raises:
        ValueError: If the parameters are for observations of another shape.
    """
    try:
        if isinstance(obs, Sequences):
            return apply_sequences(network, params, obs, *args)
        return network.apply(params, obs, *args)
    except ScopeParamShapeError as error:
        shape = jax.tree.map(jnp.shape, obs.obs if isinstance(obs, Sequences) else obs)
        raise ValueError(
            f"obs has shape {shape}, but the parameters were made for another one; give "
            f"observations [B, *O] as given to init. ({error})"
        ) from error


def beginnings(network: Any, obs: PyTree) -> tuple[Any, ...]:
    """What a network takes besides parameters, at the first steps of episodes.

    Args:
        network: A :class:`purerl.Network`, or one with a memory.
        obs: ``[B, *O]``.

    Returns:
        ``(obs,)`` or ``(obs, memory, start)``.
    """
    if not has_memory(network):
        return (obs,)
    count = len(jax.tree.leaves(obs)[0])
    return obs, network.init_memory(obs), jnp.ones(count, bool)


def init_params(
    network: Any, action_space: ActionSpace, obs: PyTree, key: jax.Array, *, q: bool = False
) -> PyTree:
    """Parameters of a network with a policy, after a check of what it returns, by tracing it.

    Args:
        network: A :class:`purerl.Network`, ``apply(params, obs) -> (distribution, value [B])``, or
            a :class:`purerl.RecurrentNetwork`.
        action_space: Of the environment.
        obs: ``[N, *O]``.
        key: PRNG key.
        q: Whether the critic is Q: ``apply(params, obs, action=None) -> (distribution, q)`` with q
            ``[B, K]`` for K discrete actions without an action, else ``[B]``.

    Raises:
        TypeError: If the network keeps more than parameters, or returns no such pair.
        ValueError: If a shape does not fit the action space.
    """
    inputs = beginnings(network, obs)

    def outputs(params: PyTree, batch: tuple[int]) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
        policy, value = _pair(_without_memory(network.apply(params, *inputs), inputs), action_space)
        choices = (action_space.num_actions,) if isinstance(action_space, Discrete) else ()
        if isinstance(policy, Categorical):
            yield "logits", policy.logits, batch + choices
        if isinstance(action_space, MultiDiscrete) and isinstance(policy, MultiCategorical):
            counts = action_space.counts
            yield "logits", policy.logits, (*batch, len(counts), max(counts))
        action, shape = policy.sample(rolled(key)), batch + getattr(action_space, "shape", ())
        yield "sampled actions", action, shape
        yield "best actions", policy.mode(), shape
        yield "log_prob", policy.log_prob(action), batch
        yield "entropy", policy.entropy(), batch
        yield "kl", policy.kl(policy), batch
        yield "value", value, batch + (choices if q else ())
        if q:
            yield "value of an action", network.apply(params, *inputs, action)[1], batch

    return _init(network, inputs, key, outputs, action_space)


def init_q_params(network: Any, action_space: Discrete, obs: PyTree, key: jax.Array) -> Any:
    """Parameters of a network of action values, after a check of what it returns.

    Args:
        network: ``apply(params, obs) -> q [B, K]``.
        action_space: Of the environment; K actions.
        obs: ``[N, *O]``.
        key: PRNG key.

    Raises:
        TypeError: If the network keeps more than parameters, or returns no array.
        ValueError: If it returns another number of values.
    """

    def outputs(params: PyTree, batch: tuple[int]) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
        yield "q", network.apply(params, obs), (*batch, action_space.num_actions)

    return _init(network, (obs,), key, outputs, action_space)


def _init(network: Any, inputs: Any, key: jax.Array, outputs: Any, space: ActionSpace) -> PyTree:
    """Initializes parameters, and checks the outputs' shapes by tracing."""
    obs = inputs[0]

    def check(params: PyTree) -> None:
        for name, got, wanted in outputs(params, (num_rows(obs),)):
            shape = getattr(got, "shape", f"that of a {type(got).__name__}")
            if shape != wanted:
                raise ValueError(
                    f"the network's {name} has shape {shape}, wanted {wanted} for "
                    f"observations of shape {shape_of(obs)} and actions of {space}."
                )

    params = network.init(as_others_draw(network, key), *inputs)
    module = getattr(network, "network", network)
    kept = set(params) - {"params"} if isinstance(module, nn.Module) else None
    if kept:
        raise TypeError(f"the network keeps {', '.join(sorted(kept))}, {STATELESS}")
    try:
        jax.eval_shape(check, params)
    except InvalidRngError as error:
        raise TypeError(f"the network draws random numbers, {STATELESS} ({error})") from error
    return params


def _without_memory(output: Any, inputs: Any) -> Any:
    """A network's outputs without the memory, after a check of it, if it has one."""
    if len(inputs) == 1:
        return output
    wanted = "(distribution [B], value [B], memory)"
    if type(output) not in (tuple, list) or len(output) != 3:
        raise TypeError(f"the network returns a {type(output).__name__}, wanted three: {wanted}.")
    kinds = [described(by_path(jax.eval_shape(lambda x: x, x))) for x in (output[2], inputs[1])]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"the network's memory is {kinds[0]} after a step, wanted that of init_memory, "
            f"{kinds[1]}; cast it in one of them."
        )
    return output[:2]


def _pair(output: Any, action_space: ActionSpace) -> Any:
    """Returns a network's output; raises TypeError unless it is (distribution, value)."""
    wanted = "(distribution [B], value [B])"
    if type(output) not in (tuple, list) or len(output) != 2:
        raise TypeError(f"the network returns a {type(output).__name__}, wanted a pair {wanted}.")
    policy, kind = output[0], type(output[0]).__name__
    fitting, actions = FITTING[type(action_space)]
    if not all(callable(getattr(policy, name, None)) for name in METHODS):
        raise TypeError(
            f"the network's policy is a {kind}, wanted a distribution with {', '.join(METHODS)}; "
            f"return purerl.{fitting}(...), see help(purerl.Distribution)."
        )
    if isinstance(policy, Categorical | MultiCategorical | DiagGaussian) and kind != fitting:
        raise TypeError(
            f"the network returns a {kind}, but the actions are {actions}; return a {fitting}."
        )
    return output


def _act_on(network: Any, params: PyTree, obs: PyTree, memory: PyTree, start: Any) -> Any:
    """The policy of some observations, and in a dict the memory after them, if there is one."""
    if not has_memory(network):
        return apply_network(network, params, obs)[0], {}
    inputs = beginnings(network, obs) if memory is None else (obs, memory, start)
    policy, _, memory = apply_network(network, params, *inputs)
    return policy, {"memory": memory}


def make_act(network: Any) -> Callable[..., Any]:
    """An algorithm's ``act``, for states with a field ``params``.

    Args:
        network: ``apply(params, obs) -> (distribution, value)``, or one with a memory: ``act`` then
            takes ``memory`` and ``start`` too (without them each step is an episode's first), and
            gives the memory after the step among the extras.
    """

    def act(state, obs, key, *, greedy=False, progress=1.0, memory=None, start=None):
        distribution, after = _act_on(network, state.params, obs, memory, start)
        action = (
            distribution.mode()
            if greedy
            else distribution.sample(as_others_draw(distribution, key))
        )
        return action, {"log_prob": distribution.log_prob(action), **after}

    return act


def make_ahead(network: Any) -> Ahead:
    """How :func:`make_act`'s function acts with its random numbers drawn ahead.

    Distributions without ``noise`` and ``from_noise`` get keys instead.

    Args:
        network: ``apply(params, obs) -> (distribution, value)``, or one with a memory.
    """

    def noise(state, obs, key, length):
        shapes = jax.eval_shape(lambda: _act_on(network, state.params, obs, None, None)[0])
        if not hasattr(shapes, "from_noise"):
            return jax.random.split(as_others_draw(shapes, key), length)
        return shapes.noise(as_others_draw(shapes, key), (length,))

    def act(state, obs, noise, *, progress=1.0, memory=None, start=None):
        distribution, after = _act_on(network, state.params, obs, memory, start)
        action = getattr(distribution, "from_noise", distribution.sample)(noise)
        return (action, distribution, *after.values())

    return Ahead(noise, act, lambda policy, action: policy.log_prob(action))


def make_init_memory(network: Any) -> Callable[[PyTree], PyTree] | None:
    """An algorithm's ``init_memory``: the network's, or None.

    Args:
        network: With a memory or without.
    """
    return network.init_memory if has_memory(network) else None
