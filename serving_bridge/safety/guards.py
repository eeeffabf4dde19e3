"""All guards together, for the gateway: prompts, answers, streams and training data, with what each decision leaves."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Protocol

from serving_bridge.safety.audit import AuditError, AuditLog
from serving_bridge.safety.checking import Checker, is_closed
from serving_bridge.safety.contents import Messages, content_of
from serving_bridge.safety.decisions import Decision, Opinion, Stage, Verdict
from serving_bridge.safety.personal_data import Redactor
from serving_bridge.safety.streams import StreamGuard
from serving_bridge.safety.verdicts import decided
from serving_bridge.safety.votes import voted
from serving_bridge.settings import SafetySettings

#: Longer texts are judged in a thread, so that other requests go on.
_INLINE_CHARS = 8_000
_CACHED = 4_096
#: Roles whose content nobody at the keyboard wrote.
_DOCUMENT_ROLES = frozenset({"tool", "function"})


class ModelGuard(Protocol):
    """A guard that asks a model. One that raises, or is late, has failed and says nothing of the text."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    async def judge(self, messages: Messages, stage: Stage) -> Opinion: ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Stays open while it is asked."""
        ...


class Guards:
    """Judges on behalf of tenants. A decision's `passes` says whether the text may go on.

    Every decision goes to the audit log with a hash of the text, never the text. Local opinions are cached by that
    hash, so a conversation is not judged anew with each of its turns.
    """

    def __init__(
        self,
        settings: SafetySettings,
        *,
        models: Sequence[ModelGuard] = (),
        audit: AuditLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._models, self._audit, self._clock = settings, tuple(models), audit, clock
        self._checker = Checker(settings)
        self._cache: OrderedDict[tuple[bytes, Stage, bool], tuple[Opinion, ...]] = OrderedDict()

    @property
    def has_models(self) -> bool:
        """Whether guard models are asked."""
        return bool(self._models) and self._settings.enabled

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the guard models' connections."""
        async with AsyncExitStack() as stack:
            for model in self._models:
                await stack.enter_async_context(model.running())
            yield

    async def prompt(self, tenant: str, messages: Messages) -> Decision:
        """Judges a conversation before a model sees it. Spans are in its contents joined by two line feeds.

        Args:
          messages: as `content_of` reads them; of the role "tool" as documents.
        """
        return await self._decide(tenant, Stage.PROMPT, _parts(messages), messages)

    async def answer(self, tenant: str, text: str, messages: Messages) -> Decision:
        """Judges a whole answer; guard models judge it in its conversation.

        Args:
          messages: what it answers; empty only where nobody knows that.
        """
        # Without a word in it a guard model would judge what was asked instead.
        said = [*messages, {"role": "assistant", "content": text}] if text.strip() else None
        return await self._decide(tenant, Stage.ANSWER, [(text, False)], said)

    async def training_data(self, tenant: str, messages: Messages) -> Decision:
        """Judges what would be trained on; a guard that fails always holds it back.

        Guards without a model judge every message, guard models the last one in its conversation.
        """
        return await self._decide(tenant, Stage.TRAINING_DATA, _parts(messages), messages)

    def stream(self, tenant: str) -> StreamGuard:
        """A guard for one answer on its way, without guard models; ask `answer` too when it is whole."""

        async def judge(text: str) -> Decision:
            return await self._decide(tenant, Stage.ANSWER, [(text, False)], None)

        return StreamGuard(judge, window_chars=self._settings.window_chars, window_s=self._settings.window_s)

    async def _decide(
        self, tenant: str, stage: Stage, parts: Sequence[tuple[str, bool]], messages: Messages | None
    ) -> Decision:
        begin = time.perf_counter()
        text = "\n\n".join(part for part, _ in parts)
        opinions = await self._local(stage, parts)
        if messages is not None and self._settings.enabled:
            opinions += await self._asked(messages, stage)
        decision = decided(
            text,
            opinions,
            block=self._settings.block if self._settings.enabled else (),
            closed=is_closed(self._settings, stage, tenant),
            redactor=Redactor(),
        )
        if not self._settings.enabled and decision.verdict is Verdict.BLOCK:
            decision = replace(decision, verdict=Verdict.FLAG)
        return self._recorded(tenant, stage, text, decision, time.perf_counter() - begin)

    async def _local(self, stage: Stage, parts: Sequence[tuple[str, bool]]) -> list[Opinion]:
        """Opinions of the guards without a model about each part, their spans moved to where the part stands."""
        found: list[Opinion] = []
        offset = 0
        for text, is_document in parts:
            for opinion in await self._opinions(text, stage, is_document):
                spans = tuple(replace(s, start=s.start + offset, end=s.end + offset) for s in opinion.spans)
                found.append(replace(opinion, spans=spans))
            offset += len(text) + 2
        return found

    async def _opinions(self, text: str, stage: Stage, is_document: bool) -> tuple[Opinion, ...]:
        key = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), stage, is_document)
        if key not in self._cache:
            if len(text) <= _INLINE_CHARS:
                self._cache[key] = tuple(self._checker.opinions(text, stage, is_document=is_document))
            else:
                judged = asyncio.to_thread(self._checker.opinions, text, stage, is_document=is_document)
                self._cache[key] = tuple(await judged)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return self._cache[key]

    async def _asked(self, messages: Messages, stage: Stage) -> list[Opinion]:
        """Opinions of the guard models; fewer votes to block than the settings want only flag."""
        if not self._models:
            return []
        asked = [asyncio.ensure_future(model.judge(messages, stage)) for model in self._models]
        _, late = await asyncio.wait(asked, timeout=self._settings.deadline_s)
        for task in late:
            task.cancel()
        opinions = [_outcome(model, task, task in late) for model, task in zip(self._models, asked, strict=True)]
        weights = [float(getattr(model, "weight", 1.0)) for model in self._models]
        return voted(opinions, weights, self._settings)

    def _recorded(self, tenant: str, stage: Stage, text: str, decision: Decision, seconds: float) -> Decision:
        if self._audit is None:
            return decision
        record = {
            "time": round(self._clock(), 3),
            "tenant": tenant,
            "stage": stage.value,
            "verdict": decision.verdict.value,
            "categories": list(decision.categories),
            "text_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
            "characters": len(text),
            "spans": [span.as_list() for span in decision.spans[:100]],
            "guards": [[o.guard, o.version, o.verdict.value, o.reason] for o in decision.opinions if _says(o)][:100],
            "seconds": round(seconds, 6),
        }
        try:
            self._audit.add(record)
        except AuditError as error:
            if is_closed(self._settings, stage, tenant):
                failed = Opinion("audit", "1", Verdict.ERROR, reason=str(error)[:200])
                verdict = decision.verdict if decision.verdict is Verdict.BLOCK else Verdict.ERROR
                return replace(decision, verdict=verdict, opinions=(*decision.opinions, failed))
        return decision


def _outcome(model: ModelGuard, task: asyncio.Future[Opinion], is_late: bool) -> Opinion:
    if is_late:
        return Opinion(model.name, model.version, Verdict.ERROR, reason="no answer within safety.deadline_s")
    if (error := task.exception()) is not None:
        return Opinion(model.name, model.version, Verdict.ERROR, reason=f"failed with {type(error).__name__}")
    return task.result()


def _says(opinion: Opinion) -> bool:
    return opinion.verdict is not Verdict.ALLOW or bool(opinion.reason) or not opinion.spans


def _parts(messages: Messages) -> list[tuple[str, bool]]:
    """The text of each message, and whether it is a document's."""
    return [(content_of(message), message.get("role") in _DOCUMENT_ROLES) for message in messages]
