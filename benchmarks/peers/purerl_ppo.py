"""PPO of purerl."""

import purerl_run
from measure import PPO

import purerl
from purerl.records import ActionSpace, OnPolicyAlgorithm


def make_algorithm(action_space: ActionSpace) -> OnPolicyAlgorithm:
    """The algorithm of the comparison."""
    config = purerl.PPOClipConfig(
        learning_rate=PPO.learning_rate,
        adam_eps=PPO.adam_epsilon,
        max_grad_norm=PPO.max_grad_norm,
        gamma=PPO.discount,
        gae_lambda=PPO.gae_lambda,
        clip=PPO.clip,
        value_coef=PPO.value_coefficient,
        entropy_coef=PPO.entropy_coefficient,
        num_epochs=PPO.num_epochs,
        num_minibatches=PPO.num_minibatches,
        network=purerl_run.network(PPO),
    )
    return purerl.ppo_clip(config, action_space)


if __name__ == "__main__":
    purerl_run.main(__doc__, make_algorithm, PPO)
