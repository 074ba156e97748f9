"""DQN: its targets, losses and networks against rlax and by hand; what each switch changes."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import purerl
from purerl import Discrete, DQNConfig, NetworkConfig, OffPolicyBatch, QNetwork, dqn
from purerl.algorithms.dqn import epsilon_at, epsilon_greedy, exploration_noise, make_loss
from purerl.pieces.losses import double_q_target, q_target, taken
from purerl.records import Box

B, OBS, ACTIONS = 32, 3, 4
SPACE = Discrete(ACTIONS)
TINY = NetworkConfig(hidden_sizes=(8,))


class Linear(nn.Module):
    """q(s, a) = s W: what can be differentiated by hand."""

    @nn.compact
    def __call__(self, obs):
        shape = (OBS, ACTIONS)
        return obs @ self.param("w", nn.initializers.normal(), shape, jnp.result_type(float))


def random_batch(seed=0, actions=ACTIONS):
    rng, real = np.random.default_rng(seed), jnp.result_type(float)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), real)  # noqa: E731
    terminated = rng.uniform(size=B) < 0.3
    return OffPolicyBatch(
        obs=draw(B, OBS),
        action=jnp.asarray(rng.integers(actions, size=B), jnp.int32),
        reward=3 * draw(B),
        discount=jnp.asarray(0.9 * ~terminated, real),
        next_obs=draw(B, OBS),
        weight=jnp.asarray(rng.uniform(0.1, 1.0, size=B), real),
        indices=jnp.arange(B, dtype=jnp.int32),
    )


def linear(seed):
    return {"params": {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(OBS, ACTIONS)))}}


# Targets and losses.


def test_q_learning_error_equals_rlax(x64):
    rlax = oracles.optional("rlax")
    batch, q, next_q = random_batch(), linear(1), linear(2)
    q, next_q = batch.obs @ q["params"]["w"], batch.next_obs @ next_q["params"]["w"]
    with oracles.lenient():
        wanted = jax.vmap(rlax.q_learning)(q, batch.action, batch.reward, batch.discount, next_q)
    got = q_target(batch.reward, batch.discount, next_q) - taken(q, batch.action)
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_double_q_learning_error_equals_rlax(x64):
    rlax = oracles.optional("rlax")
    batch, (w, v, u) = random_batch(), (linear(i)["params"]["w"] for i in range(3))
    q, next_q, selector = batch.obs @ w, batch.next_obs @ v, batch.next_obs @ u
    with oracles.lenient():
        wanted = jax.vmap(rlax.double_q_learning)(
            q, batch.action, batch.reward, batch.discount, next_q, selector
        )
    got = double_q_target(batch.reward, batch.discount, next_q, selector)
    np.testing.assert_allclose(got - taken(q, batch.action), wanted, atol=1e-12)


def test_double_selects_by_the_online_and_evaluates_by_the_target_network():
    """By hand: online prefers action 1, whose target value is 2; the target's own best is 5."""
    one, half = jnp.ones(1), jnp.full(1, 0.5)
    target, online = jnp.array([[5.0, 2.0]]), jnp.array([[0.0, 1.0]])
    assert double_q_target(one, half, target, online).tolist() == [2.0]
    assert double_q_target(one, half, online, target).tolist() == [1.0]
    assert q_target(one, half, target).tolist() == [3.5]


@pytest.mark.parametrize("loss", ["huber", "squared"])
@pytest.mark.parametrize("double", [False, True])
def test_loss_and_gradient_by_hand(loss, double, x64):
    """Importance weights, the loss's slope, the terminal mask; one row of W a sample."""
    config = DQNConfig(loss=loss, double=double)
    params, frozen, batch = linear(1), linear(2), random_batch()
    function = make_loss(Linear(), config, frozen)
    gradient, info = jax.grad(function, has_aux=True)(params, batch)
    w, v = params["params"]["w"], frozen["params"]["w"]
    wanted, total, errors = np.zeros((OBS, ACTIONS)), 0.0, []
    for i in range(B):
        s, a, after = np.asarray(batch.obs[i]), int(batch.action[i]), np.asarray(batch.next_obs[i])
        best = np.argmax(after @ (w if double else v))
        y = float(batch.reward[i]) + float(batch.discount[i]) * (after @ v)[best]
        error = s @ np.asarray(w[:, a]) - y
        square = loss == "squared" or abs(error) <= 1
        total += float(batch.weight[i]) * (error**2 / 2 if square else abs(error) - 0.5) / B
        wanted[:, a] += float(batch.weight[i]) * (error if square else np.sign(error)) * s / B
        errors.append(error)
    assert (np.abs(errors) > 1).any()
    np.testing.assert_allclose(info["td_error"], errors, atol=1e-12)
    np.testing.assert_allclose(info["loss"], total, atol=1e-12)
    np.testing.assert_allclose(gradient["params"]["w"], wanted, atol=1e-12)


