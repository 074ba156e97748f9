"""TRPO of purerl."""

import purerl_run
from measure import TRPO

import purerl
from purerl.records import ActionSpace, OnPolicyAlgorithm


def make_algorithm(action_space: ActionSpace) -> OnPolicyAlgorithm:
    """The algorithm of the comparison."""
    config = purerl.TRPOConfig(
        max_kl=TRPO.max_kl,
        damping=TRPO.damping,
        cg_iterations=TRPO.cg_iterations,
        backtrack_factor=TRPO.backtrack_factor,
        backtrack_steps=TRPO.backtrack_steps,
        gamma=TRPO.discount,
        gae_lambda=TRPO.gae_lambda,
        critic_learning_rate=TRPO.learning_rate,
        critic_epochs=TRPO.num_epochs,
        critic_minibatches=TRPO.num_minibatches,
        network=purerl_run.network(TRPO),
    )
    return purerl.trpo(config, action_space)


if __name__ == "__main__":
    purerl_run.main(__doc__, make_algorithm, TRPO)
