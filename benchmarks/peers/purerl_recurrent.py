"""Recurrent PPO of purerl."""

import purerl_run
from measure import RECURRENT as SETTING

import purerl
from purerl.records import ActionSpace, OnPolicyAlgorithm


def make_algorithm(action_space: ActionSpace) -> OnPolicyAlgorithm:
    """The algorithm of the comparison."""
    network = purerl.NetworkConfig(
        hidden_sizes=SETTING.hidden, activation="tanh", memory="gru", memory_size=SETTING.memory
    )
    config = purerl.PPOClipConfig(
        learning_rate=SETTING.learning_rate,
        learning_rate_schedule="constant",
        adam_eps=SETTING.adam_epsilon,
        max_grad_norm=SETTING.max_grad_norm,
        gamma=SETTING.discount,
        gae_lambda=SETTING.gae_lambda,
        clip=SETTING.clip,
        value_coef=SETTING.value_coefficient,
        entropy_coef=SETTING.entropy_coefficient,
        num_epochs=SETTING.num_epochs,
        num_minibatches=SETTING.num_minibatches,
        normalize_advantage="batch",
        network=network,
    )
    return purerl.ppo_clip(config, action_space)


if __name__ == "__main__":
    purerl_run.main(__doc__, make_algorithm, SETTING)
