"""The engine's options in a config: how they become arguments, and which are refused before any engine is asked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from configs.load import ConfigError, load_config, save_config
from serving_bridge.settings import ServingSettings, command_line
from serving_bridge.settings.engine_args import OWN, check_engine_args
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "configs" / "demo.toml"


def test_each_kind_of_value_becomes_the_words_that_a_parser_reads() -> None:
    text = """
    block_size = 16
    seed = -5
    enable-prefix-caching = false
    async_scheduling = true
    kv_cache_dtype = "auto"
    numa = "-x --host=0.0.0.0"
    cudagraph-capture-sizes = [1, 2, -4]
    lora-modules = [{ name = "a", path = "/b" }]
    compilation-config = { mode = 3, pass_config = { fuse_norm_quant = true } }
    speculative-config.num_speculative_tokens = 3
    """
    assert command_line(tomllib.loads(text)) == [
        "--block-size=16",
        "--seed=-5",
        "--no-enable-prefix-caching",
        "--async-scheduling",
        "--kv-cache-dtype=auto",
        "--numa=-x --host=0.0.0.0",
        *["--cudagraph-capture-sizes", "1", "2", "-4"],
        *["--lora-modules", '{"name": "a", "path": "/b"}'],
        '--compilation-config={"mode": 3, "pass_config": {"fuse_norm_quant": true}}',
        '--speculative-config={"num_speculative_tokens": 3}',
    ]


@pytest.mark.parametrize(
    ("engine_args", "said"),
    [
        ({"host": "0.0.0.0"}, "'host', which Weir sets or keeps shut: set serving.host"),
        ({"max_num_seqs": 3}, "'max_num_seqs', .* set serving.max_num_seqs"),
        ({"logprobs_mode": "raw_logprobs"}, "distribution that their log-probs tell of"),
        ({"weight-transfer-config": {"backend": "nccl"}}, "to bring new weights"),
        ({"middleware": ["os.system"]}, "past the gate"),
        ({"hf_token": "hf_1"}, "name a variable such as HF_TOKEN in serving.environment"),
        ({"data-parallel-size": 2}, "set serving.replicas"),
        ({"hos": "0.0.0.0"}, "'hos', which may be read as 'host'"),
        ({"middlewar": "x"}, "may be read as 'middleware'"),
        ({"api_ke": "x"}, "may be read as 'api-key'"),
        ({"no-enable-scale-out": True}, "write enable-scale-out = false"),
        ({"enable_scale_out": False}, "routes that it opens"),
        ({"-tp": 2}, "'-tp', expected the name"),
        ({"--seed": 2}, "'--seed', expected the name"),
        ({"seed=1 --host": 2}, "expected the name"),
        ({"": 2}, "'', expected the name"),
        ({"cudagraph-capture-sizes": ["1", "--host=0.0.0.0"]}, "begins with -, and would be read"),
        ({"seed": float("nan")}, "expected a finite number, got nan"),
        ({"a": {"b": [float("inf")]}}, "expected a finite number, got inf"),
        ({"chat-template": "a\0b"}, "the character NUL"),
        ({"seed": None}, "expected a number, text, .* got NoneType"),
        ({"block-size": 1, "block_size": 2}, "'block-size' twice"),
    ],
)
@pytest.mark.parametrize("module", ["vllm.entrypoints.openai.api_server", "own.server"])
def test_what_no_server_is_given_is_refused_with_what_to_do(
    engine_args: dict[str, Any], said: str, module: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ServingSettings(max_model_len=64, server_module=module, engine_args=engine_args)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"'host'.*; 'port'"):
        check_engine_args({"host": "h", "port": 1, "seed": 1})


def test_what_may_come_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    overrides = ["serving.engine_args.seed=5", "serving.engine_args.compilation_config={ mode = 3 }"]
    config = load_config(DEMO, overrides)
    assert config.serving.engine_args == {"seed": 5, "compilation_config": {"mode": 3}}
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml").serving.engine_args == config.serving.engine_args
    with pytest.raises(ConfigError, match=r"serving.*'port', which Weir sets or keeps shut: set serving\.port"):
        load_config(DEMO, ["serving.engine_args.port=1"])


def test_another_servers_options_are_its_own() -> None:
    settings = ServingSettings(max_model_len=64, server_module="own.server", engine_args={"token_s": 0.1})
    assert command_line(settings.engine_args) == ["--token-s=0.1"]


def test_what_to_do_instead_names_settings_that_there_are() -> None:
    named = [word.rstrip(",.") for text in OWN.values() for word in text.split() if word.startswith("serving.")]
    assert len(named) > 5
    assert {name.removeprefix("serving.") for name in named} <= set(ServingSettings.model_fields)
