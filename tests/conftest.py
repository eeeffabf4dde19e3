"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Eight virtual devices, so that sharding is exercised on one CPU; read by JAX when it is first imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")


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
