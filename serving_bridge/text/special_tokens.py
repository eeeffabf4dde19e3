"""The `tokenizers` object that transformers' AutoTokenizer builds from a model folder, with every special token.

Special tokens stand in tokenizer.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json. The steps
that merge them, and their order, are transformers' own; the tests compare the results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import AddedToken

from serving_bridge.text.tokenizer_classes import TokenizerClass, tokenizer_class
from serving_bridge.text.tokenizer_files import TokenizerError, TokenizerFiles

#: Names that special tokens have in every folder, in the order in which transformers adds them.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass
class _Special:
    """What transformers makes of the files: keys of its tokenizer, tokens by id, and tokens by their text.

    Attributes:
      own: special tokens of this model alone, by name.
    """

    keys: dict[str, Any]
    own: dict[str, Any] = field(default_factory=dict)
    by_id: dict[int, AddedToken] = field(default_factory=dict)
    by_text: dict[str, AddedToken] = field(default_factory=dict)
    origin: str = "tokenizer.json"

    def put(self, index: int, token: AddedToken) -> None:
        self.by_id[index] = token
        self.by_text[str(token)] = token


_PASSED_OVER = ("tokenizer_class", "init_inputs", "add_bos_token", "add_eos_token", "added_tokens_decoder")
#: Keys that would make transformers build something else than is built here.
_REFUSED = (
    *("auto_map", "fast_tokenizer_files", "init_inputs", "fix_mistral_regex", "model_specific_special_tokens"),
    *("tokenizer_object", "post_processor", "tokenizer_padding", "tokenizer_truncation", "gguf_file"),
)


def _merged(files: TokenizerFiles) -> _Special:
    """The four files as one, in transformers' order: added_tokens_decoder alone, else the old files one by one."""
    special = _Special({key: value for key, value in files.config.items() if key not in _PASSED_OVER})
    keys = special.keys
    if "additional_special_tokens" in keys and not keys.get("extra_special_tokens"):
        keys["extra_special_tokens"] = keys.pop("additional_special_tokens")
    names = [key for key, value in keys.items() if _is_own_name(key) and isinstance(value, str)]
    special.own |= {key: keys.pop(key) for key in names}
    _take_own(special)
    if "added_tokens_decoder" in files.config:
        special.origin = "tokenizer_config.json: added_tokens_decoder"
        for index, token in files.config["added_tokens_decoder"].items():
            special.put(int(index), AddedToken(**token))
    else:
        _merge_old_files(files, special)
    keys.update({key: _converted(value) for key, value in keys.items()})
    late = {key: keys[key] for key in keys if _is_own_name(key) and isinstance(keys[key], str | AddedToken)}
    special.own = late | {key: _converted(value) for key, value in special.own.items()}
    for key in NAMED:
        if keys.get(key) is not None and special.by_text:
            keys[key] = special.by_text.get(str(keys[key]), keys[key])
    return special


def _is_own_name(key: str) -> bool:
    return key.endswith("_token") and key not in NAMED


def _take_own(special: _Special) -> None:
    if isinstance(special.keys.get("extra_special_tokens"), dict):
        special.own |= special.keys.pop("extra_special_tokens")


def _merge_old_files(files: TokenizerFiles, special: _Special) -> None:
    keys = special.keys
    for key, value in files.special_tokens_map.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            tokens = [AddedToken(**token, special=True) if isinstance(token, dict) else token for token in value]
            known = list(keys.get(key) or [])
            value = known + [token for token in tokens if token not in known]
        elif isinstance(value, dict) and key != "extra_special_tokens":
            value = AddedToken(**{part: value[part] for part in value if part != "special"}, special=True)
        keys[key] = value
    _take_own(special)
    texts = {str(keys[key]) for key in NAMED if keys.get(key)} | set(map(str, keys.get("extra_special_tokens") or []))
    for text, index in files.added_tokens.items():
        is_special = text in texts
        special.put(index, AddedToken(text, normalized=not is_special, special=is_special))
        special.origin = "added_tokens.json"
    for entry in files.tokenizer["added_tokens"]:
        special.put(entry["id"], AddedToken(**{key: value for key, value in entry.items() if key != "id"}))


