"""The on-policy loop: what depends on what, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl import NetworkConfig
from purerl.envs.record import Env, Step
from purerl.pieces import packing
from purerl.records import Ahead, Box, Clock, Discrete, OnPolicyAlgorithm
from purerl.training.sizes import spread

TINY = NetworkConfig(hidden_sizes=(8,))
NOISY = purerl.make_env(probe_envs.NoisyEnv())
SIZES = {"num_envs": 4, "rollout_length": 6, "evaluation_episodes": 3}
PER_ITERATION = 24


def learner(env=NOISY, **kw):
    return purerl.a2c(purerl.A2CConfig(network=TINY, **kw), env.action_space)


def make(iterations, algorithm=None, env=NOISY, **kw):
    algorithm = learner(env) if algorithm is None else algorithm
    return purerl.make_train(algorithm, env, iterations * PER_ITERATION, **(SIZES | kw))


def arrays(tree):
    leaves = jax.tree.leaves(tree)
    return [
        np.asarray(jax.random.key_data(x))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else np.asarray(x)
        for x in leaves
    ]


def assert_same(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one, other, **kw):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_allclose(a, b, **kw)


# Steps and evaluations.


@pytest.mark.parametrize(("asked", "iterations"), [(24, 1), (25, 2), (48, 2), (240, 10), (241, 11)])
def test_steps_are_rounded_up_to_whole_iterations_and_reported(asked, iterations):
    train = purerl.make_train(learner(), NOISY, asked, **SIZES)
    assert (train.iterations, train.steps) == (iterations, 24 * iterations)
    assert train.steps_per_iteration == 24


@pytest.mark.parametrize(
    ("iterations", "asked", "wanted"),
    [(10, 5, (2, 4, 6, 8, 10)), (10, 3, (3, 6, 10)), (10, 1, (10,)), (3, 7, (1, 2, 3)), (9, 0, ())],
)
def test_evaluations_lie_evenly_and_one_is_the_last(iterations, asked, wanted):
    assert spread(iterations, asked) == wanted
    assert make(iterations, evaluations=asked).evaluate_at == wanted


@pytest.mark.parametrize("iterations", [20, 29, 30, 31, 500])
def test_there_are_as_many_evaluations_as_are_asked_for(iterations):
    assert len(set(make(iterations).evaluate_at)) == 20


@pytest.fixture(scope="module")
def evaluated():
    return jax.jit(make(10, evaluations=5).train)(jax.random.key(3))


@pytest.fixture(scope="module")
def unevaluated():
    return jax.jit(make(10, evaluations=0).train)(jax.random.key(3))


def test_evaluation_changes_nothing(evaluated, unevaluated):
    """But rounding: these are two programs."""
    assert_close(evaluated.state, unevaluated.state, rtol=1e-4, atol=1e-6)
    assert_close(evaluated.metrics, unevaluated.metrics, rtol=1e-4, atol=1e-6)
    assert unevaluated.curve.step.shape == unevaluated.curve.evaluation.mean_return.shape == (0,)


def test_metrics_have_one_row_an_iteration_and_the_curve_one_an_evaluation(evaluated):
    assert evaluated.metrics.step.tolist() == [24 * i for i in range(1, 11)]
    assert evaluated.curve.step.tolist() == [48, 96, 144, 192, 240]
    assert np.isfinite(evaluated.curve.evaluation.mean_return).all()
    assert all(x.shape == (10,) for x in jax.tree.leaves(evaluated.metrics))


def test_train_is_init_and_advance(evaluated):
    train = make(10)
    state, metrics = jax.jit(train.advance, static_argnums=1)(
        jax.jit(train.init)(jax.random.key(3)), 10
    )
    assert_close(state, evaluated.state, rtol=1e-4, atol=1e-6)
    assert_close(metrics, evaluated.metrics, rtol=1e-4, atol=1e-6)
    evaluation = jax.tree.map(lambda x: x[-1], evaluated.curve.evaluation)
    assert_close(jax.jit(train.evaluate)(state), evaluation, rtol=1e-4, atol=1e-6)


def test_another_key_is_another_run(evaluated):
    state = jax.jit(make(10, evaluations=5).train)(jax.random.key(4)).state
    params = arrays(state.learner.params), arrays(evaluated.state.learner.params)
    assert any(np.any(a != b) for a, b in zip(*params, strict=True))


def test_evaluation_plays_the_mode_or_samples():
    env = purerl.make_env(probe_envs.NoisyEnv(box=True, noise=0.0))
    for greedy, same in ((True, True), (False, False)):
        train = make(1, env=env, greedy_evaluation=greedy)
        state = train.init(jax.random.key(0))
        again = state._replace(clock=Clock(jnp.int32(1)))
        per_step = [e.mean_return / e.mean_length for e in map(train.evaluate, (state, again))]
        # Noise apart, reward is -(action - 0.5)^2; the first policy's mean is nearly 0.
        assert (abs(per_step[0] + 0.5) < 0.1) == same
    assert per_step[0] != per_step[1]


# What a run keeps.


def shapes_of(jaxpr):
    """Every intermediate of a jaxpr and of those inside it, in order."""
    for eqn in jaxpr.eqns:
        for v in eqn.outvars:
            yield eqn.primitive.name, tuple(v.aval.shape)
        for inner in _inner(eqn.params):
            yield from shapes_of(inner)


def _inner(params):
    for value in params.values():
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(x, "eqns"):
                yield x
            elif hasattr(x, "jaxpr"):
                yield x.jaxpr


def test_nothing_grows_with_the_iterations_but_the_metrics():
    runs = []
    for iterations in (11, 22):
        train = make(iterations, evaluations=1, normalize_obs=True, normalize_reward=True)
        runs.append(list(shapes_of(jax.make_jaxpr(train.train)(jax.random.key(0)).jaxpr)))
    result = jax.eval_shape(train.train, jax.random.key(0))
    assert len(runs[0]) == len(runs[1])
    grown = 0
    for (name, short), (_, long) in zip(*runs, strict=True):
        if short != long:
            # One number an iteration: a metric (or an evaluation) as the scan stacks it.
            assert (short, long) == ((11,), (22,)), (name, short, long)
            grown += 1
    assert 0 < grown <= len(jax.tree.leaves((result.metrics, result.curve.evaluation)))


def primitives(function, *args):
    return [name for name, _ in shapes_of(jax.make_jaxpr(function)(*args).jaxpr)]


@pytest.mark.parametrize("seeds", [1, 4], ids=["one_device", "two_devices"])
def test_evaluation_stays_a_branch_under_vectorize(seeds):
    """And so does each chunk of it; no while_loop is around the step: XLA may crash there."""
    ahead = NOISY._replace(resets="ahead")  # those that are due have a loop around them, no step
    keys, train = jax.random.split(jax.random.key(0), seeds), make(4, env=ahead, evaluations=2)
    names, of_one = (
        primitives(purerl.vectorize(train.train), keys),
        primitives(train.train, keys[0]),
    )
    assert names.count("cond") == of_one.count("cond") > 3
    assert "while" not in names


def advance_with_branch(train):
    def advance(state):
        state = train.advance(state, 1)[0]
        due = state.clock.iteration % 2 == 0
        return state, jax.lax.cond(
            due, lambda s: jnp.sum(jnp.sin(s.actors.obs)), lambda _: 0.0, state
        )

    return advance


@pytest.mark.parametrize("seeds", [3, 4], ids=["one_device", "two_devices"])
def test_a_branch_on_the_clock_of_a_resumed_run_survives(seeds):
    train = make(4)
    advance = advance_with_branch(train)
    keys = jax.random.split(jax.random.key(0), seeds)
    states = jax.eval_shape(purerl.vectorize(train.init), keys)
    for _ in range(2):
        assert states.clock.iteration.shape == ()
        assert "cond" in primitives(purerl.vectorize(advance), states)
        states = jax.eval_shape(purerl.vectorize(advance), states)[0]
    # The control: with the clock mapped, the branch becomes a select.
    states = jax.eval_shape(jax.vmap(train.init), keys)
    assert "cond" not in primitives(jax.vmap(advance), states)


# Seeds.


def test_two_devices_are_one_to_rounding():
    assert len(jax.devices()) > 1
    keys, train = jax.random.split(jax.random.key(0), 4), make(3)
    run = lambda key: train.advance(train.init(key), 3)  # noqa: E731
    sharded, unsharded = jax.jit(purerl.vectorize(run))(keys), jax.jit(jax.vmap(run))(keys)
    assert len(jax.tree.leaves(sharded[0].learner)[0].sharding.device_set) == 2
    assert_close(sharded[0].learner, unsharded[0].learner, rtol=1e-4, atol=1e-6)
    assert_close(sharded[1].info, unsharded[1].info, rtol=1e-3, atol=1e-5)


def of_others(tree, failed):
    return [np.delete(x, failed, axis=0) if x.shape[:1] == (8,) else x for x in arrays(tree)]


def test_a_seed_with_nan_rewards_fails_alone():
    """The same program, once with a seed that meets NaN and once with a healthy one instead."""
    env = purerl.make_env(probe_envs.NoisyEnv(nan_below=0.005))
    run = jax.jit(purerl.vectorize(make(5, env=env, evaluations=0).train))
    keys = jax.random.split(jax.random.key(1), 64)
    failed = np.concatenate([run(keys[i : i + 8]).failed for i in range(0, 64, 8)])
    bad, good = np.flatnonzero(failed), np.flatnonzero(~failed)
    assert 0 < bad.size < 32
    place = 3
    healthy = keys[good[:8]]
    mixed = healthy.at[place].set(keys[bad[0]])
    result, wanted = run(mixed), run(healthy)
    assert result.failed.tolist() == [i == place for i in range(8)]
    assert not wanted.failed.any()
    assert int(result.state.refused[place]) > 0
    for a, b in zip(of_others(result, place), of_others(wanted, place), strict=True):
        np.testing.assert_array_equal(a, b)
    # The failed one keeps finite parameters: those before the refused update.
    assert all(np.isfinite(x[place]).all() for x in arrays(result.state.learner))


def test_a_refused_update_changes_nothing_of_the_learner():
    """Rewards that are all NaN: every update is refused, and the first learner is the last."""
    env = purerl.make_env(probe_envs.NoisyEnv(nan_below=1.1))
    train = make(3, env=env)
    start = jax.jit(train.init)(jax.random.key(0))
    state, metrics = jax.jit(lambda s: train.advance(s, 3))(start)
    assert_same(state.learner, start.learner)
    assert metrics.info["finite"].tolist() == [False] * 3
    assert int(state.refused) == 3
    assert bool(train.failed(state))
    assert not train.failed(start)


def test_a_poisoned_learner_fails_alone():
    train = make(5)
    advance = jax.jit(purerl.vectorize(lambda s: train.advance(s, 5)[0]))
    healthy = jax.jit(purerl.vectorize(train.init))(jax.random.split(jax.random.key(0), 8))
    place = 5
    params = jax.tree.map(lambda x: x.at[place].set(jnp.nan), healthy.learner.params)
    poisoned = healthy._replace(learner=healthy.learner._replace(params=params))
    result, wanted = advance(poisoned), advance(healthy)
    failed = jax.jit(purerl.vectorize(train.failed))(result)
    assert failed.tolist() == [i == place for i in range(8)]
    for a, b in zip(of_others(result, place), of_others(wanted, place), strict=True):
        np.testing.assert_array_equal(a, b)


def test_non_finite_moments_count_as_failed():
    train = make(2, normalize_obs=True)
    state = train.init(jax.random.key(0))
    moments = state.normalizer.obs._replace(mean=jnp.full(3, jnp.inf))
    state = state._replace(normalizer=state.normalizer._replace(obs=moments))
    assert bool(train.failed(state))


# What an algorithm gets to see: an algorithm that only reports.


def spy(space, whole_episodes=False):
    """Acts at random; its info is the rollout, the progress and the key of the update. For discrete
    actions its log-probability is the progress that it acts by."""

    def act(state, obs, key, *, greedy=False, progress=0.0):
        if isinstance(space, Box):  # the action is the key itself
            bits = jax.random.key_data(key).astype(jnp.result_type(float))
            return jnp.broadcast_to(bits, (obs.shape[0], 2)), {"log_prob": obs[:, 0] * 0}
        action = jax.random.randint(key, obs.shape[:1], 0, space.num_actions)
        return action, {"log_prob": jnp.full(obs.shape[0], progress)}

    def update(state, rollout, key, *, progress=0.0):
        bits = jax.random.key_data(key).astype(jnp.result_type(float))
        info = {"rollout": rollout, "key": bits, "progress": progress}
        return state + 1, info | {"finite": jnp.array(True)}

    return OnPolicyAlgorithm(lambda obs, key: jnp.zeros(()), act, update, whole_episodes, 0.5)


def spied(iterations=4, env=NOISY, whole_episodes=False, **kw):
    train = make(iterations, spy(env.action_space, whole_episodes), env, **kw)
    run = jax.jit(lambda key: train.advance(train.init(key), iterations))
    return run(jax.random.key(7))


def test_moments_are_constant_within_a_rollout_and_merged_after_it(x64):
    """The first ones are of a rollout that is forgotten, as long as an iteration's."""
    env = purerl.make_env(probe_envs.NoisyEnv())
    _, raw = spied(env=env)
    state, seen = spied(env=env, normalize_obs=True)
    first = jax.jit(make(4, spy(env.action_space), env, normalize_obs=True).init)(jax.random.key(7))
    count, mean, var = (np.asarray(x) for x in first.normalizer.obs)
    assert count == 24
    obs = np.asarray(raw.info["rollout"].obs)

    def known(i):
        x = obs[:i].reshape(-1, 3)
        n = count + len(x)
        m = (count * mean + x.sum(0)) / n
        return m, (count * (var + mean**2) + (x**2).sum(0)) / n - m**2

    for name in ("obs", "next_obs"):
        x, y = (np.asarray(getattr(m.info["rollout"], name)) for m in (raw, seen))
        for i in range(4):
            m, v = known(i)
            np.testing.assert_allclose(
                y[i], np.clip((x[i] - m) / np.sqrt(v + 1e-8), -10, 10), atol=1e-9
            )
    np.testing.assert_allclose(state.normalizer.obs.mean, known(4)[0], atol=1e-12)
    np.testing.assert_allclose(state.normalizer.obs.var, known(4)[1], atol=1e-12)


