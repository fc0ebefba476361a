"""Makes JAX strict, gives every test four CPU devices, and finds the real data where there is some.

FEDJAX_MM_TEST_DATA: the folder of real datasets; without it the tests look in ../shared/data beside the checkout.
"""

import gc
import importlib.metadata
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"  # tests compile more than they run
)
if importlib.metadata.version("jaxlib").startswith("0.10."):  # another version may not know it, and would stop
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # a quarter off the time to compile
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"  # an eighth: every worker has one core
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads where a test's operations stand: a fifth off
# Compiled programs are code: their folder is the user's own, where nobody else can put one.
cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedjax_mm"
cache /= f"tests-{jax.__version__}"
cache.mkdir(mode=0o700, parents=True, exist_ok=True)
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

gc.set_threshold(20_000, 20, 20)  # tracing makes many small objects that live on: a tenth off

collect_ignore_glob = ["*/fixtures/*"]  # scripts that made the fixtures; they need PyTorch

HERE = pathlib.Path(__file__).resolve()
SLOW = tuple(line for line in (HERE.parent / "slow.txt").read_text().splitlines() if not line.startswith("#"))
BESIDE = HERE.parents[2] / "shared" / "data"
REAL = pathlib.Path(os.environ.get("FEDJAX_MM_TEST_DATA") or BESIDE).expanduser().absolute()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run those of tests/slow.txt too")


@pytest.hookimpl(tryfirst=True)  # xdist then writes the groups behind the names
def pytest_collection_modifyitems(config, items):
    for item in items:  # a worker that has made a file's fixtures and programs runs its other tests too
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    if config.getoption("--slow") or any("::" in arg for arg in config.args):
        return
    left_out = [item for item in items if item.nodeid.startswith(SLOW)]
    kept = [item for item in items if not item.nodeid.startswith(SLOW)]
    if "tests" in config.args:
        functions = {item.nodeid.split("[")[0] for item in kept}
        wrong = [line for line in SLOW if not any(item.nodeid.startswith(line) for item in left_out)]
        wrong += [line for line in SLOW if line.split("[")[0] not in functions]
        if wrong:
            raise pytest.UsageError(f"tests/slow.txt names what is not there, or leaves no other instance: {wrong}")
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real datasets; the test is skipped where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}; FEDJAX_MM_TEST_DATA may name another folder")
    return REAL
