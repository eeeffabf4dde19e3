"""One request from its checked form to its last token: prompt, admission, replica, retries, text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from serving_bridge.gateway.answers import Choice, ChoiceReader, Delta
from serving_bridge.gateway.arms import Arms
from serving_bridge.gateway.callers import Admission, Ask, Caller, Guards, Ticket
from serving_bridge.gateway.conversations import conversation_of
from serving_bridge.gateway.counts import Counts
from serving_bridge.gateway.errors import GatewayError, broken_off, unavailable
from serving_bridge.gateway.openai_form import Tag, calls_schema
from serving_bridge.gateway.prompts import Prompts
from serving_bridge.gateway.replicas import Replicas, Target
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.upstream import Piece, ReplicaLost, Wanted, opened
from serving_bridge.settings import GatewaySettings
from serving_bridge.text import Tokenizer


@dataclass(frozen=True)
class Parts:
    """What a service is made of."""

    settings: GatewaySettings
    tokenizer: Tokenizer
    prompts: Prompts
    replicas: Replicas
    session: aiohttp.ClientSession
    admission: Admission
    guards: Guards
    arms: Arms
    counts: Counts


@dataclass(frozen=True)
class Answer:
    """An answer whose first tokens are there.

    Attributes:
      deltas: lists of what came together; raises `GatewayError` if the answer can't be ended.
      choices: as far as they came.
      prompts: token ids.
    """

    tag: Tag
    deltas: AsyncIterator[list[Delta]]
    choices: Sequence[Choice]
    prompts: Sequence[Sequence[int]]


class Service:
    """Answers requests. For one event loop."""

    def __init__(self, parts: Parts, *, clock: Callable[[], float] = time.time) -> None:
        self._parts, self._clock = parts, clock

    @asynccontextmanager
    async def answered(self, asked: Asked, caller: Caller, response_id: str, timeout_s: float) -> AsyncIterator[Answer]:
        """The answer to a request. Leaving ends what is still sampled for it, and settles what it took.

        Args:
          timeout_s: what is left of the request's time.

        Raises:
          GatewayError: it gets none.
        """
        parts, n = self._parts, asked.sampling.n
        self._check_model(asked.model)
        prompts = await parts.prompts.ids(asked)
        longest = parts.settings.max_tokens
        rooms = [parts.prompts.room(prompt, asked.sampling.max_tokens, longest) for prompt in prompts]
        await parts.guards.prompt(caller, response_id, _texts(asked))
        ask = Ask(sum(map(len, prompts)), max(rooms), n * len(prompts), asked.model)
        ticket = await parts.admission.admit(caller, ask, response_id, timeout_s)
        conversation = conversation_of(asked, caller.tenant)
        readers = [
            ChoiceReader(parts.tokenizer, asked, prompt, number * n + index, parts.guards.stream(caller, response_id))
            for number, prompt in enumerate(prompts)
            for index in range(n)
        ]
        choices = [reader.choice for reader in readers]
        wanted = [
            self._wanted(asked, caller, ticket, prompt, room, f"{response_id}-{number}")
            for number, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
        ]
        flows = [_Flow(parts, each, conversation) for each in wanted]
        with self._settled(ticket, flows, prompts, choices):
            async with AsyncExitStack() as stack:
                for flow in flows:
                    await stack.enter_async_context(aclosing(flow.pieces))
                await _begun(flows)
                arm, version = parts.arms.of(conversation), flows[0].version
                tag = Tag(response_id, asked.model, arm, version, int(self._clock()))
                deltas = await stack.enter_async_context(aclosing(_deltas(flows, readers, n)))
                yield Answer(tag, deltas, choices, prompts)

    def _check_model(self, model: str) -> None:
        if model != self._parts.settings.model:
            raise GatewayError(
                404,
                f"The model {model[:100]!r} does not exist; there is {self._parts.settings.model!r}",
                code="model_not_found",
                param="model",
            )

    def _wanted(
        self, asked: Asked, caller: Caller, ticket: Ticket, prompt: Sequence[int], room: int, request_id: str
    ) -> Wanted:
        sampling = asked.sampling
        if asked.call:
            sampling = replace(sampling, schema=calls_schema(asked.tools, asked.call))
        ends = self._parts.tokenizer.eos_ids
        return Wanted(request_id, prompt, sampling, room, ends, ticket.priority, caller.cache_salt)

    @contextmanager
    def _settled(
        self, ticket: Ticket, flows: Sequence[_Flow], prompts: Sequence[Sequence[int]], choices: Sequence[Choice]
    ) -> Iterator[None]:
        """Tells in the end what the request took: nothing where no replica came to work on it."""
        try:
            yield
        finally:
            begun = [prompt for flow, prompt in zip(flows, prompts, strict=True) if flow.has_begun]
            sampled, asked = sum(choice.num_tokens for choice in choices), sum(map(len, begun))
            totals = self._parts.counts.totals
            totals["prompt_tokens"] += asked
            totals["completion_tokens"] += sampled
            if begun:
                ticket.settle(asked, sampled)
            else:
                ticket.cancel()


class _Flow:
    """The answers to one prompt, by whichever replica gives them.

    Attributes:
      pieces: lists of what came together.
      version: policy version that the replica served when it was asked; -1 before.
      has_begun: whether a replica sampled for it.
      first: pieces that were awaited by `_begun`.
    """

    def __init__(self, parts: Parts, wanted: Wanted, conversation: str) -> None:
        self._parts, self._wanted, self._conversation = parts, wanted, conversation
        self.pieces = self._tried()
        self.version = -1
        self.has_begun = False
        self.first: list[Piece] = []

    async def _tried(self) -> AsyncGenerator[list[Piece], None]:
        parts, avoid = self._parts, set[str]()
        for _ in range(parts.settings.retries + 1):
            target = parts.replicas.take(self._conversation, self._wanted.sampling.n, avoid)
            self.version = target.version
            try:
                async with aclosing(self._of(target)) as pieces:
                    async for found in pieces:
                        self.has_begun = True
                        yield found
                return
            except ReplicaLost as lost:
                parts.counts.totals["replicas_lost"] += 1
                if self.has_begun:
                    raise broken_off() from lost
                avoid.add(target.name)
        raise unavailable("no replica of the model answers")

    async def _of(self, target: Target) -> AsyncGenerator[list[Piece], None]:
        parts, weight = self._parts, self._wanted.sampling.n
        answered = failed = False
        try:
            stall_s = parts.settings.stall_timeout_s
            async with opened(parts.session, target, self._wanted, stall_timeout_s=stall_s) as pieces:
                async for found in pieces:
                    yield found
            answered = True
        except ReplicaLost:
            failed = True
            raise
        finally:
            parts.replicas.give_back(target, weight, answered=answered, failed=failed)


async def _begun(flows: Sequence[_Flow]) -> None:
    """Waits for each flow's first pieces: until then an error has a status of its own."""

    async def begin(flow: _Flow) -> None:
        flow.first = await anext(flow.pieces)

    if len(flows) == 1:
        await begin(flows[0])
        return
    try:
        async with asyncio.TaskGroup() as group:
            for flow in flows:
                group.create_task(begin(flow))
    except* GatewayError as errors:
        raise errors.exceptions[0] from None