@pytest.mark.parametrize("whole_episodes", [False, True])
def test_rewards_are_scaled_by_what_was_known_before(whole_episodes, x64):
    """By the algorithm's gamma; an abandoned episode's return does not go on."""
    env = purerl.make_env(probe_envs.NoisyEnv())
    _, raw = spied(env=env, whole_episodes=whole_episodes)
    _, seen = spied(env=env, whole_episodes=whole_episodes, normalize_reward=True)
    rollout = raw.info["rollout"]
    reward, done = np.asarray(rollout.reward), np.asarray(rollout.terminated | rollout.truncated)
    running, totals = np.zeros(4), []
    for i in range(4):
        running = np.zeros(4) if whole_episodes else running
        scale = np.sqrt(np.var(totals) + 1e-8) if totals else 1
        wanted = reward[i] / scale
        wanted = np.clip(wanted, -10, 10) if totals else wanted
        np.testing.assert_allclose(seen.info["rollout"].reward[i], wanted, rtol=1e-6)
        for t in range(6):
            running = 0.5 * running + reward[i, t]
            totals.extend(running)
            running = np.where(done[i, t], 0, running)


@pytest.mark.parametrize("name", ["ppo_clip", "trpo", "dqn"])
def test_a_run_whose_loops_are_packed_is_the_same_to_rounding(name, monkeypatch):
    """As on an accelerator, where they are."""
    config = {"ppo_clip": purerl.PPOClipConfig, "trpo": purerl.TRPOConfig, "dqn": purerl.DQNConfig}
    numbers = {"batch_size": 8} if name == "dqn" else {}
    sizes = {"warmup": 8} if name == "dqn" else {"normalize_reward": True}
    build = getattr(purerl, name)
    ends = []
    for packed in (False, True):
        monkeypatch.setattr(packing, "pays", lambda packed=packed: packed)
        algorithm = build(config[name](network=TINY, **numbers), NOISY.action_space)
        train = purerl.make_train(
            algorithm, NOISY, 120, num_envs=4, rollout_length=8, normalize_obs=True, **sizes
        )

        def one(key, train=train):
            state = train.init(key)
            return train.accumulate(state, train.totals(state), Clock(jnp.int32(2)))

        run, keys = jax.jit(purerl.vectorize(one)), jax.random.split(jax.random.key(0), 2)
        text = run.lower(keys).as_text()
        ends.append((run(keys), text.count("bitcast_convert")))
        assert ends[-1][0][0].clock.iteration.shape == ()
    assert_close(ends[0][0], ends[1][0], rtol=1e-4, atol=1e-5)
    assert ends[0][1] < ends[1][1]  # it was packed


