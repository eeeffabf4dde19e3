"""A session as a gateway holds it: the tree that its requests go on from, with the names of what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from learner_jax.contracts import NOT_SAMPLED
from serving_bridge.recordings.records import Answer, SessionHead, Turn, ids_of, message_of, versions_of
from serving_bridge.recordings.rows import Recorded
from serving_bridge.sessions import Answered, Place, Text, Tree
from serving_bridge.vllm import Completion


@dataclass
class Live:
    """One session.

    Attributes:
      answer_ids: by the answer's number in the tree.
      known: digests of texts that were recorded.
      last_s: when it was last gone on with, wall clock; 0 if that is when it was made.
    """

    head: SessionHead
    tree: Tree
    answer_ids: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    last_s: float = 0.0

    @classmethod
    def of(cls, recorded: Recorded, head: SessionHead, text: Text) -> Live:
        """A session as it was recorded; what was redacted can't be gone on from."""
        live = cls(head, Tree(text), known=set(recorded.texts), last_s=recorded.row.last_s)
        turns = {turn.turn_id: turn for turn in recorded.turns}
        numbers: dict[str, int] = {}
        for answer in recorded.answers:
            turn = turns[answer.turn_id]
            parent = numbers.get(turn.parent) if turn.parent else None
            if turn.tokens is None or answer.tokens is None or (turn.parent and parent is None):
                continue
            said = tuple(message_of(recorded.texts[digest]) for digest in turn.texts) if turn.is_chat else None
            place = Place(parent, said, turn.tools_key, tuple(ids_of(turn.tokens)))
            numbers[answer.answer_id] = len(live.tree.answers)
            live.take(place, completion_of(answer), answer, recorded.texts[answer.text])
        return live

    def take(self, place: Place, completion: Completion, answer: Answer, text: str) -> Answered:
        """Takes up a recorded answer whose message is kept as `text`."""
        self.answer_ids.append(answer.answer_id)
        self.last_s = max(self.last_s, answer.created_s)
        return self.tree.add(place, completion, message_of(text), goes_on=answer.goes_on)

    def parent_id(self, place: Place) -> str:
        """Id of the answer that a place goes on from; "" at a beginning."""
        return "" if place.parent is None else self.answer_ids[place.parent]


def completion_of(answer: Answer) -> Completion:
    """The sampled tokens of an exact answer; log-probs 0 and version `NOT_SAMPLED` where they are not known."""
    tokens = np.frombuffer(answer.tokens or b"", "<i4").astype(np.int32)
    known = answer.logprobs is not None
    logprobs = np.frombuffer(answer.logprobs, "<f4").astype(np.float32) if known else np.zeros(len(tokens), np.float32)  # type: ignore[arg-type]
    versions = versions_of(answer) if answer.spans else np.full(len(tokens), NOT_SAMPLED, np.int32)
    return Completion(tokens, logprobs, versions, "length" if answer.finish_reason == "length" else "stop")


def path_of(recorded: Recorded, answer_id: str) -> Sequence[tuple[Turn, Answer]]:
    """Turns and answers from a beginning to an answer; empty if it is not there."""
    turns = {turn.turn_id: turn for turn in recorded.turns}
    answers = {answer.answer_id: answer for answer in recorded.answers}
    found: list[tuple[Turn, Answer]] = []
    while answer_id:
        answer = answers.get(answer_id)
        turn = turns.get(answer.turn_id) if answer is not None else None
        if answer is None or turn is None:
            return ()
        found.append((turn, answer))
        answer_id = turn.parent
    return found[::-1]
