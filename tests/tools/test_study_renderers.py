"""The study of rendering: what is right, what Weir makes, and what is said where the peer can't run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from serving_bridge.text import load_tokenizer
from tests.support.chat_templates import QWEN3_TEMPLATE
from tests.support.qwen_tokenizer import qwen_folder
from tools.study.records import StudyError
from tools.study.renderers import cases_of, read_dialogs, run_renderers, table, weir_ids

__all__ = ["qwen_folder"]
CHOSEN = "\n\nHuman: One?\n\nAssistant: Two.\n\nAnd more.\n\nHuman: Three?\n\nAssistant: Four."
DIALOG = [("user", "One?"), ("assistant", "Two.\n\nAnd more."), ("user", "Three?"), ("assistant", "Four.")]


@pytest.fixture(scope="module")
def model(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).symlink_to(qwen_folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": QWEN3_TEMPLATE}))
    return folder


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    path = tmp_path / "dialogs.jsonl"
    messages = [{"role": role, "content": text} for role, text in DIALOG]
    lines = [{"chosen": CHOSEN}, {"messages": messages}, {"messages": messages[1:]}, {"chosen": "\n\nHuman: Only?"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_dialogs_are_read_in_both_forms_and_others_told(conversations: Path) -> None:
    assert read_dialogs(conversations, 10) == [DIALOG, DIALOG, [("user", "Only?")]]
    assert read_dialogs(conversations, 1) == [DIALOG]
    for text in ('{"chosen": "\\n\\nHuman: Only?"}\n', "no json\n", "[1]\n", '{"other": 1}\n'):
        conversations.write_text(text)
        with pytest.raises(StudyError, match="--conversations .*: expected"):
            read_dialogs(conversations, 10)


def test_weir_is_right_and_each_wrong_way_is_counted(model: Path, conversations: Path) -> None:
    qwen = load_tokenizer(model)
    cases = cases_of(qwen, read_dialogs(conversations, 10))
    ours = [weir_ids(qwen, case) for case in cases]
    start = qwen.backend.token_to_id("<|im_start|>")
    wrong = [[*ids, start] for ids in ours]
    rows = table(qwen, cases, {"ours": ours, "none": [None] * len(cases), "wrong": wrong}).splitlines()[4:]
    counts = [[int(cell) for cell in row.split("|")[2:-1]] for row in rows]
    assert counts == [[number, number, 0, 0] for number in (3, 2, 2, 2, 2)]
    encoded = qwen.encode_chat([{"role": "user", "content": cases[-1].text}])
    assert encoded.count(start) == 3, "without `harmless` the attack is one"


def test_a_python_without_the_package_is_told(model: Path, conversations: Path, tmp_path: Path) -> None:
    peer = tmp_path / "python"
    peer.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: without installed packages
    peer.chmod(0o755)
    for python, said in ((peer, "No module named 'transformers'; make an environment"), (tmp_path / "none", "No such")):
        with pytest.raises(StudyError, match=said):
            run_renderers(model, conversations, python, 1, tmp_path)
    assert not (tmp_path / "renderers.md").exists()


def test_what_the_peer_says_is_the_table(model: Path, conversations: Path, tmp_path: Path) -> None:
    """The package itself is replaced: it is in no environment of the tests."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "renderers-0.1.12.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: renderers\nVersion: 0.1.12\n"
    (folder / "renderers-0.1.12.dist-info" / "METADATA").write_text(metadata)
    (folder / "transformers.py").write_text("def PreTrainedTokenizerFast(**_): return None\n")
    (folder / "renderers.py").write_text(
        "def Qwen3RendererConfig(**given): return given\n"
        "class Renderer:\n"
        "    def render_ids(self, messages, add_generation_prompt): return [1]\n"
        "    def bridge_to_next_turn(self, prompt, answer, messages): return None\n"
        "def create_renderer(tokenizer, config): return Renderer()\n"
    )
    peer = tmp_path / "python"
    peer.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    peer.chmod(0o755)
    page = run_renderers(model, conversations, peer, 1, tmp_path).read_text()
    assert "| next turn | 1 | 1 | 0 | 0 |" in page
    assert "renderers 0.1.12, thinking_retention = 'all'" in page
