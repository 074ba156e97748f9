"""Unrolling a small corridor, replayed step by step in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.envs import Env, Step
from purerl.pieces import packing
from purerl.pieces.rollout import reset, unroll
from purerl.records import Discrete

LENGTH, LIMIT, N, T = 3, 5, 4, 40


def corridor():
    """State (place, time), seen as it is; action 1 goes on, 0 waits. It terminates at the end of
    the corridor and is truncated after LIMIT steps; both at once happen too."""

    def start(key):
        return jnp.zeros(2), jnp.zeros(2)

    def step(state, action, key, fresh=None):
        place = state[0] + action
        after = jnp.stack([place, state[1] + 1])
        terminated, truncated = after[0] == LENGTH, after[1] == LIMIT
        done = terminated | truncated
        state = jnp.where(done, jnp.zeros(2), after)
        return Step(state, after, place + 0.5, terminated, truncated), state

    return Env("corridor", start, step, Discrete(2), (2,), LIMIT)


def act(obs, key):
    """Goes on with probability one half; what it calls log-prob names state and action."""
    action = jax.random.bernoulli(key, shape=obs.shape[:1]).astype(jnp.int32)
    return action, {"log_prob": obs[:, 0] + 100.0 * action}


@pytest.fixture(scope="module", params=[False, True], ids=["arrays", "packed"])
def played(request):
    env = corridor()
    actors = reset(env, N, jax.random.key(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "pays", lambda: request.param)
        run = jax.jit(lambda actors, key: unroll(act, env, actors, key, T))
        return run(actors, jax.random.key(1))


def test_rollout_equals_a_loop(played):
    """Every field, step by step, from the actions that the rollout says were taken."""
    actors, rollout, statistics = played
    count, return_sum, length_sum = 0, 0.0, 0
    for i in range(N):
        place, time, total = 0.0, 0, 0.0
        for t in range(T):
            at = jax.tree.map(lambda x, t=t, i=i: np.asarray(x[t, i]), rollout)
            assert at.obs.tolist() == [place, time]
            assert at.episode_step == time
            assert at.log_prob == place + 100 * at.action
            place, time = place + int(at.action), time + 1
            assert at.next_obs.tolist() == [place, time]  # before any reset
            assert at.reward == place + 0.5
            assert at.terminated == (place == LENGTH)
            assert at.truncated == (time == LIMIT)
            total += place + 0.5
            if at.terminated or at.truncated:
                count, return_sum, length_sum = count + 1, return_sum + total, length_sum + time
                place, time, total = 0.0, 0, 0.0
        assert actors.obs[i].tolist() == [place, time]
        assert actors.episodes.ret[i] == total
        assert actors.episodes.length[i] == time
    assert statistics.ended == count
    assert statistics.return_sum == return_sum
    assert statistics.length_sum == length_sum
    np.testing.assert_allclose(statistics.mean_return(), return_sum / count, rtol=1e-6)
    np.testing.assert_allclose(statistics.mean_length(), length_sum / count, rtol=1e-6)


def test_all_kinds_of_ends_were_played(played):
    _, rollout, _ = played
    ends = rollout.terminated + 2 * rollout.truncated.astype(int)
    assert set(np.unique(ends)) == {0, 1, 2, 3}


def test_obs_follows_next_obs_except_after_a_reset(played):
    _, rollout, _ = played
    done = (rollout.terminated | rollout.truncated)[:-1]
    same = jnp.all(rollout.next_obs[:-1] == rollout.obs[1:], axis=-1)
    np.testing.assert_array_equal(same, ~done)
    assert not jnp.any(jnp.where(done[..., None], rollout.obs[1:], 0))


def test_two_rollouts_continue_one_another():
    """An episode that spans two rollouts counts once, in the second, with all of its return."""
    env = corridor()
    forward = lambda obs, key: (jnp.ones(N, jnp.int32), {"log_prob": jnp.zeros(N)})  # noqa: E731
    run = jax.jit(lambda actors, key: unroll(forward, env, actors, key, 2))
    actors = reset(env, N, jax.random.key(0))
    actors, first, none = run(actors, jax.random.key(1))
    _, second, some = run(actors, jax.random.key(2))
    assert first.episode_step[:, 0].tolist() == [0, 1]
    assert second.episode_step[:, 0].tolist() == [2, 0]
    assert (none.ended, some.ended) == (0, N)
    assert jnp.isnan(none.mean_return())
    assert some.mean_return() == 1.5 + 2.5 + 3.5
    assert some.mean_length() == 3


def test_statistics_do_not_grow_with_the_rollout():
    env = corridor()
    actors = reset(env, N, jax.random.key(0))
    for length in (1, 1000):
        statistics = jax.eval_shape(
            lambda a, k, length=length: unroll(act, env, a, k, length)[2], actors, jax.random.key(1)
        )
        assert [x.shape for x in jax.tree.leaves(statistics)] == [(), (), ()]


def test_environments_and_steps_have_keys_of_their_own():
    """An environment that shows its key's random number never shows the same one twice."""

    def start(key):
        return jax.random.uniform(key, (1,)), jnp.zeros(())

    def step(state, action, key, fresh=None):
        obs = jax.random.uniform(key, (1,))
        no = jnp.array(False)
        return Step(obs, obs, state, no, no), state

    env = Env("random", start, step, Discrete(2), (1,), None)
    act = lambda obs, key: (  # noqa: E731
        jnp.zeros(N, jnp.int32),
        {"log_prob": jax.random.uniform(key, (N,))},
    )
    actors = reset(env, N, jax.random.key(0))
    _, rollout, _ = jax.jit(lambda a, k: unroll(act, env, a, k, 50))(actors, jax.random.key(1))
    shown = np.concatenate([np.ravel(actors.obs), np.ravel(rollout.next_obs)])
    assert len(np.unique(shown)) == 51 * N
    assert len(np.unique(rollout.log_prob)) == 50 * N
    assert not np.intersect1d(shown, rollout.log_prob).size


@pytest.mark.parametrize("first_only", [False, True])
def test_statistics_of_first_episodes_leave_out_later_ones(first_only, key):
    env = purerl.make_env("CartPole-v1", max_steps_in_episode=4)
    actors = reset(env, 3, key)
    act = lambda obs, key: (jnp.zeros(3, jnp.int32), {"log_prob": jnp.zeros(3)})  # noqa: E731
    _, _, statistics = purerl.unroll(act, env, actors, key, 12, first_only=first_only)
    assert statistics.ended == (3 if first_only else 9)
    assert statistics.mean_length() == 4


def test_every_reset_of_a_rollout_is_another_one(key):
    env = purerl.make_env("CartPole-v1", max_steps_in_episode=1)
    actors = reset(env, 2, key)
    act = lambda obs, key: (jnp.zeros(2, jnp.int32), {"log_prob": jnp.zeros(2)})  # noqa: E731
    _, rollout, _ = purerl.unroll(act, env, actors, key, 16)
    starts = np.asarray(rollout.obs).reshape(-1, 4)
    assert len(np.unique(starts, axis=0)) == len(starts)


@pytest.mark.parametrize("num_envs", [3, 20])
def test_resets_when_due_are_those_drawn_ahead_and_no_others(num_envs):
    """Bitwise the same rollout, for several seeds too; a reset is made for an episode that ended
    (of 20 environments, two at a time).
    """
    made = []

    def start(key):
        jax.debug.callback(lambda: made.append(1))
        drawn = jax.random.uniform(key)
        return drawn[None], (drawn, key)

    def step(state, action, key, fresh):
        drawn = state[0] + jax.random.uniform(key)
        done = drawn > 1.5
        after = (drawn[None], (drawn, state[1]))
        obs, state = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, after)
        return Step(obs, after[0], drawn, done, jnp.array(False)), state

    env = Env("drawn", start, step, Discrete(2), (1,), None)
    act = lambda obs, key: (jnp.zeros(len(obs), jnp.int32), {"log_prob": obs[:, 0]})  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 2)
    actors = jax.vmap(lambda key: reset(env, num_envs, key))(keys)

    def play(resets):
        env_ = env._replace(resets=resets)
        return jax.jit(jax.vmap(lambda a, key: unroll(act, env_, a, key, 10)))(actors, keys)

    ahead = jax.block_until_ready(play("ahead"))
    jax.effects_barrier()
    made.clear()
    due = jax.block_until_ready(play("due"))
    jax.effects_barrier()
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(data, x) for x in (ahead, due)))
    assert jnp.all(due[2].ended > num_envs)
    # Seeds go together, so each step makes as many as the seed in which most episodes ended.
    most = jnp.max(jnp.sum(due[1].terminated, axis=-1), axis=0)
    assert len(made) == jnp.sum(jnp.ceil(most / -(-num_envs // 16)))


@pytest.mark.parametrize("packed", [False, True])
def test_no_memory_is_taken_by_starts_or_beside_the_rollout(packed, monkeypatch):
    """By the compiler's analysis, 64 environments of pictures, 128 steps; compiled only."""

    def start(key):
        obs = jax.random.bits(key, (84, 84, 4), jnp.uint8)
        return obs, (obs, jnp.zeros((), jnp.int32))

    def step(state, action, key, fresh):
        obs, time = jnp.roll(state[0], action, 0), state[1] + 1
        done = time == 10
        first, state = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, (obs, (obs, time)))
        return Step(first, obs, jnp.float32(1), jnp.array(False), done), state

    monkeypatch.setattr(packing, "pays", lambda: packed)
    env = Env("pictures", start, step, Discrete(2), (84, 84, 4), None)
    act = lambda obs, key: (jax.random.randint(key, obs.shape[:1], 0, 2), {})  # noqa: E731
    play = lambda actors, key: unroll(act, env, actors, key, 128)  # noqa: E731
    key = jax.random.key(0)
    actors = jax.eval_shape(lambda key: reset(env, 64, key), key)
    taken = jax.jit(play).lower(actors, key).compile().memory_analysis().temp_size_in_bytes
    rollout = jax.tree.leaves(jax.eval_shape(play, actors, key)[1])
    assert taken < 0.2 * sum(x.size * x.dtype.itemsize for x in rollout)


def data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_an_environment_that_begins_again_by_itself_is_not_reset():
    def start(key):
        raise AssertionError("reset was traced")

    env = corridor()._replace(resets="own")
    actors = reset(env, N, jax.random.key(0))
    rollout = unroll(act, env, actors, jax.random.key(1), 5)[1]
    again = unroll(act, env._replace(reset=start), actors, jax.random.key(1), 5)[1]
    jax.tree.map(np.testing.assert_array_equal, rollout, again)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_go_through_a_rollout(packed, monkeypatch):
    """Of the rewards by the policy's parameter, where the environment is differentiable."""

    def start(key):
        return jnp.zeros(1), jnp.zeros(1)

    def step(state, action, key, fresh=None):
        state = state + action
        no = jnp.array(False)
        return Step(state, state, state[0], no, no), state

    monkeypatch.setattr(packing, "pays", lambda: packed)
    env = Env("line", start, step, purerl.Box((1,)), (1,), None)

    def total(speed):
        act = lambda obs, key: (jnp.full((N, 1), speed), {})  # noqa: E731
        actors = reset(env, N, jax.random.key(0))
        return jnp.sum(unroll(act, env, actors, jax.random.key(1), 3)[1].reward)

    assert jax.grad(total)(2.0) == N * (1 + 2 + 3)


def test_noise_is_given_instead_of_keys():
    noise = {"action": jnp.arange(T * N).reshape(T, N) % 2, "step": jnp.arange(1.0, T + 1)}
    actors = reset(corridor(), N, jax.random.key(0))

    def act(obs, noise):
        return noise["action"], {"log_prob": jnp.full(N, noise["step"])}

    _, rollout, _ = unroll(act, corridor(), actors, jax.random.key(1), T, noise=noise)
    np.testing.assert_array_equal(rollout.action, noise["action"])
    np.testing.assert_array_equal(rollout.log_prob[:, 0], noise["step"])
