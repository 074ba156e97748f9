"""How well each algorithm learns in a short run, so that a test notices when it gets worse.

    python benchmarks/regression.py              # 64 seeds of each cell; some minutes
    python benchmarks/regression.py --only dqn   # of one

Writes ``tests/data/regression.json``; ``tests/algorithms/test_regression.py`` trains 16
other seeds of each cell: their interquartile mean must not be below the 2.5 % quantile of that of
16 seeds out of these 64. Measured again when a change of an algorithm's results is meant.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from record import circumstances

import purerl

FILE = Path(__file__).resolve().parents[1] / "tests" / "data" / "regression.json"
# CartPole with episodes of at most 200 steps, a hidden layer of 32; 30,000 steps, or less where all
# seeds are at the limit by then.
COMMON: dict[str, Any] = {
    "env_params": {"max_steps_in_episode": 200},
    "hidden_sizes": (32,),
    "steps": 30_000,
    "num_envs": 8,
    "evaluations": 0,
}
PPO = {"rollout_length": 64, "learning_rate": 3e-3, "num_epochs": 4}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "a2c": (
        "a2c",
        {"rollout_length": 32, "optimizer": "adam", "learning_rate": 5e-3, "gae_lambda": 0.95},
    ),
    "acktr": ("acktr", {"rollout_length": 20, "steps": 12_000}),
    "ppo_clip": ("ppo_clip", PPO),
    "ppo_penalty": ("ppo_penalty", PPO),
    "trpo": ("trpo", {"rollout_length": 64, "steps": 15_000}),
    "npg": ("npg", {"rollout_length": 64, "steps": 15_000, "max_kl": 0.02}),
    "baseline": ("policy_gradient", {"rollout_length": 64, "learning_rate": 1e-2}),
    "return_to_go": (
        "policy_gradient",
        {"rollout_length": 200, "learning_rate": 2e-2, "estimator": "return_to_go"},
    ),
    "dqn": (
        "dqn",
        {"steps": 15_000, "n_step": 3, "prioritized": True, "double": True, "dueling": True},
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    only: tuple[str, ...] = tuple(CELLS)
    """Cells."""
    seeds: int = 64
    """Of each."""
    seed: int = 0
    """Random seed."""
    output: Path = FILE
    """The file, whose other cells stay."""


def learned(experiment: Any, keys: jax.Array) -> np.ndarray:
    """Mean return of the training episodes that ended in the second half of the run, ``[S]``.

    What is trained on is not evaluated: that would compile twice as long.
    """
    train = experiment.build().train
    result = jax.jit(purerl.vectorize(train))(keys)
    if result.failed.any():
        raise FloatingPointError(f"{int(result.failed.sum())} seeds of {experiment.label} failed")
    episodes = jax.device_get(result.metrics.episodes)
    half = episodes.ended.shape[1] // 2
    return episodes.return_sum[:, half:].sum(axis=1) / episodes.ended[:, half:].sum(axis=1)


def main(options: Options) -> None:
    """Measures and writes."""
    purerl.use_all_cores()
    cells = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name in options.only:
        algorithm, changes = CELLS[name]
        experiment = purerl.make_experiment(algorithm, "CartPole-v1", **COMMON | changes)
        returns = learned(experiment, jax.random.split(jax.random.key(options.seed), options.seeds))
        cells[name] = {
            **circumstances("regression", options),
            "experiment": experiment.to_json(),
            "returns": np.round(returns, 2).tolist(),
        }
        low, high = returns.min(), returns.max()
        print(f"{name}: IQM {purerl.iqm(returns):.1f}, {low:.1f} to {high:.1f}", flush=True)
        options.output.write_text(json.dumps(cells) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
