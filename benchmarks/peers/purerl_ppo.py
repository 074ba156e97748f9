"""PPO of the purerl checkout this file lies in."""

import measure

import purerl
from purerl.train.on_policy import Train


def build(steps: int) -> Train:
    """The training run of the comparison."""
    env = purerl.make_env(measure.ENVIRONMENT)
    config = purerl.PPOClipConfig(
        learning_rate=measure.LEARNING_RATE,
        adam_eps=measure.ADAM_EPSILON,
        max_grad_norm=measure.MAX_GRAD_NORM,
        gamma=measure.DISCOUNT,
        gae_lambda=measure.GAE_LAMBDA,
        clip=measure.CLIP,
        value_coef=measure.VALUE_COEFFICIENT,
        entropy_coef=measure.ENTROPY_COEFFICIENT,
        num_epochs=measure.NUM_EPOCHS,
        num_minibatches=measure.NUM_MINIBATCHES,
        network=purerl.NetworkConfig(hidden_sizes=measure.HIDDEN, activation="tanh"),
    )
    return purerl.make_train(
        purerl.ppo_clip(config, env.action_space),
        env,
        total_steps=steps,
        num_envs=measure.NUM_ENVS,
        rollout_length=measure.ROLLOUT_LENGTH,
        evaluations=0,
    )


def main() -> None:
    """Measures and reports."""
    options = measure.parser(__doc__).parse_args()
    purerl.use_all_cores()
    import jax

    train = build(options.steps)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    compile_s, run_s = measure.time_jax(purerl.vectorize(train.train), keys, options.repeats)
    measure.report(
        "purerl",
        seeds=options.seeds,
        steps_per_seed=train.total_steps,
        compile_s=compile_s,
        run_s=run_s,
        packages=("purerl", "jax", "jaxlib", "flax", "optax", "gymnax"),
        devices=len(jax.devices()),
        platform=jax.default_backend(),
    )


if __name__ == "__main__":
    main()
