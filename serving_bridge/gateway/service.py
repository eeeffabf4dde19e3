"""One request from its checked form to its last token: prompt, admission, replica, retries, text."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from serving_bridge.gateway.answers import Choice, Delta
from serving_bridge.gateway.arms import STABLE
from serving_bridge.gateway.callers import Ask, Caller, Ticket
from serving_bridge.gateway.conversations import conversation_of
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.flows import Flow, begun, choice_readers, read_deltas
from serving_bridge.gateway.mirror import Answered, Mirror
from serving_bridge.gateway.observations import Exchange
from serving_bridge.gateway.openai_form import Tag, calls_schema
from serving_bridge.gateway.parts import Parts
from serving_bridge.gateway.recording import kept
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.shown import conversations
from serving_bridge.gateway.upstream import Wanted


@dataclass(frozen=True)
class Answer:
    """An answer whose first tokens are there.

    Attributes:
      deltas: lists of what came together; raises `GatewayError` if the answer can't be ended.
      choices: as far as they came.
      prompts: token ids.
      before: tokens of prompts and answers that came before this one and were not told.
    """

    tag: Tag
    deltas: AsyncIterator[list[Delta]]
    choices: Sequence[Choice]
    prompts: Sequence[Sequence[int]]
    before: tuple[int, int] = (0, 0)


class Answering(Protocol):
    """What answers requests."""

    def answered(
        self, asked: Asked, caller: Caller, exchange: Exchange, timeout_s: float
    ) -> AbstractAsyncContextManager[Answer]:
        """The answer to a request; see `Service.answered`."""


class Service:
    """Answers requests. For one event loop."""

    def __init__(self, parts: Parts, mirror: Mirror, *, clock: Callable[[], float] = time.time) -> None:
        self._parts, self._mirror, self._clock = parts, mirror, clock

    @asynccontextmanager
    async def answered(
        self, asked: Asked, caller: Caller, exchange: Exchange, timeout_s: float
    ) -> AsyncIterator[Answer]:
        """The answer to a request. Leaving ends what is still sampled for it, and settles what it took.

        Args:
          timeout_s: what is left of the request's time.

        Raises:
          GatewayError: it gets none.
        """
        parts, n, response_id = self._parts, asked.sampling.n, exchange.response_id
        self._check_model(asked.model)
        recording = await parts.recorders.begin(asked, caller)
        if recording is not None and recording.temperature is not None:
            asked = replace(asked, sampling=replace(asked.sampling, temperature=recording.temperature))
        known = recording.prompt if recording is not None else None
        prompts = [known] if known is not None else await parts.prompts.ids(asked)
        longest = parts.settings.max_tokens
        rooms = [parts.prompts.room(prompt, asked.sampling.max_tokens, longest) for prompt in prompts]
        shown = await conversations(asked, prompts, parts.tokenizer)
        whole = [message for messages in shown for message in messages]
        await parts.guards.prompt(caller, response_id, whole, "messages" if asked.kind == "chat" else "prompt")
        ask = Ask(sum(map(len, prompts)), max(rooms), n * len(prompts), asked.model)
        ticket = await parts.admission.admit(caller, ask, response_id, timeout_s)
        conversation = conversation_of(asked, caller.tenant)
        keeps = recording is not None
        arm = parts.arms.of(conversation, caller.tenant)
        readers = choice_readers(parts, asked, caller, response_id, prompts, shown, keeps=keeps)
        choices = [reader.choice for reader in readers]
        exchange.tenant, exchange.conversation, exchange.wanted_arm = caller.tenant, conversation, arm
        exchange.choices, exchange.prompt_tokens = choices, ask.prompt_tokens
        exchange.is_guarded = any(reader.is_guarded for reader in readers)
        wanted = [
            self._wanted(asked, caller, ticket, prompt, room, f"{response_id}-{number}", keeps=keeps)
            for number, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
        ]
        flows = [Flow(parts, each, conversation, lambda: parts.arms.rank(arm)) for each in wanted]
        with self._settled(ticket, flows, prompts, choices, exchange):
            async with AsyncExitStack() as stack:
                for flow in flows:
                    await stack.enter_async_context(aclosing(flow.pieces))
                await begun(flows)
                tag = self._tag(asked, response_id, flows[0].version, arm)
                found = read_deltas(flows, readers, n)
                if recording is not None:
                    tag = replace(tag, session=recording.session_id, begins=recording.begins)
                    chance = parts.arms.propensity(arm, caller.tenant)
                    found = kept(found, recording, asked, tag, prompts[0], choices, rooms[0], arm_propensity=chance)
                deltas = await stack.enter_async_context(aclosing(found))
                yield Answer(tag, deltas, choices, prompts)
        if parts.arms.of_version(flows[0].version, arm) == STABLE and parts.arms.is_mirrored(response_id):
            self._mirror.offer(Answered(asked, caller, exchange, prompts, shown, wanted))

    def _tag(self, asked: Asked, response_id: str, version: int, wanted_arm: str) -> Tag:
        def arm_of(version: int) -> str:
            return self._parts.arms.of_version(version, wanted_arm)

        return Tag(response_id, asked.model, arm_of(version), version, int(self._clock()), wanted_arm, arm_of)

    def _check_model(self, model: str) -> None:
        if model != self._parts.settings.model:
            raise GatewayError(
                404,
                f"The model {model[:100]!r} does not exist; there is {self._parts.settings.model!r}",
                code="model_not_found",
                param="model",
            )

    def _wanted(
        self,
        asked: Asked,
        caller: Caller,
        ticket: Ticket,
        prompt: Sequence[int],
        room: int,
        request_id: str,
        *,
        keeps: bool,
    ) -> Wanted:
        sampling = asked.sampling
        if asked.call:
            sampling = replace(sampling, schema=calls_schema(asked.tools, asked.call))
        if self._parts.wants_logprobs and sampling.logprobs is None:
            sampling = replace(sampling, logprobs=0)
        ends = self._parts.tokenizer.eos_ids
        return Wanted(request_id, prompt, sampling, room, ends, ticket.priority, caller.cache_salt, keeps)

    @contextmanager
    def _settled(
        self,
        ticket: Ticket,
        flows: Sequence[Flow],
        prompts: Sequence[Sequence[int]],
        choices: Sequence[Choice],
        exchange: Exchange,
    ) -> Iterator[None]:
        """Tells in the end what the request took: nothing where no replica came to work on it."""
        try:
            yield
        finally:
            exchange.asked_version = flows[0].version
            begun = [prompt for flow, prompt in zip(flows, prompts, strict=True) if flow.has_begun]
            sampled, asked = sum(choice.num_tokens for choice in choices), sum(map(len, begun))
            totals = self._parts.counts.totals
            totals["prompt_tokens"] += asked
            totals["completion_tokens"] += sampled
            if begun:
                ticket.settle(asked, sampled)
            else:
                ticket.cancel()
