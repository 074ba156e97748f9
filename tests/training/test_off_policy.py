"""The off-policy loop: what it remembers, when it learns, and what depends on what."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest
from test_train import arrays, assert_close, assert_same, key_env, of_others, primitives

import purerl
from purerl import DQNConfig, NetworkConfig, OffPolicyAlgorithm, make_train
from purerl.records import Box
from purerl.replay import buffers as replays
from purerl.replay.packed import unpack
from purerl.replay.transitions import replay_memory

TINY = NetworkConfig(hidden_sizes=(8,))
NOISY = purerl.make_env(probe_envs.NoisyEnv())
SIZES = {"num_envs": 4, "rollout_length": 2, "updates": 3, "warmup": 16, "evaluation_episodes": 3}
SMALL = {"network": TINY, "batch_size": 8, "capacity": 50, "target_every": 5}
EVERYTHING = {"double": True, "dueling": True, "prioritized": True, "n_step": 3}


def learner(env=NOISY, **kw):
    return purerl.dqn(DQNConfig(**(SMALL | kw)), env.action_space)


def make(iterations, algorithm=None, env=NOISY, **kw):
    algorithm = learner(env) if algorithm is None else algorithm
    return make_train(algorithm, env, 16 + 8 * iterations, **(SIZES | kw))


# Steps.


@pytest.mark.parametrize(
    ("total", "warmup", "warm", "iterations"), [(24, 16, 16, 1), (25, 16, 16, 2), (100, 13, 16, 11)]
)
def test_warmup_counts_and_both_are_rounded_up(total, warmup, warm, iterations):
    train = make_train(learner(), NOISY, total, **(SIZES | {"warmup": warmup}))
    assert (train.warmup_steps, train.iterations) == (warm, iterations)
    assert train.steps == warm + 8 * iterations


@pytest.fixture(scope="module")
def evaluated():
    return jax.jit(make(10, evaluations=5).train)(jax.random.key(3))


def test_evaluation_changes_nothing(evaluated):
    unevaluated = jax.jit(make(10, evaluations=0).train)(jax.random.key(3))
    assert_close(evaluated.state, unevaluated.state, rtol=1e-4, atol=1e-6)
    assert_close(evaluated.metrics, unevaluated.metrics, rtol=1e-4, atol=1e-6)


def test_steps_of_metrics_and_curve_count_the_warmup(evaluated):
    assert evaluated.metrics.step.tolist() == [16 + 8 * i for i in range(1, 11)]
    assert evaluated.curve.step.tolist() == [16 + 16 * i for i in range(1, 6)]
    assert np.isfinite(evaluated.curve.evaluation.mean_return).all()
    assert all(x.shape == (10,) for x in jax.tree.leaves(evaluated.metrics))
    assert int(evaluated.state.learner.clock.iteration) == 30


@pytest.mark.parametrize("switches", [{}, EVERYTHING], ids=["plain", "everything"])
def test_chunks_are_the_whole_run_bit_for_bit(switches, x64):
    env = purerl.make_env(probe_envs.NoisyEnv())
    train = make(10, learner(env, **switches), env, normalize_obs=True)
    advance = jax.jit(train.advance, static_argnums=1)
    start = jax.jit(train.init)(jax.random.key(0))
    whole, metrics = advance(start, 10)
    state, pieces = start, []
    for iterations in (5, 5):
        state, piece = advance(state, iterations)
        pieces.append(piece)
    assert_same(state, whole)
    assert_same(jax.tree.map(lambda *x: np.concatenate(x), *pieces), metrics)
    assert metrics.info["finite"].all()
    assert any(
        np.any(a != b)
        for a, b in zip(arrays(whole.learner.params), arrays(start.learner.params), strict=True)
    )


# What an algorithm gets to see: an algorithm that only reports.


def spy(space, capacity=1000, batch_size=4, n_step=1, replay=replays.uniform):
    """Acts at random; its info is the batch, the progress and the key of the update."""

    def act(state, obs, key, *, greedy=False, progress=0.0):
        if isinstance(space, Box):  # the action is the key itself
            bits = jax.random.key_data(key).astype(jnp.result_type(float))
            return jnp.broadcast_to(bits, (obs.shape[0], 2)), {"log_prob": obs[:, 0] * 0}
        action = jax.random.randint(key, obs.shape[:1], 0, space.num_actions)
        return action, {"log_prob": jnp.zeros(obs.shape[0])}

    def update(state, batch, key, *, progress=0.0):
        bits = jax.random.key_data(key).astype(jnp.result_type(float))
        report = {"progress": progress, "high": bits[0], "low": bits[1]}
        report |= {"obs": jnp.sum(batch.obs), "next": jnp.sum(batch.next_obs)}
        info = report | {"td_error": batch.reward, "finite": jnp.array(True)}
        return state + 1, info

    return OffPolicyAlgorithm(
        lambda obs, key: jnp.zeros(()), act, update, replay(capacity), batch_size, n_step, 0.9
    )


def spied(iterations=4, env=NOISY, **kw):
    train = make(iterations, spy(env.action_space), env, **kw)
    run = jax.jit(lambda key: train.advance(train.init(key), iterations))
    return run(jax.random.key(7))


def held(state, size):
    """The transitions of the first places, whole."""
    memory = replay_memory(replays.uniform(state.replay.replay.items.count), 4)
    sample = replays.Sample(jnp.arange(size), jnp.ones(size))
    next_obs = memory.batch(state.replay, sample, gamma=1.0).next_obs
    items = jax.tree.map(lambda x: np.asarray(x)[:size], unpack(state.replay.replay.items))
    return items._replace(next_obs=np.asarray(next_obs))


def test_the_buffer_holds_what_happened_in_order():
    """Observations follow one another within each environment, except over a reset."""
    state, _ = spied(iterations=20)
    size = 16 + 20 * 8
    cursor = state.replay.replay.cursor
    assert (cursor.next, cursor.size, state.replay.steps.iteration) == (size, size, size // 4)
    items = jax.tree.map(lambda x: x.reshape(-1, 4, *x.shape[1:]), held(state, size))
    done = items.terminated | items.truncated
    on = ~done[:-1]
    np.testing.assert_array_equal(items.obs[1:][on], items.next_obs[:-1][on])
    cut = (items.truncated & ~items.terminated)[:-1]
    assert (items.obs[1:][cut] != items.next_obs[:-1][cut]).all()
    assert cut.any()
    assert items.terminated.any()
    np.testing.assert_array_equal(items.next_obs[-1][~done[-1]], state.actors.obs[~done[-1]])


def test_what_is_learned_does_not_depend_on_how_last_observations_are_held():
    """With the time limit known they take few places, else one for each step."""
    env = purerl.make_env("CartPole-v1", max_steps_in_episode=12)
    assert env.truncation_interval == 12
    results = []
    for known in (env, env._replace(truncation_interval=1)):
        train = make(40, learner(known, n_step=2, capacity=90), known)
        results.append(jax.jit(lambda key, t=train: t.advance(t.init(key), 40))(jax.random.key(0)))
    (one, _), (other, _) = results
    assert one.replay.last_obs.shape[0] < 6 < 20 < other.replay.last_obs.shape[0]
    assert unpack(one.replay.replay.items).truncated.any()
    assert_same(one.learner, other.learner)


def test_the_buffer_holds_raw_observations_and_the_learner_sees_normalized_ones():
    raw, seen = spied(), spied(normalize_obs=True)
    held = [unpack(x[0].replay.replay.items).obs for x in (raw, seen)]
    np.testing.assert_allclose(*held, rtol=1e-6)  # two programs are one to rounding
    np.testing.assert_array_equal(raw[1].episodes.ended, seen[1].episodes.ended)
    np.testing.assert_allclose(raw[1].episodes.return_sum, seen[1].episodes.return_sum, rtol=1e-5)
    for name in ("obs", "next"):
        a, b = np.asarray(raw[1].info[name]), np.asarray(seen[1].info[name])
        assert (np.abs(b) < np.abs(a)).all()
    # All observations so far and none twice, those of the warm-up too.
    size = 16 + 4 * 8
    obs = np.asarray(unpack(seen[0].replay.replay.items).obs)[:size]
    moments = seen[0].normalizer.obs
    assert float(moments.seen) == size
    np.testing.assert_allclose(moments.mean, obs.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.var, obs.var(0), rtol=1e-3)


def test_progress_is_the_finished_fraction():
    _, metrics = spied()
    np.testing.assert_array_equal(metrics.info["progress"], [0, 0.25, 0.5, 0.75])


def test_a_batch_has_the_algorithms_n_step_and_gamma_and_a_draw_the_progress():
    """The buffer's weights are here the progress that it is told; discounts are powers of 0.9."""

    def replay(capacity):
        buffer = replays.uniform(capacity)

        def sample(state, key, size, *, progress):
            return replays.Sample(buffer.sample(state, key, size).indices, jnp.full(size, progress))

        return buffer._replace(sample=sample)

    def update(state, batch, key, *, progress=0.0):
        info = {"weight": batch.weight[0], "td_error": batch.reward, "finite": jnp.array(True)}
        return state, info | {
            f"at {k}": jnp.mean(jnp.isclose(batch.discount, d)) for k, d in powers
        }

    powers = [(0, 0.0), (1, 0.9), (2, 0.81), (3, 0.729)]
    algorithm = spy(NOISY.action_space, batch_size=16, n_step=3, replay=replay)
    train = make(4, algorithm._replace(update=update))
    _, metrics = jax.jit(lambda key: train.advance(train.init(key), 4))(jax.random.key(0))
    np.testing.assert_array_equal(metrics.info["weight"], [0, 0.25, 0.5, 0.75])
    parts = np.array([metrics.info[f"at {k}"] for k, _ in powers])
    np.testing.assert_allclose(parts.sum(0), 1, rtol=1e-6)
    assert (parts > 0).any(1).all()


