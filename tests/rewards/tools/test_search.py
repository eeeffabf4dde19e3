"""Search: the right document first, citations by id, corpora apart, embeddings fused, and files that are no corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from rewards.contracts import TaskError
from rewards.tools import Index, Search, ToolError, read_corpus
from rewards.tools.search import StaticEmbedder, definition, fused

DOCUMENTS = [
    {"id": "paris", "title": "Paris", "text": "Paris is the capital of France."},
    {"id": "rome", "title": "Rome", "text": "Rome is the capital of Italy. It has seven hills."},
    {"id": "cats", "text": "A kitten is a young cat."},
    {"id": 7, "text": "The Seine flows through Paris."},
]


def corpus(folder: Path, name: str = "docs", documents: list[Any] = DOCUMENTS) -> Any:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8-sig")
    return read_corpus(name, str(path))


def ids(index: Index, query: str, top_k: int = 5) -> list[str]:
    return [document.id for document in index.search(query, top_k)]


def test_the_document_with_the_words_comes_first(tmp_path: Path) -> None:
    index = Index(corpus(tmp_path))
    assert ids(index, "capital of France")[0] == "paris"
    assert ids(index, "SEVEN hills")[0] == "rome"
    assert set(ids(index, "paris")) == {"paris", "7"}
    assert ids(index, "capital", top_k=1) == ids(index, "capital")[:1]
    for nothing in ("zebra", "", "?!", "\x00", "w" * 10_000):
        assert ids(index, nothing) == []


def test_results_name_their_documents(tmp_path: Path) -> None:
    search = Search({"docs": Index(corpus(tmp_path))}, top_k=1, column="")
    used = search.run({"query": "seven hills"}, {})
    assert used.text == "[rome] Rome: Rome is the capital of Italy. It has seven hills."
    assert used.documents == ("rome",)
    assert search.run({"query": "zebra"}, {}).documents == ()


def test_a_row_sees_its_own_corpora_alone(tmp_path: Path) -> None:
    indices = {
        "a": Index(corpus(tmp_path, "a", [{"id": "x", "text": "secret of a"}])),
        "b": Index(corpus(tmp_path, "b", [{"id": "y", "text": "secret of b"}])),
    }
    search = Search(indices, top_k=5, column="tenant")
    assert search.run({"query": "secret"}, {"tenant": "a"}).documents == ("x",)
    assert search.run({"query": "secret", "corpus": "b"}, {"tenant": ["a", "b"]}).documents == ("y",)
    for arguments, row in (
        ({"query": "secret", "corpus": "b"}, {"tenant": "a"}),
        ({"query": "secret", "corpus": "a"}, {}),
        ({"query": "secret"}, {"tenant": 3}),
        ({"query": "secret"}, {"tenant": "../b"}),
        ({"query": "secret"}, {"tenant": ["a", "b"]}),
    ):
        with pytest.raises(ToolError, match="there is no corpus"):
            search.run(arguments, row)
    assert definition(["a", "b"]).parameters["properties"]["corpus"]["enum"] == ["a", "b"]
    assert "corpus" not in definition(["a"]).parameters["properties"]


def embeddings(folder: Path) -> str:
    """Cat and kitten mean the same here, and no other word means anything."""
    words = {"[UNK]": 0, "kitten": 1, "cat": 2, "feline": 3, "capital": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.save(str(folder / "tokenizer.json"))
    vectors = np.array([[9, 9], [1, 0], [1, 0.1], [1, 0], [0, 1]], np.float32)
    save_file({"embeddings": vectors}, folder / "model.safetensors")
    return str(folder)


def test_embeddings_find_what_words_do_not(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    folder = embeddings(tmp_path / "embeddings")
    assert ids(Index(corpus(tmp_path)), "feline") == []
    assert ids(Index(corpus(tmp_path), embeddings=folder), "feline")[0] == "cats"
    found = StaticEmbedder(folder).embed(["kitten cat", "zebra"])
    mean = np.array([1, 0.05])
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_array_equal(found[1], [0, 0])


def test_rankings_are_fused_by_reciprocal_ranks() -> None:
    assert fused([[1, 2, 3], [3, 1]]) == [1, 3, 2]
    assert fused([[5], [4]]) == [4, 5]
    assert fused([[], []]) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no files that end in .txt"),
        ({"a.txt": b"\xff\xfe"}, "is no UTF-8"),
        ({"a[1].txt": b"text"}, "can't be cited"),
    ],
)
def test_a_folder_that_is_no_corpus_says_why(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    for name, payload in files.items():
        (tmp_path / name).write_bytes(payload)
    with pytest.raises(TaskError) as caught:
        read_corpus("docs", str(tmp_path))
    assert said in str(caught.value)


def test_files_of_a_folder_are_documents(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")
    (tmp_path / "c.bin").write_text("gamma")
    assert [(d.id, d.text) for d in read_corpus("docs", str(tmp_path)).documents] == [
        ("b", "beta"),
        ("deep/a", "alpha"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is no JSON"),
        ("3", 'expected an object with "text"'),
        ('{"text": ""}', 'expected an object with "text"'),
        ('{"text": "a", "id": null}', "expected texts"),
        ('{"text": "a", "id": "[x]"}', "can't be cited"),
        ('{"text": "a", "id": 1}\n{"text": "b", "id": "1"}', "two documents with the id '1'"),
        ("", "has no lines with documents"),
    ],
)
def test_a_file_that_is_no_corpus_says_why(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(line)
    with pytest.raises(TaskError) as caught:
        read_corpus("docs", str(path))
    assert said in str(caught.value)


def test_a_corpus_that_is_not_there_and_embeddings_that_are_none_say_so(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="can't be read"):
        read_corpus("docs", str(tmp_path / "nothing.jsonl"))
    with pytest.raises(TaskError, match="task.episode.embeddings"):
        StaticEmbedder(str(tmp_path))
