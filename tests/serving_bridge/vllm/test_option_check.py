"""`serving.engine_args` are put to vLLM's own parser before a server is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.processes import python_module, with_own_packages
from serving_bridge.settings import VLLM_MODULE, ServingSettings
from serving_bridge.settings.engine_args import OWN
from serving_bridge.vllm import option_check
from serving_bridge.vllm.option_check import EngineArgsError, check_engine_args
from serving_bridge.vllm.server_checks import ReplicaStartError, engine_version
from serving_bridge.vllm.server_options import server_command

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "dtype": "float32",
}
STUB = "tests.support.option_verdicts"
#: engine_args -> a part of what vLLM says; empty where it takes them
TRIED: list[tuple[dict[str, Any], str]] = [
    ({"seed": 5, "block_size": 16, "enable-prefix-caching": False}, ""),
    ({"compilation-config": {"mode": 0}, "max_num_batched_tokens": 4096}, ""),
    ({"unheard_of": 3}, "unrecognized arguments: --unheard-of=3"),
    ({"see": 3}, "unrecognized arguments: --see=3"),
    ({"seed": "five"}, "argument --seed: invalid"),
    ({"block-size": [16, 32]}, "unrecognized arguments: 32"),
    ({"kv-cache-dtype": "float3"}, "--kv-cache-dtype"),
    ({"enable-log-outputs": True}, "requires --enable-log-requests"),
    ({"quantization": "no-such-method"}, "no-such-method"),
    ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
]
_PROGRAM = """
import json, sys
from serving_bridge.vllm_plugin import option_check
from serving_bridge.vllm_plugin.command_line import cli_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
said = [option_check.refusal(arguments) for arguments in json.loads(sys.argv[1])]
actions = cli_args().make_arg_parser(FlexibleArgumentParser())._actions
print("\\nFOUND", json.dumps([said, [action.option_strings for action in actions if action.option_strings]]))
"""


def settings(engine_args: dict[str, Any], **given: Any) -> ServingSettings:
    return ServingSettings(max_model_len=64, engine_args=engine_args, **given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def vllm_said(model: Path) -> tuple[list[str], list[list[str]]]:
    """What vLLM says of each case, and the names of each of its options, from one process that loads it once."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    commands = [server_command(model, settings(engine_args), "cpu", 8000) for engine_args, _ in TRIED]
    arguments = [command[command.index(VLLM_MODULE) + 1 :] for command in commands]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, json.dumps(arguments)],
        env=with_own_packages({"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    _, found, line = done.stdout.rpartition("\nFOUND")
    assert found, done.stderr[-3000:]
    said, options = json.loads(line)
    return said, options


@pytest.mark.parametrize("index", range(len(TRIED)), ids=lambda index: next(iter(TRIED[index][0])))
def test_vllm_says_what_it_does_not_take(vllm_said: tuple[list[str], list[list[str]]], index: int) -> None:
    said, expected = vllm_said[0][index], TRIED[index][1]
    assert expected in said
    assert bool(said) == bool(expected), said


def test_what_weir_keeps_to_itself_are_options_of_vllm_under_all_their_names(
    vllm_said: tuple[list[str], list[list[str]]],
) -> None:
    options = [{name[2:] for name in names if name.startswith("--")} for names in vllm_said[1]]
    assert set(OWN) <= set.union(*options)
    for names in options:
        kept = {name for name in names if name in OWN}
        assert not kept or all(name in OWN or name.startswith("no-") for name in names)


def test_every_other_option_of_vllm_can_be_given(vllm_said: tuple[list[str], list[list[str]]]) -> None:
    """Among them none that begins as one that Weir keeps."""
    names = {name[2:] for names in vllm_said[1] for name in names if name.startswith("--")}
    others = {name for name in names if name not in OWN and not name.startswith("no-")}
    assert len(others) > 150
    for name in others:
        assert settings({name: "x"}).engine_args == {name: "x"}


@pytest.mark.soak
def test_vllm_itself_is_asked_in_a_process_of_its_own(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(EngineArgsError, match=rf"^serving\.engine_args: vLLM {engine_version()}.* --unheard-of=3"):
        check_engine_args(model, settings({"unheard_of": 3}), "cpu", environment)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a process that asks the stand-in, which notes in `asked` that it was."""
    monkeypatch.setattr(option_check, "OPTION_CHECK", STUB)
    return {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "API_KEY": "secret"}


def asked(tmp_path: Path) -> list[list[str]]:
    file = tmp_path / "asked"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_what_was_taken_once_is_not_asked_again(
    model: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        check_engine_args(model, settings({"seed": 5}), "cpu", environment)
    assert len(asked(tmp_path)) == 1
    assert "--seed=5" in asked(tmp_path)[0]
    check_engine_args(model, settings({"seed": 6}), "cpu", environment)
    check_engine_args(model, settings({"seed": 5}, max_num_seqs=7), "cpu", environment)
    assert len(asked(tmp_path)) == 3
    monkeypatch.setattr(option_check, "engine_version", lambda: "another")
    check_engine_args(model, settings({"seed": 5}), "cpu", environment)
    assert len(asked(tmp_path)) == 4


def test_what_was_refused_is_asked_again(model: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    for _ in range(2):
        with pytest.raises(EngineArgsError, match="does not take them: not --seed=4$"):
            check_engine_args(model, settings({"seed": 4}), "cpu", environment)
    assert len(asked(tmp_path)) == 2


def test_nobody_is_asked_without_options_nor_for_another_server(
    model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    check_engine_args(model, settings({}), "cpu", environment)
    check_engine_args(model, settings({"own": 1}, server_module="own.server"), "cpu", environment)
    assert asked(tmp_path) == []


def test_a_vllm_that_does_not_load_is_told_with_its_last_lines(model: Path, environment: dict[str, str]) -> None:
    with pytest.raises(ReplicaStartError, match=r"(?s)could not be asked .* status 1:.*no such library") as caught:
        check_engine_args(model, settings({"crash": 1}), "cpu", environment)
    assert caught.value.can_heal


def test_the_check_asks_with_the_python_that_the_servers_run_in() -> None:
    assert python_module(STUB)[0] == sys.executable