def test_acting_is_told_the_progress():
    """The actions are here the iteration's; the warm-up acts as at the start."""
    env = purerl.make_env(probe_envs.NoisyEnv(box=True))

    def act(state, obs, key, *, greedy=False, progress=0.0):
        return jnp.full((obs.shape[0], 2), progress), {"log_prob": obs[:, 0] * 0}

    train = make(4, spy(env.action_space)._replace(act=act), env)
    state, _ = jax.jit(lambda key: train.advance(train.init(key), 4))(jax.random.key(0))
    acted = np.asarray(unpack(state.replay.replay.items).action)[: 16 + 4 * 8, 0]
    np.testing.assert_array_equal(acted, [0] * 16 + [0] * 8 + [0.25] * 8 + [0.5] * 8 + [0.75] * 8)


def test_no_key_is_used_twice(x64):
    """Of the resets, the steps of each environment and the actions; and of the updates."""
    env = key_env()
    state, _ = spied(iterations=5, env=env)
    size = 16 + 5 * 8
    items = held(state, size)
    keys = np.concatenate([items.next_obs, items.action[::4], items.obs[:4]])
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_jax_finds_no_reused_key():
    train = make(2, learner(**EVERYTHING))
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: train.advance(train.init(key), 2))(jax.random.key(0))


