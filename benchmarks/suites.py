"""What ``speed.py`` compares: for each algorithm who takes part, and what is demanded of purerl."""

import dataclasses
from typing import Literal, NamedTuple

import isolated
from peers import measure

_SHARED = tuple(f"{name}=={measure.version(name)}" for name in ("jax", "jaxlib", "flax", "optax"))
# With the JAX of this process and the newest gymnax that Rejax works with.
REJAX = ("rejax", (("rejax==0.1.3", "gymnax==0.0.9", *_SHARED),))


MEMORAX = ("memorax", (("memorax==1.0.1", "gymnax==0.0.9", *_SHARED),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A program in ``peers/``."""

    label: str
    """Its row in the tables."""
    program: str
    """File in ``peers/``, then arguments."""
    environment: isolated.Environment | None = None
    """Where it runs; None: where purerl does."""
    seeds: Literal["any", "one", "many"] = "any"
    """At what numbers of seeds it takes part."""

    def takes_part(self, seeds: int) -> bool:
        """Whether it is measured at this number of seeds."""
        return {"any": True, "one": seeds == 1, "many": seeds > 1}[self.seeds]


class Demand(NamedTuple):
    """On the ratio of purerl's figure to a contender's: speed at least, compilation at most."""

    contender: str
    bound: float
    of: str = "purerl"  # or another row of purerl's
    seeds: int | None = None  # of purerl; None: at every number that was measured
    other_seeds: int | None = None  # of the contender; None: the same
    figure: Literal["steps_per_s", "compile_s"] = "steps_per_s"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """One algorithm's comparison."""

    contenders: dict[str, Contender]
    seeds: tuple[int, ...]
    demands: tuple[Demand, ...]


SUITES = {
    "ppo": Suite(
        contenders={
            "purerl": Contender(label="purerl", program="purerl_ppo.py"),
            "rejax": Contender(label="Rejax 0.1.3", program="rejax_ppo.py", environment=REJAX),
            "rejax-sharded": Contender(
                label="Rejax, seeds sharded by us",
                program="rejax_ppo.py --shard",
                environment=REJAX,
                seeds="many",
            ),
            "sb3": Contender(
                label="stable-baselines3 2.9.2",
                program="sb3_ppo.py",
                environment=isolated.SB3,
                seeds="one",
            ),
            "ceiling-gradient": Contender(
                label="ceiling: bare gradients", program="ceilings.py --kind gradient"
            ),
            "ceiling-environment": Contender(
                label="ceiling: environment only", program="ceilings.py --kind environment"
            ),
        },
        seeds=(1, 4, 16, 64),
        demands=(
            Demand("rejax", 1.2, seeds=1),
            Demand("rejax", 1.5, seeds=16),
            Demand("rejax", 2.0, seeds=16),
            Demand("ceiling-gradient", 0.7),
            Demand("purerl", 1.0, seeds=64, other_seeds=16),
            Demand("rejax", 1.0, figure="compile_s"),
        ),
    ),
    "recurrent": Suite(
        contenders={
            "purerl": Contender(label="purerl", program="purerl_recurrent.py"),
            "memorax": Contender(
                label="Memorax 1.0.1", program="memorax_ppo.py", environment=MEMORAX
            ),
            "memorax-sharded": Contender(
                label="Memorax, seeds sharded by us",
                program="memorax_ppo.py --shard",
                environment=MEMORAX,
                seeds="many",
            ),
        },
        seeds=(1, 16),
        demands=(
            Demand("memorax", 1.0, seeds=1),
            Demand("memorax", 1.3, seeds=16),
            Demand("memorax-sharded", 1.0, seeds=16),
        ),
    ),
    "trpo": Suite(
        contenders={
            "purerl": Contender(label="purerl", program="purerl_trpo.py"),
            "sb3": Contender(
                label="sb3-contrib 2.9.2",
                program="sb3_trpo.py",
                environment=isolated.SB3,
                seeds="one",
            ),
            # With a thread a core it can be several times slower than with one, above all where
            # others use the machine; the demands hold against the faster.
            "sb3-one-thread": Contender(
                label="sb3-contrib 2.9.2, one thread",
                program="sb3_trpo.py --threads 1",
                environment=isolated.SB3,
                seeds="one",
            ),
        },
        seeds=(1, 16, 64),
        demands=(
            Demand("sb3", 8.0, seeds=1),
            Demand("sb3-one-thread", 8.0, seeds=1),
            Demand("sb3", 20.0, seeds=16, other_seeds=1),
            Demand("sb3-one-thread", 20.0, seeds=16, other_seeds=1),
        ),
    ),
    "acktr": Suite(
        contenders={
            "full": Contender(
                label="ACKTR, full: statistics of all samples every update, inverses every 10",
                program="purerl_acktr.py --variant full",
            ),
            "purerl": Contender(
                label="ACKTR, default: statistics of a quarter", program="purerl_acktr.py"
            ),
            "light": Contender(
                label="ACKTR, light: statistics of a quarter every 10 updates, inverses every 50",
                program="purerl_acktr.py --variant light",
            ),
            "a2c": Contender(label="A2C", program="purerl_acktr.py --variant a2c"),
        },
        seeds=(1, 16),
        demands=(Demand("a2c", 1 / 3, of="full"), Demand("a2c", 1 / 1.25, of="light")),
    ),
    "dqn": Suite(
        contenders={
            "purerl": Contender(label="purerl", program="purerl_dqn.py"),
            "prioritized": Contender(
                label="purerl, prioritized", program="purerl_dqn.py --prioritized"
            ),
            "large": Contender(
                label="purerl, capacity 1e6", program="purerl_dqn.py --capacity 1000000"
            ),
            "large-prioritized": Contender(
                label="purerl, prioritized, capacity 1e6",
                program="purerl_dqn.py --prioritized --capacity 1000000",
            ),
            "rejax": Contender(label="Rejax 0.1.3", program="rejax_dqn.py", environment=REJAX),
            "sb3": Contender(
                label="stable-baselines3 2.9.2",
                program="sb3_dqn.py",
                environment=isolated.SB3,
                seeds="one",
            ),
            "sb3-one-thread": Contender(
                label="stable-baselines3 2.9.2, one thread",
                program="sb3_dqn.py --threads 1",
                environment=isolated.SB3,
                seeds="one",
            ),
        },
        seeds=(1, 8, 32),
        demands=(
            Demand("rejax", 2.0, seeds=1),
            Demand("rejax", 2.0, seeds=8),
            Demand("sb3", 5.0, seeds=1),
            Demand("sb3-one-thread", 5.0, seeds=1),
            Demand("purerl", 1 / 1.5, of="prioritized"),
            Demand("purerl", 0.9, of="large"),
            # The tree's depth: log(1e6) / log(1e4).
            Demand("prioritized", 1 / 1.5, of="large-prioritized"),
            Demand("purerl", 1.0, seeds=32, other_seeds=8),
        ),
    ),
}
