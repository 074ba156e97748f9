"""What an update of ACKTR costs beside one of A2C, and the share of each part.

    python benchmarks/kfac_cost.py            # a minute or two; nothing else should run meanwhile

Updates on one rollout of 20 steps in 32 environments (the paper's batch of 640), two separate tanh
networks of 64-64, fifty in a row in one program, all programs in turns. The parts are differences
between programs:

* "gradient, preconditioned": neither statistics nor inversions are ever due;
* statistics: with them at every update, less that (a forward pass is shared with the loss; what
  they add is a backward pass without weight gradients, and the products of the factors);
* inversions: with them every 10 updates, less the first.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

import purerl

HERE = Path(__file__).resolve().parent
ROLLOUT = (20, 32)
UPDATES = 50
NEVER = 10**6
FULL = {"stats_stride": 1}
NO_STATISTICS, NO_INVERSES = FULL | {"stats_every": NEVER}, FULL | {"inverse_every": NEVER}
SETTINGS: dict[str, dict[str, Any]] = {
    "full: statistics every update, inverses every 10": FULL,
    "gradient, preconditioned": NO_STATISTICS | NO_INVERSES,
    "and statistics": NO_INVERSES,
    "and inverses": NO_STATISTICS,
    "full, damped in the eigenbasis": FULL | {"damping_kind": "eigenbasis"},
    "full, EKFAC": FULL | {"damping_kind": "ekfac"},
    "default: statistics of every 4th step": {},
    "the same with EKFAC": {"damping_kind": "ekfac"},
    "light: that every 10 updates, inverses every 50": {"stats_every": 10, "inverse_every": 50},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    repeats: int = 15
    """Timed executions of each program; the median counts."""
    seeds: tuple[int, ...] = (1, 16)
    """Learners at the same time, sharded over the cores."""
    output: Path = HERE / "results" / "kfac_cost.json"
    """Result file; the table goes beside it."""
    force: bool = False
    """Whether to overwrite the result files."""


def algorithms() -> dict[str, purerl.OnPolicyAlgorithm]:
    """A2C, and ACKTR at each setting, past its cold start."""
    space = purerl.Discrete(2)
    made = {"A2C": purerl.a2c(purerl.A2CConfig(), space)}
    for name, setting in SETTINGS.items():
        made[name] = purerl.acktr(purerl.ACKTRConfig(cold_start=0, **setting), space)
    return made


def make_rollout(key) -> purerl.Rollout:
    """Random observations, rewards and ends."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(key, 5)
    draw = lambda i, *shape: jax.random.normal(keys[i], (*ROLLOUT, *shape))  # noqa: E731
    action = jax.random.randint(keys[3], ROLLOUT, 0, 2)
    terminated = jax.random.bernoulli(keys[4], 0.05, ROLLOUT)
    return purerl.Rollout(
        obs=draw(0, 4),
        action=action,
        log_prob=jnp.full(ROLLOUT, -jnp.log(2.0)),
        reward=draw(1),
        terminated=terminated,
        truncated=jnp.zeros(ROLLOUT, bool),
        next_obs=draw(2, 4),
        episode_step=jnp.zeros(ROLLOUT, jnp.int32),
    )


def compile_updates(algorithm: purerl.OnPolicyAlgorithm, seeds: int):
    """A program of so many updates in a row, and its arguments."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), seeds)
    rollouts = jax.vmap(make_rollout)(keys)
    init = purerl.vectorize(lambda key: algorithm.init(jnp.zeros((1, 4)), key))

    def run(state, rollout, key):
        def update(state, i):
            return algorithm.update(state, rollout, jax.random.fold_in(key, i))

        return jax.lax.scan(update, state, jnp.arange(UPDATES))

    arguments = jax.jit(init)(keys), rollouts, keys
    return jax.jit(purerl.vectorize(run)).lower(*arguments).compile(), arguments


def time_updates(seeds: int, repeats: int) -> dict[str, float]:
    """Median microseconds of one update, a seed, the programs taking turns."""
    import jax

    programs = {name: compile_updates(made, seeds) for name, made in algorithms().items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, (function, arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:  # the first execution is discarded
                times[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(t) / UPDATES / seeds for name, t in times.items()}


def table(cells: dict[int, dict[str, float]]) -> str:
    """Each program, then the parts."""
    titles = [f"{n} seed{'s' * (n > 1)}" for n in cells]
    rows = [
        f"| one update, in A2C's (us a seed) | {' | '.join(titles)} |",
        "|---" * (len(cells) + 1) + "|",
    ]
    for name in next(iter(cells.values())):
        texts = [f"{us[name] / us['A2C']:.2f} ({us[name]:,.0f})" for us in cells.values()]
        rows.append(f"| {name} | {' | '.join(texts)} |")
    bare, full = "gradient, preconditioned", next(iter(SETTINGS))
    rows += ["", f"| share of a full update | {' | '.join(titles)} |", rows[1]]
    for part, program in (("statistics", "and statistics"), ("inverses", "and inverses")):
        shares = [f"{(us[program] - us[bare]) / us[full]:.0%}" for us in cells.values()]
        rows.append(f"| {part} | {' | '.join(shares)} |")
    shares = [f"{(us[bare] - us['A2C']) / us[full]:.0%}" for us in cells.values()]
    rows.append(f"| preconditioning, KL clip, measured KL | {' | '.join(shares)} |")
    shares = [f"{us['A2C'] / us[full]:.0%}" for us in cells.values()]
    rows.append(f"| what A2C does too | {' | '.join(shares)} |")
    return "\n".join(rows)


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json", ".md"), options.force)
    purerl.use_all_cores()
    cells = {seeds: time_updates(seeds, options.repeats) for seeds in options.seeds}
    record = {
        **circumstances("kfac_cost", options),
        "microseconds": cells,
    }
    files[0].write_text(json.dumps(record, indent=1) + "\n")
    files[1].write_text(table(cells) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