def test_updates_of_one_iteration_draw_different_batches():
    algorithm = spy(NOISY.action_space)
    seen = []

    def update(state, batch, key, *, progress=0.0):
        seen.append(None)
        return state + jnp.sum(batch.indices * 1.0), {
            "td_error": batch.reward,
            "finite": jnp.array(True),
            "sum": jnp.sum(batch.indices * 1.0),
        }

    sums = []
    for updates in (1, 2):
        train = make(1, algorithm._replace(update=update), updates=updates)
        state, metrics = jax.jit(lambda k, t=train: t.advance(t.init(k), 1))(jax.random.key(0))
        sums.append(float(metrics.info["sum"][0]))
        assert float(state.learner) == pytest.approx(updates * sums[-1])
    assert sums[0] != sums[1]


def test_td_errors_become_the_priorities_of_what_was_drawn():
    algorithm = spy(NOISY.action_space, replay=lambda c: replays.prioritized(c, alpha=1.0, eps=0.0))
    train = make(1, algorithm, updates=1)
    state, _ = jax.jit(lambda key: train.advance(train.init(key), 1))(jax.random.key(0))
    replay = state.replay.replay
    leaves, reward = replay.tree.leaves[:24], np.abs(unpack(replay.items).reward[:24])
    drawn = np.asarray(leaves) != 1.0
    assert 0 < drawn.sum() <= 4
    np.testing.assert_allclose(leaves[drawn], reward[drawn], rtol=1e-6)


# Seeds.


