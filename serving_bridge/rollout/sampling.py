"""Whole answers from replicas that fail, abort or are slow: tried again elsewhere, taken up where they broke off.

A broken-off answer's tokens, log-probs and version spans are as good as any: the next piece is asked for with prompt
and piece as context and what is left of the budget, from whichever replica the dispatcher picks. The tokens go back
exactly as they were sampled.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from learner_jax.runtime import NO_SPANS, Spans
from serving_bridge.routing import Dispatcher
from serving_bridge.settings import VLLM_PRIORITY, RolloutSettings
from serving_bridge.vllm import Aborted, Completion, Malformed, ReplicaError, joined

T = TypeVar("T")
Log = Callable[..., None]

_FIRST_RETRY_S = 0.2
_MAX_RETRY_S = 10.0


@dataclass
class Prefix:
    """Where a prefix is cached, shared by all the requests that begin with it; "" while nobody knows."""

    replica: str = ""


class Samples(Protocol):
    """Gives whole answers to contexts of token ids."""

    async def sample(
        self, tokens: Sequence[int], *, n: int, max_tokens: int, prefix: Prefix
    ) -> tuple[list[Completion], str]:
        """`n` answers of at most `max_tokens`, and the replica that sampled their beginning.

        Args:
          tokens: the context, used as it is.
          prefix: of the context; it may be noted there where this request goes.

        Raises:
          ReplicaError, NoReplicaError: an answer could not be had.
        """


class Sampler:
    """Samples through a dispatcher; implements `Samples`.

    Args:
      stop_token_ids: end an answer.
      count: "retries", "resumed" (after an abort) and "segments" (after a planned end of a piece) are counted here.
      rng: spreads retries, so that what failed together does not come back together.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: RolloutSettings,
        stop_token_ids: Sequence[int],
        *,
        count: Counter[str],
        log: Log,
        rng: random.Random,
        spans: Spans = NO_SPANS,
    ) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._stop_token_ids = tuple(stop_token_ids)
        self._count = count
        self._log = log
        self._rng, self._spans = rng, spans

    async def sample(
        self, tokens: Sequence[int], *, n: int, max_tokens: int, prefix: Prefix
    ) -> tuple[list[Completion], str]:
        """`n` whole answers of at most `max_tokens`, and the replica that sampled their beginning.

        Args:
          tokens: the context, used as it is.
          prefix: of the context; it is noted there where this request goes, before the answer comes.

        Raises:
          ReplicaError: an answer could not be had in `rollout.max_attempts` tries in a row.
          NoReplicaError: no replica took requests within the bound.
        """
        pieces, replica = await self._request(tokens, n, self._piece(max_tokens), prefix)
        if all(piece.finish_reason == "stop" or len(piece) == max_tokens for piece in pieces):
            return pieces, replica
        rest = [self._complete(tokens, piece, max_tokens, Prefix(replica)) for piece in pieces]
        return await all_or_none(rest), replica

    async def _complete(self, tokens: Sequence[int], first: Completion, max_tokens: int, own: Prefix) -> Completion:
        """Goes on with an answer until it has ended."""
        pieces, context, left = [first], [*tokens, *first.tokens.tolist()], max_tokens - len(first)
        while pieces[-1].finish_reason != "stop" and left > 0:
            self._count["resumed" if pieces[-1].finish_reason == "abort" else "segments"] += 1
            (piece,), _ = await self._request(context, 1, self._piece(left), own)
            pieces.append(piece)
            context += piece.tokens.tolist()
            left -= len(piece)
        return joined(pieces)

    def _piece(self, left: int) -> int:
        return min(left, self._settings.segment_tokens or left)

    async def _request(
        self, tokens: Sequence[int], n: int, max_tokens: int, prefix: Prefix
    ) -> tuple[list[Completion], str]:
        """One request's answers, perhaps unfinished, and who gave them."""
        attempt = 0
        while True:
            slot = await self._dispatcher.take(n, prefix.replica)
            prefix.replica = slot.target.name
            try:
                with self._spans.span("request", replica=slot.target.name, answers=n, attempt=attempt + 1):
                    answers = await self._send(slot.target.client, tokens, n, max_tokens)
            except ReplicaError as error:
                self._dispatcher.give_back(slot, error)
                self._count["retries"] += 1
                attempt += 1
                self._log("retry", replica=slot.target.name, attempt=attempt, error=str(error))
                if attempt == self._settings.max_attempts or not (error.retryable or isinstance(error, Malformed)):
                    raise
                prefix.replica = ""
                longest = min(_MAX_RETRY_S, _FIRST_RETRY_S * 2 ** (attempt - 1))
                await asyncio.sleep(longest * self._rng.uniform(0.5, 1.0))
            except BaseException:
                self._dispatcher.give_back(slot)
                raise
            else:
                self._dispatcher.give_back(slot, answered=True)
                return answers, slot.target.name

    async def _send(self, client: Any, tokens: Sequence[int], n: int, max_tokens: int) -> list[Completion]:
        answers: list[Completion] = await client.generate(
            tokens,
            n=n,
            max_tokens=max_tokens,
            temperature=self._settings.temperature,
            stop_token_ids=self._stop_token_ids,
            timeout_s=self._settings.request_timeout_s,
            priority=VLLM_PRIORITY["training"],
            unfinished=True,
        )
        if not any(len(answer) for answer in answers):
            raise Aborted(f"{client.base_url} aborted the request before its first token")
        return [self._ended(answer, max_tokens) for answer in answers]

    def _ended(self, answer: Completion, max_tokens: int) -> Completion:
        """An answer that was aborted at the very moment of its end has ended."""
        if answer.finish_reason != "abort" or not len(answer):
            return answer
        if int(answer.tokens[-1]) in self._stop_token_ids:
            return replace(answer, finish_reason="stop")
        return replace(answer, finish_reason="length") if len(answer) == max_tokens else answer


async def all_or_none(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; when one fails the others are cancelled, and its error is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