@pytest.mark.parametrize("what", ["obs", "reward"])
def test_one_number_that_is_not_finite_spoils_one_update_at_most(what):
    """Moments leave it out, so that what follows is learned from as if it had not been."""

    def step(time, action, key, fresh=None):
        obs, time = jax.random.normal(key, (3,)), time + 1
        spoiled = time == 8  # in the second of four iterations
        reward = jnp.where(spoiled & (what == "reward"), jnp.nan, obs[0])
        obs = jnp.where(spoiled & (what == "obs"), jnp.inf, obs)
        return Step(obs, obs, reward, jnp.array(False), jnp.array(False)), time

    env = Env("once", lambda key: (jnp.zeros(3), jnp.int32(0)), step, Discrete(2), (3,), None)
    sizes = {"evaluations": 0, "normalize_obs": True, "normalize_reward": True}
    train = make(4, learner(env), env, **sizes)
    state, metrics = jax.jit(lambda key: train.advance(train.init(key), 4))(jax.random.key(0))
    for x in jax.tree.leaves((state.normalizer, state.learner)):
        assert np.isfinite(x).all()
    finite = np.asarray(metrics.info["finite"])
    assert finite[[0, 2, 3]].all()
    assert finite[1] == (what == "obs")  # clipped; a NaN reward is refused
    assert state.refused == (what == "reward")


