"""Seeds or environments over 8 devices, and over two processes."""

import collections
import json
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from run_folders import child_environment, driven, final

import purerl
from purerl.host.devices import make_layout
from purerl.host.store.checkpoint import read_host
from purerl.host.store.folder import RunFolder

EIGHT_DEVICES = """
import collections, json, math, re, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import purerl
from purerl.host.options import RunOptions
from purerl.host.programs import Driver

shard = sys.argv[1]
experiment = purerl.make_experiment(
    "ppo_clip", "CartPole-v1", num_epochs=2, num_minibatches=2, steps=1280, num_envs=16,
    rollout_length=8, evaluations=1, evaluation_episodes=8, hidden_sizes=(8,), normalize_obs=True,
)

def trained(devices, seeds):
    keys, devices_of = jax.random.split(jax.random.key(0), 16)[:seeds], jax.devices
    jax.devices = lambda *a: devices_of(*a)[:devices]  # as where there are no others
    driver = Driver(experiment, {}, keys, RunOptions(shard=shard))
    driver.compile()
    driver.start()
    driver.advance(3)
    jax.devices = devices_of
    text = driver.programs.advance.as_text()
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
    return json.loads(output(started(EIGHT_DEVICES, *arguments)).splitlines()[-1])


def started(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process, status=0):
    """What a process prints, when it has ended as it should."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == status, err[-3000:]
    return out


def address():
    """A port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


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
    share = __name__, "environments"
    cut = driven(at=5, share=share)
    stopped = purerl.run(experiment, out=tmp_path / "cut", driver=cut, **options)
    assert stopped.stopped == "SIGINT"
    driver = driven(share=share)
    purerl.resume(tmp_path / "cut", progress=False, driver=driver)
    assert sum(driver.chunks) == 3
    assert final(tmp_path / "cut") == final(tmp_path / "run")
    assert None not in final(tmp_path / "cut")[0]["checksums"]


RUN = ["a2c", "CartPole-v1", "--steps", "20480", "--num-envs", "8", "--rollout-length", "16"]
RUN += ["--evaluations", "4", "--evaluation-episodes", "4", "--hidden-sizes", "8", "--seeds", "4"]
RUN += ["--chunk-seconds", "0.2", "--checkpoint-seconds", "0.3", "--keep-best"]
PROCESS = """
import sys
import jax
devices, text, *arguments = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
from purerl.training import seeds
seeds.use_all_cores = lambda: jax.device_count()
import purerl.host.runs
purerl.host.runs.use_all_cores = seeds.use_all_cores
from purerl.host.programs import Driver
compile_programs = Driver.compile
def compile_and_tell(self):
    compile_programs(self)
    with open(text, "w") as file:
        file.write(self.programs.advance.as_text())
Driver.compile = compile_and_tell
from purerl.cli import main
sys.exit(main(arguments))
"""


def two_processes(out):
    where = address()
    return [
        started(
            *(PROCESS, "2", f"{out}-{i}.txt", "train", *RUN, "--resume", str(out)),
            *("--distributed", f"{where},2,{i}"),
        )
        for i in range(2)
    ]


def opcodes(path):
    """How often each is in a compiled program."""
    return collections.Counter(re.findall(r" ([a-z-]+)\(", path.read_text()))


def wait_for_checkpoint(out, process, after=0):
    """The iteration of the first one after another."""
    while process.poll() is None:
        names = (path.name for path in out.glob("checkpoints/*[0-9]"))
        if newer := [int(x) for x in names if x.isdigit() and int(x) > after]:
            return min(newer)
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def percent(shown):
    """Where the progress begins."""
    return int(re.search(r"(\d+)%\|", shown)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing disturbs, and what each prints."""
    folder = tmp_path_factory.mktemp("two") / "whole"
    return folder, [output(process) for process in two_processes(folder)]


def test_two_processes_give_the_bytes_of_one(whole, tmp_path):
    """With as many devices; their program is the same, and has no collective."""
    two, _ = whole
    one = tmp_path / "one"
    output(started(PROCESS, "4", f"{one}.txt", "train", *RUN, "--out", str(one)))
    assert final(one) == final(two)
    found = opcodes(tmp_path / "one.txt")
    assert found["while"] > 3  # it is a training program that was read
    assert not set(found) & set(COLLECTIVES)
    for i in range(2):
        assert opcodes(two.with_name(f"whole-{i}.txt")) == found


def test_two_processes_are_killed_and_resume_to_the_same_bytes(whole, tmp_path):
    """They train, log and checkpoint together, and end together when one is told to."""
    whole, outputs = whole
    assert "return" in outputs[0]
    # One of them speaks; the lines of Gloo itself may run into one another.
    said = [x for x in outputs[1].splitlines() if "Gloo" not in x and "peer ranks" not in x]
    assert not said
    expected = state, rows = final(whole)
    assert len(rows) == 16
    assert None not in state["checksums"]
    assert read_host(RunFolder(whole), "best") is not None

    cut = tmp_path / "cut"
    processes = two_processes(cut)
    wait_for_checkpoint(cut, processes[1])
    processes[1].kill()
    time.sleep(0.2)
    processes[0].kill()  # what a scheduler does when one has died
    for process in processes:
        process.communicate()
    assert not (cut / "learning_curve.png").exists()

    kept = max(int(x.name) for x in (cut / "checkpoints").iterdir() if x.name.isdigit())
    processes = two_processes(cut)
    wait_for_checkpoint(cut, processes[1], after=kept)
    processes[1].send_signal(signal.SIGTERM)  # to one of them
    out, err = processes[0].communicate(timeout=900)
    assert processes[0].returncode == 143, err[-3000:]
    assert "terminated; written to" in out
    assert percent(err) > 0  # it went on, and did not begin again
    output(processes[1], 143)

    processes = two_processes(cut)
    out, err = processes[0].communicate(timeout=900)
    assert processes[0].returncode == 0, err[-3000:]
    assert percent(err) > 0
    output(processes[1])
    assert final(cut) == expected
