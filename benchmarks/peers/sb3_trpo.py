"""TRPO of sb3-contrib.

Its KL divergence is KL(new || old) and conjugate gradients start at small noise; neither takes time
that could be noticed. The first product, with that noise, is one more than purerl's.
"""

import sb3_run
from measure import TRPO as SETTING
from sb3_contrib import TRPO
from stable_baselines3.common.vec_env import VecEnv


def make_agent(env: VecEnv) -> TRPO:
    """The agent of the comparison."""
    return TRPO(
        env=env,
        learning_rate=SETTING.learning_rate,
        n_critic_updates=SETTING.num_epochs,
        max_kl=SETTING.max_kl,
        cg_max_steps=SETTING.cg_iterations,
        cg_damping=SETTING.damping,
        line_search_shrinking_factor=SETTING.backtrack_factor,
        line_search_max_iter=SETTING.backtrack_steps,
        normalize_advantage=True,
        **sb3_run.shared_options(SETTING),
    )


if __name__ == "__main__":
    sb3_run.main(__doc__, make_agent, SETTING, "sb3_contrib")
