"""Environments that the host plays: what they did is what is learned from, whatever their vector does.

In :class:`Script` observations tell which episode and step they are of, so that a rollout can be
checked against the environment itself.
"""

import time

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from run_folders import read_rows

import purerl
from purerl.host.players.actors import Actors
from purerl.host.players.driver import PlayedDriver
from purerl.host.players.player import PlayedError
from purerl.records import Rollout

LENGTHS = (3, 5, 4)  # of an environment's episodes, again and again
TINY = purerl.NetworkConfig(hidden_sizes=(8,))


class Script(gymnasium.Env):
    """Observes (seed, episode, step); every other episode is cut off, the others end."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(2, start=1)

    def __init__(self, fail_at=None, hang_at=None):
        self.episode, self.fail_at, self.hang_at = -1, fail_at, hang_at

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.number = seed % 97
        self.episode, self.time = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        assert action in (1, 2)
        self.time += 1
        if self.fail_at == self.time:
            raise RuntimeError("the motor is broken")
        if self.hang_at == self.time:
            time.sleep(20)
        last, cut = self.time == LENGTHS[self.episode % 3], self.episode % 2 == 1
        return self._obs(), float(self.time), last and not cut, last and cut, {}

    def _obs(self):
        return np.array([self.number, self.episode, self.time], np.float64)


def vector(num_envs, mode="NEXT_STEP"):
    env = SyncVectorEnv([Script] * num_envs, autoreset_mode=AutoresetMode[mode])
    return NaNs(env) if mode == "NEXT_STEP" else env


class NaNs(gymnasium.vector.VectorWrapper):
    """The step that is spent on a reset gives a NaN as reward: nobody may learn from it."""

    def reset(self, **kwargs):
        self.ended = np.zeros(self.num_envs, bool)
        return super().reset(**kwargs)

    def step(self, actions):
        obs, reward, terminated, truncated, info = super().step(actions)
        reward = np.where(self.ended, np.nan, reward)
        self.ended = terminated | truncated
        return obs, reward, terminated, truncated, info


MAKERS = {
    "singles": Script,
    **{
        mode: (lambda num_envs, mode=mode: vector(num_envs, mode))
        for mode in ("NEXT_STEP", "SAME_STEP", "DISABLED")
    },
}


def experiment(algorithm="a2c", env=Script, **options):
    sizes = {"num_envs": 2, "rollout_length": 16, "steps": 96, "evaluations": 0, "network": TINY}
    return purerl.make_experiment(algorithm, env, **sizes | options)


def played(name, **options):
    """A driver that has collected two rollouts, and they, of both seeds ``[S, 2 T, N]``."""
    made = experiment(env=MAKERS[name], **options)
    keys = jax.random.split(jax.random.key(0), 2)
    driver = PlayedDriver(made, {}, keys, purerl.RunOptions())
    driver.compile()
    driver.start()
    length = made.loop.rollout_length
    parts = [jax.device_get(driver._collect(length, i)) for i in (1, 2)]
    rollout = jax.tree.map(lambda x, y: np.concatenate([x, y], 1), *(part[0] for part in parts))
    return driver, rollout, [part[1] for part in parts]


@pytest.mark.parametrize("name", MAKERS)
def test_a_rollout_is_what_happened(name):
    driver, rollout, statistics = played(name)
    driver.close()
    valid = np.ones(rollout.reward.shape, bool) if rollout.valid is None else rollout.valid
    assert (name == "NEXT_STEP") == (not valid.all())
    done = rollout.terminated | rollout.truncated
    ends, returns, lengths = 0, 0.0, 0
    for s, n in np.ndindex(2, 2):
        rows = np.flatnonzero(valid[s, :, n])
        column = jax.tree.map(lambda x, s=s, n=n: x[s, :, n][valid[s, :, n]], rollout)
        number, episode, step = column.obs.T
        assert len(set(number)) == 1
        assert (column.episode_step == step).all()
        np.testing.assert_array_equal(column.next_obs[:, 2], step + 1)  # before any reset
        np.testing.assert_array_equal(column.next_obs[:, 1], episode)
        np.testing.assert_array_equal(column.reward, step + 1)
        last = step + 1 == np.array(LENGTHS)[episode.astype(int) % 3]
        np.testing.assert_array_equal(column.terminated, last & (episode % 2 == 0))
        np.testing.assert_array_equal(column.truncated, last & (episode % 2 == 1))
        np.testing.assert_array_equal(step[1:], np.where(last[:-1], 0, step[:-1] + 1))
        np.testing.assert_array_equal(episode[1:], episode[:-1] + last[:-1])
        # What is no transition follows an end, and nothing else does.
        gaps = np.setdiff1d(np.arange(len(done[s])), rows)
        assert done[s, gaps[gaps > 0] - 1, n].all()
        steps = (step + 1)[last]
        ends, lengths = ends + len(steps), lengths + steps.sum()
        returns += np.sum(steps * (steps + 1) / 2)
    assert sum(part.ended.sum() for part in statistics) == ends
    assert sum(part.return_sum.sum() for part in statistics) == returns
    assert sum(part.length_sum.sum() for part in statistics) == lengths


def test_seeds_play_episodes_of_their_own_and_the_same_again():
    numbers = []
    for _ in range(2):
        driver, rollout, _ = played("singles")
        driver.close()
        numbers.append(rollout.obs[..., 0, :, 0])
    np.testing.assert_array_equal(*numbers)
    assert len(set(np.ravel(numbers[0]))) == 4


CARTPOLE = "gymnasium:CartPole-v1"
ALGORITHMS = {
    "policy_gradient": {"estimator": "return_to_go", "max_episode_steps": 40},
    "a2c": {"normalize_reward": True},
    "acktr": {},
    "ppo_clip": {"normalize_obs": True},
    "ppo_penalty": {},
    "trpo": {},
    "npg": {},
    "dqn": {"warmup": 128, "prioritized": True, "n_step": 3, "rollout_length": 1, "capacity": 512},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_stops_and_goes_on(name, tmp_path):
    """In a vector that spends steps on its resets: their rewards are NaN."""
    options = {"rollout_length": 32, "steps": 384} | ALGORITHMS[name]
    if name == "policy_gradient":  # whole first episodes; the limit is the vector's
        options["env_params"] = {}
    env = vector if name != "policy_gradient" else "gymnasium:CartPole-v1"
    if name == "policy_gradient":
        options |= {"env_params": {"max_episode_steps": 30}, "num_envs": 2}
    made = experiment(
        name, env, **options | {"evaluations": 2, "evaluation_episodes": 2, "max_episode_steps": 30}
    )
    calls = []

    def stop(row):
        calls.append(row["step"])
        return purerl.STOP if len(calls) == 1 else None

    how = {"seeds": 2, "progress": False}
    cut = purerl.run(made, out=tmp_path / "run", on_row=stop, **how)
    assert cut.stopped == "hook"
    result = purerl.resume(tmp_path / "run", progress=False)
    assert result.stopped is None
    assert result.returns.shape == (2, 2)
    assert np.isfinite(result.returns).all()
    assert not result.failed.any()
    longer = purerl.resume(tmp_path / "run", steps=480, progress=False)
    assert int(longer.steps[-1]) >= 480
    assert len(read_rows(tmp_path / "run")) >= 4
    policy = purerl.load_policy(tmp_path / "run")
    obs = made.environment.reset(jax.random.key(0))[0]
    assert policy(np.asarray(obs)) in (1, 2) if env is vector else (0, 1)
    evaluation = purerl.evaluate_run(tmp_path / "run", episodes=2)
    assert evaluation.mean_return.shape == (2,)
