"""A small model folder such as a run creates for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import CreateModelSettings
from tools.assembly.new_model import create_model

SMALL = CreateModelSettings(
    hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=64
)


def arithmetic_texts() -> list[str]:
    texts = []
    for left in range(100):
        for right in range(0, 100, 7):
            texts += [
                f"Calculate {left} + {right}.",
                str(left + right),
                f"Calculate {left} - {right}.",
                str(left - right),
            ]
    return texts


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("created") / "model"
    create_model(folder, SMALL, arithmetic_texts(), seed=5)
    return folder
