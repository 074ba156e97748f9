"""PPO of Rejax, as its users call it: ``jit(vmap(train))``; one seed without the ``vmap``.

Where Rejax has no setting for it, it keeps its own: Adam's epsilon is 1e-8, the learning rate is
constant, the gradient is clipped element by element, the value loss is clipped. None of these
takes time that could be noticed.
"""

import measure
import rejax_run
from measure import PPO as SETTING
from rejax import PPO


def build(steps: int) -> PPO:
    """The training run of the comparison, without any evaluation."""
    algorithm = PPO.create(
        env=measure.ENVIRONMENT,
        agent_kwargs={"hidden_layer_sizes": SETTING.hidden, "activation": "tanh"},
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        num_envs=SETTING.num_envs,
        num_steps=SETTING.rollout_length,
        num_epochs=SETTING.num_epochs,
        num_minibatches=SETTING.num_minibatches,
        learning_rate=SETTING.learning_rate,
        gamma=SETTING.discount,
        gae_lambda=SETTING.gae_lambda,
        clip_eps=SETTING.clip,
        ent_coef=SETTING.entropy_coefficient,
        vf_coef=SETTING.value_coefficient,
        max_grad_norm=SETTING.max_grad_norm,
    )
    return algorithm.replace(eval_callback=lambda algorithm, state, key: ())


if __name__ == "__main__":
    rejax_run.main(__doc__, build, SETTING)
