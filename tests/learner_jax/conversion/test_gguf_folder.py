"""GGUF files as model folders: every value as the file has it, a tokenizer that goes along, clear errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from learner_jax.contracts import check_weights, read_model_config
from learner_jax.conversion import ConversionError, from_gguf
from learner_jax.conversion.work_folder import WorkError
from tests.support.decoders import transformers
from tests.support.gguf_files import write_gguf
from tools import convert

__all__ = ["transformers"]


def written(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)


def test_the_folder_holds_the_files_values_and_its_tokenizer(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_gguf(tmp_path / "model.gguf")
    command = ["convert", "from-gguf", "--file", str(tmp_path), "--out", str(tmp_path / "hf"), "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", command)
    convert.main()
    assert "20 tensors in float32" in capsys.readouterr().out
    found = written(tmp_path / "hf")
    for name, ours in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        np.testing.assert_array_equal(found[name], given[ours])
    assert "lm_head.weight" not in found  # tied
    config = read_model_config(tmp_path / "hf")
    check_weights(tmp_path / "hf", config)
    assert config.tie_word_embeddings
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("ab, Ü!")["input_ids"], skip_special_tokens=True) == "ab, Ü!"
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<|im_start|>a<|im_end|>"
    )
    assert (tmp_path / "hf/model.safetensors").stat().st_mode == (tmp_path / "hf/config.json").stat().st_mode


def test_quantized_weights_are_those_that_the_file_stands_for(transformers: Any, tmp_path: Path) -> None:
    given = write_gguf(tmp_path / "model.gguf", quantized=True)
    assert from_gguf(tmp_path / "model.gguf", out=tmp_path / "hf", dtype="float32") == 20
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(given["blk.0.ffn_up.weight"], kind), kind)
    np.testing.assert_array_equal(written(tmp_path / "hf")["model.layers.0.mlp.up_proj.weight"], expected)


def test_what_is_no_gguf_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("GGU and more")
    with pytest.raises(ConversionError, match=r"text\.gguf begins with b'GGU ', expected b'GGUF'"):
        from_gguf(tmp_path, out=tmp_path / "hf")
    with pytest.raises(ConversionError, match=r"/none\.gguf does not exist; name a \.gguf file, or a folder"):
        from_gguf(tmp_path / "none.gguf", out=tmp_path / "hf")
    (tmp_path / "second.gguf").write_text("GGUF")
    with pytest.raises(ConversionError, match=r"holds 2 \.gguf files \(second\.gguf, text\.gguf\), expected one"):
        from_gguf(tmp_path, out=tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_damaged_file_and_a_used_folder_leave_nothing_behind(transformers: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConversionError, match=r"cut\.gguf: transformers \S+ can't read it"):
        from_gguf(tmp_path / "cut.gguf", out=tmp_path / "hf")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(WorkError, match="is not empty"):
        from_gguf(tmp_path / "model.gguf", out=tmp_path / "used")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "model.gguf", "used"]


def test_a_missing_package_is_told_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConversionError, match=r"accelerate can't be imported: pip install 'weir\[gguf\]'"):
        from_gguf(tmp_path / "model.gguf", out=tmp_path / "hf")
