"""README and docs: every command that they show is taken by its own parser, and runs, or stands here with a reason."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from configs.load import load_config, save_config
from configs.shipped import shipped_configs
from learner_jax.contracts import GoldenPrompt
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.settings import StoreSettings
from serving_bridge.telemetry import MetricsLog
from serving_bridge.weights import Publisher, WeightStore
from tests.conftest import REPOSITORY
from tests.support.shown_commands import Shown, parsed, shown_in
from tests.support.user_folder import working_in
from tools import command as console_script

DOCUMENTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    REPOSITORY / "tools" / "templates" / "new" / "README.md",
]
SHOWN = [shown for document in DOCUMENTS for shown in shown_in(document, REPOSITORY)]

_JOB = "a job of many processes, for minutes; tests/system runs such jobs"
_MEASURES = "measures for minutes; tests/tools/bench runs each in small"
_VLLM = "starts vLLM, which takes half a minute; tests/system does"
_INSTALLS = "downloads up to gigabytes"
_SUITE = "runs other tests"
_SHELL = "changes the shell that it is typed into"
_NAMES_ALL = "stands for any command"

#: First words -> why no short form can run here.
_STORAGE = "tests/system/test_object_storage.py runs it against a server"
NOT_RUN: dict[str, str] = {
    ". .venv/bin/activate": _SHELL,
    "cd": _SHELL,
    "make demo": _JOB,
    **{f"make {target}": _SUITE for target in ("test", "soak", "properties", "shapes", "check")},
    "pip install": _INSTALLS,
    "python users.py": "the program that the page shows; tests/system/test_online_job.py does what it does",
    "python answers.py": "makes observations for a rollout that runs; tests/tools/test_canary.py adds some of its own",
    "pip download": _INSTALLS,
    "python -m zipfile": "unpacks what was downloaded",
    "uv pip compile": _INSTALLS,
    "tools/install.sh": _INSTALLS,
    "python -m vllm.entrypoints.openai.api_server": _VLLM,
    "lm_eval run": "another project's program, against a running server",
    "OPENAI_API_KEY=none lighteval endpoint": "another project's program, against a running server",
    "queue runs/demo ingress": "serves until it is stopped; tests/serving_bridge/delayed_rewards sends to one",
    "queue runs/demo reward": "needs a file of rewards; tests/tools/test_queue_rewards.py brings one",
    "weights list s3://bucket/runs/one": _STORAGE,
    "weights verify s3://bucket/runs/one": _STORAGE,
    "weights watch s3://bucket/runs/one": _STORAGE,
    "X": _NAMES_ALL,
    "train": _JOB,
    "train --config demo --dry-run": "tests/serving_bridge/checks makes dry runs of it",
    "train --config config.toml --dry-run": "tests/tools/test_new.py makes it, where Weir is installed",
    "launch": _JOB,
    "launch --on slurm": "submits a job; tests/system/test_slurm.py does, and tests/tools/launch makes dry runs",
    "launch --on kubernetes": "needs roles and images; tests/tools/launch/test_kubernetes.py writes manifests",
    "kubectl apply": "needs a cluster",
    "openssl": "another project's program; tests/serving_bridge/registry signs with keys like these",
    "learner": _JOB,
    "rollout": _JOB,
    "gateway": "serves until it is stopped; tests/tools/test_gateway.py runs one",
    "serve": _JOB,
    "evaluate": _VLLM,
    "evaluate compare": "compares two results; tests/tools/evaluation makes such",
    "evaluate report": "writes the page of a result; tests/tools/evaluation makes such",
    "evaluate contamination": "reads the reader's own prompts; tests/tools/evaluation has some",
    "convert": "tests/learner_jax/conversion converts and compares for a minute",
    "score": "reads the reader's own answers; tests/tools/scoring has some",
    "database migrate": "needs a PostgreSQL server and its owner; tests/serving_bridge/database has them",
    "data": "reads the reader's own data; tests/tools/test_data.py has some",
    "train --dry-run": "tests/serving_bridge/checks makes dry runs",
    "doctor": "loads JAX, torch and vLLM in processes of their own; tests/tools/test_doctor.py does",
    "fleet RUN scale": "needs a running fleet; tests/system has one",
    **{f"tenants runs/demo {c}": "tests/tools/test_tenants.py runs it" for c in ("key", "limits", "budget", "show")},
    "fleet RUN restart": "needs a running fleet; tests/system has one",
    **{f"view {run} --web": "serves until it is stopped; tests/tools/dashboard does" for run in ("RUN", "runs/demo")},
    "view RUN runs/other --web": "serves until it is stopped; tests/tools/dashboard overlays runs",
    "view registry --web": "serves until it is stopped; tests/tools/rollout_page does",
    "ssh": "needs another machine",
    "plan memory --model DIR --mesh fsdp=8 --verify": "compiles for eight devices; tests/tools/test_plan.py does",
    "plan scale --inputs FILE": "tests/tools/test_plan_scale.py gives it such a file",
    "bench": _MEASURES,
    "study staleness": "trains for an hour; tests/tools/test_study.py trains in small",
    "study learning": "trains for an hour; tests/tools/test_study_learning.py trains in small",
    "study credit": "trains for minutes; tests/tools/test_study_credit.py trains in small",
    "study retrieval": "trains for minutes; tests/tools/test_study_retrieval.py trains in small",
    "testing.simulate --mutations": "makes the code wrong in more than fifty ways; the soak does",
    "testing.mutate": "runs the tests of each module once for every mistake; tests/tools/testing does it in small",
    "testing.suite": "reads what a whole run of the tests wrote; tests/tools/testing makes such a page",
    "testing.tenants": "runs 200 deployments; tests/tools/testing/test_tenants.py runs some",
    "testing.chaos": "kills the processes of real jobs for minutes; tests/tools/testing does",
    "sessions": "needs recorded sessions; tests/tools/test_sessions.py runs each of its commands",
    "confidence": "reads the reader's own answers; tests/tools/calibrating has some",
    "feedback": "needs recorded sessions; tests/tools/test_feedback.py runs its commands",
    "gate": "needs a registry with entries; tests/tools/gating holds gates",
    "safety": "reads the reader's own texts and logs; tests/tools/screening has some",
    "study renderers": "needs a package apart from Weir; tests/tools/test_study_renderers.py has a stand-in",
    "study gate": "asks five models 9,600 times each; tests/tools/test_study_gate.py asks two",
    "study canary": "runs 2,500 rollouts; tests/tools/testing/test_canary.py runs some",
    "testing.canary": "runs dozens of rollouts; tests/tools/testing/test_canary.py runs some",
    "testing.regions": "runs ten thousand replicas for minutes; tests/tools/testing/test_regions.py runs some",
    "canary": "needs a registry with entries; tests/tools/test_canary.py runs each of its commands",
    "registry": "needs a registry with entries; tests/tools/test_registry.py runs each of its commands",
}
#: First words -> what is added to make it short.
RUN: dict[str, str] = {
    "weir --help": "",
    "new": "",
    "settings": "",
    "metrics": "",
    "view": "",
    "queue": "",
    "fleet RUN status": "",
    "tenants runs/demo add": "",
    "launch status": "",
    "plan memory": "",
    "plan shapes": "",
    "plan scale": "",
    "weights list": "",
    "weights show": "",
    "weights diff": "",
    "weights verify": "",
    "weights watch": "--once",
    "weights rollback": "",
    "testing.simulate": "--seeds 2 --processes 1",
    "testing.fuzz": "--records 200",
}
#: Shown in a sentence, without what they need.
PARTIAL = {"python -m tools.plan memory", "python -m tools.queue"}
#: Prints a line for each answer that waits: nothing, where none does.
SILENT = {"python -m tools.queue runs/demo waiting --answers"}
#: What documents write for a value of the reader's own.
VALUES = {"RUN": "runs/demo", "N": "2", "PREFIX": "rollout", "C": "demo", "DIR": "model", "FILE": "shapes.json"}
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


def called(shown: Shown) -> list[str] | None:
    """Name of our command and its arguments; None for commands of others."""
    words = shown.words
    if words[:2] == ["python", "-m"] and words[2].startswith("tools."):
        return [words[2].removeprefix("tools."), *words[3:]]
    return words[1:] if words[0] == "weir" and not words[1].startswith("-") else None


def entry(shown: Shown) -> str | None:
    """The entry of the tables that says most of the words."""
    told = " ".join(called(shown) or shown.words)
    told = re.sub(r"^(fleet) \S+", r"\1 RUN", told)
    found = [key for key in (*NOT_RUN, *RUN) if f"{told} ".startswith(f"{key} ")]
    return max(found, key=len, default=None)


def module_of(name: str) -> str:
    folder = REPOSITORY / "tools" / Path(*name.split("."))
    return f"tools.{name}.__main__" if folder.is_dir() else f"tools.{name}"


def filled(words: Sequence[str]) -> list[str]:
    """The words with values for the reader's own, without where the output goes."""
    ours = words[: words.index(">")] if ">" in words else words
    return [VALUES.get(word, word) for word in ours]


