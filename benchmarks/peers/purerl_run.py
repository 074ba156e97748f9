"""Measures an algorithm of the purerl checkout this file lies in."""

import argparse
from collections.abc import Callable, Mapping

import measure

import purerl
from purerl.records import ActionSpace, OnPolicyAlgorithm

MakeAlgorithm = Callable[[ActionSpace], OnPolicyAlgorithm]


def main(
    description: str,
    make_algorithm: MakeAlgorithm | Mapping[str, MakeAlgorithm],
    setting: measure.Setting,
) -> None:
    """Measures and reports.

    Args:
        description: Of the program, for its ``--help``.
        make_algorithm: Makes the algorithm from the environment's action space; or several such,
            of which ``--variant`` names one.
        setting: Of the suite.
    """
    arguments = measure.parser(description)
    if isinstance(make_algorithm, Mapping):
        arguments.add_argument("--variant", choices=make_algorithm, default="default")
    options = arguments.parse_args()
    if isinstance(make_algorithm, Mapping):
        make_algorithm = make_algorithm[options.variant]
    purerl.use_all_cores()
    env = purerl.make_env(measure.ENVIRONMENT)
    train = purerl.make_train(
        make_algorithm(env.action_space),
        env,
        steps=options.steps,
        num_envs=setting.num_envs,
        rollout_length=setting.rollout_length,
        evaluations=0,
    )
    time_and_report(train, options)


def time_and_report(train: purerl.Train, options: argparse.Namespace) -> None:
    """Measures whole runs of all seeds, and reports.

    Args:
        train: Of one seed.
        options: What the program was told.
    """
    import jax

    keys = jax.random.split(jax.random.key(0), options.seeds)
    compile_s, run_s = measure.time_jax(purerl.vectorize(train.train), keys, options.repeats)
    measure.report(
        seeds=options.seeds,
        steps_per_seed=train.steps,
        compile_s=compile_s,
        run_s=run_s,
        packages=("purerl", "jax", "jaxlib", "flax", "optax", "gymnax"),
        devices=len(jax.devices()),
        platform=jax.default_backend(),
    )


def network(setting: measure.Setting) -> purerl.NetworkConfig:
    """The network of the on-policy suites."""
    return purerl.NetworkConfig(hidden_sizes=setting.hidden, activation="tanh")
