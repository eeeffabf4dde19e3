"""Small tokenizers of three kinds, trained here, and folders around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["hello world it's two too 1234", "trail lead a b c d e f", "naïve café"] * 20


#: in the vocabulary before it is trained, so that their ids are 0 to 5
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>", "<|endoftext|>", "<pad>"]


ADDED = ["<extra>", "<word>"]


CHATML = "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>\n' }}{% endfor %}"


EOS_AFTER = "{% for m in messages %}{{ bos_token }}{{ m.role }} {{ m.content }} {{ eos_token }}{% endfor %}"


CHAT = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": CHATML}


LLAMA, QWEN2, QWEN3 = ({"model_type": name} for name in ("llama", "qwen2", "qwen3"))


def trained(kind: str) -> dict[str, Any]:
    """tokenizer.json of a small BPE of one of three kinds."""
    made = Tokenizer(models.BPE(unk_token=None))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "llama":
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
    else:
        steps = [pre_tokenizers.Split(Regex(r"\d| ?\w+"), behavior="isolated")] if kind == "split" else []
        made.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        made.decoder = decoders.ByteLevel()
    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if kind == "llama" else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *bytes_], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens(ADDED)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    content = json.loads(made.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
    return content


@pytest.fixture(scope="module")
def bases() -> dict[str, dict[str, Any]]:
    return {kind: trained(kind) for kind in ("bytes", "split", "llama")}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    pytest.importorskip("transformers").logging.set_verbosity_error()


def write(folder: Path, base: dict[str, Any], files: dict[str, Any], change: Any = None) -> Path:
    folder.mkdir()
    content = json.loads(json.dumps(base))
    if change is not None:
        change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name, value in files.items():
        path = folder / (name if "." in name else f"{name}.json")
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder
