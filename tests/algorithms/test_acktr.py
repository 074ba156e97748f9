"""ACKTR against an update written out in NumPy; its switches; that it is robust."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from test_kfac import branches_around

import purerl
from purerl import NetworkConfig
from purerl.algorithms.acktr import ACKTRConfig, _adapt, _joint_variance, acktr, make_loss, score
from purerl.pieces.advantages import on_policy_batch
from purerl.pieces.gradient import keep_if_finite
from purerl.policies.distributions import Categorical, DiagGaussian
from purerl.records import Clock, Discrete, Rollout
from purerl.second_order import kfac
from purerl.second_order.kfac import find_layers, fisher_factors, tap

STEPS, ENVS, OBS, ACTIONS = 5, 4, 3, 3
SPACE = Discrete(ACTIONS)
LINEAR = NetworkConfig(hidden_sizes=())
SMALL = NetworkConfig(hidden_sizes=(8,))
CONSTANT = {"learning_rate_schedule": "constant"}
TARGET = ACKTRConfig(target_kl=0.01, kl_clip=0.1, **CONSTANT)


def rollout(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.array(rng.normal(size=(STEPS, ENVS, *shape)), float)  # noqa: E731
    action = jnp.array(rng.integers(ACTIONS, size=(STEPS, ENVS)), jnp.int32)
    ends = jnp.array(rng.uniform(size=(2, STEPS, ENVS)) < 0.2)
    log_prob = jnp.full((STEPS, ENVS), -np.log(ACTIONS), float)
    step = jnp.zeros((STEPS, ENVS), jnp.int32)
    return Rollout(draw(OBS), action, log_prob, draw(), *ends, draw(OBS), step)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def heads(params):
    """The two matrices of the linear network, the bias last."""
    tree = params["params"]
    layers = {"policy_head": tree["policy_head"]["Dense_0"], "value_head": tree["value_head"]}
    return {k: jnp.concatenate([x["kernel"], x["bias"][None]]) for k, x in layers.items()}


def solved(kind, a, g, gradient, damping):
    """(A (x) G, damped)^-1 times the gradient, by a dense solve."""
    if kind == "factored":
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        a = a + pi * np.sqrt(damping) * np.eye(len(a))
        block = np.kron(a, g + np.sqrt(damping) / pi * np.eye(len(g)))
    else:
        block = np.kron(a, g) + damping * np.eye(len(a) * len(g))
    return np.linalg.solve(block, gradient.ravel()).reshape(gradient.shape)


@pytest.mark.parametrize(("kind", "critic_std"), [("eigenbasis", 2.0), ("factored", None)])
def test_update_by_hand(kind, critic_std, x64):
    """A softmax policy and a value, linear in the observation; two updates."""
    config = ACKTRConfig(
        learning_rate=0.3,
        momentum=0.7,
        kl_clip=0.01,
        critic_kl_clip=1e-5,
        critic_std=critic_std,
        damping=0.05,
        damping_kind=kind,
        decay=0.8,
        stats_stride=1,
        inverse_every=1,
        cold_start=0,
        gamma=0.9,
        gae_lambda=0.6,
        normalize_advantage=True,
        value_coef=0.4,
        entropy_coef=0.2,
        entropy_coef_schedule="linear",
        network=LINEAR,
    )
    algorithm = acktr(config, SPACE)
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(3))
    learned = {head: np.array(x) for head, x in heads(state.params).items()}
    sums = {head: [0.0, 0.0] for head in learned}
    past = dict.fromkeys(learned, 0.0)
    weight = 0.0
    for i, progress in enumerate((0.25, 0.5)):
        data = rollout(seed=i)
        network = purerl.ActorCritic(SPACE, LINEAR)
        batch = on_policy_batch(network, state.params, data, 0.9, 0.6, normalize=True)
        state, info = algorithm.update(state, data, jax.random.key(i), progress=progress)

        obs = np.concatenate([np.asarray(data.obs).reshape(-1, OBS), np.ones((20, 1))], axis=1)
        z = obs @ learned["policy_head"]
        policy = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        entropy = -(policy * np.log(policy)).sum(1, keepdims=True)
        taken = np.eye(ACTIONS)[np.asarray(data.action).reshape(-1)]
        advantage = np.asarray(batch.advantage)
        assert abs(advantage.mean()) < 1e-9
        error = (obs @ learned["value_head"])[:, 0] - np.asarray(batch.target)
        variance = np.mean(error**2) if critic_std is None else critic_std**2
        # d(-log pi)/dz = pi - onehot;  d(-H)/dz = pi (log pi + H)
        slope = (policy - taken) * advantage[:, None]
        slope = slope + 0.2 * (1 - progress) * policy * (np.log(policy) + entropy)
        gradient = {
            "policy_head": obs.T @ slope / 20,
            "value_head": 0.4 * (obs.T @ error / 20)[:, None],
        }
        score_of = {"policy_head": taken - policy, "value_head": np.ones((20, 1))}
        rate = 0.3 * (1 - progress)
        weight = 0.8 * weight + 0.2
        for head, clip in (("policy_head", 0.01), ("value_head", 1e-5 * variance)):
            new = obs.T @ obs / 20, score_of[head].T @ score_of[head] / 20
            sums[head] = [0.8 * s + 0.2 * n for s, n in zip(sums[head], new, strict=True)]
            a, g = (s / weight for s in sums[head])
            natural = solved(kind, a, g, gradient[head], 0.05)
            trust = min(1, np.sqrt(clip / (rate**2 * (gradient[head] * natural).sum())))
            name = {"policy_head": "trust", "value_head": "critic_trust"}[head]
            assert info[name] == pytest.approx(trust, abs=1e-10)
            assert head == "policy_head" or trust < 1  # the critic's bound is met
            past[head] = 0.7 * past[head] + 0.3 * trust * natural
            learned[head] = learned[head] - rate * past[head]
            np.testing.assert_allclose(heads(state.params)[head], learned[head], atol=1e-10)
        z = obs @ learned["policy_head"]
        after = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        kl = (policy * np.log(policy / after)).sum(1).mean()
        assert kl > 1e-6
        assert info["kl"] == pytest.approx(kl, rel=1e-6)
        assert info["learning_rate"] == pytest.approx(rate)


def test_loss_of_the_parameters_is_what_is_reported_and_followed(x64):
    """The first step of plain gradient descent, which a cold start makes."""
    config = ACKTRConfig(network=SMALL, momentum=0.0, cold_max_norm=1e9, entropy_coef=0.1)
    algorithm, data = acktr(config, SPACE), rollout()
    state = algorithm.init(data.obs[0], jax.random.key(0))
    network = purerl.ActorCritic(SPACE, SMALL)
    batch = on_policy_batch(network, state.params, data, config.gamma, config.gae_lambda)
    loss = make_loss(network, config)
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
    new, info = algorithm.update(state, data, jax.random.key(0))
    assert info["loss"] == pytest.approx(float(value), abs=1e-12)
    np.testing.assert_allclose(flat(new.params), flat(state.params) - 0.25 * flat(gradient))


def test_predicted_kl_is_half_of_the_clip_and_what_is_measured():
    """Without momentum and damping, on a network whose block is the whole Fisher."""
    config = ACKTRConfig(
        learning_rate=1e3, momentum=0.0, kl_clip=1e-4, damping=1e-6, inverse_every=1,
        cold_start=0, decay=0.0, fisher_actions="sampled", network=LINEAR, entropy_coef=0.1,
        damping_kind="eigenbasis", stats_stride=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = rollout()
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 400), data)
    many = many._replace(obs=jnp.array(rng.normal(size=many.obs.shape), jnp.float32))
    algorithm = acktr(config, SPACE)
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(3))
    _, info = jax.jit(algorithm.update)(state, many, jax.random.key(0))
    assert info["trust"] < 1
    assert info["kl"] == pytest.approx(0.5e-4, rel=0.05)


def test_scores_have_the_fisher_for_their_second_moment(x64):
    """Value: exactly 1 / sigma^2, and uncorrelated with the policy's; actions drawn or taken."""
    logits = jnp.array([[0.3, -0.5, 1.0]])
    draw = lambda key: score((Categorical(logits), jnp.zeros(1)), jnp.float64(4.0), key)  # noqa: E731
    of_policy, of_value = jax.vmap(draw)(jax.random.split(jax.random.key(0), 100_000))
    p = jax.nn.softmax(logits)[0]
    scores = of_policy.logits[:, 0]
    np.testing.assert_allclose(
        scores.T @ scores / 100_000, jnp.diag(p) - jnp.outer(p, p), atol=5e-3
    )
    np.testing.assert_allclose(jnp.square(of_value), 0.25)
    np.testing.assert_allclose(jnp.mean(of_value), 0, atol=5e-3)
    np.testing.assert_allclose((scores * of_value).mean(0), 0, atol=5e-3)
    action = jnp.array([2], jnp.int32)
    taken, _ = score((Categorical(logits), jnp.zeros(1)), jnp.ones(()), jax.random.key(0), action)
    np.testing.assert_allclose(taken.logits[0], jnp.array([0, 0, 1]) - p, atol=1e-12)
    gaussian = DiagGaussian(jnp.zeros((1, 2)), jnp.log(2.0) * jnp.ones((1, 2)))
    taken, _ = score((gaussian, jnp.zeros(1)), jnp.ones(()), jax.random.key(0), jnp.ones((1, 2)))
    np.testing.assert_allclose(taken.mean, 0.25)
    np.testing.assert_allclose(taken.log_std, 0.25 - 1)


