"""One program compiled for an accelerator that need not be there, and what is in it.

    python accelerator_program.py TARGET WHOSE NAME SEEDS [CHANGES]

prints a line of JSON. TARGET is ``gpu`` or a TPU's topology, ``v5e:16x16``; WHOSE is ``purerl`` or
``rejax``, whose environment this runs in; CHANGES of the preset are JSON. ``accelerators.py`` calls
it.
"""

import collections
import json
import os
import re
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# libtpu would look for the machine that it runs on.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}

import jax
from jax.experimental import topologies

sys.path.append(os.path.join(os.path.dirname(__file__), "peers"))

ITERATIONS = 10  # of training in the program
UNROLL = 4  # purerl.pieces.rollout.UNROLL, which Rejax's environment has not
# What XLA has to know of an H200.
H200 = """
gpu_device_info {
  core_count: 132 clock_rate_ghz: 1.98 fpus_per_core: 128 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  device_memory_size: 150000000000 memory_bandwidth: 4800000000000
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 8 patch: 0 }
"""
COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
# Instructions that launch nothing.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "call"}
FREE |= {"async-start", "async-done", "copy-start", "copy-done", "opt-barrier"}
FREE |= {"partition-id", "replica-id", "while", "conditional"}


def purerl_program(name: str, seeds: int, changes: dict[str, Any]) -> tuple[Any, Any, int]:
    """Iterations of an algorithm on CartPole-v1, its arguments' shapes, and T."""
    import purerl
    from purerl import threefry
    from purerl.pieces import packing

    # They ask for the backend of this process.
    packing.pays, threefry.pays = lambda: True, lambda: False
    sizes: dict[str, Any] = {}
    if name == "ppo":  # as Rejax's
        from measure import PPO

        name = "ppo_clip"
        sizes = {"num_envs": PPO.num_envs, "rollout_length": PPO.rollout_length}
        sizes |= {"num_epochs": PPO.num_epochs, "num_minibatches": PPO.num_minibatches}
    experiment = purerl.make_experiment(name, "CartPole-v1", evaluations=0, **sizes, **changes)
    train = experiment.build()
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    state = jax.eval_shape(purerl.vectorize(train.init, shard=False), keys)

    def program(state: Any) -> Any:
        return train.advance(state, ITERATIONS)

    return purerl.vectorize(program, shard=False), state, experiment.loop.rollout_length


def rejax_program(name: str, seeds: int, changes: dict[str, Any]) -> tuple[Any, Any, int]:
    """The same of Rejax."""
    import rejax_ppo
    from measure import PPO

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    train = rejax_ppo.build(ITERATIONS * PPO.steps_per_iteration).train
    return jax.vmap(train), keys, PPO.rollout_length


def loops(text: str) -> list[tuple[list[int | None], int]]:
    """Trip counts of each nest of loops (None: known only when it runs), launches in its body."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = head[2]
            entry = current if head[1] else entry
            bodies[current] = []
        elif current and " = " in line:
            bodies[current].append(line)
    found = []

    def walk(name: str, path: list[int | None]) -> None:
        launches = 0
        for line in bodies[name]:
            kind = re.search(r"[\]})] ([a-z\-]+)\(", line)
            launches += bool(kind) and kind[1] not in FREE  # type: ignore[index]
            inner = path
            if body := re.search(r" while\(.*body=%?([\w.\-]+)", line):
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                walk(body[1], [*path, int(trips[1]) if trips else None])
            elif " conditional(" in line:  # both branches count
                named = re.search(r"branch_computations=\{([^}]*)\}", line)
                names = (
                    named[1]
                    if named
                    else ",".join(re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", line))
                )
                for branch in names.split(","):
                    walk(branch.strip().lstrip("%"), inner)
            elif call := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                walk(call[1], path)
        found.append((path, launches))

    walk(entry, [])
    return found


def on_gpu(whose: str, name: str, seeds: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Launches and memory of one H200."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", topology="1x1x1", target_config=H200
    )
    function, arguments, length = PROGRAMS[whose](name, seeds, changes)
    compiled, seconds = compiled_for(function, arguments, topology)
    nests = loops(compiled.as_text())
    whole, dynamic, step = 0, 0, 0.0
    for path, launches in nests:
        if path[:1] == [ITERATIONS]:
            times = 1
            for trips in path[1:]:
                times *= trips or 1
            whole += times * launches
        dynamic += path[-1:] == [None]
        for turn in (1, UNROLL):  # steps in a turn of the rollout's loop
            if len(path) == 2 and path[1] == length // turn:
                step = max(step, launches / turn)
    return {
        "launches_a_step": step,
        "launches_an_iteration": whole,
        "dynamic_loops": dynamic,
        "bytes_a_seed": taken(compiled) // seeds,
        "compile_seconds": seconds,
    }


def on_tpu(
    topology: str, whose: str, name: str, seeds: int, changes: dict[str, Any]
) -> dict[str, Any]:
    """Collectives among all chips, which share the seeds, and memory of each."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    function, arguments, _ = PROGRAMS[whose](name, seeds, changes)
    compiled, seconds = compiled_for(function, arguments, chips)
    found = re.findall(rf" ({COLLECTIVES})(?:-start)?\(", compiled.as_text())
    return {
        "chips": len(chips.devices),
        "collectives": collections.Counter(found),
        "bytes_a_seed": taken(compiled) * len(chips.devices) // seeds,
        "compile_seconds": seconds,
    }


def compiled_for(function: Any, arguments: Any, topology: Any) -> tuple[Any, float]:
    """A program whose seeds are spread over all devices; and the seconds to compile it."""
    count, everywhere = len(topology.devices), jax.sharding.PartitionSpec()
    mesh = topologies.make_mesh(topology, (count,), ("seeds",))

    def spec(x: Any) -> Any:
        return jax.sharding.PartitionSpec("seeds") if count > 1 and x.ndim else everywhere

    def placed(x: Any) -> Any:
        place = jax.sharding.NamedSharding(mesh, spec(x))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    if count > 1:  # as purerl.vectorize does it
        specs = jax.tree.map(spec, (arguments,))
        outputs = jax.tree.map(spec, jax.eval_shape(function, arguments))
        function = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=outputs, check_vma=False
        )
    lowered = jax.jit(function).lower(jax.tree.map(placed, arguments))
    begin = time.perf_counter()
    return lowered.compile(), time.perf_counter() - begin


def taken(compiled: Any) -> int:
    """Bytes of a device, by the compiler's analysis."""
    sizes = compiled.memory_analysis()
    return sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes


PROGRAMS = {"purerl": purerl_program, "rejax": rejax_program}

if __name__ == "__main__":
    target, whose, name, seeds, *rest = sys.argv[1:]
    measure = on_gpu if target == "gpu" else lambda *call: on_tpu(target, *call)
    print(json.dumps(measure(whose, name, int(seeds), json.loads(rest[0]) if rest else {})))
