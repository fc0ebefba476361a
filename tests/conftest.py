"""Makes JAX strict, gives every test four CPU devices, and finds the shared real data where there is some."""

import importlib.metadata
import os
import pathlib
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"  # tests compile more than they run
)
if importlib.metadata.version("jaxlib").startswith("0.10."):  # another version may not know it, and would stop
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # a quarter off the time to compile
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
cache = os.path.join(tempfile.gettempdir(), f"fedjax_mm_tests_{jax.__version__}")
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real datasets; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED
