"""Measures an algorithm of Rejax."""

from collections.abc import Callable
from typing import Any

import jax
import measure


def main(
    description: str,
    build: Callable[[int], Any],
    setting: measure.Setting | measure.DQNSetting,
) -> None:
    """Measures and reports.

    Args:
        description: Of the program, for its ``--help``.
        build: Makes the training run from its number of steps.
        setting: Of the suite.
    """
    arguments = measure.parser(description)
    arguments.add_argument("--shard", action="store_true", help="shard the seeds over the cores")
    options = arguments.parse_args()
    if options.shard:
        measure.use_all_cores()
    steps = setting.whole_iterations(options.steps)
    train = build(steps).train
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
        packages=("rejax", "jax", "jaxlib", "flax", "optax", "gymnax", "distrax"),
        devices=len(jax.devices()),
        platform=jax.default_backend(),
    )
