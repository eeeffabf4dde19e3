"""The tokens of one request as replicas send them: which replica is asked, and which next where one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from serving_bridge.gateway.answers import ChoiceReader, Delta
from serving_bridge.gateway.arms import Rank
from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.errors import GatewayError, broken_off, queue_full, unavailable
from serving_bridge.gateway.parts import Parts
from serving_bridge.gateway.replicas import Target
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.upstream import Piece, ReplicaFull, ReplicaLost, Wanted, opened
from serving_bridge.safety import Messages


class Flow:
    """The answers to one prompt, by whichever replica gives them.

    Args:
      rank: how replicas fit now; asked before each try.
      is_shadow: no user waits: it is tried once, and what goes wrong is not held against the replica.

    Attributes:
      pieces: lists of what came together.
      version: policy version that the replica served when it was asked; -1 before.
      has_begun: whether a replica sampled for it.
      first: pieces that were awaited by `begun`.
    """

    def __init__(
        self, parts: Parts, wanted: Wanted, conversation: str, rank: Callable[[], Rank], *, is_shadow: bool = False
    ) -> None:
        self._parts, self._wanted, self._conversation = parts, wanted, conversation
        self._rank, self._is_shadow = rank, is_shadow
        self.pieces = self._tried()
        self.version = -1
        self.has_begun = False
        self.first: list[Piece] = []

    async def _tried(self) -> AsyncGenerator[list[Piece], None]:
        parts, avoid, is_full = self._parts, set[str](), False
        for _ in range(1 if self._is_shadow else parts.settings.retries + 1):
            target = parts.replicas.take(self._conversation, self._wanted.sampling.n, avoid, self._rank())
            self.version = target.version
            try:
                async with aclosing(self._of(target)) as pieces:
                    async for found in pieces:
                        self.has_begun = True
                        yield found
                return
            except ReplicaLost as lost:
                parts.counts.totals["shadows_lost" if self._is_shadow else "replicas_lost"] += 1
                if self.has_begun:
                    raise broken_off() from lost
                avoid.add(target.name)
                is_full = is_full or isinstance(lost, ReplicaFull)
        if is_full:
            raise queue_full("too many requests wait at the model's replicas")
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
        except ReplicaLost as lost:
            failed = not isinstance(lost, ReplicaFull)
            raise
        finally:
            is_told = not self._is_shadow
            parts.replicas.give_back(target, weight, answered=answered and is_told, failed=failed and is_told)


def choice_readers(
    parts: Parts,
    asked: Asked,
    caller: Caller,
    response_id: str,
    prompts: Sequence[Sequence[int]],
    shown: Sequence[Messages],
    *,
    keeps: bool = False,
) -> list[ChoiceReader]:
    """What reads each choice of an answer, those of the first prompt first.

    Args:
      shown: the conversation before the answers to each prompt.
      keeps: whether the sampled tokens are kept, too.
    """
    return [
        ChoiceReader(
            parts.tokenizer,
            asked,
            prompt,
            number * asked.sampling.n + index,
            parts.guards.stream(caller, response_id, messages),
            keeps=keeps,
        )
        for number, (prompt, messages) in enumerate(zip(prompts, shown, strict=True))
        for index in range(asked.sampling.n)
    ]


async def begun(flows: Sequence[Flow]) -> None:
    """Waits for each flow's first pieces; until then an error has a status of its own."""

    async def begin(flow: Flow) -> None:
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


async def read_deltas(
    flows: Sequence[Flow], readers: Sequence[ChoiceReader], n: int
) -> AsyncGenerator[list[Delta], None]:
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


async def _alone(flow: Flow) -> AsyncGenerator[tuple[int, list[Piece]], None]:
    yield 0, flow.first
    async for pieces in flow.pieces:
        yield 0, pieces


async def _together(flows: Sequence[Flow]) -> AsyncGenerator[tuple[int, list[Piece]], None]:
    """Pieces of all flows as they come, with their flow's number."""
    found: asyncio.Queue[tuple[int, list[Piece]] | Exception | None] = asyncio.Queue(maxsize=len(flows))

    async def read(number: int, flow: Flow) -> None:
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
