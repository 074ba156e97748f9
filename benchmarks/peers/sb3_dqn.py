"""DQN of stable-baselines3."""

import sb3_run
import torch
from measure import DQN as SETTING
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecEnv


def make_agent(env: VecEnv) -> DQN:
    """The agent of the comparison."""
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=SETTING.learning_rate,
        buffer_size=SETTING.capacity,
        learning_starts=SETTING.warmup,
        batch_size=SETTING.batch_size,
        gamma=SETTING.discount,
        train_freq=1,  # step of all environments
        gradient_steps=1,
        target_update_interval=SETTING.target_steps,
        exploration_fraction=SETTING.exploration,
        exploration_final_eps=SETTING.epsilon_end,
        max_grad_norm=SETTING.max_grad_norm,
        policy_kwargs={
            "net_arch": list(SETTING.hidden),
            "activation_fn": torch.nn.ReLU,
            "optimizer_kwargs": {"eps": SETTING.adam_epsilon},
        },
        seed=0,
        device="cpu",
    )


if __name__ == "__main__":
    # Measured is what comes after the steps that only fill the buffer.
    iterations = 2 * SETTING.warmup // SETTING.steps_per_iteration
    sb3_run.main(__doc__, make_agent, SETTING, "stable_baselines3", iterations)
