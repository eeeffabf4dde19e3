"""The policies that stand in for a model's answer: each gives a whole answer, or says why it can't."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from rewards.environments import abstains
from serving_bridge.fallback import Found, Library, Webhook, WebhookError, asked_with, question_of
from serving_bridge.gateway.answers import Choice, Delta
from serving_bridge.gateway.callers import Caller, Guards
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.judging import Complaint, Held, Judge, exchange_of, held
from serving_bridge.gateway.openai_form import Tag
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.service import Answer, Answering
from serving_bridge.gateway.shown import chat_shown
from serving_bridge.sessions import read_messages
from serving_bridge.settings import Case, FallbackSettings, Policy

#: cases in which no model may or can answer
_WITHOUT_MODEL: frozenset[Case] = frozenset({"unavailable", "guard_failed"})
#: an answer of no arm
_NO_ARM = "none"


class Passed(Exception):
    """A policy has no answer; the message says why, without any text of a user.

    Attributes:
      spent: tokens of prompts and answers that it took.
    """

    def __init__(self, message: str, spent: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.spent = spent


@dataclass(frozen=True)
class Question:
    """What the policies are to answer.

    Attributes:
      response_id: of the request.
      number: of the policy that is tried, from 1 on.
      ends_s: monotonic seconds at which the request's time is over.
    """

    asked: Asked
    caller: Caller
    response_id: str
    ends_s: float
    complaint: Complaint
    number: int = 1

    @property
    def own_id(self) -> str:
        """Id of what the policy gives: it is admitted, billed, recorded and told under it."""
        return f"{self.response_id}-{self.number}"

    @property
    def case(self) -> Case:
        return self.complaint.case

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        return [message.as_chat() for message in self.asked.messages]

    @property
    def left_s(self) -> float:
        return self.ends_s - time.monotonic()


@dataclass(frozen=True)
class StandIn:
    """What a policy gives.

    Attributes:
      teaches: whether it may be learned from.
    """

    found: Held
    citations: Sequence[str] = ()
    teaches: bool = False


@dataclass(frozen=True)
class Means:
    """What the policies work with; None for what the settings don't name."""

    settings: FallbackSettings
    judge: Judge
    service: Answering
    previous: Answering | None
    library: Library | None
    webhook: Webhook | None
    session: aiohttp.ClientSession
    guards: Guards


async def stand_in(policy: Policy, means: Means, question: Question) -> StandIn:
    """What a policy gives in place of the model's answer.

    Raises:
      Passed: it has no answer.
    """
    match policy:
        case "retry":
            return await _retried(means, question)
        case "previous_version":
            if means.previous is None:
                raise Passed("there are no replicas of another version")
            return await _asked(means.previous, question.asked, means, question)
    if question.asked.kind != "chat" or question.asked.sampling.schema is not None or question.asked.call:
        raise Passed("the request wants a form that only the model has")
    match policy:
        case "retrieve":
            return await _retrieved(means, question)
        case "hand_over":
            return await _handed_over(means, question)
    own = means.settings.tenants.get(question.caller.tenant)
    text = (own.abstain_text if own is not None else None) or means.settings.abstain_text
    return StandIn(_text(text, question))


async def _retried(means: Means, question: Question) -> StandIn:
    asked = question.asked
    if question.case in _WITHOUT_MODEL:
        if means.settings.retry_wait_s >= question.left_s:
            raise Passed("the request's time ends before another try")
        await asyncio.sleep(means.settings.retry_wait_s)
        return await _asked(means.service, asked, means, question)
    if asked.sampling.temperature == 0:
        raise Passed("at temperature 0 another try gives the same answer")
    seed = None if asked.sampling.seed is None else asked.sampling.seed + question.number
    return await _asked(means.service, replace(asked, sampling=replace(asked.sampling, seed=seed)), means, question)


