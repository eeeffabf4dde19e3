"""Qwen's own tokenizer, in a folder that names its ends and a template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from serving_bridge.text.tokenizer import Tokenizer, load_tokenizer
from tests.support.chat_templates import KEEP_THINKING_TEMPLATE


@pytest.fixture(scope="module")
def qwen_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    shutil.copy(shared_data / "tokenizer_qwen" / "tokenizer.json", folder / "tokenizer.json")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": KEEP_THINKING_TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> Tokenizer:
    return load_tokenizer(qwen_folder)