@pytest.mark.parametrize("switches", [{}, EVERYTHING], ids=["plain", "everything"])
def test_many_seeds_are_each_alone_to_rounding(switches):
    train = make(2, learner(**switches))
    keys = jax.random.split(jax.random.key(0), 2)
    run = lambda key: train.advance(train.init(key), 2)[0]  # noqa: E731
    many = jax.jit(purerl.vectorize(run))(keys)
    assert len(jax.tree.leaves(many.learner.params)[0].sharding.device_set) == 2
    single = jax.jit(run)
    for i in range(2):
        one = single(keys[i])
        params = jax.tree.map(lambda x, i=i: x[i], many.learner.params)
        assert_close(params, one.learner.params, rtol=1e-3, atol=1e-5)
        items = jax.tree.map(lambda x, i=i: x[i], unpack(many.replay.replay.items))
        assert_close(items, unpack(one.replay.replay.items), rtol=1e-4, atol=1e-5)


def test_branches_of_a_run_that_goes_on_stay_branches():
    """The copy of the target network; with a batched clock it would be a select."""
    train = make(4)
    advance = lambda state: train.advance(state, 1)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.eval_shape(purerl.vectorize(train.init), keys)
    for _ in range(2):
        assert "cond" in primitives(purerl.vectorize(advance), states)
        states = jax.eval_shape(purerl.vectorize(advance), states)[0]
    states = jax.eval_shape(jax.vmap(train.init), keys)
    assert "cond" not in primitives(jax.vmap(advance), states)


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_seed_with_nan_rewards_fails_alone(prioritized):
    env = purerl.make_env(probe_envs.NoisyEnv(nan_below=0.01))
    algorithm = learner(env, prioritized=prioritized)
    run = jax.jit(purerl.vectorize(make(5, algorithm, env, evaluations=0).train))
    keys = jax.random.split(jax.random.key(1), 64)
    failed = np.concatenate([run(keys[i : i + 8]).failed for i in range(0, 64, 8)])
    bad, good = np.flatnonzero(failed), np.flatnonzero(~failed)
    assert 0 < bad.size < 40
    place, healthy = 3, keys[good[:8]]
    result, wanted = run(healthy.at[place].set(keys[bad[0]])), run(healthy)
    assert result.failed.tolist() == [i == place for i in range(8)]
    for a, b in zip(of_others(result, place), of_others(wanted, place), strict=True):
        np.testing.assert_array_equal(a, b)
    learner_alone = [x[place] for x in arrays(result.state.learner) if x.ndim]
    assert all(np.isfinite(x).all() for x in learner_alone)
    if prioritized:
        assert np.isfinite(result.state.replay.replay.tree.leaves).all()


def test_hyper_parameters_can_be_swept():
    def run(rate, gamma, alpha, beta, tau, epsilon, key):
        config = DQNConfig(
            learning_rate=rate,
            gamma=gamma,
            alpha=alpha,
            beta=beta,
            target_tau=tau,
            epsilon_end=epsilon,
            exploration=epsilon,
            prioritized=True,
            **SMALL,
        )
        train = make(3, purerl.dqn(config, NOISY.action_space))
        return train.advance(train.init(key), 3)[0].learner.params

    grid = jnp.array([[1e-3, 0.9, 0.5, 0.4, 1.0, 0.1], [1e-2, 0.5, 1.0, 1.0, 0.1, 0.5]]).T
    keys = jnp.stack([jax.random.key(0)] * 2)
    many = jax.jit(jax.vmap(run))(*grid, keys)
    one = jax.jit(run)(*grid[:, 0], keys[0])
    assert_close(jax.tree.map(lambda x: x[0], many), one, rtol=1e-3, atol=1e-5)
    assert any(np.any(x[0] != x[1]) for x in arrays(many))


# The known values.


def q_values(train, network, states):
    result = jax.jit(train.train)(jax.random.key(1))
    assert not result.failed
    return np.asarray(network.apply(result.state.learner.params, jnp.eye(states)))


# Of any three of the four every combination; all four would be twice as many programs.
SWITCHES = [
    dict(zip(("double", "dueling", "prioritized"), on, strict=True))
    | {"n_step": 1 + 2 * (sum(on) % 2)}
    for on in itertools.product([False, True], repeat=3)
]


