"""Seeds or environments over 8 devices, and over two processes."""

import csv
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import purerl
from purerl.checkpoint import Checkpoints
from purerl.train.sharding import make_layout

TESTS = pathlib.Path(__file__).parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
    "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
}
EIGHT_DEVICES = """
import collections, json, math, re, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import purerl
from purerl.driver import Driver
from purerl.train.sharding import Layout

shard = sys.argv[1]
experiment = purerl.make_experiment(
    "ppo_clip", "CartPole-v1", num_epochs=2, num_minibatches=2, steps=1280, num_envs=16,
    rollout_length=8, evaluations=1, evaluation_episodes=8, hidden_sizes=(8,), normalize_obs=True,
)

def trained(devices, seeds):
    layout = Layout(jax.sharding.Mesh(jax.devices()[:devices], (shard,)), shard)
    keys = jax.random.split(jax.random.key(0), 16)[:seeds]
    driver = Driver(lambda _: experiment.build(), {}, keys, layout)
    if shard == "seeds":  # as where there are no other devices
        devices_of = jax.devices
        jax.devices = lambda *a: devices_of(*a)[:devices]
    driver.compile()
    driver.start()
    driver.advance(3)
    if shard == "seeds":
        jax.devices = devices_of
    text = driver.program.as_text()
    opcodes = collections.Counter(re.findall(r" ([a-z-]+)\\(", text))
    shapes = re.findall(r"= \\w+\\[([\\d,]+)\\]\\S* copy\\(", text)
    copies = sum(math.prod(map(int, shape.split(","))) for shape in shapes)
    places = {str(tuple(x.sharding.spec)) for x in jax.tree.leaves(driver.state.actors)}
    learner = [np.asarray(x).tolist() for x in jax.tree.leaves(driver.state.learner)]
    return {"opcodes": opcodes, "copies": copies, "learner": learner, "places": sorted(places)}

results = [trained(8, 16), trained(1, 16)]
if shard == "seeds":
    results.append(trained(1, 2))  # the seeds that each of the 8 devices has
print(json.dumps(results))
"""
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def on_eight_devices(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, *arguments], env=ENVIRONMENT, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return json.loads(done.stdout)


def same(a, b):
    for x, y in zip(a["learner"], b["learner"], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_sharded_seeds_add_nothing_to_the_program():
    """Each of 8 devices runs the program that one device runs for its 2 seeds."""
    many, one, one_with_two = on_eight_devices("seeds")
    assert not set(many["opcodes"]) & set(COLLECTIVES)
    # Elements that are copied; where XLA copies 8 numbers of a state is not always the same.
    assert abs(many["copies"] - one_with_two["copies"]) < 0.01 * many["copies"]
    assert many["copies"] > 1000  # it is a training program that was read
    assert many["opcodes"]["while"] > 3
    assert many["places"] == ["('seeds',)"]
    same(many, one)


def test_sharded_environments_give_the_same_numbers():
    many, one = on_eight_devices("environments")
    assert set(many["opcodes"]) & set(COLLECTIVES)
    assert not set(one["opcodes"]) & set(COLLECTIVES)
    assert many["places"] == ["(None, 'environments')"]
    same(many, one)


def test_environments_that_the_devices_do_not_divide():
    with pytest.raises(ValueError, match=r"num_envs=3 cannot be shared evenly by 2 devices"):
        make_layout("environments", 4, 3)
    with pytest.raises(ValueError, match="unknown shard 'hosts'"):
        make_layout("hosts", 4, 4)


def test_environments_over_the_devices_of_this_process(tmp_path):
    """A whole run, with its checkpoints, resumed bitwise."""
    experiment = purerl.make_experiment(
        "a2c",
        "CartPole-v1",
        steps=512,
        num_envs=4,
        rollout_length=16,
        evaluations=2,
        evaluation_episodes=4,
        hidden_sizes=(8,),
    )
    options = {"seeds": 3, "progress": False, "shard": "environments"}
    result = purerl.run(experiment, out=tmp_path / "run", **options)
    seeds = purerl.run(experiment, **(options | {"shard": "seeds"}))
    np.testing.assert_allclose(result.returns, seeds.returns, rtol=0.2)
    again = purerl.run(experiment, out=tmp_path / "run", resume=True, **options)
    np.testing.assert_array_equal(again.returns, result.returns)


RUN = ["a2c", "CartPole-v1", "--steps", "20480", "--num-envs", "8", "--rollout-length", "16"]
RUN += ["--evaluations", "4", "--evaluation-episodes", "4", "--hidden-sizes", "8", "--seeds", "4"]
RUN += ["--no-progress", "--chunk-seconds", "0.5", "--checkpoint-seconds", "0.7"]
PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from purerl.train import vectorize
vectorize.use_all_cores = lambda: jax.device_count()
import purerl.run
purerl.run.use_all_cores = vectorize.use_all_cores
from purerl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def two_processes(out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", PROCESS, "train", *RUN, "--resume", str(out)),
                *("--distributed", f"127.0.0.1:{port},2,{i}"),
            ],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def final(folder):
    checkpoints = Checkpoints(folder / "checkpoints", keep=None)
    host = checkpoints.read_host(checkpoints.iterations()[-1])
    checkpoints.close()
    with (folder / "evaluations.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return host["checksums"], host["returns"], rows


def test_two_processes_are_killed_and_resume_to_the_same_bytes(tmp_path):
    """They train, log and checkpoint together."""
    whole = tmp_path / "whole"
    outputs = [process.communicate(timeout=300) for process in two_processes(whole)]
    assert "return" in outputs[0][0], outputs
    assert not [x for x in outputs[1][0].splitlines() if "Gloo" not in x]  # one of them speaks
    checksums, returns, rows = final(whole)
    assert len(rows) == 16
    assert None not in checksums

    cut = tmp_path / "cut"
    processes = two_processes(cut)
    while not list(cut.glob("checkpoints/*[0-9]")) and processes[1].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    time.sleep(0.2)
    processes[0].kill()  # what a scheduler does when one has died
    for process in processes:
        process.communicate()
    assert not (cut / "learning_curve.png").exists()
    for process in two_processes(cut):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    assert final(cut) == (checksums, returns, rows)

    pattern = re.compile(r"^(--steps|--num|--roll|--eval|--hidden)")
    assert sum(bool(pattern.match(word)) for word in RUN) == 6
    experiment = purerl.make_experiment(
        "a2c",
        "CartPole-v1",
        steps=20480,
        num_envs=8,
        rollout_length=16,
        evaluations=4,
        evaluation_episodes=4,
        hidden_sizes=(8,),
    )
    one = purerl.run(experiment, seeds=4, progress=False)
    np.testing.assert_allclose(np.array(returns).T[:, 0], one.returns[:, 0], rtol=0.5)
