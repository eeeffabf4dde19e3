"""The model's own answer, or what the first policy of its case gives; decided before the first byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from serving_bridge.fallback import Fell, Records
from serving_bridge.gateway.answers import Delta
from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.counts import Counts
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.judging import Complaint, Held, complaint_of, held, summed
from serving_bridge.gateway.observations import Exchange
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.service import Answer
from serving_bridge.gateway.stand_ins import Means, Passed, Question, StandIn, stand_in
from serving_bridge.recordings import user_of
from serving_bridge.settings import Policy

#: of what is left of a request's time, for one policy: the next one always gets its turn
_SHARE = 0.5


@dataclass(frozen=True)
class _Outcome:
    """What the policies of a case came to.

    Attributes:
      policy, given: of the one that is told; None where there is none.
      tried: (policy, what came of it), in order.
      spent: tokens of prompts and answers of those that were tried in vain.
    """

    policy: Policy | None
    given: StandIn | None
    tried: Sequence[tuple[str, str]]
    spent: tuple[int, int]


class FallingBack:
    """Answers requests (`service.Answering`); one whose case has no policies is answered as without a fallback."""

    def __init__(self, means: Means, counts: Counts, records: Records | None) -> None:
        self._means, self._counts, self._records = means, counts, records

    @asynccontextmanager
    async def answered(
        self, asked: Asked, caller: Caller, exchange: Exchange, timeout_s: float
    ) -> AsyncIterator[Answer]:
        """The answer to a request; `Answer.tag.fallback` names the policy where another one than the model's is told.

        Raises:
          GatewayError: the model gives none, and no policy does.
        """
        began_s, response_id = time.monotonic(), exchange.response_id
        async with AsyncExitStack() as stack:
            first = await self._first(stack, asked, caller, exchange, timeout_s)
            if isinstance(first, Answer):
                yield replace(first, deltas=self._marked(first))
                return
            found, complaint = first
            asked = replace(asked, stream=False)  # whatever is told now was held, and is told as one
            ends_s = began_s + timeout_s
            if isinstance(found, Held):
                found, complaint = await self._means.judge.judged(
                    self._means.service, found, asked, caller, response_id, ends_s - time.monotonic()
                )
            if complaint is None or not self._means.settings.policies(complaint.case, caller.tenant):
                yield _as_answer(found)
                return
            question = Question(asked, caller, response_id, ends_s, complaint)
            outcome = await self._stood_in(question)
            exchange.is_covered = outcome.given is not None  # the arm's own was not good enough, whatever users see
            if isinstance(found, GatewayError) and exchange.is_covered:
                exchange.covered_status, exchange.code = found.status, found.code or ""
            try:
                yield self._chosen(question, found, outcome)
            finally:
                self._recorded(question, found, outcome, time.monotonic() - began_s)

    async def _first(
        self, stack: AsyncExitStack, asked: Asked, caller: Caller, exchange: Exchange, timeout_s: float
    ) -> Answer | tuple[Held | GatewayError, Complaint | None]:
        """The model's own answer: on its way where it streams, else whole; or its error, with the case of it."""
        service, streams = self._means.service, asked.stream and not self._means.settings.hold_streams
        answered = service.answered(replace(asked, stream=streams), caller, exchange, timeout_s)
        try:
            if streams:
                return await stack.enter_async_context(answered)
            return await held(answered), None
        except GatewayError as error:
            if (complaint := complaint_of(error)) is None:
                raise
            return error, complaint

    async def _marked(self, answer: Answer) -> AsyncIterator[list[Delta]]:
        """A stream whose choices get their confidence when they end."""
        async for deltas in answer.deltas:
            for delta in deltas:
                if delta.finish is not None:
                    self._means.judge.mark(answer.choices[delta.index])
            yield deltas

    async def _stood_in(self, question: Question) -> _Outcome:
        """The first policy that has an answer, and what came of each that was tried."""
        tried: list[tuple[str, str]] = []
        spent = (0, 0)
        for number, policy in enumerate(self._means.settings.policies(question.case, question.caller.tenant), start=1):
            try:
                async with asyncio.timeout(max(0.0, question.left_s) * _SHARE):
                    given = await stand_in(policy, self._means, replace(question, number=number))
            except Passed as passed:
                tried.append((policy, str(passed)))
                spent = summed(spent, passed.spent)
            except TimeoutError:
                tried.append((policy, "it took half of the time that was left"))
            else:
                return _Outcome(policy, given, [*tried, (policy, "told")], spent)
        return _Outcome(None, None, tried, spent)

    def _chosen(self, question: Question, found: Held | GatewayError, outcome: _Outcome) -> Answer:
        self._counts.fallbacks[f"{question.case}/{outcome.policy or 'none'}"] += 1
        if outcome.given is None:
            answer = _as_answer(found)
            return replace(answer, before=summed(answer.before, outcome.spent))
        told = {"case": question.case, "policy": outcome.policy, "citations": list(outcome.given.citations)}
        own = outcome.given.found
        tag = replace(own.answer.tag, fallback=told)
        dropped = found.total if isinstance(found, Held) else (0, 0)
        before = summed(own.answer.before, outcome.spent, dropped)
        return replace(own.answer, tag=tag, deltas=own.told(), before=before)

    def _recorded(self, question: Question, found: Held | GatewayError, outcome: _Outcome, seconds: float) -> None:
        if self._records is None:
            return
        asked, caller, own = question.asked, question.caller, found if isinstance(found, Held) else None
        given = outcome.given
        self._records.add(
            Fell(
                response_id=question.response_id,
                told_id=given.found.answer.tag.response_id if given is not None else question.response_id,
                tenant=caller.tenant,
                case=question.case,
                reason=question.complaint.reason,
                tried=outcome.tried,
                policy=outcome.policy,
                confidence=own.confidence if own is not None else None,
                version=own.answer.tag.version if own is not None else None,
                seconds=seconds,
                user=user_of(caller.tenant, asked.user),
                session_id=own.answer.tag.session if own is not None else "",
                retention_days=caller.retention_days,
                consents=caller.consents and asked.consents and asked.kind == "chat",
                messages=question.messages,
                answer=given.found.text if given is not None else "",
                dropped=own.text if own is not None else "",
                citations=given.citations if given is not None else (),
                teaches=given is not None and given.teaches,
            )
        )


def _as_answer(found: Held | GatewayError) -> Answer:
    if isinstance(found, GatewayError):
        raise found
    return replace(found.answer, deltas=found.told())