def test_the_first_rewards_are_not_clipped():
    """Nothing is known yet of their scale."""
    far = NOISY._replace(name="far", step=lambda *args: _with_reward(NOISY.step(*args), -1000.0))
    _, metrics = spied(env=far, normalize_reward=True)
    reward = metrics.info["rollout"].reward
    np.testing.assert_array_equal(reward[0], np.full((6, 4), -1000.0))
    assert np.abs(reward[1:]).max() <= 10


def test_what_a_learner_sees_is_scaled_and_clipped_as_asked():
    (_, plain), (_, scaled) = spied(), spied(reward_scale=4.0)
    np.testing.assert_array_equal(
        scaled.info["rollout"].reward, 4 * np.asarray(plain.info["rollout"].reward)
    )
    assert_same(scaled.episodes, plain.episodes)  # what is reported is not
    clipped = {"clip_obs": 0.5, "clip_reward": 0.25, "normalize_obs": True}
    rollout = spied(normalize_reward=True, **clipped)[1].info["rollout"]
    for x in (rollout.obs, rollout.next_obs):
        assert np.abs(x).max() == 0.5
    assert np.abs(rollout.reward[1:]).max() == 0.25
    free = dict.fromkeys(("clip_obs", "clip_reward"))
    rollout = spied(normalize_reward=True, normalize_obs=True, **free)[1].info["rollout"]
    assert np.abs(rollout.obs).max() > 0.5


def test_how_often_a_mean_is_beyond_the_bounds():
    """In every other environment, by one of two numbers; the bounds are -1 and 1."""
    env = purerl.make_env(probe_envs.NoisyEnv(box=True))

    def act(state, obs, key, *, greedy=False, progress=0.0):
        odd = jnp.arange(len(obs)) % 2
        action = jnp.stack([3.0 * odd if greedy else 0.0 * odd, 0.5 + 0.0 * odd], axis=1)
        return action, {"log_prob": obs[:, 0] * 0}

    train = make(2, spy(env.action_space)._replace(act=act), env)
    info = jax.jit(lambda key: train.advance(train.init(key), 2))(jax.random.key(0))[1].info
    assert (info["mean_outside"] == 0.5).all()
    assert "mean_outside" not in spied()[1].info


def _with_reward(result, reward):
    step, state = result
    return step._replace(reward=jnp.full_like(step.reward, reward)), state


def test_reported_returns_are_raw():
    _, raw = spied()
    _, seen = spied(normalize_obs=True, normalize_reward=True)
    assert_same(raw.episodes, seen.episodes)
    assert np.any(arrays(raw.info["rollout"].reward)[0] != arrays(seen.info["rollout"].reward)[0])


def test_reported_returns_are_the_sums_of_rewards():
    _, metrics = spied(iterations=6)
    r = metrics.info["rollout"]
    done = np.asarray(r.terminated | r.truncated).reshape(-1, 4)
    reward, ret, length = np.asarray(r.reward).reshape(-1, 4), np.zeros(4), np.zeros(4)
    sums = np.zeros(3)
    for t in range(36):
        ret, length = ret + reward[t], length + 1
        sums += [done[t].sum(), ret[done[t]].sum(), length[done[t]].sum()]
        ret, length = np.where(done[t], 0, ret), np.where(done[t], 0, length)
    reported = [x.sum() for x in arrays(metrics.episodes)]
    np.testing.assert_allclose(reported, sums, rtol=1e-5)


def test_progress_is_the_finished_fraction():
    _, metrics = spied()
    np.testing.assert_array_equal(metrics.info["progress"], [0, 0.25, 0.5, 0.75])
    acted_by = metrics.info["rollout"].log_prob
    np.testing.assert_array_equal(np.unique(acted_by, axis=1)[:, 0, 0], [0, 0.25, 0.5, 0.75])
    assert acted_by.shape == (4, 6, 4)


def ahead_spy():
    """Acts by noise that is the step's number; actions and log-probs tell what it was given."""

    def noise(state, obs, key, length):
        drawn = jax.random.uniform(key, (length, len(obs)))
        return jnp.arange(length, dtype=drawn.dtype), drawn

    def act(state, obs, noise, *, progress):
        step, drawn = noise
        action = jnp.stack([jnp.broadcast_to(step, drawn.shape), drawn + progress], axis=-1)
        return action, {"seen": obs}

    def log_prob(policy, action):
        return policy["seen"][..., 0] + 100 * action[..., 0]

    def refuse(state, obs, key, *, greedy=False, progress=1.0):
        return (jnp.zeros((len(obs), 2)), {}) if greedy else 1 / 0  # only evaluation calls it

    ahead = Ahead(noise, act, log_prob)
    return spy(Box((2,)))._replace(act=refuse, ahead=ahead)


@pytest.mark.parametrize("normalize_obs", [False, True])
def test_noise_is_drawn_ahead_and_log_probabilities_after_the_rollout(normalize_obs):
    """Each step gets its row, each iteration numbers of its own; observations as the learner's."""
    train = make(4, ahead_spy(), purerl.make_env(key_env()), normalize_obs=normalize_obs)
    _, metrics = jax.jit(lambda key: train.advance(train.init(key), 4))(jax.random.key(7))
    rollout = metrics.info["rollout"]
    step, drawn = rollout.action[..., 0], rollout.action[..., 1]  # [4, T, N]
    np.testing.assert_array_equal(step, np.broadcast_to(np.arange(6.0)[:, None], (4, 6, 4)))
    drawn = drawn - np.array([0, 0.25, 0.5, 0.75])[:, None, None]
    assert np.all((drawn > -1e-6) & (drawn < 1))
    assert len(np.unique(drawn)) > 90
    np.testing.assert_allclose(rollout.log_prob, rollout.obs[..., 0] + 100 * step, rtol=1e-6)
    assert (np.abs(rollout.obs).max() <= 10) == normalize_obs


@pytest.mark.parametrize("whole_episodes", [True, False])
def test_whole_episodes_start_each_rollout_at_a_reset(whole_episodes):
    _, metrics = spied(iterations=6, whole_episodes=whole_episodes)
    first = np.asarray(metrics.info["rollout"].episode_step)[:, 0]
    assert (not first.any()) == whole_episodes


