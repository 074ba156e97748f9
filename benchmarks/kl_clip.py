"""Why ACKTR's measured KL is below what its clip predicts, and what a wider clip is worth.

    python benchmarks/kl_clip.py                      # environments without a result yet
    python benchmarks/kl_clip.py --envs CartPole-v1 --force
    python benchmarks/kl_clip.py --seed 1000 --settings "momentum 0.9" "no momentum" \
        --output benchmarks/results/acktr_momentum.json

Runs at the presets, all settings of an environment as one program. Predicted is ``kl_clip / 2``
wherever the clip binds (trust < 1). Each of the other settings changes one thing that may keep the
measured KL below it: momentum averages the steps, damping shortens them, the factors' average lags.
The last setting lets the critic, which has a region of its own, take steps of any length.
The table has medians over the second and third quarter of the run, and the return at its end.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from record import circumstances

import purerl

HERE = Path(__file__).resolve().parent
# On Brax's double pendulum the clip was seen to bind, where PPO learns fast.
ENVS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "brax:inverted_double_pendulum")
# Momentum was 0.9 by default before this was measured; the other settings are beside that.
SETTINGS: dict[str, dict[str, float]] = {
    "momentum 0.9": {},
    "no momentum": {"momentum": 0.0},
    "no momentum, damping 1e-4": {"momentum": 0.0, "damping": 1e-4},
    "no momentum, decay 0.9": {"momentum": 0.0, "decay": 0.9},
    "kl_clip 0.003": {"kl_clip": 0.003},
    "kl_clip 0.01": {"kl_clip": 0.01},
    "kl_clip 0.03": {"kl_clip": 0.03},
    "kl_clip 0.01, learning rate 1": {"kl_clip": 0.01, "learning_rate": 1.0},
    "critic_kl_clip 1": {"critic_kl_clip": 1.0},
}
SETTINGS = {name: {"momentum": 0.9} | setting for name, setting in SETTINGS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    envs: tuple[str, ...] = ENVS
    """Environments."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Names in this file."""
    seeds: int = 16
    """Seeds of each setting."""
    seed: int = 0
    """Random seed; 0 is what is published, a default is chosen on others."""
    steps: int = 0
    """Of each run; 0: as in the preset."""
    output: Path = HERE / "results" / "kl_clip.json"
    """Result file, to which environments are added; the table goes beside it."""
    force: bool = False
    """Measure again where there is a result."""


def measure(env_name: str, options: Options) -> dict[str, Any]:
    """All settings on one environment."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    changes = {"steps": options.steps} if options.steps else {}
    experiment = purerl.make_experiment("acktr", env_name, **changes)
    env, config = purerl.make_env(env_name), experiment.config
    names = ("kl_clip", "critic_kl_clip", "momentum", "damping", "decay", "learning_rate")
    settings = [SETTINGS[name] for name in options.settings]
    swept = {
        name: jnp.array([setting.get(name, getattr(config, name)) for setting in settings])
        for name in names
    }

    def run(numbers, key):
        algorithm = purerl.acktr(dataclasses.replace(config, **numbers), env.action_space)
        result = purerl.make_train(algorithm, env, **vars(experiment.loop)).train(key)
        info = {k: result.metrics.info[k] for k in ("kl", "trust", "entropy")}
        return result.curve.evaluation.mean_return, result.failed, info

    seeds = jax.random.split(jax.random.key(options.seed), options.seeds)
    keys = jnp.concatenate([seeds] * len(settings))
    numbers = {name: jnp.repeat(x, options.seeds) for name, x in swept.items()}
    start = time.perf_counter()
    returns, failed, info = jax.jit(purerl.vectorize(run))(numbers, keys)
    shape = (len(settings), options.seeds)
    returns, failed = np.asarray(returns).reshape(*shape, -1), np.asarray(failed).reshape(shape)
    updates = info["kl"].shape[-1]
    half = slice(updates // 4, 3 * updates // 4)
    medians = {
        name: np.median(np.asarray(x).reshape(*shape, updates)[..., half], axis=(1, 2)).tolist()
        for name, x in info.items()
    }
    seconds = time.perf_counter() - start
    return {
        "env": env_name,
        **circumstances("kl_clip", options),
        "experiment": experiment.to_json(),
        "seconds": seconds,
        "settings": list(options.settings),
        "medians": medians,
        "failed": failed.sum(1).tolist(),
        "returns": np.round(returns, 2).tolist(),
        "kl_clip": np.asarray(swept["kl_clip"]).tolist(),
    }


def rows(cell: dict[str, Any]) -> list[str]:
    """Of the table."""
    import numpy as np

    found = []
    for i, name in enumerate(cell["settings"]):
        kl, predicted = cell["medians"]["kl"][i], cell["kl_clip"][i] / 2
        texts = []
        for values in (np.mean(cell["returns"][i], axis=1), np.array(cell["returns"][i])[:, -1]):
            low, high = purerl.iqm_interval(values)
            texts.append(f"{purerl.iqm(values):.1f} [{low:.1f}, {high:.1f}]")
        found.append(
            f"| {cell['env']} | {len(cell['returns'][i])} | {name} "
            f"| {cell['medians']['trust'][i]:.2g} | {kl:.1e} | {kl / predicted:.2f} "
            f"| {' | '.join(texts)} |"
        )
    return found


def main(options: Options) -> None:
    """Measures what is missing, prints and writes."""
    purerl.use_all_cores()
    path = options.output
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    for env in options.envs:
        same = [cell for cell in cells if cell["env"] == env]
        if same and not options.force:
            continue
        cell = measure(env, options)
        print("\n".join(rows(cell)), file=sys.stderr, flush=True)
        cells = sorted([c for c in cells if c not in same] + [cell], key=lambda c: order(c["env"]))
        path.write_text(json.dumps({"cells": cells}) + "\n")
    head = "| environment | seeds | setting | trust | KL | KL / predicted | over the whole run "
    table = [head + "| at the end |", "|---" * 8 + "|", *(x for cell in cells for x in rows(cell))]
    path.with_suffix(".md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


def order(env: str) -> int:
    """Of an environment in the table; others are last."""
    return ENVS.index(env) if env in ENVS else len(ENVS)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
