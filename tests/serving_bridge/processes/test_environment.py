"""Child processes get what programs need, by name, and no credential of their parent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from serving_bridge.processes.environment import child_environment, process_environment
from serving_bridge.processes.supervisor import Supervisor
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm.server_options import Access, server_command, server_environment

NEEDED = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "HF_HOME",
    "OMP_NUM_THREADS",
    "VLLM_CPU_KVCACHE_SPACE",
    "XLA_FLAGS",
    "TOKENIZERS_PARALLELISM",
]
SECRETS = [
    "PGPASSWORD",
    "PGPASSFILE",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_PROFILE",
    "HF_TOKEN",
    "HUGGINGFACE_API_KEY",
    "VLLM_API_KEY",
    "VLLM_S3_SECRET",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "GITHUB_TOKEN",
    "SSH_AUTH_SOCK",
    "WEIR_CONTROL_TOKEN",
    "WEIR_TEST_POSTGRES",
    "JAX_AUTH",
    "TORCH_PASSWORD",
    "slurm_jwt",
    "SLURM_JWT_TOKEN",
    "http_proxy",
    "HTTPS_PROXY",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "SOMETHING",
]


def test_a_child_gets_what_it_needs_and_no_secret():
    base = dict.fromkeys(NEEDED + SECRETS, "x")
    assert sorted(child_environment(base)) == sorted(NEEDED)
    assert sorted(child_environment(base, ["SOMETHING", "AWS_PROFILE"])) == sorted(
        [*NEEDED, "SOMETHING", "AWS_PROFILE"]
    )


def test_an_address_with_a_password_is_a_secret_whatever_its_name():
    base = {"HF_ENDPOINT": "https://user:word@host/x", "HF_HOME": "https://host/x"}
    assert child_environment(base) == {"HF_HOME": "https://host/x"}


def test_processes_of_our_own_open_the_queue():
    base = dict.fromkeys(("PGPASSWORD", "PGSSLROOTCERT", "WEIR_CRASH_AT", "AWS_PROFILE", "PATH"), "x")
    assert sorted(process_environment(base)) == ["PATH", "PGPASSWORD", "PGSSLROOTCERT", "PYTHONPATH", "WEIR_CRASH_AT"]


def test_supervised_processes_get_the_named_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "EXTRA"):
        monkeypatch.setenv(name, "word")
    command = [sys.executable, "-c", "import os; print(*sorted(os.environ), flush=True)"]
    with Supervisor(tmp_path, lambda *_, **__: None, also=["EXTRA"]) as supervisor:
        supervisor.start("one", command)
        while not supervisor.has_finished("one"):
            supervisor.check()
    names = (tmp_path / "one.log").read_text().split()
    assert {"PATH", "PGPASSWORD", "EXTRA"} <= set(names)
    assert "AWS_SECRET_ACCESS_KEY" not in names


def test_a_server_gets_its_tokens_in_the_environment_and_none_on_its_command_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGPASSWORD", "word")
    settings = ServingSettings(max_model_len=64, environment=("EXTRA",))
    access = Access("http://127.0.0.1:1", "c" * 64, "i" * 64, store="/w")
    environment = server_environment(dict(os.environ) | {"EXTRA": "x"}, settings, "cpu", access, Path("/s"))
    assert "PGPASSWORD" not in environment
    assert (environment["WEIR_CONTROL_TOKEN"], environment["WEIR_INFERENCE_TOKEN"]) == ("c" * 64, "i" * 64)
    found = [environment[name] for name in ("WEIR_STORE_ROOT", "VLLM_RPC_BASE_PATH", "TMPDIR", "EXTRA")]
    assert found == ["/w", "/s", "/s", "x"]
    command = server_command(Path("/m"), settings, "cpu", 1)
    assert command[command.index("--middleware") + 1] == "serving_bridge.vllm_plugin.middleware.GateMiddleware"
    assert not any("c" * 64 in part or "i" * 64 in part for part in command)