@pytest.mark.parametrize(
    ("kl", "wanted"), [(0.021, 0.2 / 1.5), (0.019, 0.2), (0.0051, 0.2), (0.0049, 0.3)]
)
def test_step_follows_the_desired_kl(kl, wanted):
    rate, kl = jnp.float32(0.2), jnp.float32(kl)
    assert _adapt(TARGET, rate, kl) == pytest.approx(wanted)
    assert _adapt(ACKTRConfig(), rate, kl) == rate


def test_step_stays_within_its_bounds():
    assert _adapt(TARGET, jnp.float32(0.9), jnp.float32(0.0)) == 1
    assert _adapt(TARGET, jnp.float32(1e-8), jnp.float32(1.0)) == pytest.approx(1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "target_kl adapts the learning rate; set learning_rate_schedule="),
        ({"learning_rate": lambda p: 0.1}, "and a number for learning_rate"),
        (
            {"learning_rate_schedule": "constant"},
            r"kl_clip=0.001 predicts no KL above twice target_kl=0.002",
        ),
        ({"learning_rate_schedule": "constant", "kl_clip": 0.008}, r"set it above 0.008"),
    ],
)
def test_a_wanted_kl_that_cannot_be_reached_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ACKTRConfig(target_kl=0.002, **changes)


def test_a_wanted_kl_may_be_swept():
    make = lambda x: jnp.float32(ACKTRConfig(**CONSTANT, target_kl=x, kl_clip=2 * x).target_kl)  # noqa: E731
    assert jax.vmap(make)(jnp.array([0.01, 0.1])).tolist() == pytest.approx([0.01, 0.1])


