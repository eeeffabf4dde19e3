"""A tokenizer of letters for the models of `weight_world`, with a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving_bridge.text import Tokenizer, load_tokenizer
from tests.support.weight_world import EOS, make_model

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def letter_model(folder: Path, seed: int) -> Any:
    """A random model as `make_model`'s, in a folder with the tokenizer of letters; returns it."""
    model = make_model(folder, seed)
    letters(folder / "letters")
    for file in (folder / "letters").iterdir():
        file.replace(folder / file.name)
    (folder / "letters").rmdir()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return model


def letters(folder: Path) -> Tokenizer:
    """One token for each printable ASCII character, with the ids that the server's model has."""
    import tokenizers

    vocabulary = {"<pad>": 0, "<eos>": EOS} | {chr(code): code for code in range(32, 127)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<eos>", "<pad>"])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<eos>", "pad_token": "<pad>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return load_tokenizer(folder)
