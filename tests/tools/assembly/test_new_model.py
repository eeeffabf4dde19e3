"""The model folders that a run creates for itself: tokenizer and weights, read by transformers too."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from learner_jax.contracts.model import hf_shapes, read_model_config
from serving_bridge.text.tokenizer import load_tokenizer
from tests.conftest import REPOSITORY
from tests.support.new_models import SMALL, arithmetic_texts
from tests.support.new_models import created as created
from tools.assembly.new_model import CreateModelError, create_model, train_tokenizer

CREATE = """
import sys
from configs.schema import CreateModelSettings
from tools.assembly.new_model import create_model
from tests.support.new_models import SMALL, arithmetic_texts
create_model(sys.argv[1], SMALL, iter(arithmetic_texts()), seed=5)
"""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_prompts_and_answers_of_a_created_model_are_short(created: Path) -> None:
    tokenizer = load_tokenizer(created)
    prompt = tokenizer.encode_prompt("Calculate 57 + 98.", chat=False)
    assert [tokenizer.backend.id_to_token(i) for i in prompt] == ["CalculateĠ", "5", "7", "Ġ+Ġ", "9", "8", "."]
    assert len(tokenizer.encode("155")) == 3
    assert len(tokenizer.encode("-41")) == 3
    for text in arithmetic_texts():
        assert len(tokenizer.encode(text)) <= 9
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_loads_a_created_model(created: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(created, output_loading_info=True)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = load_tokenizer(created).encode("Calculate 5 + 9.")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    # A random model is nearly uniform over its vocabulary.
    entropy = torch.distributions.Categorical(logits=logits[0, -1]).entropy()
    assert float(entropy) == pytest.approx(np.log(logits.shape[-1]), abs=0.2)


def test_created_weights_have_the_right_names_shapes_and_spread(created: Path) -> None:
    config = read_model_config(created)
    load_tokenizer(created).check_vocabulary(config)
    weights = load_file(created / "model.safetensors")
    assert {name: array.shape for name, array in weights.items()} == hf_shapes(config)
    assert config.tie_word_embeddings
    assert config.vocab_size % 16 == 0
    for name, array in weights.items():
        assert array.dtype == np.float32
        if array.ndim == 1:
            assert (array == 1).all(), name
        else:
            assert array.std() == pytest.approx(0.02, rel=0.15), name
            assert abs(array.mean()) < 0.003, name


def test_the_same_seed_gives_the_same_bytes_in_another_process(created: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE, str(tmp_path / "again")]
    subprocess.run(command, cwd=REPOSITORY, env={"PYTHONHASHSEED": "77", "PATH": ""}, check=True, timeout=120)
    assert digests(tmp_path / "again") == digests(created)
    assert len(digests(created)) == 5
    create_model(tmp_path / "other", SMALL, arithmetic_texts(), seed=6)
    differing = {name for name, digest in digests(tmp_path / "other").items() if digest != digests(created)[name]}
    assert differing == {"model.safetensors"}


def test_a_failed_creation_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(CreateModelError, match=r"different characters, more than fit in model\.create\.vocab_size 64"):
        create_model(tmp_path / "model", SMALL, ["".join(map(chr, range(33, 127)))], seed=0)
    with pytest.raises(CreateModelError, match="no texts"):
        create_model(tmp_path / "model", SMALL, [], seed=0)
    shape = SimpleNamespace(**{**SMALL.model_dump(), "num_kv_heads": 3})
    with pytest.raises(CreateModelError, match="no multiple of num_kv_heads 3"):
        create_model(tmp_path / "model", shape, ["a"], seed=0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").touch()
    with pytest.raises(CreateModelError, match="not an empty folder"):
        create_model(tmp_path / "model", SMALL, ["a"], seed=0)


def test_every_digit_is_a_token_and_words_take_their_spaces() -> None:
    tokenizer = train_tokenizer(["Write the number 2024 down, then add 2024 to it."] * 50, 128)
    tokens = tokenizer.encode("the number 2024").tokens
    assert tokens[-4:] == ["2", "0", "2", "4"]
    assert len(tokens) == 6
    assert tokenizer.decode(tokenizer.encode("add  2024 to\n it").ids) != ""
