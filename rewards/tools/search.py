"""Search in a local corpus: BM25, and static embeddings where there are some, fused by reciprocal ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from rewards.contracts import TaskError, ToolDefinition
from rewards.tools.corpus import Corpus, Document
from rewards.tools.toolbox import ToolError, Used

#: constant of reciprocal-rank fusion (Cormack et al., SIGIR 2009)
_FUSION_K = 60
#: candidates of each ranking that are fused
_DEPTH = 100
_WORD = re.compile(r"\w+")
_MAX_QUERY = 2000
_SNIPPET = 600


def definition(corpora: Sequence[str]) -> ToolDefinition:
    """The search tool over the corpora of these names."""
    properties: dict[str, Any] = {"query": {"type": "string", "description": "words to look for"}}
    if len(corpora) > 1:
        properties["corpus"] = {"enum": list(corpora), "description": "where to look"}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    described = "Searches documents. Each result begins with the document's id in square brackets, for citing it."
    return ToolDefinition("search", described, {**parameters, "additionalProperties": False})


class Index:
    """One corpus, ready to be searched.

    Args:
      embeddings: folder of static embeddings; "" for none.
      setting: that names the folder, for errors.

    Raises:
      TaskError: the embeddings can't be used.
    """

    def __init__(self, corpus: Corpus, *, embeddings: str = "", setting: str = "task.episode.embeddings") -> None:
        import bm25s  # most runs search nothing

        self.corpus = corpus
        texts = [f"{document.title}\n{document.text}" for document in corpus.documents]
        self._vocabulary: dict[str, int] = {}
        ids = [[self._vocabulary.setdefault(w, len(self._vocabulary)) for w in _words(text)] for text in texts]
        self._bm25 = bm25s.BM25(backend="numpy") if self._vocabulary else None
        if self._bm25 is not None:
            self._bm25.index((ids, self._vocabulary), show_progress=False)
        self._embedder = StaticEmbedder(embeddings, setting) if embeddings else None
        self._vectors = self._embedder.embed(texts) if self._embedder is not None else None

    def search(self, query: str, top_k: int) -> list[Document]:
        """The documents that fit a query best, best first; none where nothing fits."""
        query = query[:_MAX_QUERY]
        rankings = [self._by_words(query)]
        if self._vectors is not None and self._embedder is not None:
            similar = self._vectors @ self._embedder.embed([query])[0]
            rankings.append([int(i) for i in np.argsort(-similar, kind="stable")[:_DEPTH] if similar[i] > 0])
        return [self.corpus.documents[i] for i in fused(rankings)[:top_k]]

    def _by_words(self, query: str) -> list[int]:
        words = [self._vocabulary[word] for word in _words(query) if word in self._vocabulary]
        if not words or self._bm25 is None:
            return []
        scores = np.asarray(self._bm25.get_scores_from_ids(words))
        return [int(i) for i in np.argsort(-scores, kind="stable")[:_DEPTH] if scores[i] > 0]


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """One ranking of several: by the sum of 1 / (60 + rank), ties by number (Cormack et al., SIGIR 2009)."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (_FUSION_K + rank)
    return sorted(scores, key=lambda item: (-scores[item], item))


class Search:
    """The search tool. An episode sees the corpora of its row alone, where the row names some.

    Args:
      indices: by the name of the corpus.
      top_k: most results.
      column: of the row that names its corpus, or a list of them; "" for all corpora.
    """

    def __init__(self, indices: Mapping[str, Index], *, top_k: int, column: str) -> None:
        self._indices, self._top_k, self._column = indices, top_k, column

    def run(self, arguments: Mapping[str, Any], row: Mapping[str, Any]) -> Used:
        """Results with their ids; ToolError where the row may not look there."""
        allowed = self.allowed(row)
        name = arguments.get("corpus", allowed[0] if len(allowed) == 1 else "")
        if name not in allowed:
            raise ToolError(f"there is no corpus {str(name)!r:.80} here; there are: {', '.join(allowed)}")
        found = self._indices[name].search(str(arguments["query"]), self._top_k)
        if not found:
            return Used("No document fits.")
        return Used("\n\n".join(map(shown, found)), tuple(document.id for document in found))

    def allowed(self, row: Mapping[str, Any]) -> list[str]:
        """Names of the corpora that a row may search; none that does not exist."""
        if not self._column:
            return list(self._indices)
        wanted = row.get(self._column)
        names = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list | tuple) else []
        return [name for name in names if isinstance(name, str) and name in self._indices]


def shown(document: Document) -> str:
    """A document as a result: its id in brackets, its title, and the beginning of its text."""
    text = " ".join(document.text.split())
    cut = text if len(text) <= _SNIPPET else f"{text[:_SNIPPET]}..."
    title = f" {' '.join(document.title.split())}:" if document.title.strip() else ""
    return f"[{document.id}]{title} {cut}"


class StaticEmbedder:
    """Mean of token vectors, normalised; a folder as model2vec writes it: model.safetensors, tokenizer.json.

    Raises:
      TaskError: the folder holds something else.
    """

    def __init__(self, folder: str, setting: str = "task.episode.embeddings") -> None:
        from safetensors.numpy import load_file

        path = Path(folder)
        try:
            tensors = load_file(path / "model.safetensors")
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            settings = json.loads((path / "config.json").read_text()) if (path / "config.json").is_file() else {}
        except Exception as error:  # the libraries raise what they like
            raise TaskError(f"{setting} {folder!r} can't be read: {error}") from error
        vectors = tensors.get("embeddings")
        if vectors is None or vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise TaskError(
                f"{setting} {folder!r}: model.safetensors holds {', '.join(tensors)[:200]}, expected "
                f"'embeddings' of shape [tokens, dimensions]"
            )
        self._vectors = vectors.astype(np.float32)
        self._mapping = tensors.get("mapping")
        self._weights = tensors.get("weights")
        self._normalizes = bool(settings.get("normalize", True))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown = self._tokenizer.token_to_id(unknown) if unknown else None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [texts, dimensions]; of length 1, or 0 where a text has no known token."""
        found = np.zeros((len(texts), self._vectors.shape[1]), np.float32)
        for row, text in enumerate(texts):
            clean = text.encode("utf-8", "replace").decode()
            ids = np.array(
                [i for i in self._tokenizer.encode(clean, add_special_tokens=False).ids if i != self._unknown], np.int64
            )
            if not len(ids):
                continue
            rows = self._mapping[ids] if self._mapping is not None else ids
            weights = self._weights[ids][:, None] if self._weights is not None else 1.0
            found[row] = (self._vectors[rows] * weights).mean(axis=0)
        if not self._normalizes:
            return found
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.where(norms > 0, norms, 1.0)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
