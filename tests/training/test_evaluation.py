"""Evaluation: whole episodes, none preferred for its length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.envs.record import Env, Step
from purerl.records import Discrete
from purerl.training.evaluation import evaluate

SHORT, LONG = 1, 10


def short_or_long(limit=None):
    """Half of the episodes have one step and return 0, the others ten steps and return 1.

    The observation is 1 in a long episode. A reset after an episode starts another one, whose
    rewards must not count; every step after the first episode would give 100.
    """

    def start(key):
        long = jax.random.bernoulli(key).astype(jnp.float32)
        return long[None], (long, jnp.zeros(()))

    def step(state, action, key, fresh=None):
        long, time = state
        time = time + 1
        end = jnp.where(long == 1, LONG, SHORT)
        reward = jnp.where(time == end, long, 0.0) + jnp.where(time > end, 100.0, 0.0)
        obs = long[None]
        return Step(obs, obs, reward, time == end, jnp.array(False)), (long, time)

    return Env("short or long", start, step, Discrete(2), (1,), limit)


def first_action(obs, key):
    return jnp.zeros(obs.shape[0], jnp.int32)


def run(env, seed=0, **settings):
    play = jax.jit(lambda key: evaluate(first_action, env, key, **settings))
    return play(jax.random.key(seed))


def test_short_episodes_count_no_more_than_long_ones():
    """Were the first episodes to end counted, the mean return would be about 0.1."""
    result = run(short_or_long(), episodes=1000, max_steps=50)
    share = float(result.mean_return)
    assert abs(share - 0.5) < 4 * 0.5 / 1000**0.5
    np.testing.assert_allclose(result.mean_length, SHORT + share * (LONG - SHORT), rtol=1e-5)
    assert result.unfinished == 0


def test_cut_episodes_are_reported():
    whole = run(short_or_long(), episodes=100, max_steps=LONG)
    cut = run(short_or_long(), episodes=100, max_steps=LONG - 1)
    long = 100 * float(whole.mean_return)
    assert whole.unfinished == 0
    assert cut.unfinished == round(long)
    assert cut.mean_return == 0
    np.testing.assert_allclose(cut.mean_length, (100 - long + 9 * long) / 100, rtol=1e-5)


def test_the_environments_limit_is_the_default():
    default = run(short_or_long(limit=4), episodes=20)
    given = run(short_or_long(), episodes=20, max_steps=4)
    assert default == given
    assert default.unfinished > 0
    longer = run(short_or_long(limit=4), episodes=20, max_steps=20)
    assert longer.unfinished == 0


def test_truncated_episodes_are_finished():
    def step(state, action, key, fresh=None):
        obs = jnp.zeros(1)
        return Step(obs, obs, jnp.ones(()), jnp.array(False), state == 2), state + 1

    env = Env("limit", lambda key: (jnp.zeros(1), jnp.zeros(())), step, Discrete(2), (1,), 3)
    result = run(env, episodes=2)
    assert (result.mean_return, result.mean_length, result.unfinished) == (3, 3, 0)


def test_the_policy_gets_observations_and_fresh_keys():
    """Reward: 1 where the action is what was observed, 1 where its noise differs from the last."""

    def start(key):
        return jnp.zeros(1), jnp.zeros(3)

    def step(state, action, key, fresh=None):
        seen, time, noise = state
        reward = (action[0] == seen) + 1.0 * (action[1] != noise)
        after = jnp.stack([1 - seen, time + 1, action[1]])
        return Step(after[:1], after[:1], reward, time == 3, jnp.array(False)), after

    def policy(obs, key):
        return jnp.concatenate([obs, jax.random.uniform(key, obs.shape)], axis=1)

    env = Env("echo", start, step, Discrete(2), (1,), 4)
    play = jax.jit(lambda key: evaluate(policy, env, key, episodes=50))
    assert play(jax.random.key(0)).mean_return == 4 * (1 + 1)


def test_evaluation_of_many_policies_at_once():
    """Under vmap, every policy's result is the one it has alone."""
    env, keys = short_or_long(), jax.random.split(jax.random.key(3), 3)
    play = lambda key: evaluate(first_action, env, key, episodes=16, max_steps=20)  # noqa: E731
    together = jax.jit(jax.vmap(play))(keys)
    single = jax.jit(play)
    for i, key in enumerate(keys):
        alone = single(key)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


def test_a_missing_limit_is_an_error():
    with pytest.raises(ValueError, match=r"short or long has no known time limit.*max_steps"):
        evaluate(first_action, short_or_long(), jax.random.key(0))


def test_no_episode_is_an_error():
    with pytest.raises(ValueError, match="episodes=0, wanted at least 1"):
        evaluate(first_action, short_or_long(limit=10), jax.random.key(0), episodes=0)
