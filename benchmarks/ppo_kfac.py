"""PPO-Clip with K-FAC in place of Adam: is the natural gradient worth its time there?

    python benchmarks/ppo_kfac.py

The same loss, rollouts, epochs and minibatches (the presets of PPO-Clip), once with Adam and once
with ``scale_by_kfac``: one measurement of the factors and one inversion for each rollout, on its
first minibatch, with actions drawn from the policy, since later minibatches are off-policy. K-FAC's
step size and trust region are given by options; Adam's are the preset's. The table has the
interquartile mean of the return over all evaluations (the area under the curve), that of the last
one, and the seconds of training.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from record import circumstances, result_files

import purerl

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    envs: tuple[str, ...] = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")
    """Environments."""
    seeds: int = 16
    """Seeds of each cell."""
    learning_rate: float = 0.1
    """Of the natural gradient; falls linearly to 0."""
    kl_clip: float = 1e-4
    """Trust region of one minibatch's step; actor and critic have one each."""
    damping: float = 0.01
    """K-FAC's epsilon."""
    momentum: float = 0.0
    """Weight of the past in the moving average of steps."""
    output: Path = HERE / "results" / "ppo_kfac.json"
    """Result file; the table goes beside it."""
    force: bool = False
    """Whether to overwrite the result files."""


class State(NamedTuple):
    """What it learns."""

    params: Any
    opt_state: Any


def ppo_kfac(
    config: purerl.PPOClipConfig, options: Options, action_space: Any
) -> purerl.OnPolicyAlgorithm:
    """PPO-Clip around K-FAC, out of the library's pieces."""
    import jax
    import jax.numpy as jnp
    import optax

    from purerl.algorithms.acktr import score
    from purerl.algorithms.ppo import make_loss
    from purerl.config import scheduled
    from purerl.pieces.advantages import on_policy_batch
    from purerl.pieces.gradient import gradient_step, keep_if_finite
    from purerl.pieces.minibatches import minibatches
    from purerl.policies.acting import init_params, make_act, make_ahead
    from purerl.second_order.kfac.factors import fisher_factors
    from purerl.second_order.kfac.layers import find_layers
    from purerl.second_order.kfac.regions import reaching
    from purerl.second_order.kfac.tapping import tap
    from purerl.second_order.kfac.transform import scale_by_kfac

    network = purerl.ActorCritic(action_space, config.network)
    steps = config.num_epochs * config.num_minibatches

    def optimizer(params, obs, variance):
        of_actor = reaching(lambda p: network.apply(p, obs)[0], params)
        kfac = scale_by_kfac(
            find_layers(network.apply, params, obs),
            damping=options.damping,
            stats_every=steps,
            inverse_every=steps,
            cold_start=0,
            # The critic is N(V, variance); its Fisher is that of N(V, 1), and the bound scaled.
            kl_clip={"actor": options.kl_clip, "critic": options.kl_clip * variance},
            regions=jax.tree.map(lambda actor: "actor" if actor else "critic", of_actor),
        )
        return optax.chain(kfac, optax.ema(options.momentum, debias=False))

    def init(obs, key):
        params = init_params(network, action_space, obs, key)
        return State(params, optimizer(params, obs, 1.0).init(params))

    def update(state, rollout, key, *, progress=0.0):
        discounts = config.gamma, config.gae_lambda
        batch = on_policy_batch(network, state.params, rollout, *discounts)
        variance = jnp.maximum(jnp.mean(jnp.square(batch.target - batch.value)), 1e-8)
        loss = make_loss(network, config, progress=progress)
        learning_rate = scheduled(options.learning_rate, "linear", progress)

        def step(state, minibatch_and_key):
            minibatch, key = minibatch_and_key
            gradient, info = jax.grad(loss, has_aux=True)(state.params, minibatch)

            def statistics():
                layers = find_layers(network.apply, state.params, minibatch.obs)
                tapped = tap(network.apply, layers, state.params, minibatch.obs)
                return fisher_factors(layers, tapped, score(tapped.output, 1.0, key))

            learned = gradient_step(
                optimizer(state.params, minibatch.obs, variance),
                gradient,
                state.opt_state,
                state.params,
                learning_rate,
                statistics=statistics,
            )
            return State(*learned), info

        def epoch(state, key):
            shuffle_key, step_key = jax.random.split(key)
            samples = minibatches(shuffle_key, batch, config.num_minibatches)
            keys = jax.random.split(step_key, config.num_minibatches)
            return jax.lax.scan(step, state, (samples, keys))

        learned, info = jax.lax.scan(epoch, state, jax.random.split(key, config.num_epochs))
        params, finite = keep_if_finite(learned.params, state.params)
        info = jax.tree.map(jnp.mean, info) | {"finite": finite}
        return State(params, learned.opt_state), info

    act, ahead = make_act(network), make_ahead(network)
    return purerl.OnPolicyAlgorithm(init, act, update, gamma=config.gamma, ahead=ahead)


def of_preset(action_space: Any, *, network: Any = None, preset_of: str = "CartPole-v1") -> Any:
    """The algorithm at PPO-Clip's preset of an environment, for ``purerl.run``."""
    config = purerl.make_experiment("ppo_clip", preset_of).config
    return ppo_kfac(config, Options(), action_space)


def measure(env_name: str, options: Options) -> dict[str, Any]:
    """Both on one environment, at PPO-Clip's preset."""
    import jax
    import numpy as np

    experiment = purerl.make_experiment("ppo_clip", env_name)
    env = purerl.make_env(env_name)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    cell: dict[str, Any] = {"env": env_name, "experiment": experiment.to_json()}
    for name, algorithm in {
        "Adam": purerl.ppo_clip(experiment.config, env.action_space),
        "K-FAC": ppo_kfac(experiment.config, options, env.action_space),
    }.items():
        train = purerl.make_train(algorithm, env, **vars(experiment.loop))
        compiled = jax.jit(purerl.vectorize(train.train)).lower(keys).compile()
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(keys))
        seconds = time.perf_counter() - start
        cell[name] = {
            "seconds": seconds,
            "failed": int(np.sum(result.failed)),
            "steps": np.asarray(result.curve.step[0]).tolist(),
            "returns": np.round(result.curve.evaluation.mean_return, 2).tolist(),
        }
        print(row(cell, name), file=sys.stderr, flush=True)
    return cell


def row(cell: dict[str, Any], name: str) -> str:
    """Of the table."""
    import numpy as np

    returns = np.array(cell[name]["returns"])
    texts = []
    for values in (returns.mean(1), returns[:, -1]):
        low, high = purerl.iqm_interval(values)
        texts.append(f"{purerl.iqm(values):.1f} [{low:.1f}, {high:.1f}]")
    return f"| {cell['env']} | {name} | {' | '.join(texts)} | {cell[name]['seconds']:.0f} |"


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json", ".md"), options.force)
    purerl.use_all_cores()
    cells = [measure(env, options) for env in options.envs]
    rows = ["| environment | step | over the whole run | at the end | s |", "|---|---|---|---|---|"]
    rows += [row(cell, name) for cell in cells for name in ("Adam", "K-FAC")]
    record = {
        **circumstances("ppo_kfac", options),
        "cells": cells,
    }
    files[0].write_text(json.dumps(record) + "\n")
    files[1].write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
