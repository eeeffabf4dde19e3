"""The documents of a deployment, by tenant: those that fit a question, and how a model is asked to answer from them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.environments import citations
from rewards.tools import Document, Index, read_corpus, shown
from serving_bridge.settings import FallbackSettings

_ORDER = (
    "Answer the question from the documents below and from nothing else. Put the id of each document that you use in "
    "square brackets behind what it says. If the documents don't hold the answer, say: I don't know."
)


@dataclass(frozen=True)
class Found:
    """Documents that fit a question, best first."""

    documents: tuple[Document, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(document.id for document in self.documents)

    def quoted(self, before: str) -> str:
        """The documents as an answer: their beginnings, each with its id in brackets."""
        return "\n\n".join([before, *map(shown, self.documents)])

    def cited(self, answer: str) -> tuple[str, ...]:
        """Ids of these documents that an answer cites."""
        return tuple(identity for identity in citations(answer) if identity in self.ids)


class Library:
    """All corpora, each searched by those tenants alone that may.

    A corpus that some tenant names as its own is searched by such tenants alone; the others are everybody's.

    Raises:
      TaskError: a corpus or the embeddings can't be read.
    """

    def __init__(self, settings: FallbackSettings) -> None:
        self._indices = {
            name: Index(
                read_corpus(name, path, setting="fallback.corpora"),
                embeddings=settings.embeddings,
                setting="fallback.embeddings",
            )
            for name, path in settings.corpora.items()
        }
        self._own = {name: frozenset(tenant.corpora) for name, tenant in settings.tenants.items()}
        taken = frozenset().union(*self._own.values()) if self._own else frozenset()
        self._shared = frozenset(self._indices) - taken
        self._top_k = settings.top_k

    def corpora_of(self, tenant: str) -> tuple[str, ...]:
        """Names of the corpora that a tenant searches, its own first."""
        own = self._own.get(tenant, frozenset())
        return tuple(name for group in (own, self._shared) for name in self._indices if name in group)

    async def search(self, tenant: str, question: str) -> Found:
        """The best documents of the first of the tenant's corpora that has any; none where nothing fits."""
        for name in self.corpora_of(tenant):
            if documents := await asyncio.to_thread(self._indices[name].search, question, self._top_k):
                return Found(tuple(documents))
        return Found(())


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last text of a user in a conversation; "" where there is none."""
    for message in reversed(messages):
        if message.get("role") == "user" and isinstance(content := message.get("content"), str):
            return content
    return ""


def asked_with(found: Found, question: str) -> list[dict[str, str]]:
    """Messages that ask a model to answer from documents, with citations."""
    documents = "\n\n".join(map(shown, found.documents))
    return [{"role": "user", "content": f"{_ORDER}\n\nDocuments:\n\n{documents}\n\nQuestion: {question}"}]