@pytest.mark.parametrize(
    "switches",
    SWITCHES,
    ids=lambda s: "-".join(k if v is True else str(v) for k, v in s.items() if v),
)
@pytest.mark.trains
def test_values_of_the_probes_are_learned_with_every_combination_of_three_switches(switches):
    """Acting at random, but for n-step returns, whose values are those of what was done: there the
    action changes nothing that is tested.
    """
    env, where, values = probe_envs.all_tables()
    network = NetworkConfig(hidden_sizes=())
    config = DQNConfig(
        gamma=probe_envs.GAMMA,
        learning_rate=0.03,
        learning_rate_schedule="linear",
        loss="squared",
        max_grad_norm=None,
        epsilon_end=1.0,
        target_every=20,
        batch_size=64,
        capacity=2000,
        network=network,
        **switches,
    )
    algorithm = purerl.dqn(config, env.action_space)
    sizes = {"num_envs": 32, "rollout_length": 2, "updates": 4, "warmup": 512, "evaluations": 0}
    train = make_train(algorithm, env, 512 + 64 * 500, **sizes)
    q = q_values(train, purerl.QNetwork(env.action_space, network, config.dueling), len(values))
    np.testing.assert_allclose(q.max(1), values, atol=0.1)
    assert q[where["action"]][0, 1] - q[where["action"]][0, 0] == pytest.approx(2, abs=0.1)


@pytest.mark.trains
def test_cartpole_is_learned():
    """The mean over 4 seeds; a random policy reaches 20, the limit here is 200."""
    env = purerl.make_env("CartPole-v1", max_steps_in_episode=200)
    config = DQNConfig(
        learning_rate=3e-3,
        loss="squared",
        target_every=50,
        batch_size=32,
        capacity=15_000,
        network=NetworkConfig(hidden_sizes=(32,), activation="relu"),
        double=True,
    )
    algorithm = purerl.dqn(config, env.action_space)
    sizes = {"num_envs": 4, "evaluations": 1, "evaluation_episodes": 8}
    train = make_train(algorithm, env, 15_000, **sizes)
    result = jax.jit(purerl.vectorize(train.train))(jax.random.split(jax.random.key(0), 4))
    assert not result.failed.any()
    assert np.mean(result.curve.evaluation.mean_return[:, -1]) > 80


# Bad input.


def test_a_size_of_the_other_kind():
    ppo = purerl.ppo_clip(purerl.PPOClipConfig(network=TINY), NOISY.action_space)
    with pytest.raises(TypeError, match="no size 'warmup': it is one of OffPolicyLoopConfig"):
        make_train(ppo, NOISY, 10_000, warmup=8)
    with pytest.raises(TypeError, match="no size 'normalize_reward': it is one of OnPolicyLoop"):
        make_train(learner(), NOISY, 10_000, normalize_reward=True)
    with pytest.raises(TypeError, match=r"no size 'warm_up'. Did you mean warmup"):
        make_train(learner(), NOISY, 10_000, warm_up=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "num_envs=0 is out of range"),
        ({"updates": 0}, "updates=0 is out of range"),
        ({"rollout_length": 0}, "rollout_length=0 is out of range"),
        ({"warmup": -1}, "warmup=-1 is out of range"),
        ({"warmup": 7}, "warmup=7 is less than batch_size=8"),
        ({"warmup": 51}, "the warm-up adds 52 and an iteration 8 transitions .* capacity=50"),
        ({"num_envs": 32}, "the warm-up adds 32 and an iteration 64 transitions .* capacity=50"),
        ({"steps": 20}, "steps=20 is less than a warm-up of 16 and one iteration, .* = 8 steps"),
        ({"replay_obs": "uint16"}, "unknown replay_obs 'uint16'. Did you mean uint8"),
        ({"evaluations": -1}, "evaluations=-1 is out of range"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_sizes_that_do_not_fit(changes, message):
    sizes = {"steps": 1000} | SIZES | changes
    with pytest.raises(ValueError, match=f"(make_train|OffPolicyLoopConfig): {message}"):
        make_train(learner(), NOISY, **sizes)


@pytest.mark.parametrize("function", ["init", "train"])
def test_keys_that_are_none(function):
    with pytest.raises(TypeError, match="key is a uint32, wanted a typed PRNG key"):
        getattr(make(1), function)(jax.random.PRNGKey(0))
