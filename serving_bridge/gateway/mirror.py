"""Copies of requests for the canary: sampled last, bounded in number, and seen by observers alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.flows import Flow, begun, choice_readers, read_deltas
from serving_bridge.gateway.observations import Exchange, tell
from serving_bridge.gateway.parts import Parts
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.upstream import Wanted
from serving_bridge.safety import Messages
from serving_bridge.settings import SHADOW_PRIORITY

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """A request whose user has the whole answer.

    Attributes:
      prompts: token ids.
      shown: what guards are shown of each prompt.
      wanted: what replicas were asked for, by prompt.
    """

    asked: Asked
    caller: Caller
    exchange: Exchange
    prompts: Sequence[Sequence[int]]
    shown: Sequence[Messages]
    wanted: Sequence[Wanted]


class Mirror:
    """Sends copies once the user has the whole answer; at most `gateway.max_shadows` at a time, others are left out.

    Only replicas that serve the canary's version are asked. The users among their requests go first.

    Args:
      clock: monotonic seconds.
    """

    def __init__(self, parts: Parts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts, self._clock = parts, clock
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, answered: Answered) -> None:
        """Copies an answered request, or leaves it out; returns at once."""
        if len(self._tasks) >= self._parts.settings.max_shadows:
            self._parts.counts.totals["shadows_left_out"] += 1
            return
        task = asyncio.ensure_future(self._copied(answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Breaks off the copies that are still sampled."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _copied(self, answered: Answered) -> None:
        parts, asked, exchange = self._parts, answered.asked, answered.exchange
        readers = choice_readers(parts, asked, answered.caller, exchange.response_id, answered.prompts, answered.shown)
        copy = exchange.copied(self._clock(), [reader.choice for reader in readers])
        flows = [
            Flow(
                parts,
                replace(one, request_id=f"shadow-{one.request_id}", priority=SHADOW_PRIORITY),
                exchange.conversation,
                lambda: parts.arms.only_canary,
                is_shadow=True,
            )
            for one in answered.wanted
        ]
        status = 200
        try:
            async with asyncio.timeout(parts.settings.timeout_s), AsyncExitStack() as stack:
                for flow in flows:
                    await stack.enter_async_context(aclosing(flow.pieces))
                await begun(flows)
                deltas = await stack.enter_async_context(aclosing(read_deltas(flows, readers, asked.sampling.n)))
                async for _ in deltas:
                    copy.first_s = copy.first_s or self._clock()
        except GatewayError as error:
            status, copy.code = error.status, error.code or str(error.status)
        except TimeoutError:
            status, copy.code = 504, "timeout"
        except Exception as error:  # noqa: BLE001  (isolates: nobody waits for a copy)
            _log.error("the copy of %s failed: %s", exchange.response_id, type(error).__name__)
            return
        copy.asked_version = flows[0].version
        if copy.asked_version < 0:  # no replica was there for it, which says nothing about the version
            parts.counts.totals["shadows_left_out"] += 1
            return
        parts.counts.totals["shadows"] += 1
        tell(parts.observations, copy, status, self._clock(), parts.arms)