@pytest.mark.parametrize("double", [False, True])
def test_no_gradient_reaches_the_target_parameters(double):
    """Nor, with double, does the target's selection carry any to the online parameters."""
    config, batch = DQNConfig(double=double), random_batch()

    def of_target(frozen):
        return make_loss(Linear(), config, frozen)(linear(1), batch)[0]

    assert not jax.grad(of_target)(linear(2))["params"]["w"].any()
    done = batch._replace(discount=jnp.zeros(B), reward=batch.reward)
    y = jax.vmap(lambda o: o @ linear(2)["params"]["w"])(batch.next_obs)
    assert y.shape == (B, ACTIONS)
    slope = jax.grad(lambda p: make_loss(Linear(), config, linear(2))(p, done)[0])(linear(1))
    assert slope["params"]["w"].any()


# The network.


def head_outputs(network, params, obs):
    """q and the outputs of the two heads."""
    q, captured = network.apply(params, obs, capture_intermediates=True)
    outputs = captured["intermediates"]
    return q, outputs["value_head"]["__call__"][0], outputs["advantage_head"]["__call__"][0]


def test_dueling_is_value_plus_centred_advantage(x64):
    network = QNetwork(SPACE, TINY, dueling=True)
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(B, OBS)))
    params = network.init(jax.random.key(0), obs)
    q, value, advantage = head_outputs(network, params, obs)
    np.testing.assert_allclose(q.mean(1), value[:, 0], atol=1e-12)  # the mean of q is v
    wanted = np.asarray(value) + advantage - np.mean(advantage, axis=1, keepdims=True)
    np.testing.assert_allclose(q, wanted, atol=1e-12)
    np.testing.assert_array_equal(q.argmax(1), advantage.argmax(1))


def test_dueling_does_not_see_a_constant_in_the_advantages(x64):
    network = QNetwork(SPACE, TINY, dueling=True)
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(B, OBS)))
    params = network.init(jax.random.key(0), obs)
    shifted = jax.tree.map(lambda x: x, params)
    bias = shifted["params"]["advantage_head"]["bias"]
    shifted["params"]["advantage_head"]["bias"] = bias + 7
    np.testing.assert_allclose(network.apply(params, obs), network.apply(shifted, obs), atol=1e-12)


def test_dueling_represents_any_q(x64):
    """On one-hot states without hidden layers: v = mean q, A = q - v."""
    network = QNetwork(SPACE, NetworkConfig(hidden_sizes=()), dueling=True)
    params = network.init(jax.random.key(0), jnp.eye(5))
    q = jnp.asarray(np.random.default_rng(0).normal(size=(5, ACTIONS)))
    heads = params["params"]
    heads["value_head"]["kernel"] = q.mean(1, keepdims=True)
    heads["advantage_head"]["kernel"] = q - q.mean(1, keepdims=True)
    np.testing.assert_allclose(network.apply(params, jnp.eye(5)), q, atol=1e-12)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("shape", [(5,), (6, 6, 2)])
def test_network_takes_vectors_and_images(dueling, shape):
    network = QNetwork(SPACE, TINY, dueling)
    q, _ = network.init_with_output(jax.random.key(0), jnp.ones((7, *shape)))
    assert q.shape == (7, ACTIONS)


# Acting.


