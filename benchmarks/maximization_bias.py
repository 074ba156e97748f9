"""Maximization bias: DQN and Double DQN on the small MDP of Sutton and Barto, section 6.7.

    python benchmarks/maximization_bias.py        # a minute; writes results/maximization_bias.*

In state A half of the actions end the episode with reward 0, the others ("left") lead to B, where
every action ends it with a reward from N(-0.1, 1). So left is worth -0.1 and a mistake, but the
largest of B's noisy estimates is above zero for long, and the target of Q(A, left) is that largest
one. Double DQN lets the online network choose what the target network evaluates, which takes a part
of the bias away: the estimates are the same network's at two times, not independent as in double
Q-learning with two tables.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import struct
from gymnax.environments import environment, spaces
from matplotlib.figure import Figure
from record import circumstances, result_files

import purerl
from purerl.host.report.plotting import save_plot

RESULTS = pathlib.Path(__file__).parent / "results"
ACTIONS = 10
TRUTH = -0.1  # the value of left
EPSILON = 0.1


@struct.dataclass
class State(environment.EnvState):
    """Where the episode is."""

    time: jax.Array
    in_b: jax.Array  # bool


@struct.dataclass
class Params(environment.EnvParams):
    """Two steps at most, so nothing is ever truncated."""

    max_steps_in_episode: int = 3


class Bias(environment.Environment[State, Params]):
    """The MDP; observations are one-hot."""

    @property
    def default_params(self) -> Params:
        """Its only parameter is the time limit."""
        return Params()

    def action_space(self, params: Params | None = None) -> Any:
        """Even actions in A are left."""
        return spaces.Discrete(ACTIONS)

    def observation_space(self, params: Params) -> Any:
        """A and B."""
        return spaces.Box(0, 1, (2,))

    def get_obs(self, state: State, params: Any = None, key: Any = None) -> jax.Array:
        """``[2]``."""
        return jax.nn.one_hot(state.in_b.astype(jnp.int32), 2)

    def reset_env(self, key: jax.Array, params: Params) -> tuple[jax.Array, State]:
        """In A."""
        state = State(time=jnp.int32(0), in_b=jnp.array(False))
        return self.get_obs(state), state

    def step_env(self, key: jax.Array, state: State, action: Any, params: Params) -> Any:
        """One step."""
        reward = jnp.where(state.in_b, TRUTH + jax.random.normal(key), 0.0)
        to_b = ~state.in_b & (action % 2 == 0)
        state = State(time=state.time + 1, in_b=to_b)
        return self.get_obs(state), state, reward, ~to_b, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the benchmark."""

    seeds: int = 64
    """Runs of each."""
    steps: int = 20_000
    """Environment steps of each run."""
    points: int = 50
    """Of the curves."""
    output: pathlib.Path = RESULTS / "maximization_bias.json"
    """Result file; the picture goes beside it, as .png."""
    force: bool = False
    """Whether to overwrite the result files."""


def curves(double: bool, options: Options) -> dict[str, Any]:
    """Estimates of Q(A, left), and how often left is chosen, along the run."""
    env = purerl.make_env(Bias())
    config = purerl.DQNConfig(
        double=double,
        gamma=1.0,
        learning_rate=3e-3,
        loss="squared",
        batch_size=32,
        capacity=500,
        target_every=500,
        epsilon_start=EPSILON,
        epsilon_end=EPSILON,
        network=purerl.NetworkConfig(hidden_sizes=(32,), activation="relu"),
    )
    algorithm = purerl.dqn(config, env.action_space)
    train = purerl.make_train(algorithm, env, options.steps, num_envs=4, warmup=100, evaluations=0)
    network = purerl.QNetwork(env.action_space, config.network)
    every = train.iterations // options.points

    def point(state, _):
        state, _ = train.advance(state, every)
        q_a, q_b = network.apply(state.learner.params, jnp.eye(2))
        return state, (jnp.max(q_a[::2]), jnp.max(q_b), jnp.argmax(q_a) % 2 == 0)

    def run(key):
        return jax.lax.scan(point, train.init(key), length=options.points)[1]

    keys = jax.random.split(jax.random.key(0), options.seeds)
    left, best_b, greedy_left = (np.asarray(x, float) for x in jax.jit(purerl.vectorize(run))(keys))
    first, step = train.warmup_steps, every * train.steps_per_iteration
    return {
        "steps": (first + step * (1 + np.arange(options.points))).tolist(),
        "q_left": left.mean(0).tolist(),
        "max_q_b": best_b.mean(0).tolist(),
        "left": ((1 - EPSILON) * greedy_left.mean(0) + EPSILON / 2).tolist(),
    }


def plot(results: dict[str, dict[str, Any]]) -> Figure:
    """Bias and choices, over the steps."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    bias, choice = figure.subplots(1, 2)
    for name, result in results.items():
        bias.plot(result["steps"], result["q_left"], label=name)
        choice.plot(result["steps"], result["left"], label=name)
    bias.axhline(TRUTH, color="black", linestyle=":", label="truth")
    choice.axhline(EPSILON / 2, color="black", linestyle=":", label="best")
    bias.set(xlabel="environment steps", ylabel="estimate of Q(A, left)")
    choice.set(xlabel="environment steps", ylabel="probability of left in A")
    for axes in (bias, choice):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    files = result_files(options.output, (".json", ".png"), options.force)
    purerl.use_all_cores()
    results = {
        name: curves(double, options) for name, double in (("DQN", False), ("Double DQN", True))
    }
    for name, result in results.items():
        bias = np.mean(result["q_left"]) - TRUTH
        print(f"{name}: mean overestimation of left {bias:.3f}, left {np.mean(result['left']):.0%}")
    data = {**circumstances("maximization_bias", options), "results": results}
    files[0].write_text(json.dumps(data) + "\n")
    save_plot(plot(results), files[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
