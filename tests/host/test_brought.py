"""What users bring: an algorithm, an environment and a network, written outside the package."""

import dataclasses
import enum
import functools
import inspect
import json
import pathlib
import subprocess
import sys
import time
from typing import Literal

import equinox
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from run_folders import child_environment, driven, final

import purerl
from purerl.cli import main
from purerl.host import brought, command_line

ALGORITHM = '''
"""Advantage-weighted regression in thirty lines (Peng et al. 2019)."""
from typing import Literal, NamedTuple
import jax, jax.numpy as jnp, optax
import purerl


class State(NamedTuple):
    params: dict
    opt_state: tuple


def awr(action_space, *, network=None, learning_rate: float = 1e-2, temperature: float = 1.0,
        gamma: float = 0.99, epochs: int = 2, critic: Literal["squared", "none"] = "squared",
        widths: tuple[int, ...] = (8,)):
    config = purerl.NetworkConfig(hidden_sizes=widths)
    network = network or purerl.ActorCritic(action_space, config)
    optimizer = optax.scale_by_adam()

    def init(obs, key):
        params = network.init(key, obs)
        return State(params, optimizer.init(params))

    def act(state, obs, key, *, greedy=False, progress=1.0):
        policy, _ = network.apply(state.params, obs)
        action = policy.mode() if greedy else policy.sample(key)
        return action, {"log_prob": policy.log_prob(action)}

    def update(state, rollout, key, *, progress=0.0):
        obs = rollout.obs.reshape(-1, *rollout.obs.shape[2:])
        action, reward = rollout.action.reshape(-1), rollout.reward.reshape(-1)

        def loss(params):
            policy, value = network.apply(params, obs)
            weight = jnp.exp(jnp.clip((reward - value) / temperature, -5, 5))
            error = jnp.mean((reward - value) ** 2) if critic == "squared" else 0.0
            return -jnp.mean(jax.lax.stop_gradient(weight) * policy.log_prob(action)) + error

        def epoch(state, _):
            value, grads = jax.value_and_grad(loss)(state.params)
            updates, opt_state = optimizer.update(grads, state.opt_state)
            step = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
            return State(step, opt_state), value

        state, losses = jax.lax.scan(epoch, state, length=epochs)
        return state, {"loss": losses[-1], "finite": jnp.isfinite(losses).all()}

    return purerl.OnPolicyAlgorithm(init, act, update, gamma=gamma)
'''

ENVIRONMENT = '''
"""Go to the middle of a line, in thirty lines."""
import jax, jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class State:
    x: jax.Array
    time: jax.Array


@struct.dataclass
class Params:
    max_steps_in_episode: int = 20


class Gather(environment.Environment):
    def __init__(self, reward: float = 1.0):
        super().__init__()
        if reward <= 0:  # a constructor that looks at its arguments
            raise ValueError(f"reward={reward}, wanted more than 0")
        self.reward = reward

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        state = State(jax.random.uniform(key, (2,), minval=-1.0), jnp.int32(0))
        return state.x, state

    def step_env(self, key, state, action, params):
        x = jnp.clip(state.x.at[action % 2].add(0.2 - 0.4 * (action // 2)), -1, 1)
        state = State(x, state.time + 1)
        terminated = jnp.all(jnp.abs(x) < 0.15)
        return x, state, self.reward * terminated - jnp.abs(x).sum(), terminated, {}

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def action_space(self, params=None):
        return spaces.Discrete(4)

    def observation_space(self, params):
        return spaces.Box(-1.0, 1.0, (2,))
'''

NETWORK = """
import flax.linen as nn
import purerl


class Small(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, obs):
        x = nn.relu(nn.Dense(6)(obs))
        return purerl.Categorical(nn.Dense(self.num_actions)(x)), nn.Dense(1)(x)[..., 0]


def small(action_space):
    return Small(action_space.num_actions)
"""