@pytest.mark.parametrize(
    ("progress", "wanted"),
    [(0.0, 0.9), (0.1, 0.65), (0.2, 0.4), (0.3, 0.15), (0.31, 0.15), (1, 0.15)],
)
def test_epsilon_falls_linearly_and_then_stays(progress, wanted):
    config = DQNConfig(epsilon_start=0.9, epsilon_end=0.15, exploration=0.3)
    assert epsilon_at(config, progress) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_epsilon_without_exploration_is_its_end(progress):
    config = DQNConfig(exploration=0.0, epsilon_end=0.2)
    assert epsilon_at(config, progress) == pytest.approx(0.2)


def test_frequencies_and_log_probabilities_of_epsilon_greedy():
    best = jnp.full(100_000, 2, jnp.int32)
    noise = exploration_noise(jax.random.key(0), best.shape, ACTIONS)
    action, extras = epsilon_greedy(best, 0.4, ACTIONS, noise)
    frequency = np.bincount(action, minlength=ACTIONS) / len(best)
    wanted = np.array([0.1, 0.1, 0.7, 0.1])
    np.testing.assert_allclose(frequency, wanted, atol=0.01)
    np.testing.assert_allclose(np.exp(extras["log_prob"]), wanted[np.asarray(action)], rtol=1e-5)


# The update.


def updates(config, count, network=None, progress=0.0):
    algorithm = dqn(config, SPACE, Linear() if network is None else network)
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    update = jax.jit(algorithm.update)
    states = [state]
    for i in range(count):
        state, info = update(state, random_batch(i), jax.random.key(i), progress=progress)
        assert info["finite"]
        states.append(state)
    return states


def weights(states, which):
    return [np.asarray(getattr(state, which)["params"]["w"]) for state in states]


def test_target_is_copied_every_so_many_updates_bit_for_bit():
    states = updates(DQNConfig(target_every=3), 7)
    online, target = weights(states, "params"), weights(states, "target_params")
    for i, source in enumerate([0, 0, 0, 3, 3, 3, 6, 6]):
        np.testing.assert_array_equal(target[i], online[source])
    assert [int(state.clock.iteration) for state in states] == list(range(8))


@pytest.mark.parametrize("every", [1, 2])
def test_target_goes_a_part_of_the_way(every, x64):
    states = updates(DQNConfig(target_every=every, target_tau=0.25), 4)
    online, target = weights(states, "params"), weights(states, "target_params")
    wanted = target[0]
    for i in range(1, 5):
        wanted = 0.75 * wanted + 0.25 * online[i] if i % every == 0 else wanted
        np.testing.assert_allclose(target[i], wanted, atol=1e-12)


def test_update_is_adam_on_the_clipped_gradient(x64):
    """The first step by hand; the learning rate annealed to three quarters."""
    config = DQNConfig(
        learning_rate=0.1, learning_rate_schedule="linear", adam_eps=1e-3, max_grad_norm=0.05
    )
    before, after = updates(config, 1, progress=0.25)
    loss = make_loss(Linear(), config, before.target_params)
    gradient = jax.grad(lambda p: loss(p, random_batch(0))[0])(before.params)["params"]["w"]
    norm = np.sqrt((gradient**2).sum())
    assert norm > 0.05
    g = np.asarray(gradient) * 0.05 / norm
    wanted = before.params["params"]["w"] - 0.075 * g / (np.abs(g) + 1e-3)
    np.testing.assert_allclose(after.params["params"]["w"], wanted, atol=1e-12)


