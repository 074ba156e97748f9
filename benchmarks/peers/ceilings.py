"""The two ceilings of a training run of PPO, in plain JAX.

``environment``: a random policy on the same environments and nothing else.
``gradient``: as many gradients of the PPO loss as training takes, same networks and minibatches, on
fixed data, with plain SGD: no rollout, no advantages, no shuffle, no Adam.

Both are sharded over the cores as purerl shards its seeds.
"""

from typing import Any

import jax
import jax.numpy as jnp
import measure
from measure import PPO

OBSERVATION_SIZE = 4
NUM_ACTIONS = 2
GRADIENTS_PER_ITERATION = PPO.num_epochs * PPO.num_minibatches
SGD_RATE = 1e-3

Params = dict[str, list[dict[str, jax.Array]]]


def environment_only(key: jax.Array, steps: int) -> Any:
    """``steps`` steps of a random policy; returns what keeps the compiler from dropping them."""
    import gymnax  # here, since importing it uses JAX, which fixes the number of devices

    env, params = gymnax.make(measure.ENVIRONMENT)
    reset_key, key = jax.random.split(key)
    reset_keys = jax.random.split(reset_key, PPO.num_envs)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(reset_keys, params)

    def step(carry, t):
        state, total = carry
        action_key, *step_keys = jax.random.split(jax.random.fold_in(key, t), PPO.num_envs + 1)
        action = jax.random.randint(action_key, (PPO.num_envs,), 0, NUM_ACTIONS)
        obs, state, reward, *_ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            jnp.stack(step_keys), state, action, params
        )
        return (state, total + obs.sum(axis=-1) + reward), None

    start = (state, jnp.zeros(PPO.num_envs))
    return jax.lax.scan(step, start, jnp.arange(steps // PPO.num_envs))[0]


def init_network(key: jax.Array, outputs: int) -> list[dict[str, jax.Array]]:
    """Weights ``[out, in]`` and biases ``[out, 1]`` of one network."""
    sizes = (OBSERVATION_SIZE, *PPO.hidden, outputs)
    return [
        {
            "weight": jax.random.normal(k, (after, before)) / jnp.sqrt(before),
            "bias": jnp.zeros((after, 1)),
        }
        for k, before, after in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    ]


def apply_network(layers: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """``[in, B] -> [out, B]``.

    Batch last and actor apart from critic: on a CPU the fastest of the formulations tried, by 5 to
    10 % over batch first, 15 to 40 % over actor and critic stacked into one batched product.
    """
    *hidden, head = layers
    for layer in hidden:
        x = jnp.tanh(layer["weight"] @ x + layer["bias"])
    return head["weight"] @ x + head["bias"]


def ppo_loss(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    """Clipped surrogate, value and entropy terms of one minibatch."""
    log_probs = jax.nn.log_softmax(apply_network(params["actor"], batch["obs"]), axis=0)
    value = apply_network(params["critic"], batch["obs"])[0]
    log_prob = jnp.where(batch["action"] == 0, log_probs[0], log_probs[1])
    ratio = jnp.exp(log_prob - batch["log_prob"])
    advantage = batch["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - PPO.clip, 1 + PPO.clip)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = 0.5 * jnp.square(value - batch["target"]).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=0).mean()
    return policy_loss + PPO.value_coefficient * value_loss - PPO.entropy_coefficient * entropy


def fixed_batches(key: jax.Array) -> dict[str, jax.Array]:
    """One iteration's minibatches ``[M, ..., B]`` of random data."""
    shape = (GRADIENTS_PER_ITERATION, PPO.minibatch_size)
    keys = jax.random.split(key, 4)
    obs_shape = (shape[0], OBSERVATION_SIZE, shape[1])
    return {
        "obs": jax.random.normal(keys[0], obs_shape),
        "action": jax.random.randint(keys[1], shape, 0, NUM_ACTIONS),
        "log_prob": jnp.full(shape, -jnp.log(2.0)),
        "advantage": jax.random.normal(keys[2], shape),
        "target": jax.random.normal(keys[3], shape),
    }


def bare_gradients(key: jax.Array, steps: int) -> Params:
    """The gradients of a training run of ``steps`` steps; returns the last parameters."""
    actor_key, critic_key, data_key = jax.random.split(key, 3)
    batches = fixed_batches(data_key)
    params = {"actor": init_network(actor_key, NUM_ACTIONS), "critic": init_network(critic_key, 1)}

    def update(params, batch):
        gradient = jax.grad(ppo_loss)(params, batch)
        return jax.tree.map(lambda p, g: p - SGD_RATE * g, params, gradient), None

    def iteration(params, _):
        return jax.lax.scan(update, params, batches)[0], None

    length = steps // PPO.steps_per_iteration
    return jax.lax.scan(iteration, params, None, length=length)[0]


CEILINGS = {"environment": environment_only, "gradient": bare_gradients}


def main() -> None:
    """Measures and reports."""
    arguments = measure.parser(__doc__)
    arguments.add_argument("--kind", choices=CEILINGS, required=True)
    options = arguments.parse_args()
    measure.use_all_cores()
    steps = PPO.whole_iterations(options.steps)
    function = measure.over_seeds(lambda key: CEILINGS[options.kind](key, steps), options.seeds)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    compile_s, run_s = measure.time_jax(function, keys, options.repeats)
    measure.report(
        seeds=options.seeds,
        steps_per_seed=steps,
        compile_s=compile_s,
        run_s=run_s,
        packages=("jax", "jaxlib", "gymnax"),
        devices=len(jax.devices()),
        platform=jax.default_backend(),
    )


if __name__ == "__main__":
    main()