NAMES = ["brought_algorithms:awr", "brought_envs:Gather"]
OPTIONS = [
    *("--network", "brought_networks:small", "--env-params", "reward=2.0", "--seeds", "2"),
    *("--num-envs", "4", "--rollout-length", "8", "--evaluations", "4", "--no-progress"),
    *("--evaluation-episodes", "2", "--epochs", "3", "--learning-rate", "0.02"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the three modules, on the path of this process and of its children."""
    folder = tmp_path_factory.mktemp("package")
    for name, text in (("algorithms", ALGORITHM), ("envs", ENVIRONMENT), ("networks", NETWORK)):
        (folder / f"brought_{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("algorithms", "envs", "networks"):
        sys.modules.pop(f"brought_{name}", None)


def child(package, *words):
    """``python -c`` in the package's folder, on as many devices as the tests have."""
    begin = "import sys, jax; jax.config.update('jax_num_cpu_devices', 2); jax.devices(); "
    return [sys.executable, "-c", begin + words[0], *map(str, words[1:])], {
        "env": child_environment(package),
        "cwd": package,
    }


def test_killed_resumed_swept_and_played_in_another_process(package, tmp_path):
    """The whole way by the command line, with import paths."""
    command = "from purerl.cli import main; sys.exit(main(sys.argv[1:]))"
    steps = ["--steps", "19200"]
    often = ["--checkpoint-seconds", "0", "--chunk-seconds", "0.02"]
    out = tmp_path / "killed"
    words, where = child(package, command, "train", *NAMES, *OPTIONS, *steps, *often, "--out", out)
    process = subprocess.Popen(words, **where)
    while process.poll() is None and not any(
        path.name.isdigit() for path in (out / "checkpoints").glob("*")
    ):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9
    assert not (out / "learning_curve.png").exists()  # it was not finished
    config = json.loads((out / "config.json").read_text())
    assert [config[k] for k in ("algorithm", "env", "network")] == [*NAMES, OPTIONS[1]]
    assert config["env_params"] == {"reward": 2.0}
    assert config["config"]["epochs"] == 3

    # Without a word of what it is.
    resumed = purerl.resume(out, progress=False, checkpoint_seconds=300.0)
    assert main(["train", *NAMES, *OPTIONS, *steps, "--out", str(tmp_path / "whole")]) == 0
    assert final(out) == final(tmp_path / "whole")

    swept = tmp_path / "sweep"
    grid = ["--steps", "320", "--grid", "temperature=0.5,2.0", "epochs=1,2", "--out", str(swept)]
    few = OPTIONS[: OPTIONS.index("--epochs")]
    assert main(["sweep", *NAMES, *few, *grid]) == 0
    assert len(purerl.load_sweep(swept).ranked()) == 4

    code = "import purerl; print(int(purerl.load_policy(sys.argv[1], 1)([0.5, -0.5])))"
    for folder, policy in ((out, resumed.policy(1)), (swept, purerl.load_policy(swept, 1))):
        words, where = child(package, code, folder)
        played = subprocess.run(words, capture_output=True, text=True, check=True, **where)
        assert int(played.stdout) == policy([0.5, -0.5])


def test_objects_are_given_again_and_compared(package, tmp_path):
    """An algorithm, an environment and a network that no import path names."""
    import brought_algorithms
    import brought_envs
    import brought_networks

    env = brought_envs.Gather(3.0)
    network = brought_networks.Small(4)
    algorithm = brought_algorithms.awr(purerl.make_env(env).action_space, network=network)
    sizes = {"steps": 128, "num_envs": 4, "rollout_length": 8, "evaluations": 2}
    options = {"seeds": 2, "progress": False, "driver": driven(at=2), "seed": 4}
    out = tmp_path / "run"
    cut = purerl.run(
        algorithm, env, evaluation_episodes=2, out=out, network=network, **sizes, **options
    )
    assert cut.stopped == "SIGINT"
    with pytest.raises(ValueError, match=r"begun with algorithm=awr, an object .* give it again"):
        purerl.resume(out)
    other = brought_algorithms.awr(purerl.make_env(env).action_space, widths=(5,))
    with pytest.raises(ValueError, match=r"is another run: algorithm.arrays"):
        purerl.resume(out, algorithm=other, env=env, network=network, progress=False)
    cartpole = gymnax.make("CartPole-v1")[0]
    with pytest.raises(ValueError, match=r"is another run: .*env.arrays"):
        purerl.resume(out, algorithm=algorithm, env=cartpole, network=network, progress=False)
    given = {"algorithm": algorithm, "env": env, "network": network}
    assert purerl.resume(out, progress=False, **given).stopped is None
    policy = purerl.load_policy(out, 1, **given)
    assert policy([0.5, -0.5]) in range(4)
    assert purerl.load_run(out, **given).returns.shape == (2, 2)


def test_functions_and_classes_are_recorded_by_their_import_path(package):
    import brought_algorithms
    import brought_envs

    made = purerl.make_experiment(brought_algorithms.awr, brought_envs.Gather, temperature=0.5)
    assert (made.algorithm, made.env) == tuple(NAMES)
    assert made.label == "awr on Gather"
    assert purerl.Experiment.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_options_of_an_own_algorithm_are_fields_with_checks(package):
    make = purerl.make_experiment
    experiment = make(*NAMES, learning_rate=np.float32(0.5), widths=[3, 4])
    assert experiment.config.learning_rate == 0.5
    assert type(experiment.config.learning_rate) is float
    assert experiment.config.widths == (3, 4)
    for change, wanted in (
        ({"learning_rate": "fast"}, "wanted a number"),
        ({"epochs": 2.5}, "is no integer"),
        ({"critic": "cubic"}, "unknown critic 'cubic'"),
        ({"lerning_rate": 1}, "Did you mean learning_rate"),
    ):
        with pytest.raises(ValueError, match=wanted):
            make(*NAMES, **change)


@pytest.mark.parametrize(
    ("algorithm", "env", "error", "wanted"),
    [
        ("nowhere:awr", "CartPole-v1", ValueError, "cannot be imported: No module named 'nowhere'"),
        ("brought_algorithms:arw", "CartPole-v1", ValueError, "Did you mean awr"),
        ("purerl.algorithms.a2c:a2c", "CartPole-v1", ValueError, "option action_space has no def"),
        ("brought_networks:small", "CartPole-v1", TypeError, "returned a Small, wanted a purerl"),
        ("ppo_clip", "brought_networks:small", TypeError, "missing 1 required"),
        ("ppo_clip", 3, TypeError, "int has no attribute 'reset'; make_env takes a"),
        (3, "CartPole-v1", TypeError, "algorithm is a int, wanted a name out of"),
    ],
)
def test_what_does_not_fit_is_told(package, algorithm, env, error, wanted):
    with pytest.raises(error, match=wanted):
        purerl.make_experiment(algorithm, env)


def branching(action_space, *, network=None, rate: float = 1e-2, gain: float = 1.0):
    """An algorithm whose code asks for a number.

    Args:
        action_space: Of the environment.
        network: Of one's own.
        rate: How fast
            it learns.
        gain: Nothing.
    """
    inner = purerl.a2c(purerl.A2CConfig(learning_rate=rate), action_space, network)
    return inner._replace(init=inner.init if gain > 0 else None)


def test_an_option_means_what_the_docstring_says():
    specs = purerl.make_experiment(branching, "CartPole-v1").config.specs
    assert specs["rate"].meaning == "How fast it learns."


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.heads = nnx.Linear(4, 3, rngs=rngs)


class OfEquinox(equinox.Module):
    heads: equinox.nn.Linear


@pytest.mark.parametrize(
    ("network", "wrap"),
    [
        (OfNnx, "purerl.from_nnx"),
        (OfNnx(nnx.Rngs(0)), "purerl.from_nnx"),
        (lambda space: OfNnx(nnx.Rngs(0)), "purerl.from_nnx"),
        (OfEquinox, "purerl.from_equinox"),
        (OfEquinox(equinox.nn.Linear(4, 3, key=jax.random.key(0))), "purerl.from_equinox"),
    ],
)
def test_networks_that_must_be_wrapped(network, wrap):
    with pytest.raises(TypeError, match=rf"network is Of\w+ of \S+, wanted init.*; wrap .*{wrap}"):
        purerl.make_experiment("ppo_clip", "CartPole-v1", network=network)


TWO = np.sqrt(4)


def only_checked(action_space: "Checked", *, rate: "Number" = TWO) -> "Checked":  # noqa: F821
    """Annotated with names that are imported under ``TYPE_CHECKING``."""
    return purerl.a2c(purerl.A2CConfig(), action_space)


def of_levels(action_space, *, level: Literal[1, 5] = 1):
    return purerl.a2c(purerl.A2CConfig(), action_space)


class Level(enum.StrEnum):
    LOW = "low"
    HIGH = "high"


def of_words(action_space, *, level: Level = Level.LOW, others: tuple[Level, ...] = ()):
    return purerl.a2c(purerl.A2CConfig(), action_space)


class Builder:
    def __call__(self, action_space, *, rate: float = 0.5):
        """Builds it.

        Args:
            rate: How fast it learns.
        """
        return purerl.a2c(purerl.A2CConfig(learning_rate=rate), action_space)


@pytest.mark.parametrize(
    ("builder", "name", "default", "refused"),
    [
        (functools.partial(branching, rate=0.5), "rate", 0.5, "x"),
        (Builder(), "rate", 0.5, "x"),
        (only_checked, "rate", 2.0, "x"),
        (of_levels, "level", 1, 2),
        (of_words, "level", Level.LOW, "middle"),
    ],
)
def test_what_builds_an_algorithm(builder, name, default, refused):
    made = purerl.make_experiment(builder, "CartPole-v1")
    assert getattr(made.config, name) == default
    with pytest.raises(ValueError, match=rf"{name}.*{refused}"):
        made.replace(**{name: refused})


def test_a_configuration_of_a_network_is_for_algorithms_of_the_library():
    config = purerl.NetworkConfig(hidden_sizes=(4,))
    with pytest.raises(ValueError, match=r"branching has no configuration of a network.*ActorCrit"):
        purerl.make_experiment(branching, "CartPole-v1", network=config)


def test_enumerations_come_back_as_they_were():
    made = purerl.make_experiment(of_words, "CartPole-v1", level="high", others=["low"])
    assert again(made) == made
    for config in (made.config, again(made).config):
        assert (config.level, config.others) == (Level.HIGH, (Level.LOW,))
        assert all(type(x) is Level for x in (config.level, *config.others))
    words = ["--level", "high", "--others", "low", "high"]
    read = command_line.read("purerl", words, made.config)
    assert (read["level"], read["others"]) == ("high", ("low", "high"))


def test_partials_and_objects_are_named_and_documented_as_their_functions():
    for builder, label in ((functools.partial(branching, rate=0.5), "branching"), (Builder(), "B")):
        made = purerl.make_experiment(builder, "CartPole-v1")
        assert made.label.startswith(label)
        assert made.config.specs["rate"].meaning == "How fast it learns."


def test_what_runs_sweeps_and_commands_take_is_reserved():
    functions = purerl.run, purerl.sweep, purerl.resume, purerl.resume_sweep, purerl.make_experiment
    taken = {name for one in functions for name in inspect.signature(one).parameters}
    parts = (command_line.Start, command_line.Points, command_line.ResumeSweep)
    taken |= {field.name for part in parts for field in dataclasses.fields(part)}
    assert taken - brought.RESERVED == {"network", "options", "changes"}  # it has a network


@pytest.mark.parametrize("name", ["check", "specs", "samples", "top"])
def test_options_whose_names_are_taken_are_refused(name):
    def builder(action_space, **options):
        return purerl.a2c(purerl.A2CConfig(), action_space)

    kind = inspect.Parameter.KEYWORD_ONLY
    first = inspect.Parameter("action_space", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [first, inspect.Parameter(name, kind, default=False)]
    builder.__signature__ = inspect.Signature(parameters)
    with pytest.raises(ValueError, match=rf"option {name} is a name that .*; rename it"):
        purerl.make_experiment(builder, "CartPole-v1")


def test_a_record_with_a_partial_update_has_a_label():
    record = purerl.a2c(purerl.A2CConfig(), purerl.Discrete(2))
    record = record._replace(update=functools.partial(record.update))
    assert purerl.make_experiment(record, "CartPole-v1").label == "a2c on CartPole-v1"


def test_a_swept_number_that_code_asks_for_is_named():
    sizes = {"steps": 512, "num_envs": 4, "rollout_length": 16, "evaluations": 0}
    with pytest.raises(TypeError, match=r"all values of gain, and code of yours asks for one"):
        purerl.sweep(branching, "CartPole-v1", grid={"gain": (0.5, 1.0)}, **sizes)


@pytest.mark.parametrize(
    ("algorithm", "env", "changes", "wanted"),
    [
        ("ppo_clip", "CartPole", {}, "CartPole-v1"),
        ("ppo_clip", "CartPole-v1", {"steps": -5}, "steps=-5 is out of range"),
        ("ppo_clip", "CartPole-v1", {"steps": 1e6}, "write 1000000"),
        ("ppo_clip", "CartPole-v1", {"gamma": None}, "gamma=None"),
        ("ppo_clip", "CartPole-v1", {"learning_rate": np.float32(-1)}, "learning_rate=-1.0"),
        ("ppo_clip", "CartPole-v1", {"learning_rate": np.float32("nan")}, "learning_rate=nan"),
        ("ppo_clip", "CartPole-v1", {"hidden_sizes": 8}, "hidden_sizes=8, wanted a tuple"),
        ("ppo_clip", "CartPole-v1", {"network": {"a": 1}}, "network is {'a': 1}, wanted"),
        ("ppo_clip", "CartPole-v1", {"env_params": {"gravty": 1}}, "gravty"),
        ("dqn", "Pendulum-v1", {}, "choose an environment with Discrete actions"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused_when_they_are_given(algorithm, env, changes, wanted):
    """Fault C7."""
    with pytest.raises((ValueError, TypeError), match=wanted):
        purerl.make_experiment(algorithm, env, **changes)


def test_run_says_what_it_wants():
    """Fault C8."""
    train = purerl.make_experiment("a2c", "CartPole-v1").build()
    with pytest.raises(TypeError, match="got an algorithm and no env"):
        purerl.run("ppo_clip")
    with pytest.raises(TypeError, match=r"algorithm is a Train, .*jit\(train.train\)\(key\)"):
        purerl.run(train)
    with pytest.raises(TypeError, match=r"no option 'stepz'. Did you mean steps"):
        purerl.run("ppo_clip", "CartPole-v1", stepz=5)


def test_environment_parameters_are_the_environments(package):
    made = purerl.make_experiment(
        "a2c", NAMES[1], env_params={"reward": 2.0, "max_steps_in_episode": 5}
    )
    assert made.environment.max_episode_steps == 5
    assert made.replace(gamma=0.5).environment is made.environment  # made once
    with pytest.raises(ValueError, match=r"reward=-1, wanted more than 0"):
        made.replace(env_params={"reward": -1})


def reward_of(state):
    return 1.0


class Taking:
    """Of gymnax's CartPole, with parameters of its own."""

    def __new__(cls, goal=(1.0,), reward_fn=reward_of):
        assert type(goal + (0.0,)) in (tuple, np.ndarray)  # noqa: RUF005
        return gymnax.make("CartPole-v1")[0]


def again(experiment, **given):
    data = json.loads(json.dumps(experiment.to_json()))
    return purerl.Experiment.from_json(data, **given)


def test_parameters_of_an_environment_come_back_as_they_were():
    params = {"goal": [1, (2.0, None)], "reward_fn": reward_of}
    made = purerl.make_experiment("a2c", Taking, env_params=params)
    found = again(made)
    assert found.environment.obs_shape == (4,)
    assert found.env_params == made.env_params == {"goal": (1, (2.0, None)), "reward_fn": reward_of}
    array = made.replace(env_params={"goal": jnp.arange(3, dtype=jnp.int16)})
    for one in (array, again(array)):
        assert type(one.env_params["goal"]) is np.ndarray
        assert one.env_params["goal"].dtype == np.int16
        np.testing.assert_array_equal(one.env_params["goal"], [0, 1, 2])
    assert again(array).to_json() == array.to_json()


def test_functions_without_a_name_are_given_again():
    rewards = {"reward_fn": lambda state: 2.0}
    made = purerl.make_experiment("a2c", Taking, env_params={"goal": (3,), **rewards})
    with pytest.raises(
        ValueError, match=r"begun with <lambda>, .* in env_params\['reward_fn'\]; gi"
    ):
        again(made)
    assert again(made, env_params=rewards).env_params == made.env_params
    with pytest.raises(ValueError, match="goal need not be given again"):
        again(made, env_params=rewards | {"goal": (4,)})


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"goal": {1}}, r"env_params\['goal'\] is a set, wanted a number, .*; make the env"),
        ({"goal": (1, 1j)}, r"env_params\['goal'\]\[1\] is a complex, wanted"),
        ({"goal": {3: 4}}, r"env_params\['goal'\] has the name 3, wanted texts"),
        ({"goal": np.array([None])}, r"env_params\['goal'\] is a ndarray, wanted a number"),
    ],
)
def test_parameters_that_no_description_can_hold(params, wanted):
    with pytest.raises(ValueError, match=wanted):
        purerl.make_experiment("a2c", Taking, env_params=params)


def test_a_schedule_that_is_a_function_is_given_again(tmp_path):
    def rate(progress):
        return 0.1 * (1 - progress)

    sizes = {"steps": 128, "num_envs": 4, "rollout_length": 16, "evaluations": 1}
    more = {"evaluation_episodes": 2, "hidden_sizes": (4,), "seeds": 1, "progress": False}
    purerl.run("a2c", "CartPole-v1", learning_rate=rate, out=tmp_path / "x", **sizes, **more)
    with pytest.raises(ValueError, match=r"function of progress for learning_rate"):
        purerl.load_run(tmp_path / "x")
    with pytest.raises(ValueError, match=r"config.learning_rate.schedule is"):
        purerl.resume(tmp_path / "x", learning_rate=lambda progress: 0.2, progress=False)
    found = purerl.load_run(tmp_path / "x", learning_rate=rate)
    assert found.returns.shape == (1, 1)


def test_a_module_is_found_in_the_current_directory_by_the_command_line(package, tmp_path):
    words, where = child(package, "from purerl.cli import main; sys.exit(main(sys.argv[1:]))")
    where["env"]["PYTHONPATH"] = str(pathlib.Path(purerl.__file__).parents[1])
    arguments = ["train", *NAMES, *OPTIONS, "--steps", "32", "--evaluations", "1"]
    done = subprocess.run([*words, *arguments, "--out", str(tmp_path / "x")], **where)
    assert done.returncode == 0
