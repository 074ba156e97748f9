"""PPO of stable-baselines3 on the CPU: PyTorch trains one agent, so one seed only."""

import time

import measure
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

WARMUP_STEPS = 4 * measure.STEPS_PER_ITERATION


def build() -> PPO:
    """The agent of the comparison; its networks are two separate tanh networks by default."""
    return PPO(
        "MlpPolicy",
        make_vec_env(measure.ENVIRONMENT, n_envs=measure.NUM_ENVS, seed=0),
        learning_rate=lambda remaining: measure.LEARNING_RATE * remaining,
        n_steps=measure.ROLLOUT_LENGTH,
        batch_size=measure.MINIBATCH_SIZE,
        n_epochs=measure.NUM_EPOCHS,
        gamma=measure.DISCOUNT,
        gae_lambda=measure.GAE_LAMBDA,
        clip_range=measure.CLIP,
        ent_coef=measure.ENTROPY_COEFFICIENT,
        vf_coef=measure.VALUE_COEFFICIENT,
        max_grad_norm=measure.MAX_GRAD_NORM,
        policy_kwargs={
            "net_arch": {"pi": list(measure.HIDDEN), "vf": list(measure.HIDDEN)},
            "activation_fn": torch.nn.Tanh,
            "optimizer_kwargs": {"eps": measure.ADAM_EPSILON},
        },
        seed=0,
        device="cpu",
    )


def main() -> None:
    """Measures and reports."""
    options = measure.parser(__doc__).parse_args()
    if options.seeds != 1:
        raise SystemExit(f"got --seeds {options.seeds}; stable-baselines3 trains 1 seed at a time")
    agent = build()
    agent.learn(WARMUP_STEPS)
    steps = measure.iterations(options.steps) * measure.STEPS_PER_ITERATION
    run_s = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        agent.learn(steps, reset_num_timesteps=False)
        run_s.append(time.perf_counter() - start)
    if agent.num_timesteps != WARMUP_STEPS + options.repeats * steps:
        raise RuntimeError(f"counted on {steps} steps a repeat; total is {agent.num_timesteps}")
    measure.report(
        "sb3",
        seeds=1,
        steps_per_seed=steps,
        compile_s=None,
        run_s=run_s,
        packages=("stable_baselines3", "torch", "gymnasium", "numpy"),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