@pytest.mark.trains
def test_a_desired_kl_is_reached():
    """End to end: the measured KL settles where the step was adapted to."""
    env = purerl.make_env("CartPole-v1")
    config = ACKTRConfig(target_kl=0.002, kl_clip=0.1, network=SMALL, **CONSTANT)
    algorithm = acktr(config, env.action_space)
    train = purerl.make_train(algorithm, env, 64_000, num_envs=8, rollout_length=20, evaluations=0)
    result = jax.jit(train.train)(jax.random.key(0))
    kl, rate = (np.asarray(result.metrics.info[name]) for name in ("kl", "learning_rate"))
    assert (rate[:10] == np.float32(0.25)).all()  # not during the cold start
    assert len(np.unique(rate)) > 3
    assert 0.001 < np.median(kl[100:]) < 0.004


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.trains
def test_critic_learns_on_after_rewards_of_zero(shared):
    """Its curvature is an average over hundreds of updates: a phase without errors must not stay
    in it as if it were certain.
    """
    network = NetworkConfig(hidden_sizes=(8,), shared=shared)
    config = ACKTRConfig(gamma=0.9, network=network, learning_rate_schedule="constant")
    algorithm = acktr(config, SPACE)
    data = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, rollout())
    data = data._replace(terminated=jnp.zeros_like(data.terminated), next_obs=data.obs)

    @jax.jit
    def run(state, reward):
        step = lambda s, key: algorithm.update(  # noqa: E731
            s, data._replace(reward=jnp.full_like(data.reward, reward)), key
        )
        return jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 300))[0]

    state = run(run(algorithm.init(data.obs[0], jax.random.key(0)), 0.0), 1.0)
    value = purerl.ActorCritic(SPACE, network).apply(state.params, data.obs[0])[1]
    assert (value > 5).all()  # of 1 / (1 - 0.9)


