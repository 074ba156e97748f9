"""Recurrent PPO of Memorax: ``jit(vmap)`` of ``init`` and ``train``; one seed without the ``vmap``.

Its networks are built of its own parts, of the same sizes as purerl's: for actor and critic each a
hidden layer, flax's GRU cell and a head. Where it has no setting for it, it keeps its own: the
learning rate is constant and advantages are normalized over the rollout.
"""

import flax.linen as nn
import jax
import measure
import memorax
import optax
from measure import RECURRENT as SETTING
from memorax.networks import MLP, RNN, FeatureExtractor, Network
from memorax.networks.heads import Categorical, VNetwork


def build():
    """The algorithm of the comparison."""
    env, env_params = memorax.make(f"gymnax::{measure.ENVIRONMENT}")

    def network(head):
        return Network(
            feature_extractor=FeatureExtractor(
                observation_extractor=MLP(features=SETTING.hidden, activation=nn.tanh)
            ),
            torso=RNN(cell=nn.GRUCell(features=SETTING.memory)),
            head=head,
        )

    def optimizer():
        clip = optax.clip_by_global_norm(SETTING.max_grad_norm)
        return optax.chain(clip, optax.adam(SETTING.learning_rate, eps=SETTING.adam_epsilon))

    config = memorax.PPOConfig(
        name="ppo",
        num_envs=SETTING.num_envs,
        num_eval_envs=SETTING.num_envs,
        num_steps=SETTING.rollout_length,
        gamma=SETTING.discount,
        gae_lambda=SETTING.gae_lambda,
        num_minibatches=SETTING.num_minibatches,
        update_epochs=SETTING.num_epochs,
        normalize_advantage=True,
        clip_coef=SETTING.clip,
        clip_vloss=False,
        ent_coef=SETTING.entropy_coefficient,
        vf_coef=SETTING.value_coefficient,
    )
    actions = env.action_space(env_params).n
    return memorax.PPO(
        cfg=config,
        env=env,
        env_params=env_params,
        actor_network=network(Categorical(action_dim=actions)),
        critic_network=network(VNetwork()),
        actor_optimizer=optimizer(),
        critic_optimizer=optimizer(),
    )


def main() -> None:
    """Measures and reports."""
    arguments = measure.parser(__doc__)
    arguments.add_argument("--shard", action="store_true", help="shard the seeds over the cores")
    options = arguments.parse_args()
    if options.shard:
        measure.use_all_cores()
    algorithm, steps = build(), SETTING.whole_iterations(options.steps)

    def train(key):
        key, state = algorithm.init(key)
        _, state, transitions = algorithm.train(key, state, steps)
        return state.actor_params, state.critic_params, transitions.info["losses/actor_loss"]

    keys = jax.random.split(jax.random.key(0), options.seeds)
    if options.shard:
        function = measure.over_seeds(train, options.seeds)
    elif options.seeds == 1:
        function, keys = train, keys[0]
    else:
        function = jax.vmap(train)
    compile_s, run_s = measure.time_jax(function, keys, options.repeats)
    measure.report(
        seeds=options.seeds,
        steps_per_seed=steps,
        compile_s=compile_s,
        run_s=run_s,
        packages=("memorax", "jax", "jaxlib", "flax", "optax", "gymnax", "distrax"),
        devices=len(jax.devices()),
        platform=jax.default_backend(),
    )


if __name__ == "__main__":
    main()