async def _asked(service: Answering, asked: Asked, means: Means, question: Question) -> StandIn:
    """Another answer of a model, with nothing against it."""
    try:
        found = await held(service.answered(asked, question.caller, exchange_of(question.own_id), question.left_s))
    except GatewayError as error:
        raise Passed(f"{error.status} {error.code}") from None
    found, complaint = await means.judge.judged(
        service, found, asked, question.caller, question.own_id, question.left_s
    )
    if complaint is not None:
        raise Passed(f"again {complaint.case}: {complaint.reason}", found.total)
    return StandIn(found, teaches=True)


async def _retrieved(means: Means, question: Question) -> StandIn:
    if means.library is None:
        raise Passed("there are no documents")
    asked_for = question_of(question.messages)
    documents = await means.library.search(question.caller.tenant, asked_for)
    if not documents.documents:
        raise Passed("no document fits")
    if question.case in _WITHOUT_MODEL:
        text = await _passed(documents.quoted(means.settings.retrieve_text), means, question)
        return StandIn(_text(text, question), documents.ids)
    return await _answered_from(documents, asked_for, means, question)


async def _answered_from(documents: Found, asked_for: str, means: Means, question: Question) -> StandIn:
    """The model's answer from documents, which must cite one of them."""
    sampling = replace(question.asked.sampling, n=1, logprobs=None)
    messages = read_messages(asked_with(documents, asked_for))
    asked = replace(question.asked, messages=messages, tools=(), sampling=sampling, stream=False, consents=False)
    try:
        found = await held(
            means.service.answered(asked, question.caller, exchange_of(question.own_id), question.left_s)
        )
    except GatewayError as error:
        raise Passed(f"{error.status} {error.code}") from None
    if found.choices[0].finish not in ("stop", "length"):
        raise Passed(f"the answer from documents ended with {found.choices[0].finish}", found.total)
    if abstains(found.text, means.settings.unknown_phrases):
        raise Passed("the documents don't hold the answer, says the model", found.total)
    if not (cited := documents.cited(found.text)):
        raise Passed("the answer from documents cites none of them", found.total)
    if question.asked.sampling.n == 1:
        return StandIn(found, cited, teaches=True)
    answer = _text(found.text, question).answer
    return StandIn(_whole(replace(answer, before=found.total)), cited, teaches=True)


async def _handed_over(means: Means, question: Question) -> StandIn:
    if means.webhook is None:
        raise Passed("there is no webhook")
    try:
        said = await means.webhook.hand_over(
            means.session,
            response_id=question.response_id,
            tenant=question.caller.tenant,
            case=question.case,
            messages=question.messages,
        )
    except WebhookError as error:
        raise Passed(str(error)) from None
    if not said.text:
        return StandIn(_text(means.settings.hand_over_text, question))
    return StandIn(_text(await _passed(said.text, means, question), question), teaches=True)


async def _passed(text: str, means: Means, question: Question) -> str:
    """A text that the guards let through, as they do with a model's. Raises `Passed` for another one."""
    guard = means.guards.stream(question.caller, question.response_id, chat_shown(question.asked.messages))
    if guard is None:
        return text
    first = await guard.push(text)
    last = None if first is None else await guard.end()
    if first is None or last is None:
        raise Passed("a guard holds the text back")
    return first + last


def _text(text: str, question: Question) -> Held:
    """A text as the answer, in each choice that was asked for."""
    choices = [Choice(index, finish="stop", text=[text]) for index in range(question.asked.sampling.n)]
    tag = Tag(question.own_id, question.asked.model, _NO_ARM, None, int(time.time()), _NO_ARM, lambda _: _NO_ARM)
    return _whole(Answer(tag, _nothing(), choices, ()))


def _whole(answer: Answer) -> Held:
    deltas = [[Delta(choice.index, "".join(choice.text), (), choice.finish)] for choice in answer.choices]
    return Held(answer, deltas)


async def _nothing() -> Any:
    return
    yield
