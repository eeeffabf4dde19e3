"""Conversations judged as training data: by all guards, for code without an event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol

from serving_bridge.safety.checking import Checker
from serving_bridge.safety.contents import Messages, content_of
from serving_bridge.safety.decisions import Stage, Verdict
from serving_bridge.safety.guards import Guards

_AT_ONCE = 8
_CACHED = 16_384
#: a guard model is asked about what users and models say, each in the conversation before it
_JUDGED_ROLES = frozenset({"user", "assistant"})


class TrainingGuard(Protocol):
    """Judges what would be trained on."""

    def judged(self, conversations: Sequence[Messages]) -> list[Verdict]:
        """A verdict for each conversation: the worst of its messages. `error` says that no guard could judge it."""


class RulesForTraining:
    """Guards without a model; implements `TrainingGuard`."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def judged(self, conversations: Sequence[Messages]) -> list[Verdict]:
        return [self._worst(messages) for messages in conversations]

    def _worst(self, messages: Messages) -> Verdict:
        texts = [text for message in messages if (text := content_of(message))]
        return worst([self._checker.check(text, Stage.TRAINING_DATA).verdict for text in texts])


class GuardsForTraining:
    """All guards; implements `TrainingGuard`. Verdicts are remembered; a guard that failed is asked again.

    Open it with `with`: it keeps the guard models' connections.

    Args:
      tenant: for the audit log.
    """

    def __init__(self, guards: Guards, tenant: str = "") -> None:
        self._guards, self._tenant = guards, tenant
        self._runner, self._stack = asyncio.Runner(), AsyncExitStack()
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()

    def __enter__(self) -> GuardsForTraining:
        self._runner.run(self._stack.enter_async_context(self._guards.running()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._runner.run(self._stack.aclose())
        finally:
            self._runner.close()

    def judged(self, conversations: Sequence[Messages]) -> list[Verdict]:
        return self._runner.run(self._all(conversations))

    async def _all(self, conversations: Sequence[Messages]) -> list[Verdict]:
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(messages: Messages) -> Verdict:
            async with places:
                return await self._worst(messages)

        return list(await asyncio.gather(*map(one, conversations)))

    async def _worst(self, messages: Messages) -> Verdict:
        """Of the conversation up to each message of a user or the model."""
        found = []
        for end, message in enumerate(messages, start=1):
            if end == len(messages) or (message.get("role") in _JUDGED_ROLES and content_of(message)):
                found.append(await self._one(messages[:end]))
        return worst(found)

    async def _one(self, messages: Messages) -> Verdict:
        said = [[message.get("role"), content_of(message)] for message in messages]
        key = hashlib.sha256(json.dumps(said).encode()).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        verdict = (await self._guards.training_data(self._tenant, messages)).verdict
        if verdict is not Verdict.ERROR:
            self._known[key] = verdict
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        return verdict


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """`block` before `error` before `flag` before `allow`, which is also that of nothing."""
    order = (Verdict.BLOCK, Verdict.ERROR, Verdict.FLAG)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.ALLOW)
