"""Speed of stable-baselines3's PPO on a task of MuJoCo's, at the sizes of purerl's preset."""

import json
import statistics
import time
from importlib import metadata

import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

ENVS, STEPS, ITERATIONS = 16, 128, 4


def main(task: str = "Hopper-v5", rounds: int = 5) -> None:
    """Trains, and prints steps a second as JSON.

    Args:
        task: Gymnasium's name.
        rounds: Measurements.
    """
    agent = PPO(
        "MlpPolicy",
        make_vec_env(task, n_envs=ENVS, seed=0),
        n_steps=STEPS,
        batch_size=64,
        n_epochs=10,
        learning_rate=3e-4,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        device="cpu",
    )
    agent.learn(ENVS * STEPS)
    speeds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        agent.learn(ITERATIONS * ENVS * STEPS, reset_num_timesteps=False)
        speeds.append(round(ITERATIONS * ENVS * STEPS / (time.perf_counter() - begin)))
    names = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
    versions = {name: metadata.version(name) for name in names}
    threads = torch.get_num_threads()
    result = {"steps_per_s": speeds, "median": statistics.median(speeds)}
    print(json.dumps({**result, "threads": threads, "versions": versions}))


if __name__ == "__main__":
    tyro.cli(main)
