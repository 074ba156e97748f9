"""DQN of Rejax, as its users call it: ``jit(vmap(train))``; one seed without the ``vmap``.

It acts at random for so many steps before it learns as purerl does. Where Rejax has no setting for
it, it keeps its own: Adam's epsilon is 1e-8, the gradient is clipped element by element. Neither
takes time that could be noticed.
"""

import measure
import rejax_run
from measure import DQN as SETTING
from rejax import DQN


def build(steps: int) -> DQN:
    """The training run of the comparison, without any evaluation."""
    algorithm = DQN.create(
        env=measure.ENVIRONMENT,
        agent_kwargs={"activation": "relu"},  # its network is the 64-64 of the setting
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        ddqn=False,
        num_envs=SETTING.num_envs,
        num_epochs=1,  # updates after each step of all environments
        batch_size=SETTING.batch_size,
        buffer_size=SETTING.capacity,
        fill_buffer=SETTING.warmup,
        learning_rate=SETTING.learning_rate,
        gamma=SETTING.discount,
        max_grad_norm=SETTING.max_grad_norm,
        target_update_freq=SETTING.target_steps,
        polyak=0.0,  # a copy
        eps_end=SETTING.epsilon_end,
        exploration_fraction=SETTING.exploration,
    )
    return algorithm.replace(eval_callback=lambda algorithm, state, key: ())


if __name__ == "__main__":
    rejax_run.main(__doc__, build, SETTING)
