"""Recorded sessions at the gateway: which requests consent, and what of an answer is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from learner_jax.contracts import MIN_LOGPROB
from serving_bridge import recordings
from serving_bridge.gateway.answers import CUT, Choice, Delta
from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.conversations import conversation_of
from serving_bridge.gateway.errors import invalid
from serving_bridge.gateway.openai_form import Tag
from serving_bridge.gateway.requests import Asked
from serving_bridge.sessions import ChatMessage

_CONSENT, _SESSION = "x-weir-consent", "x-weir-session"
_MAX_NAME = 200


def with_headers(asked: Asked, headers: Mapping[str, str]) -> Asked:
    """A request with what its head says of consent and session. Raises `GatewayError`."""
    consent, session = headers.get(_CONSENT), headers.get(_SESSION, "")
    if consent is None and not session:
        return asked
    if consent is not None and consent not in ("yes", "no"):
        raise invalid(f"the header {_CONSENT} is {consent[:50]!r}, expected yes or no")
    if session and not (len(session) <= _MAX_NAME and session.isascii() and session.isprintable()):
        raise invalid(f"the header {_SESSION} is no name: expected at most {_MAX_NAME} printable characters of ASCII")
    consents = asked.consents if consent is None else consent == "yes"
    return replace(asked, consents=consents, session=session)


class Recorders:
    """Decides what is kept of whom.

    Args:
      recorder: None keeps nothing.
    """

    def __init__(self, recorder: recordings.Recorder | None) -> None:
        self._recorder = recorder

    async def begin(self, asked: Asked, caller: Caller) -> recordings.Recording | None:
        """The request's place in its session; None where it is not kept.

        Tenant and request must both consent, and the tenant must have a time for which its conversations may be kept.
        """
        recorder = self._recorder
        if recorder is None or not (asked.consents and caller.consents and caller.retention_days > 0):
            return None
        if len(asked.prompts) > 1:
            return None
        return await recorder.begin(
            recordings.Request(
                tenant=caller.tenant,
                user=asked.user,
                conversation=conversation_of(asked, caller.tenant),
                session=asked.session,
                messages=asked.messages,
                tools=asked.tools,
                retention_days=caller.retention_days,
                free_temperature=asked.free_temperature,
            )
        )


async def kept(
    deltas: AsyncGenerator[list[Delta], None],
    recording: recordings.Recording,
    asked: Asked,
    tag: Tag,
    prompt: Sequence[int],
    choices: Sequence[Choice],
    room: int,
    *,
    arm_propensity: float,
) -> AsyncGenerator[list[Delta], None]:
    """The deltas; after the last one, and before the answer's end is told, the answer is kept.

    What a guard cut is left out.

    Args:
      room: tokens that the answer might have had.
      arm_propensity: probability with which its conversation was dealt to its arm.
    """
    async with aclosing(deltas):
        async for found in deltas:
            yield found
    sampled = [_sampled(choice) for choice in choices if choice.finish not in (None, CUT) and choice.tokens]
    if not sampled:
        return
    made = recordings.Made(
        response_id=tag.response_id,
        arm=tag.as_sampled(choices).arm,
        model=asked.model,
        temperature=asked.sampling.temperature,
        max_tokens=room,
        bent=_bent(asked),
        arm_propensity=arm_propensity,
    )
    await recording.ended(made, prompt, sampled)


def _sampled(choice: Choice) -> recordings.Sampled:
    known = len(choice.token_logprobs) == len(choice.tokens) and min(choice.token_logprobs, default=0.0) >= MIN_LOGPROB
    spans: list[recordings.Span] = []
    for span in choice.spans:
        if span.version is None or span.start >= len(choice.tokens):
            continue
        spans.append(recordings.Span(span.version, span.start, min(span.end, len(choice.tokens))))
    covered = sum(span.end - span.start for span in spans) == len(choice.tokens)
    return recordings.Sampled(
        index=choice.index,
        message=ChatMessage("assistant", "".join(choice.text), tuple(choice.calls)),
        tokens=choice.tokens,
        # Above 0 by no more than rounding: the sampler's own.
        logprobs=np.minimum(np.asarray(choice.token_logprobs, "<f4"), 0).astype("<f4").tobytes() if known else None,
        spans=tuple(spans) if covered else (),
        finish_reason=choice.finish or "",
        goes_on=not choice.is_stopped,
    )


def _bent(asked: Asked) -> tuple[str, ...]:
    """Options by which tokens were drawn from another distribution than a temperature alone gives."""
    sampling = asked.sampling
    found = {
        "greedy": sampling.temperature == 0,
        "top_p": sampling.top_p < 1,
        "penalty": bool(sampling.presence_penalty or sampling.frequency_penalty),
        "logit_bias": bool(sampling.logit_bias),
        "format": sampling.schema is not None or bool(asked.call),
        "stop": bool(sampling.stop),
    }
    return tuple(name for name, holds in found.items() if holds)