def _converted(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return AddedToken(**{key: part for key, part in value.items() if key != "__type"})
        return {key: _converted(part) for key, part in value.items()}
    return [_converted(part) for part in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Loaded:
    """A tokenizer as transformers has it after loading.

    Attributes:
      special_tokens: name -> text, as chat templates see them.
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]


def load_backend(files: TokenizerFiles) -> Loaded:
    """Builds the tokenizer of a folder.

    Raises:
      TokenizerError: a file is damaged, a class or key is not supported, or files disagree about a token's id.
    """
    _refuse_keys(files)
    kind = tokenizer_class(files)
    backend = _base(files, kind)
    try:
        special = _merged(files)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TokenizerError(
            f"{files.folder}: special tokens of tokenizer_config.json, special_tokens_map.json, added_tokens.json or "
            f"tokenizer.json are damaged: {error}"
        ) from error
    backend.encode_special_tokens = bool(special.keys.get("split_special_tokens", False))
    named = _named_tokens(files, kind, special)
    extra = special.keys.get("extra_special_tokens", special.keys.get("additional_special_tokens")) or []
    if not isinstance(extra, list) or not all(isinstance(token, str | AddedToken) for token in extra):
        raise TokenizerError(f"{files.folder}: extra_special_tokens must be a list of tokens, got {extra!r}")
    _add(backend, special, named, extra)
    if kind.repeats:
        texts = dict.fromkeys(map(str, [*named.values(), *extra]))
        backend.add_tokens([AddedToken(text, special=True) for text in texts])
    _check_ids(files, special, backend)
    return Loaded(backend, {name: str(token) for name, token in named.items()})


def _refuse_keys(files: TokenizerFiles) -> None:
    path = files.folder / "tokenizer_config.json"
    for key in _REFUSED:
        if files.config.get(key):
            raise TokenizerError(f"{path}: {key} is not supported; remove it")
    if files.config.get("backend", "tokenizers") != "tokenizers":
        raise TokenizerError(f"{path}: backend is {files.config['backend']!r}, expected tokenizers")
    forced = files.config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    model = files.tokenizer.get("model")
    is_bpe = isinstance(model, dict) and model.get("type", "BPE") == "BPE"
    if files.config.get("clean_up_tokenization_spaces") and (forced or not is_bpe):
        raise TokenizerError(
            f"{path}: clean_up_tokenization_spaces is not supported for this tokenizer; set it to false"
        )


def _base(files: TokenizerFiles, kind: TokenizerClass) -> tokenizers.Tokenizer:
    """The tokenizer before special tokens are added."""
    path = files.folder / "tokenizer.json"
    try:
        if kind.build is None:
            return tokenizers.Tokenizer.from_file(str(path))
        model = files.tokenizer["model"]
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"model.type is {model['type']}, expected BPE for this tokenizer_class")
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        merges = [(first, second) for first, second in pairs]
        backend = kind.build(dict(model["vocab"]), merges, files.config)
        empty = {**files.tokenizer, "model": {**model, "vocab": {}, "merges": []}, "added_tokens": []}
        post_processor = tokenizers.Tokenizer.from_str(json.dumps(empty)).post_processor
        if post_processor is not None:
            backend.post_processor = post_processor
        return backend
    except Exception as error:  # the library raises bare Exception on a damaged file
        raise TokenizerError(f"{path} can't be loaded: {error}") from error


def _named_tokens(files: TokenizerFiles, kind: TokenizerClass, special: _Special) -> dict[str, str | AddedToken]:
    padding = files.tokenizer.get("padding")
    defaults = ({"pad_token": padding.get("pad_token")} if isinstance(padding, dict) else {}) | dict(kind.defaults)
    values = {name: special.keys.get(name, defaults.get(name)) for name in NAMED} | special.own
    for name, value in values.items():
        if value is not None and not isinstance(value, str | AddedToken):
            raise TokenizerError(
                f"{files.folder}: {name} is {value!r}, expected a text or a serialised AddedToken in "
                f"tokenizer_config.json or special_tokens_map.json"
            )
    return {name: value for name, value in values.items() if value is not None}


def _add(
    backend: tokenizers.Tokenizer, special: _Special, named: Mapping[str, str | AddedToken], extra: list[Any]
) -> None:
    """Adds what the tokenizer lacks, and marks as special what a name says is special."""
    wanted: list[str | AddedToken] = [special.by_id[index] for index in sorted(special.by_id)]
    known = {token.content for token in backend.get_added_tokens_decoder().values()} | set(map(str, wanted))
    for token in (*named.values(), *extra):
        if str(token) not in known and token not in wanted:
            wanted.append(token)
    names = set(map(str, named.values()))
    tokens = []
    for token in wanted:
        if isinstance(token, str):
            tokens.append(AddedToken(token, special=True))
            continue
        if not token.special and str(token) in names:
            token.special = True
        tokens.append(token)
    backend.add_tokens(tokens)


def _check_ids(files: TokenizerFiles, special: _Special, backend: tokenizers.Tokenizer) -> None:
    for index, token in special.by_id.items():
        found = backend.token_to_id(token.content)
        if found != index:
            raise TokenizerError(
                f"{files.folder / special.origin} says that {token.content!r} is token {index}, but it becomes "
                f"{found}; the files are not of the same tokenizer"
            )
