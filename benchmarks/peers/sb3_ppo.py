"""PPO of stable-baselines3."""

import sb3_run
from measure import PPO as SETTING
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv


def make_agent(env: VecEnv) -> PPO:
    """The agent of the comparison."""
    return PPO(
        env=env,
        learning_rate=lambda remaining: SETTING.learning_rate * remaining,
        n_epochs=SETTING.num_epochs,
        clip_range=SETTING.clip,
        ent_coef=SETTING.entropy_coefficient,
        vf_coef=SETTING.value_coefficient,
        max_grad_norm=SETTING.max_grad_norm,
        **sb3_run.shared_options(SETTING),
    )


if __name__ == "__main__":
    sb3_run.main(__doc__, make_agent, SETTING, "stable_baselines3")