def shown_ids(several: Sequence[Shown]) -> list[str]:
    return [f"{shown.document}: {shown.text}" for shown in several]


OURS = [shown for shown in SHOWN if called(shown) and NOT_RUN.get(entry(shown) or "") != _NAMES_ALL]
SHORT = [text for text in dict.fromkeys(shown.text for shown in SHOWN if entry(shown) in RUN) if text not in PARTIAL]


@pytest.mark.parametrize("shown", SHOWN, ids=shown_ids(SHOWN))
def test_a_command_runs_here_or_has_a_reason(shown: Shown) -> None:
    assert entry(shown) is not None, "add it to RUN, or to NOT_RUN with the reason"


def test_the_tables_name_nothing_that_no_document_shows() -> None:
    assert {entry(shown) for shown in SHOWN} == {*RUN, *NOT_RUN}


@pytest.mark.parametrize("shown", OURS, ids=shown_ids(OURS))
def test_a_command_is_what_its_parser_takes(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    name, *given = called(shown) or []
    try:
        found = parsed(module_of(name), f"weir {name}", filled(given), is_whole=shown.is_whole)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    assert found is not None or not shown.is_whole
    config, overrides = getattr(found, "config", None), getattr(found, "overrides", ())
    if config is None and not overrides:
        return
    known = str(config) in shipped_configs() or (REPOSITORY / str(config)).is_file()
    load_config((REPOSITORY / str(config) if "/" in str(config) else config) if known else "demo", overrides)


def test_others_commands_name_what_is_there() -> None:
    texts = {shown.text for shown in SHOWN}
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for text in texts:
        words = shlex.split(text)
        if words[0] == "make":
            assert words[1] in targets, text
        elif words[:2] == ["pip", "install"]:
            assert set(re.findall(r"\[(\w+)\]", text)) <= set(extras), text
        elif words[0].startswith("tools/"):
            assert (REPOSITORY / words[0]).is_file(), text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what the documents' commands are about: two finished runs, a model, a list of shapes."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("demo", "first"):
        write_run(folder / "runs" / name)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    (folder / "shapes.json").write_text(json.dumps({"models": {"small": MODEL}}))
    return folder


def write_run(directory: Path) -> None:
    """A run that has ended, with the versions 1 to 12 of its weights."""
    (directory / "weights").mkdir(parents=True)
    save_config(load_config("demo", [f"run.directory={directory}"]), directory / "config.toml")
    metrics = MetricsLog(directory / "metrics.jsonl", "train")
    metrics.write("phase", name="starting")
    metrics.write("phase", name="finished")
    TrajectoryQueue(directory / "state.db").consumer.recover([], completed_steps=0, prompt_cursor=0)
    publisher = Publisher(
        WeightStore(directory / "weights", "demo"), StoreSettings(keep_versions=20), log=lambda *_, **__: None
    )
    for step in range(12):
        tensors = {"norm": np.full(8, step, ml_dtypes.bfloat16)}
        publisher.publish(tensors.items(), step=step, golden=[GoldenPrompt(tokens=[1, 2], logprobs=[-0.5])])
    publisher.close()


@pytest.mark.parametrize("text", SHORT)
def test_a_command_runs(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = Shown("", text, is_whole=True)
    more = shlex.split(RUN[entry(shown) or ""])
    name, *given = called(shown) or ["command", *shown.words[1:]]
    with working_in(folder):
        monkeypatch.setattr(sys, "argv", [f"weir {name}", *filled(given), *more])
        main = console_script.main if name == "command" else importlib.import_module(module_of(name)).main
        try:
            main()
        except SystemExit as end:
            if end.code:
                pytest.fail(capsys.readouterr().err)
    assert capsys.readouterr().out.strip() or text in SILENT


def test_a_wrong_option_a_wrong_setting_and_an_unknown_command_would_be_found() -> None:
    with pytest.raises(SystemExit):
        parsed("tools.train", "weir train", ["--config", "demo", "--dryrun"], is_whole=True)
    with pytest.raises(SystemExit):
        parsed("tools.queue", "weir queue", [], is_whole=True)
    assert parsed("tools.queue", "weir queue", [], is_whole=False) is None
    assert entry(Shown("", "weir new-command", is_whole=True)) is None
    assert entry(Shown("", "python -m tools.plan tensors", is_whole=True)) is None
