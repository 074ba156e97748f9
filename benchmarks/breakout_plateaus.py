"""Why seeds of PPO stay on a plateau of Breakout: how they lose the ball, and how they might not.

    python benchmarks/breakout_plateaus.py

MinAtar's Breakout is deterministic but for two starts. From each, the policy's likeliest actions
are played until the ball is lost; then the last steps are played again with every detour of up to
ten steps (so many moves to one side, then none). The likeliest detour that keeps the ball has some
probability under the policy: what sampling would have to hit, within an episode, to see more.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from record import circumstances

import purerl

OUTPUT = Path(__file__).resolve().parent / "results" / "breakout_plateaus.json"
LIMIT = 1000  # steps of an episode
DETOURS = [
    [side] * moves + [0] * (steps - moves)
    for steps in range(1, 11)
    for moves, side in itertools.product(range(1, steps + 1), (1, 2))
] + [[0] * steps for steps in range(1, 11)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the experiment."""

    entropies: tuple[float, ...] = (0.01, 0.03)
    """Entropy coefficients."""
    steps: int = 300_000
    """Environment steps, after which many seeds are on their plateau."""
    seeds: int = 4
    """Of each."""
    seed: int = 1000
    """Random seed."""
    output: Path = OUTPUT
    """Result file; the table goes beside it."""


def played(env: Any, network: Any, params: Any, first: Any) -> Any:
    """States, observations and probabilities ``[LIMIT, ...]`` of the most probable actions."""

    def step(carry, _):
        obs, state = carry
        probabilities = jax.nn.softmax(network.apply(params, obs[None])[0].logits[0])
        result, after = env.step(state, jnp.argmax(probabilities), jax.random.key(0), first)
        seen = (obs, state, probabilities, result.reward, result.terminated | result.truncated)
        return (result.obs, after), seen

    return jax.lax.scan(step, first, length=LIMIT)[1]


def detour(env: Any, network: Any, params: Any, start: Any, actions: Any, count: Any) -> Any:
    """Whether the ball is kept, and the probability of these actions."""

    def step(carry, at):
        obs, state, kept, chance = carry
        probabilities = jax.nn.softmax(network.apply(params, obs[None])[0].logits[0])
        result, state = env.step(state, actions[at], jax.random.key(0), start)
        counts = at < count
        kept &= ~(counts & result.terminated)
        chance *= jnp.where(counts, probabilities[actions[at]], 1.0)
        return (result.obs, state, kept, chance), None

    return jax.lax.scan(step, (*start, True, 1.0), jnp.arange(10))[0][2:]


def look(env: Any, network: Any, params: Any) -> list[dict[str, float]]:
    """What happens from each of the two starts."""
    found: dict[int, dict[str, float]] = {}
    lengths = jnp.array([len(x) for x in DETOURS])
    padded = jnp.array([x + [0] * (10 - len(x)) for x in DETOURS])
    play = jax.jit(lambda params, first: played(env, network, params, first))
    try_all = jax.jit(
        jax.vmap(
            lambda params, start, actions, count: detour(
                env, network, params, start, actions, count
            ),
            (None, 0, 0, 0),
        )
    )
    for i in range(16):
        first = env.reset(jax.random.key(i))
        side = int(jnp.argmax(first[0][..., 1].sum(axis=0)))
        if side in found:
            continue
        obs, state, probabilities, reward, ended = play(params, first)
        last = int(np.argmax(ended))
        # The step that a detour of so many steps begins with; it ends with the last one.
        begins = np.maximum(last + 1 - np.asarray(lengths), 0)
        starts = jax.tree.map(lambda x, at=begins: x[at], (obs, state))
        kept, chance = try_all(params, starts, padded, lengths)
        found[side] = {
            "return": float(reward[: last + 1].sum()),
            "length": last + 1,
            "sure": float(np.median(np.max(probabilities[: last + 1], axis=1))),
            "escape": float(np.max(np.where(kept, chance, 0.0))),
        }
    return [found[side] for side in sorted(found)]


def measure(entropy: float, options: Options) -> dict[str, Any]:
    """All seeds at one entropy coefficient."""
    experiment = purerl.make_experiment(
        "ppo_clip", "Breakout-MinAtar", entropy_coef=entropy, steps=options.steps, evaluations=1
    )
    result = purerl.run(experiment, seeds=options.seeds, seed=options.seed)
    env = experiment.environment
    network = purerl.ActorCritic(env.action_space, experiment.config.network)
    params = [purerl.take_seeds(result.state.learner, s).params for s in range(options.seeds)]
    return {
        "entropy": entropy,
        **circumstances("breakout_plateaus", options),
        "experiment": experiment.to_json(),
        "seeds": [look(env, network, x) for x in params],
    }


def table(cells: list[dict[str, Any]]) -> str:
    """A row a seed and start."""
    rows = [
        "| entropy coefficient | seed | return | length | median of the largest probability "
        "| likeliest detour that keeps the ball |",
        "|---" * 6 + "|",
    ]
    for cell in cells:
        for number, starts in enumerate(cell["seeds"]):
            for x in starts:
                end = f"{x['escape']:.1e}" if x["length"] < LIMIT else "played to the limit"
                rows.append(
                    f"| {cell['entropy']} | {number} | {x['return']:.0f} | {x['length']} "
                    f"| {x['sure']:.4f} | {end} |"
                )
    return "\n".join(rows) + "\n"


def main(options: Options) -> None:
    """Trains, looks, writes."""
    cells = [measure(entropy, options) for entropy in options.entropies]
    options.output.write_text(json.dumps({"cells": cells}) + "\n")
    options.output.with_suffix(".md").write_text(table(cells))
    print(table(cells), end="")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
