"""Fixtures shared by the tests."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.support.file_order import longest_first
from tests.support.shared_servers import scope_of

REPOSITORY = Path(__file__).resolve().parent.parent

pytest_plugins = ["tests.support.postgres_server", "tests.support.properties"]

# What a process that a test starts compiles is kept for the next one, whatever the caller's setting is for this one.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Eight virtual devices, so that sharding is exercised on one CPU; read by JAX when it is first imported. Compiling is
# most of the time of many tests: LLVM must not work hard, and a program is compiled once for all tests.
QUICK_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # later ones have one way to compile fused loops, and no flag
    # The older way compiles in a quarter of the time, and one part has no overhead of many.
    QUICK_COMPILE += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK_COMPILE}")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # a stack for each operation, which nobody reads
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="weir-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, where files that share servers count as one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class SharingServers(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return SharingServers(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


def pytest_collection_finish() -> None:
    """Has garbage looked for less often: thousands of tests and compiled programs are alive for the whole session."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


os.umask(0o022)  # whatever the caller's is


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A test's umask stays its own: what runs a job's `main` in this process closes the files of all that follow."""
    yield
    os.umask(0o022)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real inputs that the repository doesn't ship; tests that need it skip where it is absent."""
    path = Path(os.environ.get("WEIR_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real test inputs are not at {path}; set WEIR_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def stories_model(shared_data: Path) -> Path:
    """A real pretrained 260K-parameter Llama in Hugging Face layout, head_dim padded to 64."""
    return shared_data / "llama260k_stories" / "hf_hd64"
