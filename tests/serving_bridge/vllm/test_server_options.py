"""The command line and the environment of a server, by platform and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving_bridge.settings import ServingSettings
from serving_bridge.vllm.server_checks import Platform, ReplicaStartError
from serving_bridge.vllm.server_options import Access, server_command, server_environment

FOLDER = Path("/run/private")


def settings(**given: Any) -> ServingSettings:
    return ServingSettings(**({"max_model_len": 64} | given))


def options(platform: Platform, **given: Any) -> dict[str, str | None]:
    """Options by name; None for those without a value."""
    command = server_command(Path("/model"), settings(**given), platform, 8001)
    found: dict[str, str | None] = {}
    for word, following in zip(command, [*command[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word.removeprefix("--")] = None if following.startswith("--") else following
    return found


def test_what_a_server_is_always_told() -> None:
    found = options("gpu", host="10.0.0.3", dtype="bfloat16", max_num_seqs=7, tensor_parallel_size=2)
    expected = {
        "model": "/model", "served-model-name": "policy", "host": "10.0.0.3", "port": "8001", "dtype": "bfloat16",
        "max-model-len": "64", "max-num-seqs": "7", "tensor-parallel-size": "2", "generation-config": "vllm",
        "logprobs-mode": "processed_logprobs", "scheduling-policy": "priority", "enable-scale-out": None,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_vllm_itself_is_loaded_by_the_program_that_saves_time() -> None:
    command = server_command(Path("/model"), settings(), "cpu", 1)
    assert command[1:5] == ["-P", "-m", "serving_bridge.vllm_plugin.quick_start", "vllm.entrypoints.openai.api_server"]
    assert server_command(Path("/model"), settings(server_module="own.server"), "cpu", 1)[1:4] == [
        "-P",
        "-m",
        "own.server",
    ]


def test_memory_and_batches_are_those_of_the_platform() -> None:
    cpu, gpu = (options(platform, cpu_kv_cache_gib=3, gpu_memory_utilization=0.5) for platform in ("cpu", "gpu"))
    assert (cpu["kv-cache-memory-bytes"], cpu["max-num-batched-tokens"]) == (str(3 * 2**30), "8192")
    assert options("cpu", max_model_len=9000)["max-num-batched-tokens"] == "9000"
    assert gpu["gpu-memory-utilization"] == "0.5"
    assert "gpu-memory-utilization" not in cpu
    assert {"kv-cache-memory-bytes", "max-num-batched-tokens", "no-enable-chunked-prefill"}.isdisjoint(gpu)
    assert "no-enable-chunked-prefill" in cpu
    assert "enforce-eager" in options("gpu", enforce_eager=True)
    assert "enforce-eager" not in options("gpu", enforce_eager=False)


def test_blocks_on_a_cpu_are_short_unless_somebody_says_how_long() -> None:
    assert options("cpu")["block-size"] == "32"
    assert (
        server_command(Path("/model"), settings(engine_args={"block_size": 16}), "cpu", 1).count("--block-size=16") == 1
    )
    assert "block-size" not in options("cpu", engine_args={"block_size": 16})
    assert "block-size" not in options("gpu")


@pytest.mark.parametrize(("drain_s", "told"), [(0.1, "1"), (1.4, "1"), (10.0, "10")])
def test_a_server_has_a_second_at_least_to_end(drain_s: float, told: str) -> None:
    assert options("gpu", drain_timeout_s=drain_s)["shutdown-timeout"] == told


def test_further_options_come_last_and_take_the_place_of_what_is_only_a_default() -> None:
    command = server_command(Path("/model"), settings(engine_args={"seed": 3}), "gpu", 1)
    assert command[-1] == "--seed=3"
    given = {"max_num_batched_tokens": 64, "uvicorn-log-level": "info", "disable-uvicorn-access-log": False}
    command = server_command(Path("/model"), settings(engine_args=given), "cpu", 1)
    assert command[-3:] == [
        "--max-num-batched-tokens=64",
        "--uvicorn-log-level=info",
        "--no-disable-uvicorn-access-log",
    ]
    assert not {"--max-num-batched-tokens", "--uvicorn-log-level", "--disable-uvicorn-access-log"} & set(command)


def test_prompts_are_not_cut_into_chunks_on_a_cpu() -> None:
    chunks, whole = {"enable-chunked-prefill": True}, {"enable_chunked_prefill": False}
    with pytest.raises(ReplicaStartError, match="can't be given on a CPU: a request with a seed"):
        server_command(Path("/model"), settings(engine_args=chunks), "cpu", 1)
    assert "--enable-chunked-prefill" in server_command(Path("/model"), settings(engine_args=chunks), "gpu", 1)
    command = server_command(Path("/model"), settings(engine_args=whole), "cpu", 1)
    assert command.count("--no-enable-chunked-prefill") == 1
    cache = {"kv_cache_memory_bytes": 1 << 30}
    with pytest.raises(ReplicaStartError, match=r"set serving\.cpu_kv_cache_gib"):
        server_command(Path("/model"), settings(engine_args=cache), "cpu", 1)
    assert "--kv-cache-memory-bytes=1073741824" in server_command(Path("/m"), settings(engine_args=cache), "gpu", 1)


def environment(platform: Platform, base: dict[str, str], **given: Any) -> dict[str, str]:
    access = Access("http://h:1", "control", "inference", "/store", ("/a", "/b"), "own")
    return server_environment({"HOME": "/home/u"} | base, settings(**given), platform, access, FOLDER)


def test_a_server_learns_of_its_tokens_and_nothing_of_the_callers_secrets() -> None:
    base = {"MY_FLAG": "1", "OTHER": "2", "API_KEY": "secret", "TMPDIR": "/tmp", "VLLM_SERVER_DEV_MODE": "0"}
    found = environment("gpu", base, environment=("MY_FLAG",))
    expected = {
        "MY_FLAG": "1", "WEIR_CONTROL_TOKEN": "control", "WEIR_INFERENCE_TOKEN": "inference",
        "WEIR_BASE_URL": "http://h:1", "WEIR_STORE_ROOT": "/store", "WEIR_MODEL_FAMILY": "own",
        "WEIR_ALSO_OPEN": "/a /b", "TMPDIR": str(FOLDER), "VLLM_RPC_BASE_PATH": str(FOLDER),
        "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
        "GLOO_SOCKET_IFNAME": "lo", "WEIR_TRAINING_SLOWDOWN": "0.15", "WEIR_USERS_BELOW": "20",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert {"OTHER", "API_KEY"}.isdisjoint(found)
    assert found["TORCHINDUCTOR_CACHE_DIR"].endswith("/torchinductor")
    assert environment("gpu", {"GLOO_SOCKET_IFNAME": "eth0"})["GLOO_SOCKET_IFNAME"] == "eth0"


def test_a_server_gets_what_opens_its_store_and_its_log_shows_none_of_it() -> None:
    access = Access("http://h:1", "control", "inference", "s3://b/x", store_variables={"AWS_SECRET_ACCESS_KEY": "very"})
    found = server_environment({"AWS_PROFILE": "p"}, settings(), "gpu", access, FOLDER)
    assert (found["WEIR_STORE_ROOT"], found["AWS_SECRET_ACCESS_KEY"]) == ("s3://b/x", "very")
    assert "AWS_PROFILE" not in found
    assert "very" not in repr(access)


def test_threads_are_set_on_the_cpu_alone() -> None:
    cpu, gpu = (environment(platform, {}, threads=3) for platform in ("cpu", "gpu"))
    assert (cpu["OMP_NUM_THREADS"], cpu["TORCH_COMPILE_DISABLE"]) == ("3", "1")
    assert {"OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE", "VLLM_CPU_OMP_THREADS_BIND"}.isdisjoint(gpu)