def test_what_is_not_finite_is_refused_and_only_the_clock_goes_on():
    algorithm = dqn(DQNConfig(target_every=1), SPACE, Linear())
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    batch = random_batch()
    batch = batch._replace(reward=batch.reward.at[0].set(jnp.nan))
    new, info = algorithm.update(state, batch, jax.random.key(0))
    assert not info["finite"]
    for one, other in zip(
        jax.tree.leaves(new._replace(clock=state.clock)), jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_array_equal(one, other)


SWITCHES = list(itertools.product([False, True], [False, True], [False, True], [1, 3]))


@pytest.mark.parametrize(("double", "dueling", "prioritized", "n_step"), SWITCHES)
def test_every_combination_of_switches_updates(double, dueling, prioritized, n_step):
    switches = dict(double=double, dueling=dueling, prioritized=prioritized, n_step=n_step)
    algorithm = dqn(DQNConfig(network=TINY, **switches), SPACE)
    assert algorithm.n_step == n_step
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    assert ("value_head" in state.params["params"]) == dueling
    shapes = jax.eval_shape(algorithm.replay.init, jnp.float32(0))
    assert (shapes.tree is not None) == prioritized
    _, info = jax.eval_shape(algorithm.update, state, random_batch(), jax.random.key(0))
    assert info["td_error"].shape == (B,)


# Bad input.


def test_box_actions():
    with pytest.raises(TypeError, match="maximum over all actions, but the actions are a Box"):
        dqn(DQNConfig(), Box((2,)))


BAD = [
    ("gamma", 1.1),
    ("learning_rate", 0.0),
    ("epsilon_start", 1.1),
    ("epsilon_end", -0.1),
    ("exploration", 2.0),
    ("alpha", -0.5),
    ("alpha", 1.5),
    ("beta", 1.5),
    ("priority_eps", 0.0),
    ("target_tau", 0.0),
    ("target_tau", 1.5),
    ("target_every", 0),
    ("n_step", 0),
    ("batch_size", 0),
    ("capacity", 0),
    ("max_grad_norm", 0.0),
    ("loss", "hubert"),
    ("gamma", float("nan")),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_config_says_which_field_is_wrong(field, value):
    with pytest.raises(ValueError, match=rf"DQNConfig: .*{field}.*"):
        DQNConfig(**{field: value})


def test_capacity_less_than_a_batch_or_a_return():
    with pytest.raises(ValueError, match="capacity=100 is less than batch_size=128"):
        DQNConfig(capacity=100)
    with pytest.raises(ValueError, match="capacity=8 is less than n_step=64"):
        DQNConfig(capacity=8, batch_size=8, n_step=64)


class Other(nn.Module):
    """Q values of another shape than [B, 4]."""

    features: int
    axes: int = 2

    @nn.compact
    def __call__(self, obs):
        q = nn.Dense(self.features)(obs)
        return {1: q[:, 0], 2: q, 3: q[..., None]}[self.axes]


@pytest.mark.parametrize(("features", "axes"), [(5, 2), (1, 2), (4, 1), (4, 3)])
def test_own_network_whose_outputs_are_not_one_value_an_action(features, axes):
    """It was trained on: its fifth action was taken, and an environment clips it or not."""
    algorithm = dqn(DQNConfig(), SPACE, Other(features, axes))
    with pytest.raises(ValueError, match=r"\(?7, 4\)"):
        jax.eval_shape(algorithm.init, jnp.zeros((7, OBS)), jax.random.key(0))


WRONG = {
    "reward": (jnp.zeros((B, 2)), r"batch.reward has shape \(32, 2\), wanted \[B\]"),
    "action": (jnp.zeros((B, 1), jnp.int32), r"batch.action has shape \(32, 1\), wanted \[32\]"),
    "discount": (jnp.zeros(B, jnp.int32), "batch.discount has dtype int32, wanted floating"),
    "weight": (jnp.zeros(5), r"batch.weight has shape \(5,\)"),
    "indices": (jnp.zeros(B), "batch.indices has dtype float32, wanted integer"),
    "obs": (jnp.zeros((5, OBS)), r"batch.obs has shape \(5, 3\)"),
    "next_obs": (jnp.zeros((B, 7)), r"batch.next_obs has shape \(32, 7\), wanted \[32, 3\]"),
}


@pytest.mark.parametrize("field", WRONG)
def test_batch_of_a_wrong_shape_or_dtype(field):
    algorithm = dqn(DQNConfig(), SPACE, Linear())
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    value, message = WRONG[field]
    with pytest.raises(ValueError, match=message):
        algorithm.update(state, random_batch()._replace(**{field: value}), jax.random.key(0))


def test_observations_of_another_size_than_at_init():
    algorithm = dqn(DQNConfig(network=TINY), SPACE)
    state = algorithm.init(jnp.zeros((1, 5)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"obs has shape \(32, 3\), but the parameters were made"):
        algorithm.update(state, random_batch(), jax.random.key(0))


def test_names_are_public():
    for name in (
        "dqn",
        "DQNConfig",
        "OffPolicyAlgorithm",
        "OffPolicyBatch",
        "uniform",
        "prioritized",
    ):
        assert name in purerl.__all__
