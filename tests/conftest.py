"""Strict JAX for every test, and the marks."""

import gc
import os

import jax
import pytest
from threadpoolctl import threadpool_limits

import purerl
from purerl.host.compilation import cache_folder

# Traces are millions of small objects, with which garbage collection spent a tenth of the time.
gc.set_threshold(50_000, 20, 50)

collect_ignore = ["data"]  # the scripts there need other libraries
# The slowest files, first of all: a worker that ends with one of them leaves the other idle.
SLOWEST = (
    *("test_docs", "test_off_policy", "test_runs", "test_notebooks", "test_conformance"),
    *("test_players", "test_acktr", "test_train", "test_masks", "test_ppo", "test_resume"),
    *("test_chunks", "test_sharding", "test_envs", "test_buffers", "test_trpo", "test_memory"),
)

# Compiled programs, for the next run of the tests too, whichever clone it is of.
HOME = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
CACHE = cache_folder(f"{HOME}/purerl-tests")
CACHE_LIMIT = 1 << 30  # bytes

# Compiling is what takes the time. Set before JAX is used, and for child processes too: level 1
# and, where XLA still has them, the emitters of fusions that compile fast and run slower. Tests
# without the mark "trains" compile at level 0.
FLAGS = "--xla_backend_optimization_level=1"
if jax.__version_info__ < (0, 10):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"

# Two CPU devices, so that sharding over devices is tested wherever the tests run.
jax.config.update("jax_num_cpu_devices", 2)
jax.devices()  # from here on their number is fixed
threadpool_limits(1, user_api="blas")  # as purerl.use_all_cores does
if jax.__version_info__ >= (0, 10):  # as it does, too
    jax.config.update("jax_use_shardy_partitioner", False)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_include_full_tracebacks_in_locations", False)  # traces faster


def pytest_configure(config):
    """An old cache begins anew: JAX's own bound has a price at each program."""
    files = [*CACHE.glob("*")] if not hasattr(config, "workerinput") else []
    if sum(file.stat().st_size for file in files) > CACHE_LIMIT:
        for file in files:
            file.unlink()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Slow files before the others; their order within is kept."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def _choose_level(node):
    quick = node.get_closest_marker("trains") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(quick)


@pytest.fixture(autouse=True, scope="module")
def _level_of_a_module(request):
    _choose_level(request.node)


@pytest.fixture(autouse=True)
def _level_of_a_test(request):
    _choose_level(request.node)


@pytest.fixture
def x64():
    """Float64 within one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """A fixed key."""
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Each program that XLA compiles on a CPU takes several memory maps, of which a process may
    have 65,530; a process that ran all tests would come to its end by a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _doctest_names(request):
    """Doctests see purerl without importing it."""
    if isinstance(request.node, pytest.DoctestItem):
        request.node.dtest.globs.setdefault("purerl", purerl)
