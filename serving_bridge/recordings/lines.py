"""From an answer to the line that is kept of it: texts by digest, without personal data, and ids where none was."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from serving_bridge.recordings.asked import Made, Request, Sampled
from serving_bridge.recordings.live import Live
from serving_bridge.recordings.records import Answer, Kept, Turn, digest_of, int32, name_of, text_of
from serving_bridge.recordings.redaction import Redaction
from serving_bridge.sessions import ChatMessage, Place, Text


class Lines:
    """Makes the lines of one process; `clock` is wall clock."""

    def __init__(self, text: Text, redaction: Redaction, clock: Callable[[], float]) -> None:
        self._text, self._redaction, self._clock = text, redaction, clock

    async def line(
        self, live: Live, place: Place, request: Request, made: Made, choices: Sequence[Sampled], propensity: float
    ) -> Kept:
        """What an answer with these choices adds to a session.

        Args:
          propensity: probability of the temperature that it was sampled at.
        """
        texts: dict[str, str] = {}
        turn = await self._turn(live, place, request, texts)
        answers = [await self._answer(turn, made, choice, propensity, texts) for choice in choices]
        new = tuple((digest, text) for digest, text in texts.items() if digest not in live.known)
        return Kept(live.head, turn, tuple(answers), new)

    async def _turn(self, live: Live, place: Place, request: Request, texts: dict[str, str]) -> Turn:
        messages = place.said
        if messages is None:
            messages = (ChatMessage("user", self._text.decode(place.given)),)
        cleaned = [await self._redaction.message(message) for message in messages]
        digests = tuple(_noted(text_of(message), texts) for message, _ in cleaned)
        redacted = any(differs for _, differs in cleaned)
        tools = ""
        if request.tools:
            told, differs = await self._redaction.text(msgspec.json.encode(request.tools).decode())
            tools, redacted = _noted(told, texts), redacted or differs
        parent = live.parent_id(place)
        return Turn(
            turn_id=name_of(live.head.session_id, parent, *digests, tools),
            parent=parent,
            texts=digests,
            tools=tools,
            tools_key=place.tools,
            tokens=None if redacted else int32(place.given),
            is_chat=place.said is not None,
            rebuilt=place.rebuilt,
        )

    async def _answer(
        self, turn: Turn, made: Made, choice: Sampled, propensity: float, texts: dict[str, str]
    ) -> Answer:
        message, redacted = await self._redaction.message(choice.message)
        return Answer(
            answer_id=f"{made.response_id}/{choice.index}",
            turn_id=turn.turn_id,
            text=_noted(text_of(message), texts),
            tokens=None if redacted else int32(choice.tokens),
            logprobs=None if redacted else choice.logprobs,
            spans=choice.spans,
            finish_reason=choice.finish_reason,
            goes_on=choice.goes_on,
            arm=made.arm,
            model=made.model,
            temperature=made.temperature,
            max_tokens=made.max_tokens,
            bent=made.bent,
            propensity=propensity * made.arm_propensity,
            created_s=self._clock(),
        )


def _noted(text: str, texts: dict[str, str]) -> str:
    digest = digest_of(text)
    texts[digest] = text
    return digest