async def _deltas(flows: Sequence[_Flow], readers: Sequence[ChoiceReader], n: int) -> AsyncGenerator[list[Delta], None]:
    """What the pieces give, until every choice has ended.

    A choice that was cut here goes on at the replica; leaving the flows ends it there.
    """
    source = _together(flows) if len(flows) > 1 else _alone(flows[0])
    async with aclosing(source):
        async for number, pieces in source:
            taken = [await readers[number * n + piece.index].take(piece) for piece in pieces]
            deltas = [delta for delta in taken if delta is not None]
            if deltas:
                yield deltas
            if all(reader.choice.finish is not None for reader in readers) and any(
                reader.is_cut_here for reader in readers
            ):
                return


async def _alone(flow: _Flow) -> AsyncGenerator[tuple[int, list[Piece]], None]:
    yield 0, flow.first
    async for pieces in flow.pieces:
        yield 0, pieces


async def _together(flows: Sequence[_Flow]) -> AsyncGenerator[tuple[int, list[Piece]], None]:
    """Pieces of all flows as they come, with their flow's number."""
    found: asyncio.Queue[tuple[int, list[Piece]] | Exception | None] = asyncio.Queue(maxsize=len(flows))

    async def read(number: int, flow: _Flow) -> None:
        try:
            await found.put((number, flow.first))
            async for pieces in flow.pieces:
                await found.put((number, pieces))
            await found.put(None)
        except GatewayError as error:
            await found.put(error)

    tasks = [asyncio.ensure_future(read(number, flow)) for number, flow in enumerate(flows)]
    try:
        left = len(tasks)
        while left:
            item = await found.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _texts(asked: Asked) -> list[Mapping[str, Any]]:
    """What a guard of prompts is shown: a chat's messages, or a completion's texts as a user's."""
    if asked.kind == "chat":
        return [message.as_chat() for message in asked.messages]
    return [{"role": "user", "content": prompt} for prompt in asked.prompts if isinstance(prompt, str)]
