"""Measures an agent of stable-baselines3 or sb3-contrib on the CPU.

PyTorch trains one agent, so one seed only.
"""

import time
from collections.abc import Callable
from typing import Any

import measure
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv


def main(
    description: str,
    make_agent: Callable[[VecEnv], BaseAlgorithm],
    setting: measure.Setting | measure.DQNSetting,
    package: str,
    warmup_iterations: int = 4,
) -> None:
    """Measures and reports.

    Args:
        description: Of the program, for its ``--help``.
        make_agent: Makes the agent from its environments.
        setting: Of the suite.
        package: The agent's, for the report.
        warmup_iterations: Of rollout and update, before the clock starts.
    """
    arguments = measure.parser(description)
    arguments.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    options = arguments.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.seeds != 1:
        raise SystemExit(f"got --seeds {options.seeds}; {package} trains 1 seed at a time")
    agent = make_agent(make_vec_env(measure.ENVIRONMENT, n_envs=setting.num_envs, seed=0))
    warmup = warmup_iterations * setting.steps_per_iteration
    agent.learn(warmup)
    steps = setting.whole_iterations(options.steps)
    run_s = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        agent.learn(steps, reset_num_timesteps=False)
        run_s.append(time.perf_counter() - start)
    if agent.num_timesteps != warmup + options.repeats * steps:
        raise RuntimeError(f"counted on {steps} steps a repeat; total is {agent.num_timesteps}")
    measure.report(
        seeds=1,
        steps_per_seed=steps,
        compile_s=None,
        run_s=run_s,
        packages=(package, "torch", "gymnasium", "numpy"),
        threads=torch.get_num_threads(),
    )


def shared_options(setting: measure.Setting) -> dict[str, Any]:
    """Arguments of every on-policy agent."""
    hidden = list(setting.hidden)
    return {
        "policy": "MlpPolicy",
        "n_steps": setting.rollout_length,
        "batch_size": setting.minibatch_size,
        "gamma": setting.discount,
        "gae_lambda": setting.gae_lambda,
        "policy_kwargs": {
            "net_arch": {"pi": hidden, "vf": hidden},
            "activation_fn": torch.nn.Tanh,
            "optimizer_kwargs": {"eps": setting.adam_epsilon},
        },
        "seed": 0,
        "device": "cpu",
    }