def test_a_stride_measures_the_factors_of_every_second_step(x64):
    config = ACKTRConfig(network=SMALL, stats_stride=2, decay=0.0)
    algorithm, data, network = acktr(config, SPACE), rollout(), purerl.ActorCritic(SPACE, SMALL)
    state = algorithm.init(data.obs[0], jax.random.key(0))
    new, _ = algorithm.update(state, data, jax.random.key(1))
    obs, action = (x[::2].reshape(-1, *x.shape[2:]) for x in (data.obs, data.action))
    layers = find_layers(network.apply, state.params, obs)
    tapped = tap(network.apply, layers, state.params, obs)
    of_output = score(tapped.output, jnp.ones(()), jax.random.key(1), action)
    wanted = fisher_factors(layers, tapped, of_output)
    jax.tree.map(np.testing.assert_allclose, new.opt_state[0].factors, wanted)


def test_joint_fisher_of_a_shared_trunk(x64):
    """G of the trunk's layer is that of policy and value together, drawn independently:
    J_pi^T F_pi J_pi + J_v^T J_v / sigma^2, here by matrices; and one clip covers both.
    """
    network_config = NetworkConfig(hidden_sizes=(3,), shared=True)
    config = ACKTRConfig(network=network_config, critic_std=2.0, fisher_actions="sampled")
    network, obs = purerl.ActorCritic(SPACE, network_config), rollout().obs[0]
    params = network.init(jax.random.key(0), obs)
    layers = find_layers(network.apply, params, obs)
    tapped = tap(network.apply, layers, params, obs)

    def of_one(key):
        variance = _joint_variance(config, shared=True)
        return fisher_factors(layers, tapped, score(tapped.output, variance, key))

    many = jax.jit(jax.vmap(of_one))(jax.random.split(jax.random.key(1), 20_000))
    leaves = flatten_dict(params, sep="/")
    trunk = layers[0].weight.rpartition("/")[0]

    def outputs(perturbation, x):
        """Logits and value of one observation, by the output of the trunk's layer."""
        dense = lambda path, x: x @ leaves[f"{path}/kernel"] + leaves[f"{path}/bias"]  # noqa: E731
        h = jnp.tanh(dense(trunk, x) + perturbation)
        return dense("params/policy_head/Dense_0", h), dense("params/value_head", h)[0]

    wanted = 0
    for x in obs:
        of_policy, of_value = jax.jacobian(outputs)(jnp.zeros(3), x)
        p = jax.nn.softmax(outputs(jnp.zeros(3), x)[0])
        fisher = jnp.diag(p) - jnp.outer(p, p)
        joint = of_policy.T @ fisher @ of_policy + jnp.outer(of_value, of_value) / 4
        wanted = wanted + joint / len(obs)
    np.testing.assert_allclose(many.g[0].mean(0), wanted, rtol=0.05, atol=2e-3)


def regions(network_config):
    algorithm = acktr(ACKTRConfig(network=network_config), SPACE)
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    return sorted(state.opt_state[0].trust)


def test_a_shared_trunk_has_one_trust_region_and_separate_ones_two():
    assert regions(SMALL) == ["actor", "critic"]
    assert regions(NetworkConfig(hidden_sizes=(8,), shared=True)) == ["all"]


SWEPT = {
    "learning_rate": 0.01,
    "momentum": 0.5,
    "kl_clip": 1e-5,
    "critic_kl_clip": 1e-5,
    "damping": 0.1,
    "decay": 0.5,
    "cold_max_norm": 0.01,
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "value_coef": 0.1,
    "entropy_coef": 0.3,
}
CHANGES = {
    "critic_std": 0.001,  # so small that the critic's bound is met
    "target_kl": 0.0001,
    "learning_rate_schedule": "linear",
    "damping_kind": "eigenbasis",
    "stats_every": 2,
    "stats_stride": 2,
    "inverse_every": 2,
    "cold_start": 3,
    "fisher_actions": "sampled",
    "normalize_advantage": True,
    "entropy_coef_schedule": "linear",
}
NUMBERS = {
    **{"learning_rate": 0.05, "momentum": 0.9, "kl_clip": 0.01, "critic_kl_clip": 0.01},
    **{"damping": 0.01, "decay": 0.99, "cold_max_norm": 0.5, "gamma": 0.99, "gae_lambda": 1.0},
    **{"value_coef": 0.5, "entropy_coef": 0.1},
}


