"""Environments that the host plays: what they did is learned from, whatever their vector does.

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
from purerl.host.players.player import Moved, PlayedError

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


QUIET = {"seeds": 2, "progress": False}


def played(env, **options):
    """A driver that has collected two rollouts, and they, of both seeds ``[S, 2 T, N]``."""
    made = experiment(env=env, **options)
    keys = jax.random.split(jax.random.key(0), 2)
    driver = PlayedDriver(made, {}, keys, purerl.RunOptions())
    driver.compile()
    driver.start()
    length = made.loop.rollout_length
    parts = [jax.device_get(driver._collect(length, i * length)) for i in (0, 1)]
    rollout = jax.tree.map(lambda x, y: np.concatenate([x, y], 1), *(part[0] for part in parts))
    return driver, rollout, [part[1] for part in parts]


@pytest.mark.parametrize("name", MAKERS)
def test_a_rollout_is_what_happened(name):
    driver, rollout, statistics = played(MAKERS[name])
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
        driver, rollout, _ = played(Script)
        driver.close()
        numbers.append(rollout.obs[..., 0, :, 0])
    np.testing.assert_array_equal(*numbers)
    assert len(set(np.ravel(numbers[0]))) == 4


CARTPOLE, LIMIT = "gymnasium:CartPole-v1", {"max_episode_steps": 30}
ALGORITHMS = {
    "policy_gradient": {"estimator": "return_to_go"},
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
    env, options = vector, {"rollout_length": 32, "steps": 384} | ALGORITHMS[name]
    if name == "policy_gradient":  # whole first episodes need a time limit that is known
        env, options = CARTPOLE, options | {"env_params": {"max_episode_steps": 30}}
    made = experiment(name, env, evaluations=2, evaluation_episodes=2, **LIMIT, **options)
    calls = []

    def stop(row):
        calls.append(row["step"])
        return purerl.STOP if len(calls) == 1 else None

    cut = purerl.run(made, out=tmp_path / "run", on_row=stop, **QUIET)
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


@pytest.mark.parametrize("name", ["NEXT_STEP", "SAME_STEP"])
def test_the_log_says_which_share_of_the_steps_were_transitions(name):
    rows = []
    purerl.run(
        experiment(env=MAKERS[name], evaluations=1, max_episode_steps=9),
        **QUIET,
        on_row=rows.append,
    )
    assert ("valid" in rows[0]) == (name == "NEXT_STEP")
    if name == "NEXT_STEP":  # each episode takes a step more than its length
        taken = [flag for length in 9 * LENGTHS for flag in [True] * length + [False]][: 96 // 2]
        np.testing.assert_allclose(rows[0]["valid"], np.mean(taken))


def test_processes_of_their_own_and_learning_meanwhile():
    made = experiment(env=CARTPOLE, steps=64, env_params={"vectorization": "async"})
    assert not purerl.run(made, **QUIET).failed.any()
    options = {"warmup": 32, "rollout_length": 4, "capacity": 128, "batch_size": 16}
    late = experiment("dqn", **options)
    assert not purerl.run(late, overlap=True, **QUIET).failed.any()


@pytest.mark.parametrize(("name", "env"), [("a2c", Script), ("dqn", "CartPole-v1")])
def test_overlap_is_refused_where_it_does_nothing(name, env):
    with pytest.raises(ValueError, match=r"overlap=True is for an off-policy run in .* host plays"):
        purerl.run(name, env, overlap=True, **QUIET)


def test_no_number_of_acting_is_used_twice():
    """What is played before the first iteration has other keys than what is played in them."""
    numbers = []
    made = experiment("dqn", warmup=8, rollout_length=2, capacity=64, batch_size=8, steps=24)
    driver = PlayedDriver(made, {}, jax.random.split(jax.random.key(0), 2), purerl.RunOptions())
    act = driver._act
    driver.__dict__["_act"] = lambda rows, acting, obs, number: (
        numbers.append(int(number.iteration)) or act(rows, acting, obs, number)
    )
    driver.compile()
    driver.start()
    driver.advance(3)
    driver.close()
    assert numbers == list(range(4 + 3 * 2))


def test_a_sweep_of_what_the_host_plays(tmp_path):
    made = experiment(evaluations=1, evaluation_episodes=1, **LIMIT)
    result = purerl.sweep(made, {"learning_rate": [1e-3, 1e-2]}, out=tmp_path / "sweep", **QUIET)
    assert result.returns.shape[:2] == (2, 2)
    policy = purerl.load_policy(tmp_path / "sweep")
    assert policy(np.zeros(3)) in (1, 2)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (
            {"fail_at": 3},
            {},
            r"environment 0 of seed 0 failed at step 2 .* the motor is broken .*kept",
        ),
        ({"hang_at": 2}, {"env_seconds": 2.0}, r"seeds 0 to 1 failed at step 1.*no answer within"),
    ],
)
def test_an_environment_that_fails_or_hangs_is_named(params, options, message):
    made = experiment(env_params=params)
    with pytest.raises(PlayedError, match=message):
        purerl.run(made, **QUIET, **options)


class Illegal(Script):
    observation_space = spaces.Dict(
        {"at": spaces.Discrete(5), "action_mask": spaces.MultiBinary(2)}
    )

    def _obs(self):
        return {"at": self.time, "action_mask": np.full(2, self.time < 2, np.int8)}


class OneIsLegal(gymnasium.Env):
    """Of its two choices, whose masks are a tuple, it takes only 0 and 1."""

    masks = spaces.Tuple([spaces.MultiBinary(3), spaces.MultiBinary(2)])
    observation_space = spaces.Dict({"at": spaces.Box(0, 9, (2,)), "action_mask": masks})
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        masks = np.array([1, 0, 0], np.int8), np.array([0, 1], np.int8)
        return {"at": np.zeros(2, np.float32), "action_mask": masks}, {}

    def step(self, action):
        assert action.tolist() == [0, 1]
        return self.reset()[0], 1.0, True, False, {}


def test_a_tuple_of_masks_forbids_actions():
    driver, rollout, _ = played(OneIsLegal, rollout_length=8)
    driver.close()
    assert rollout.obs["action_mask"].dtype == bool
    assert rollout.obs["action_mask"].shape[-1] == 5


class RewardsInArrays(Script):
    def __init__(self, size=1):
        super().__init__()
        self.size = size

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.full(self.size, reward), *rest


def test_a_reward_may_be_an_array_of_one():
    player = side_by_side(RewardsInArrays, 4)
    player.reset()
    assert player.step(np.zeros(4, int)).reward.tolist() == [1, 1, 1, 1]
    player = side_by_side(RewardsInArrays, 4, size=2)
    player.reset()
    with pytest.raises(
        PlayedError, match=r"RewardsInArrays .*a reward of shape \(2,\), wanted one"
    ):
        player.step(np.zeros(4, int))


def test_a_state_without_a_legal_action_is_named():
    with pytest.raises(PlayedError, match=r"environment 0 of seed 0 failed.*allows no action"):
        purerl.run(experiment(env=Illegal), **QUIET)


@pytest.mark.parametrize(
    ("env", "params", "error", "message"),
    [
        ("gymnasium:CartPole-v9", {}, ValueError, "Did you mean CartPole-v1"),
        ("gymnasium:CartPole-v1", {"gravity": 1}, ValueError, "gymnasium.make.*failed.*gravity"),
        ("gymnasium:CartPole-v1", {"vectorization": "both"}, ValueError, "unknown vectorization"),
        (Script(), {}, TypeError, "one environment, and a run needs several; give the function"),
        (SyncVectorEnv([Script]), {}, TypeError, "a vector of 1 environments.*takes num_envs"),
    ],
)
def test_what_cannot_be_played_is_told(env, params, error, message):
    with pytest.raises(error, match=message):
        purerl.make_env(env, **params)


def test_no_jitted_function_plays_it():
    made = experiment()
    with pytest.raises(TypeError, match=r"Script is not written in JAX.*purerl.run"):
        jax.jit(made.build().train)(jax.random.key(0))


class Counter(gymnasium.Env):
    """Observes the step and 9; cut off after three. It writes to one array, or returns lists."""

    observation_space, action_space = spaces.Box(0, 9, (2,)), spaces.Discrete(2)

    def __init__(self, listed=False):
        self.obs, self.listed = np.zeros(2, np.float32), listed

    def reset(self, *, seed=None, options=None):
        self.obs[:] = 0, 9
        return self._obs(), {}

    def step(self, action):
        self.obs[0] += 1
        return self._obs(), 1.0, False, bool(self.obs[0] == 3), {}

    def _obs(self):
        return self.obs.tolist() if self.listed else self.obs


def side_by_side(env, count=2, **params):
    return purerl.make_env(env, **params).outside.make(count, np.arange(count))


@pytest.mark.parametrize("listed", [False, True], ids=["writes to one array", "returns lists"])
def test_what_an_environment_returned_stays_what_it_was(listed):
    player = side_by_side(Counter, listed=listed)
    first = player.reset()
    moved = [player.step(np.zeros(2, int)) for _ in range(3)][-1]
    np.testing.assert_array_equal(first, [[0, 9], [0, 9]])
    np.testing.assert_array_equal(moved.next_obs, [[3, 9], [3, 9]])
    np.testing.assert_array_equal(moved.obs, first)


def test_the_last_step_is_observed_of_what_the_host_plays():
    env = purerl.observe_last_step(purerl.make_env(Script))
    player = env.outside.make(2, np.arange(2))
    nothing = {"last_action": [[0, 0]], "last_reward": [[0]]}

    def last(obs, row=slice(None)):
        return {name: obs[name][row].tolist() for name in nothing}

    first = player.reset()
    shapes = jax.tree.map(lambda x: (2, *x.shape), jax.eval_shape(env.reset, jax.random.key(0))[0])
    assert jax.tree.map(np.shape, first) == shapes
    assert last(first, [1]) == nothing
    moved = player.step(np.array([0, 1]))
    assert last(moved.obs) == {"last_action": [[1, 0], [0, 1]], "last_reward": [[1], [1]]}
    player.step(np.array([1]), np.array([1]))
    moved = player.step(np.array([0, 1]))  # the second one's third step, its last
    assert last(moved.obs, [1]) == nothing
    assert last(moved.obs, [0]) == {"last_action": [[1, 0]], "last_reward": [[2]]}
    assert last(moved.next_obs, [1]) == {"last_action": [[0, 1]], "last_reward": [[3]]}


def test_a_step_that_is_a_reset_is_no_last_step():
    env = purerl.observe_last_step(purerl.make_env(MAKERS["NEXT_STEP"]))
    player = env.outside.make(1, np.arange(1))
    player.reset()
    moved = [player.step(np.array([1])) for _ in range(4)]
    assert [step.valid.tolist() for step in moved] == [[True]] * 3 + [[False]]
    assert moved[2].next_obs["last_reward"].tolist() == [[3]]
    assert moved[3].obs["last_action"].tolist() == [[0, 0]]


def test_some_numbers_are_observed_of_what_the_host_plays():
    env = purerl.observe_only(purerl.make_env(Script), [2])
    player = env.outside.make(2, np.arange(2))
    assert player.reset().tolist() == [[0], [0]]
    assert player.step(np.array([0, 1])).obs.tolist() == [[1], [1]]


def test_finished_environments_are_left_alone():
    """Where whole first episodes are wanted, what has ended is not stepped any more."""

    class Counted:
        def __init__(self):
            self.stepped = []

        def reset(self):
            return np.zeros((4, 1), np.float32)

        def step(self, action, rows=None):
            rows = np.arange(4) if rows is None else rows
            self.stepped.append(len(rows))
            obs, ones = np.zeros((len(rows), 1), np.float32), np.ones(len(rows))
            no = np.zeros(len(rows), bool)
            return Moved(obs, obs, ones, rows < len(self.stepped), no, ~no)

        def close(self):
            pass

    player = Counted()
    actors = Actors(player, 2, 2, 9.0)
    running = np.ones((2, 2), bool)
    while running.any():
        moved = actors.step(np.zeros((2, 2), np.int32), running)
        assert (moved.valid == running).all()
        running &= ~actors.ended(moved)
    assert player.stepped == [4, 3, 2, 1]
    assert actors.returns.tolist() == [[1, 2], [3, 4]]


def test_envpool_ends_and_begins_episodes_without_a_step_between():
    pytest.importorskip("envpool")
    limit = 12
    made = experiment(env="envpool:Pendulum-v1", env_params={"max_episode_steps": limit})
    driver = PlayedDriver(made, {}, jax.random.split(jax.random.key(0), 2), purerl.RunOptions())
    driver.compile()
    driver.start()
    rollout = jax.device_get(driver._collect(2 * limit + 1)[0])
    driver.close()
    assert rollout.valid is None
    assert (rollout.episode_step == np.arange(2 * limit + 1)[None, :, None] % limit).all()
    assert (rollout.truncated == (rollout.episode_step == limit - 1)).all()
    assert not rollout.terminated.any()
    goes_on = ~rollout.truncated[:, :-1]
    np.testing.assert_array_equal(rollout.obs[:, 1:][goes_on], rollout.next_obs[:, :-1][goes_on])
    new = rollout.obs[:, 1:][~goes_on] != rollout.next_obs[:, :-1][~goes_on]
    assert new.any(axis=-1).all()
    assert rollout.obs.dtype == np.float32
    assert len(np.unique(rollout.obs[:, 0], axis=None)) > 4  # each begins elsewhere


def test_a_film_of_what_the_host_plays(tmp_path):
    pytest.importorskip("pygame")
    remembering = {"network": purerl.NetworkConfig(hidden_sizes=(8,), memory="gru")}
    purerl.run(experiment(env=CARTPOLE, steps=32, **remembering), out=tmp_path / "run", **QUIET)
    returns = purerl.play(tmp_path / "run", tmp_path / "film.gif", episodes=2, seed=0)
    assert len(returns) == 2
    assert (tmp_path / "film.gif").stat().st_size > 1000
    purerl.run(experiment(steps=32), out=tmp_path / "script", **QUIET)
    with pytest.raises(ValueError, match="Script has no picture"):
        purerl.play(tmp_path / "script", tmp_path / "none.gif", seed=0)