def test_episodes_go_on_from_rollout_to_rollout():
    _, metrics = spied(iterations=6)
    r = metrics.info["rollout"]
    done = np.asarray(r.terminated | r.truncated)
    obs, next_obs, step = (np.asarray(x) for x in (r.obs, r.next_obs, r.episode_step))
    for i in range(5):
        on = ~done[i, -1]
        assert on.any()
        np.testing.assert_array_equal(obs[i + 1, 0][on], next_obs[i, -1][on])
        np.testing.assert_array_equal(step[i + 1, 0], np.where(on, step[i, -1] + 1, 0))


def key_env(limit=6):
    """An environment whose observations are the keys that it was given; a rollout an episode."""
    see = lambda key: jax.random.key_data(key).astype(jnp.result_type(float))  # noqa: E731

    def step(time, action, key, fresh):
        after, end = (see(key), time + 1), time + 1 == limit
        obs, time = jax.tree.map(lambda new, old: jnp.where(end, new, old), fresh, after)
        return Step(obs, after[0], jnp.zeros(()), jnp.array(False), end), time

    return Env("keys", lambda key: (see(key), jnp.int32(0)), step, Box((2,)), (2,), limit)


@pytest.mark.parametrize("whole_episodes", [True, False])
def test_no_key_is_used_twice(whole_episodes, x64):
    """Of the resets, the steps of each environment, the actions and the updates."""
    _, metrics = spied(iterations=5, env=key_env(), whole_episodes=whole_episodes)
    rollout = metrics.info["rollout"]
    assert rollout.obs.dtype == jnp.float64  # a uint32 fits
    keys = [rollout.next_obs.reshape(-1, 2), rollout.action[:, :, 0].reshape(-1, 2)]
    keys += [metrics.info["key"]]
    keys += [rollout.obs[:, 0].reshape(-1, 2)]  # of the resets
    keys = np.concatenate([np.asarray(k) for k in keys])
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_jax_finds_no_reused_key():
    config = purerl.PPOClipConfig(network=TINY, num_epochs=2, num_minibatches=2)
    train = make(2, purerl.ppo_clip(config, NOISY.action_space))
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: train.advance(train.init(key), 2))(jax.random.key(0))


def test_evaluations_have_keys_of_their_own():
    """The same policy evaluated at another iteration meets other episodes."""
    train = make(4)
    state = train.init(jax.random.key(0))
    later = state._replace(clock=Clock(jnp.int32(1)))
    evaluate = jax.jit(train.evaluate)
    assert evaluate(state).mean_return != evaluate(later).mean_return
    assert evaluate(state).mean_return == evaluate(state).mean_return


def test_discrete_actions_are_what_the_space_says():
    _, metrics = spied()
    assert isinstance(NOISY.action_space, Discrete)
    assert set(np.unique(metrics.info["rollout"].action)) <= {0, 1, 2}


@pytest.mark.parametrize("of", ["the run", "its own"])
def test_a_state_may_hold_a_key(of):
    """Of an environment: one that it is given, or one that it makes; of the learner too."""

    def reset(key):
        held = key if of == "the run" else jax.random.key(7)
        return jnp.zeros(2), (held, jnp.int32(0))

    def step(state, action, key, fresh):
        held, drawn = jax.random.split(state[0])
        obs, over = jax.random.uniform(drawn, (2,)), state[1] == 3
        ended = jax.tree.map(
            lambda new, old: jnp.where(over, new, old), fresh, (obs, (held, state[1] + 1))
        )
        return Step(ended[0], obs, obs[0], over, jnp.array(False)), ended[1]

    env = Env("keyed", reset, step, Discrete(2), (2,), 4)
    inner = learner(env)

    def update(state, rollout, key, **kw):
        learned, info = inner.update(state[0], rollout, key, **kw)
        return (learned, jax.random.split(state[1])[0]), info

    algorithm = inner._replace(
        init=lambda obs, key: (inner.init(obs, key), jax.random.key(5)),
        act=lambda state, obs, key, **kw: inner.act(state[0], obs, key, **kw),
        update=update,
        ahead=None,
    )
    train = make(2, algorithm, env, evaluations=1)
    state, _ = jax.jit(lambda key: train.advance(train.init(key), 2))(jax.random.key(0))
    plain = jax.random.key(0).dtype
    assert state.key.dtype == state.learner[1].dtype == plain
    assert state.actors.env_state[0].dtype == plain
    assert jnp.isfinite(jax.jit(train.evaluate)(state).mean_return)
