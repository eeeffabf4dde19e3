"""`python -m tools.registry`: from a run and from a model folder to aliases, and out again as a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config, save_config
from learner_jax.contracts import GoldenPrompt
from serving_bridge.weights import VersionWriter, WeightStore
from tests.support.new_models import created
from tests.support.signing_keys import private_key, public_of
from tools import registry as tool

__all__ = ["created"]  # a fixture


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.setenv("COLUMNS", "200")

    def run(command: str, *arguments: object, status: int = 0) -> str:
        given = [command, str(tmp_path / "registry"), *map(str, arguments)]
        if status:
            with pytest.raises(SystemExit) as ended:
                tool.main(given)
            assert ended.value.code == status
        else:
            tool.main(given)
        said = capsys.readouterr()
        return said.err if status and not said.out else said.out

    return run


def _run_of(model: Path, directory: Path) -> WeightStore:
    """The directory of a run on `model` that has published two versions."""
    import numpy as np
    from safetensors.numpy import load_file

    directory.mkdir()
    config = load_config("stories", [f"run.directory={directory}", f"model.path={model}"])
    save_config(config, directory / "config.toml")
    store = WeightStore(directory / "weights", "stories")
    tensors = load_file(model / "model.safetensors")
    golden = [GoldenPrompt(tokens=[1, 2], logprobs=[-0.5])]
    for step in range(2):
        moved = {name: np.asarray(value + np.float32(step) / 8, value.dtype) for name, value in tensors.items()}
        VersionWriter(store).publish(moved.items(), step=step, golden=golden)
    return store


def test_from_a_run_to_users_and_back(call: Any, created: Path, tmp_path: Path) -> None:
    _run_of(created, tmp_path / "run")
    assert "default/1 is a candidate" in call("add", "--run", tmp_path / "run", "--version", 1, "--actor", "ann")
    assert "default/2 is a candidate" in call("add", "--run", tmp_path / "run", "--parent", 1, "--note", "a try")
    for number in (1, 2):
        assert "no gate has passed entry" in call("stage", number, "passed", "--reason", "all suites", status=1)
        call("stage", number, "passed", "--reason", "all suites", "--unproven")
    (tmp_path / "gate.json").write_text('{"suites": []}')
    call("report", 2, tmp_path / "gate.json", "--verdict", "passed", "--actor", "gate")
    call("move", "stable=1", "--reason", "first")
    said = call("move", "stable=2", "previous=1", "--expect", "stable=1", "--reason", "better")
    assert "move 2 of default: stable is 2, previous is 1" in said
    assert "expected 1: somebody moved it" in call(
        "move", "stable=1", "--expect", "stable=1", "--reason", "x", status=1
    )
    _split_and_back(call)
    rows = json.loads(call("list", "--json"))
    assert [(row["number"], row["aliases"], row["parent"], row["origin"]["step"]) for row in rows] == [
        (2, ["stable"], 1, 1),
        (1, ["previous"], None, 0),
    ]
    (window,) = rows[0]["data"]
    assert (window["first"], window["last"]) == (0, 7), "eight groups a step"
    assert "keyword_story" in window["source"]
    assert rows[1]["data"] == []
    assert [row["number"] for row in json.loads(call("lineage", "stable", "--json"))] == [2, 1]
    found = json.loads(call("diff", 1, "stable", "--json"))
    assert {"content", "origin step", "origin version", "parent", "note"} <= set(found)
    assert "tokenizer" not in found
    shown = call("show", "stable")
    assert "# default/2" in shown
    assert "`gate.json`" in shown
    assert "`a try`" in shown
    kinds = [event["kind"] for event in json.loads(call("show", 2, "--json"))["events"]]
    assert kinds == ["registered", "stage", "report"]
    assert "previous" in call("history")
    assert len(json.loads(call("history", "--json"))) == 5
    assert "2 entries are as they were registered" in call("verify")
    assert "removed the weights of 0 entries" in call("retain", "--keep", 1)


def _split_and_back(call: Any) -> None:
    assert "default has no alias canary" in call("split", "--canary", "5%", "--reason", "x", status=1)
    assert "expected a share such as 5% or 0.05" in call("split", "--canary", "5", "--reason", "x", status=2)
    assert "stable answers everything" in call("traffic")
    call("move", "canary=1", "--canary-share", "5%", "--reason", "step 1")
    assert "canary answers 5.00% of the conversations" in call("traffic")
    said = call("split", "--canary", 0.5, "--tenant", "acme", "--shadow", "10%", "--reason", "step 2", "--actor", "bob")
    assert "canary answers acme, about 50.00% of the traffic; 10.00% are copied to it" in said
    shard = ("--canary", "20%", "--tenant", "acme", "--tenant-share", "10%", "--within", "90%")
    assert "90.00% of the conversations of acme and 10.00% of all tenants" in call(
        "split", *shard, "--reason", "step 3"
    )
    call("move", "canary=", "--reason", "worse")
    found = json.loads(call("traffic", "--json"))
    alone = {"canary_share": 0.0, "shadow_share": 0.0, "tenants": [], "tenant_share": 0.0, "within": 1.0}
    assert found["traffic"] == alone | {"revision": 4}
    assert [(change["canary_share"], change["actor"]) for change in found["changes"]][2] == (0.5, "bob")


def test_an_imported_model_comes_out_as_it_went_in(call: Any, created: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    call("import", "--model", created, "--namespace", "acme")
    call("export", 1, "--out", tmp_path / "out", "--namespace", "acme")
    tokens = torch.arange(3, 20)[None]
    logits = []
    for folder in (created, tmp_path / "out"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert torch.equal(*logits)
    # The golden prompts' log-probs are what transformers computes for the same tokens.
    store = WeightStore(tmp_path / "registry" / "weights" / "acme", "")
    golden = store.manifest(1).golden[0]
    with torch.no_grad():
        logprobs = model(torch.tensor([golden.tokens])).logits.float().log_softmax(-1)[0]
    expected = [float(logprobs[t, token]) for t, token in enumerate(golden.tokens[1:])]
    assert golden.logprobs == pytest.approx(expected, abs=1e-4)


def test_only_what_is_signed_is_moved_to_where_a_key_is_trusted(
    call: Any, created: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, eve = private_key(tmp_path / "ann.pem"), private_key(tmp_path / "eve.pem", seed=9)
    trust = ("--trusted-key", public_of(ann))
    call("import", "--model", created)
    reasoned = ("--reason", "x", "--unproven")
    assert "it has no signature" in call("move", "stable=1", *reasoned, *trust, status=1)
    assert "default/1 is signed by key" in call("sign", 1, "--key", eve)
    assert "which is not trusted" in call("move", "stable=1", *reasoned, *trust, status=1)
    assert "which is not trusted" in call("verify", *trust, status=1)
    call("sign", 1, "--key", ann)
    assert "1 entries are as they were registered" in call("verify", *trust)
    call("move", "stable=1", *reasoned, *trust)
    assert "## Signatures" in call("show", 1)
    # A folder that is signed goes out and comes in, by the same key.
    call("export", "stable", "--out", tmp_path / "out", "--sign-with", ann)
    monkeypatch.setenv("WEIR_TRUSTED_KEY", str(public_of(ann)))
    assert "default/2 is a candidate" in call("import", "--model", tmp_path / "out")
    assert "is not signed" in call("import", "--model", created, status=1)
    monkeypatch.setenv("WEIR_SIGNING_PASSWORD", "not needed by this key")
    assert "can't sign" in call("import", "--model", created, "--sign-with", ann, status=1)
    monkeypatch.delenv("WEIR_SIGNING_PASSWORD")
    assert "default/3 is signed" in call("import", "--model", created, "--sign-with", ann)


def test_a_damaged_registry_is_named(call: Any, created: Path, tmp_path: Path) -> None:
    call("import", "--model", created)
    path = tmp_path / "registry" / "weights" / "default" / "v00000001" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    said = call("verify", status=1)
    assert "default/1" in said
    assert "weights.safetensors has sha256" in said
    assert "weights.safetensors has sha256" in call("move", "stable=1", "--unproven", "--reason", "x", status=1)
    assert json.loads(call("show", 1, "--json"))["aliases"] == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["list"], "does not exist: expected the folder of a registry"),
        (["add", "--run", "{tmp}"], "has no config.toml: expected the directory of a run"),
        (["import", "--model", "{tmp}/nothing"], "can't be read as a model folder"),
        (["import", "--model", "{tmp}"], "has no config.json"),
    ],
)
def test_what_is_not_there_is_refused(call: Any, tmp_path: Path, arguments: list[str], match: str) -> None:
    command, *rest = (argument.format(tmp=tmp_path) for argument in arguments)
    assert match in call(command, *rest, status=1)


def test_bad_arguments_of_a_move_are_refused(call: Any, created: Path) -> None:
    call("import", "--model", created)
    for given, match in (
        ("stable", "expected ALIAS=ENTRY"),
        ("stable=9", "has no entry 9"),
        ("stable=best", "has no alias"),
        ("STABLE=1", "alias"),
        ("stable=1", "no evaluation gate has passed"),
    ):
        assert match in call("move", given, "--reason", "x", status=1)
    assert "stable is 1" in call("move", "stable=1", "--reason", "an outage", "--unproven", "--actor", "ann")
    assert "stable is gone" in call("move", "stable=", "--reason", "x")