@functools.cache
def updates(shared, **static):
    """Compiled: four updates, of which the first is a cold one, as a function of the numbers."""
    static = {"inverse_every": 1, "cold_start": 1} | CONSTANT | static
    network = NetworkConfig(hidden_sizes=(4,) if shared else (), shared=shared)
    rollouts = jax.tree.map(lambda *x: jnp.stack(x), *(rollout(seed=i) for i in range(4)))

    @jax.jit
    def run(numbers):
        algorithm = acktr(ACKTRConfig(network=network, **numbers, **static), SPACE)

        def step(state, data):
            key = jax.random.key(7)
            return algorithm.update(state, data, key, progress=0.5)

        start = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
        state, info = jax.lax.scan(step, start, rollouts)
        leaves = [jnp.ravel(x) for x in jax.tree.leaves(state.params)]
        return jnp.concatenate(leaves), info["finite"].all()

    return run


def updated(name=None, shared=False):
    static = {name: CHANGES[name]} if name in CHANGES else {}
    numbers = NUMBERS | ({name: SWEPT[name]} if name in SWEPT else {})
    params, finite = updates(shared, **static)({k: jnp.float32(v) for k, v in numbers.items()})
    assert finite
    return params


@pytest.mark.parametrize("name", SWEPT | CHANGES)
def test_every_field_changes_the_update(name):
    """Swept ones as tracers."""
    assert np.abs(updated(name) - updated()).max() > 1e-6


@pytest.mark.parametrize("name", [None, "damping_kind", "fisher_actions"])
def test_shared_trunk_updates(name):
    plain = updated(shared=True)
    assert np.isfinite(plain).all()
    assert name is None or np.abs(updated(name, shared=True) - plain).max() > 1e-6


def test_convolutional_network_updates():
    space, obs = Discrete(3), jax.random.uniform(jax.random.key(0), (STEPS, ENVS, 6, 6, 2))
    network = NetworkConfig(hidden_sizes=(8,), conv_features=4)
    algorithm = acktr(ACKTRConfig(network=network, cold_start=0), space)
    data = rollout()
    data = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, data)
    data = data._replace(obs=obs, next_obs=obs)
    state = algorithm.init(obs[0], jax.random.key(0))
    kernels = [factor.shape[0] for factor in state.opt_state[0].factors.a]
    assert kernels.count(3 * 3 * 2 + 1) == 2
    new, info = jax.jit(algorithm.update)(state, data, jax.random.key(1))
    assert info["finite"]
    assert np.abs(flat(new.params) - flat(state.params)).max() > 1e-4


def test_network_without_a_layer_to_factor():
    class Biases(nn.Module):
        @nn.compact
        def __call__(self, obs):
            logits = obs[:, :ACTIONS] + self.param("b", nn.initializers.zeros, (1, ACTIONS))
            return Categorical(logits), logits[:, 0]

    algorithm = acktr(ACKTRConfig(), SPACE, Biases())
    with pytest.raises(ValueError, match=r"multiplies none of its parameters with its input"):
        algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))


def test_network_of_another_library_learns():
    """flax.nnx, beside the same network of flax.linen: the same update."""

    class Policy(nnx.Module):
        def __init__(self, rngs):
            self.heads = nnx.Linear(OBS, ACTIONS + 1, rngs=rngs)

        def __call__(self, obs):
            heads = self.heads(obs)
            return Categorical(heads[:, :ACTIONS]), heads[:, ACTIONS]

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, obs):
            heads = nn.Dense(ACTIONS + 1, name="heads")(obs)
            return Categorical(heads[:, :ACTIONS]), heads[:, ACTIONS]

    data = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, rollout())
    learned = []
    for network in (purerl.from_nnx(Policy), Linen()):
        algorithm = acktr(ACKTRConfig(cold_start=0), SPACE, network)
        state = algorithm.init(data.obs[0], jax.random.key(0))
        start = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), state.params)
        new, info = algorithm.update(state._replace(params=start), data, jax.random.key(1))
        assert info["finite"]
        learned.append(sorted(jax.tree.leaves(new.params), key=jnp.ndim))
    jax.tree.map(np.testing.assert_array_equal, *learned)


class Jitted(nn.Module):
    """Actor and critic, or a shared trunk, with a jitted function that both go through."""

    shared: bool

    @nn.compact
    def __call__(self, obs):
        squash = jax.jit(lambda *x: jax.tree.map(jnp.tanh, x))
        actor = nn.Dense(4, name="actor")(obs)
        critic = actor if self.shared else nn.Dense(4, name="critic")(obs)
        actor, critic = squash(actor, critic)
        return Categorical(nn.Dense(ACTIONS)(actor)), nn.Dense(1)(critic)[:, 0]


def test_trust_regions_are_seen_through_jit():
    for shared, wanted in ((True, ["all"]), (False, ["actor", "critic"])):
        algorithm = acktr(ACKTRConfig(), SPACE, Jitted(shared))
        state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
        assert sorted(state.opt_state[0].trust) == wanted


