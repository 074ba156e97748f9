"""The cache of compiled programs, and compiler options."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import child_environment, final

import purerl
from purerl.host import compilation

RUN = """
import sys, purerl
sizes = {"steps": 64, "num_envs": 2, "rollout_length": 8, "evaluations": 1}
purerl.run("a2c", "CartPole-v1", evaluation_episodes=2, hidden_sizes=(4,), seeds=2, out=sys.argv[1],
           progress=False, **sizes)
purerl.evaluate_run(sys.argv[1], episodes=3)
"""


@pytest.fixture
def no_cache_of_jax():
    """As for a user who has set none."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def run_elsewhere(out, cache):
    """In a process of its own; what it says."""
    drop = ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL")
    environment = {k: x for k, x in child_environment().items() if k not in drop}
    environment["PURERL_CACHE"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def entries(cache):
    return sorted(path for path in cache.rglob("*-cache"))


def test_a_second_run_reads_its_programs_and_has_the_same_bytes(tmp_path):
    """Silently; and a damaged program is compiled again, with a warning."""
    cache = tmp_path / "cache"
    assert not run_elsewhere(tmp_path / "cold", cache)
    programs = entries(cache)
    # What begins, trains, evaluates, and what evaluates other episodes.
    names = [path.name.split("-")[0] for path in programs]
    assert names.count("jit_mapped") >= 4, names
    times = [path.stat().st_mtime_ns for path in programs]
    assert not run_elsewhere(tmp_path / "warm", cache)
    assert entries(cache) == programs
    assert [path.stat().st_mtime_ns for path in programs] == times
    assert final(tmp_path / "cold") == final(tmp_path / "warm")
    for path in programs:
        path.write_bytes(path.read_bytes()[:100])
    assert "Error reading persistent compilation cache" in run_elsewhere(tmp_path / "again", cache)
    assert final(tmp_path / "again") == final(tmp_path / "cold")


def test_configuration_of_jax_is_restored(tmp_path, no_cache_of_jax):
    names = [
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_logging_level",
    ]
    before = [getattr(jax.config, name) for name in names]
    with purerl.cached_programs(str(tmp_path)):
        assert jax.config.jax_compilation_cache_dir == str(compilation.cache_folder(str(tmp_path)))
        assert 0 < jax.config.jax_compilation_cache_max_size <= 2**30
        jax.jit(lambda x: jnp.sin(x) @ x)(np.ones((7, 7)))
    assert [getattr(jax.config, name) for name in names] == before
    count = len(entries(tmp_path))
    assert count >= 1
    jax.jit(lambda x: jnp.cos(x) @ x)(np.ones((7, 7)))
    assert len(entries(tmp_path)) == count


def test_a_cache_of_the_users_is_used(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before is not None
    with purerl.cached_programs(str(tmp_path)):
        assert jax.config.jax_compilation_cache_dir == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("off", ["off", "0", "False"])
def test_the_cache_can_be_switched_off(tmp_path, off, monkeypatch, no_cache_of_jax):
    monkeypatch.setenv("PURERL_CACHE", str(tmp_path))
    assert compilation.cache_folder(off) is None
    monkeypatch.setenv("PURERL_CACHE", off)
    assert compilation.cache_folder() is None
    with purerl.cached_programs():
        assert jax.config.jax_compilation_cache_dir is None


def test_the_folder_is_the_users_and_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("PURERL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = compilation.cache_folder()
    assert here.parent == tmp_path / "purerl"
    monkeypatch.setattr(compilation, "about_cpu", lambda what: "avx1024")
    assert compilation.cache_folder() != here
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compilation.cache_folder().parent == pathlib.Path.home() / ".cache" / "purerl"


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, no_cache_of_jax):
    (tmp_path / "file").touch()
    told = pytest.warns(UserWarning, match="programs are compiled without a cache: .*file")
    with told, purerl.cached_programs(str(tmp_path / "file")):
        assert jax.config.jax_compilation_cache_dir is None


def test_flags_of_the_users_win(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compilation.compiler_options("start") == {"xla_backend_optimization_level": 0}
    assert compilation.compiler_options("once") == {"xla_backend_optimization_level": 1}
    assert compilation.compiler_options("trpo") == {"xla_backend_optimization_level": 1}
    assert compilation.compiler_options("ppo_clip") == compilation.compiler_options() == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert compilation.compiler_options("once") == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compilation.compiler_options("once") == {}


def test_a_function_is_compiled_for_its_arguments_through_the_cache(tmp_path, no_cache_of_jax):
    def double(x):
        return {"double": 2 * x["x"]}

    shapes = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
    compiled = purerl.compile(double, shapes, program="once", cache=str(tmp_path))
    np.testing.assert_array_equal(compiled({"x": jnp.arange(3.0)})["double"], [0, 2, 4])
    assert len(entries(tmp_path)) == 1
    with pytest.raises(ValueError, match=r"unknown program 'tpro'.*trpo"):
        purerl.compile(double, shapes, program="tpro")
