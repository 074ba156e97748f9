"""DQN of purerl, with uniform or prioritized replay."""

import measure
import purerl_run
from measure import DQN as SETTING

import purerl


def main() -> None:
    """Measures and reports."""
    arguments = measure.parser(__doc__)
    arguments.add_argument("--prioritized", action="store_true", help="prioritized replay")
    arguments.add_argument("--capacity", type=int, default=SETTING.capacity, help="of the buffer")
    options = arguments.parse_args()
    purerl.use_all_cores()
    env = purerl.make_env(measure.ENVIRONMENT)
    config = purerl.DQNConfig(
        prioritized=options.prioritized,
        learning_rate=SETTING.learning_rate,
        adam_eps=SETTING.adam_epsilon,
        max_grad_norm=SETTING.max_grad_norm,
        gamma=SETTING.discount,
        loss="squared",
        batch_size=SETTING.batch_size,
        capacity=options.capacity,
        target_every=SETTING.target_steps // SETTING.steps_per_iteration,
        epsilon_end=SETTING.epsilon_end,
        exploration=SETTING.exploration,
        network=purerl.NetworkConfig(hidden_sizes=SETTING.hidden, activation="relu"),
    )
    train = purerl.make_train(
        purerl.dqn(config, env.action_space),
        env,
        steps=options.steps,
        num_envs=SETTING.num_envs,
        warmup=SETTING.warmup,
        evaluations=0,
    )
    purerl_run.time_and_report(train, options)


if __name__ == "__main__":
    main()