def test_a_rollout_of_numpy_and_a_schedule_of_the_users():
    config = ACKTRConfig(network=LINEAR, learning_rate=lambda progress: 0.2 - 0.1 * progress)
    algorithm, data = acktr(config, SPACE), jax.tree.map(np.asarray, rollout())
    state = algorithm.init(data.obs[0], jax.random.key(0))
    new, info = algorithm.update(state, data, jax.random.key(0), progress=0.5)
    assert info["finite"]
    assert info["learning_rate"] == pytest.approx(0.15)
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)


@pytest.mark.parametrize("kind", [*kfac.INVERT, "ekfac"])
def test_a_network_in_bfloat16_keeps_its_dtypes(kind):
    """Factors and inverses are in float32; eigenvalues of bfloat16 there are none."""

    class Half(nn.Module):
        @nn.compact
        def __call__(self, obs):
            dense = functools.partial(nn.Dense, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
            h = jnp.tanh(dense(4)(obs))
            scale = self.param("scale", nn.initializers.ones, (1,), jnp.bfloat16)
            return Categorical(dense(ACTIONS)(h) * scale[None]), dense(1)(h)[:, 0]

    config = ACKTRConfig(damping_kind=kind, cold_start=1, inverse_every=1)
    algorithm, data = acktr(config, SPACE, Half()), rollout()
    state = algorithm.init(data.obs[0], jax.random.key(0))
    update = jax.jit(algorithm.update)
    new, _ = update(state, data, jax.random.key(0))
    new, info = update(new, data, jax.random.key(0))
    assert info["finite"]
    assert update._cache_size() == 1
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)
    assert flat(new.opt_state[0].factors).dtype == np.float32
    assert np.abs(flat(new.params) - flat(state.params)).max() > 0


def test_refused_update_keeps_all_but_the_clock():
    """The clock belongs to every seed of a vmap; what one of them refuses must not touch it."""
    old = {"clock": Clock(jnp.int32(3)), "x": jnp.ones(2), "n": jnp.int32(1)}
    new = {"clock": Clock(jnp.int32(4)), "x": jnp.array([jnp.nan, 2.0]), "n": jnp.int32(2)}
    kept, finite = keep_if_finite(new, old)
    assert not finite
    assert (kept["clock"].iteration, kept["n"]) == (4, 1)
    np.testing.assert_array_equal(kept["x"], old["x"])


def test_resumed_vectorized_run_keeps_its_branches():
    """Statistics, inverses: a loop each, and no eigenvectors outside of one."""
    env = purerl.make_env(probe_envs.NoisyEnv())
    config = ACKTRConfig(
        network=SMALL, stats_every=2, inverse_every=5, damping_kind="eigenbasis", cold_start=1
    )
    algorithm = acktr(config, env.action_space)
    train = purerl.make_train(algorithm, env, 640, num_envs=4, rollout_length=8, evaluations=0)
    advance = purerl.vectorize(functools.partial(train.advance, iterations=10))
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.jit(purerl.vectorize(train.init))(keys)
    states, metrics = jax.jit(advance)(states)
    assert metrics.info["finite"].all()
    assert states.learner.opt_state[0].clock.iteration == 10

    depths = branches_around("eigh", advance, states)
    assert len(depths) >= 3
    assert set(depths) == {1}


class Scaled(nn.Module):
    """Features that differ by eight orders of magnitude."""

    @nn.compact
    def __call__(self, obs):
        scale = jnp.array([1e-4, 1e4, 1e2, 1e-2], obs.dtype)
        return purerl.ActorCritic(Discrete(2))(obs * scale[None])


@pytest.mark.parametrize("network", [None, Scaled()], ids=["plain", "ill_conditioned"])
@pytest.mark.trains
def test_16_seeds_for_250_updates_stay_finite(network):
    env = purerl.make_env("CartPole-v1")
    algorithm = acktr(ACKTRConfig(), env.action_space, network)
    sizes = {"num_envs": 4, "rollout_length": 8, "evaluations": 0}
    train = purerl.make_train(algorithm, env, 250 * 32, **sizes)
    keys = jax.random.split(jax.random.key(0), 16)
    result = jax.jit(purerl.vectorize(train.train))(keys)
    assert not result.failed.any()
    assert result.metrics.info["finite"].all()
    assert jnp.isfinite(result.metrics.info["kl"]).all()
