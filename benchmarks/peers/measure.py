"""What every contender shares: its arguments, the clock, the report. No purerl, no third party.

Each contender runs in a fresh process, so the compilation measured here is a cold one.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

ENVIRONMENT = "CartPole-v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What the contenders of an on-policy suite have in common, besides two tanh networks."""

    num_envs: int = 4
    rollout_length: int
    num_epochs: int
    minibatch_size: int
    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    gae_lambda: float = 0.95
    learning_rate: float
    adam_epsilon: float = 1e-5

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps between two updates."""
        return self.num_envs * self.rollout_length

    @property
    def num_minibatches(self) -> int:
        """In each epoch."""
        return self.steps_per_iteration // self.minibatch_size

    def whole_iterations(self, steps: int) -> int:
        """At least ``steps`` environment steps, in whole iterations of rollout and update."""
        return -(-steps // self.steps_per_iteration) * self.steps_per_iteration


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOSetting(Setting):
    """Suite ppo; epochs and minibatches are those of the one loss."""

    rollout_length: int = 128
    num_epochs: int = 4
    minibatch_size: int = 128
    learning_rate: float = 2.5e-4
    clip: float = 0.2
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentSetting(PPOSetting):
    """Suite recurrent: PPO with a GRU after one hidden layer; a minibatch is one environment."""

    hidden: tuple[int, ...] = (64,)
    memory: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TRPOSetting(Setting):
    """Suite trpo; epochs, minibatches, learning rate and Adam's epsilon are the critic's."""

    rollout_length: int = 512
    num_epochs: int = 10
    minibatch_size: int = 128
    learning_rate: float = 1e-3
    max_kl: float = 0.01
    cg_iterations: int = 10
    damping: float = 0.1
    backtrack_factor: float = 0.8
    backtrack_steps: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACKTRSetting(Setting):
    """Suite acktr: one update a rollout. A2C's learning rate and epsilon are RMSProp's."""

    num_envs: int = 32
    rollout_length: int = 20
    num_epochs: int = 1
    minibatch_size: int = 640
    gae_lambda: float = 1.0
    learning_rate: float = 7e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DQNSetting:
    """Suite dqn: one update after each step of all environments, one ReLU network."""

    num_envs: int = 10
    batch_size: int = 128
    capacity: int = 10_000
    warmup: int = 1000
    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    learning_rate: float = 1e-3
    adam_epsilon: float = 1e-5
    max_grad_norm: float = 10.0
    target_steps: int = 500  # environment steps between two copies to the target network
    epsilon_end: float = 0.05
    exploration: float = 0.2  # fraction of the run

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps between two updates."""
        return self.num_envs

    def whole_iterations(self, steps: int) -> int:
        """At least ``steps`` environment steps, in whole iterations of rollout and update."""
        return -(-steps // self.steps_per_iteration) * self.steps_per_iteration


PPO = PPOSetting()
RECURRENT = RecurrentSetting()
TRPO = TRPOSetting()
ACKTR = ACKTRSetting()
DQN = DQNSetting()


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments of all contenders, by argparse: the isolated environments have no tyro."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--seeds", type=int, default=1, help="runs at the same time")
    arguments.add_argument("--steps", type=int, default=500_000, help="environment steps a seed")
    arguments.add_argument("--repeats", type=int, default=1, help="measured executions")
    return arguments


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_all_cores() -> None:
    """Makes one CPU device a core, which must happen before JAX is first used."""
    import jax

    jax.config.update("jax_num_cpu_devices", cores())


def over_seeds(function: Callable, seeds: int) -> Callable:
    """``vmap`` over the seeds, sharded over as many devices as divide their number."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    if seeds == 1:  # a batch axis of length 1 still turns each product into a batched one
        return lambda keys: jax.tree.map(lambda x: jnp.expand_dims(x, 0), function(keys[0]))
    mapped = jax.vmap(function)
    devices = max(n for n in range(1, len(jax.devices()) + 1) if seeds % n == 0)
    if devices == 1:
        return mapped
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("seed",))
    spec = PartitionSpec("seed")
    # check_vma: initial carries that are constants do not vary over the mesh, their updates do.
    return jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def time_jax(function: Callable, argument: Any, repeats: int) -> tuple[float, list[float]]:
    """Seconds to trace and compile, and seconds of each execution after a discarded first one."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(function).lower(argument).compile()
    compile_s = time.perf_counter() - start
    jax.block_until_ready(compiled(argument))
    run_s = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(argument))
        run_s.append(time.perf_counter() - start)
    return compile_s, run_s


def report(
    *,
    seeds: int,
    steps_per_seed: int,
    compile_s: float | None,
    run_s: Sequence[float],
    packages: Sequence[str],
    **details: Any,
) -> None:
    """Prints the one line that ``speed.py`` reads."""
    line = {
        "seeds": seeds,
        "steps_per_seed": steps_per_seed,
        "compile_s": compile_s,
        "run_s": list(run_s),
        "steps_per_s": [seeds * steps_per_seed / seconds for seconds in run_s],
        "versions": {name: version(name) for name in packages},
        **details,
    }
    print(json.dumps(line), flush=True)


def version(package: str) -> str | None:
    """The installed version, or None for a checkout that was not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
