"""Versioned datasets of feedback, cut by time: what was known before the cut trains, what was answered after it tests.

An example is in `train.jsonl` if its answer and all feedback that it counts came before the cut, and in `heldout.jsonl`
if its answer came after it. What lies across the cut is in neither. Files have no personal data that has a form, hold
nothing that a guard of training data blocks, and lose the lines of a session that is withdrawn or whose time is over.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from learner_jax.runtime import PLAIN_NAME, WeirError, make_folder, write_durably
from serving_bridge.database import Database, Session
from serving_bridge.feedback.cleaning import PARTS, clean_datasets, described, manifest_of
from serving_bridge.feedback.copies import MANIFEST
from serving_bridge.feedback.scores import Score, score_of
from serving_bridge.feedback.store import FeedbackStore, Stored
from serving_bridge.feedback.trajectories import group_of
from serving_bridge.recordings import Recorded, RecordingStore, message_of, path_of
from serving_bridge.safety import Messages, TrainingGuard, Verdict
from serving_bridge.sessions import ChatMessage

DatasetKind = Literal["supervised", "preferences", "trajectories"]
DATASET_KINDS: tuple[DatasetKind, ...] = get_args(DatasetKind)
#: Ratings of two answers to one turn differ at least so much where they make a pair.
_CLEAR = 0.5
#: Fields of a line that are texts to learn from.
_TEXTS = ("answer", "rejected")
_PLAIN_ROLES = ("system", "user", "assistant")


class DatasetError(WeirError, ValueError):
    """A dataset that can't be made."""


@dataclass(frozen=True)
class Example:
    """One line; `known_s` is when the last feedback came that it counts, `made_s` when the last answer did.

    Attributes:
      conversations: what guards judge: each answer in it, behind what it answers.
    """

    session_id: str
    made_s: float
    known_s: float
    fields: Mapping[str, Any]
    conversations: Sequence[Messages]


class Datasets:
    """Makes datasets of one database's sessions and feedback, and keeps them clean.

    Args:
      database: whose `RECORDINGS` and `FEEDBACK` tables are there.
      guard: judges conversations as training data; what it blocks, or can't judge, is left out.
      harmless: gives a text of a stranger without marks that structure a dialog (`serving_bridge.text`).
      clock: wall clock, seconds.
    """

    def __init__(
        self,
        database: Database,
        sessions: RecordingStore,
        feedback: FeedbackStore,
        guard: TrainingGuard,
        *,
        tokenizer: str = "",
        harmless: Callable[[str], str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._sessions, self._feedback, self._guard = database, sessions, feedback, guard
        self._tokenizer, self._clock = tokenizer, clock
        self._harmless = harmless or _without_marks

    def make(self, name: str, kind: DatasetKind, folder: Path, *, until_s: float) -> dict[str, Any]:
        """Writes a dataset into `folder`/`name`; returns its manifest.

        Args:
          until_s: the cut, seconds since the epoch.

        Raises:
          DatasetError: the name is none, or is used.
          OSError: a file can't be written.
        """
        if not PLAIN_NAME.fullmatch(name):
            raise DatasetError(f"the name {name[:80]!a}: expected letters, digits and ._-, a letter first")
        self._feedback.settle()
        place = folder.absolute() / name
        if place.exists():
            raise DatasetError(f"{place} exists: a dataset is never changed; choose another name")
        left_out: Counter[str] = Counter()
        parts: dict[str, list[Example]] = {part: [] for part in PARTS}
        for example in self._examples(kind, left_out):
            part = _part(example, until_s)
            if part is None:
                left_out["across the cut"] += 1
            else:
                parts[part].append(example)
        used = sorted({example.session_id for examples in parts.values() for example in examples})
        self._register(name, kind, place, used)
        make_folder(place)
        files = {part: _lines(examples) for part, examples in parts.items()}
        for part, content in files.items():
            write_durably(place / f"{part}.jsonl", content)
        manifest = {
            "name": name,
            "kind": kind,
            "until_s": until_s,
            "made_s": self._clock(),
            "tokenizer": self._tokenizer,
            "files": {part: described(content) for part, content in files.items()},
            "left_out": dict(sorted(left_out.items())),
            "removed": 0,
        }
        write_durably(place / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        clean_datasets(self._db)  # of what was withdrawn while it was written
        return manifest_of(place)

    def uses(self, session_ids: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
        """By session: datasets that it was in, and policy versions that were trained on it first."""

        def work(session: Session) -> dict[str, dict[str, list[Any]]]:
            found: dict[str, dict[str, list[Any]]] = {}
            for session_id in session_ids:
                names = session.execute(
                    "SELECT name FROM dataset_sessions WHERE session_id = ? ORDER BY name", (session_id,)
                )
                versions = session.execute(
                    "SELECT DISTINCT trained_version FROM online_groups WHERE session_id = ? "
                    "AND trained_version IS NOT NULL ORDER BY trained_version",
                    (session_id,),
                )
                found[session_id] = {"datasets": [n for (n,) in names], "versions": [v for (v,) in versions]}
            return found

        return self._db.read(work)

    def _register(self, name: str, kind: str, place: Path, session_ids: Sequence[str]) -> None:
        now = self._clock()

        def work(session: Session) -> bool:
            added = session.execute(
                "INSERT INTO feedback_datasets VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING name",
                (name, kind, str(place), now),
            )
            if added:
                session.executemany(
                    "INSERT INTO dataset_sessions (name, session_id, removed) VALUES (?, ?, 0)",
                    [(name, session_id) for session_id in session_ids],
                )
            return bool(added)

        if not self._db.write(work):
            raise DatasetError(f"a dataset {name} was made before: a dataset is never changed; choose another name")

    def _examples(self, kind: DatasetKind, left_out: Counter[str]) -> Iterator[Example]:
        said = self._feedback.of_answers()
        make = {"supervised": _edits, "preferences": _pairs, "trajectories": self._trajectories}[kind]
        for recorded in self._sessions.whole(sessions_of(said)):
            own = {a.answer_id: said[a.answer_id] for a in recorded.answers if a.answer_id in said}
            if not own:
                continue
            for example in make(recorded, own, left_out):
                verdicts = self._guard.judged(example.conversations)
                if (reason := why_left_out(verdicts)) is None:
                    yield replace(example, fields=self._plain(example.fields))
                else:
                    left_out[reason] += 1

    def _trajectories(
        self, recorded: Recorded, said: Mapping[str, list[Stored]], left_out: Counter[str]
    ) -> Iterator[Example]:
        scores = scores_of(said)
        for turn in recorded.turns:
            scored = [a for a in recorded.answers if a.turn_id == turn.turn_id and a.answer_id in scores]
            if not scored:
                continue
            group = group_of(recorded, turn.turn_id, scores, group_id="dataset/0", tokenizer=self._tokenizer)
            left_out["no exact samples"] += len(scored) - len(group)
            known_s = max(scores[answer.answer_id].newest_s for answer in scored)
            made_s = max(answer.created_s for answer in scored)
            conversations = [conversation_of(recorded, answer.answer_id) for answer in scored]
            for trajectory in group:
                fields = {
                    "turn_id": turn.turn_id,
                    "question": trajectory.prompt["question"],
                    "reward_parts": dict(trajectory.reward_parts),
                    "finish_reason": trajectory.finish_reason,
                    "sampling": dict(trajectory.sampling),
                    "consent": trajectory.consent,
                    "source": trajectory.source,
                }
                for array in ("tokens", "loss_mask", "behavior_logprobs", "policy_version", "turn", "rewards"):
                    fields[array] = getattr(trajectory, array).tolist()
                yield Example(recorded.row.session_id, made_s, known_s, fields, conversations)

    def _plain(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields whose texts give no special token to whoever trains on them: a user may have written such."""
        found = dict(fields)
        for name in _TEXTS:
            if name in found:
                found[name] = self._harmless(found[name])
        if "messages" in found:
            found["messages"] = [{**told, "content": self._harmless(told["content"])} for told in found["messages"]]
        return found


def _without_marks(text: str) -> str:
    """A text without the usual form of special tokens, where no tokenizer is known."""
    return text.replace("<|", "< |")


def sessions_of(said: Mapping[str, Sequence[Stored]]) -> list[str]:
    """Ids of the sessions that feedback is about, each once, in the order in which it came."""
    return list(dict.fromkeys(one.session_id for pieces in said.values() for one in pieces))


def scores_of(said: Mapping[str, Sequence[Stored]]) -> dict[str, Score]:
    """Scores of the answers that have one."""
    found = {answer_id: score_of(pieces) for answer_id, pieces in said.items()}
    return {answer_id: score for answer_id, score in found.items() if score is not None}


def _edits(recorded: Recorded, said: Mapping[str, list[Stored]], left_out: Counter[str]) -> Iterator[Example]:
    """Answers as people wrote them, to imitate: the latest edit of each answer."""
    for answer_id, pieces in said.items():
        edits = [one for one in pieces if one.kind == "edit" and one.text]
        if edits and (context := _context(recorded, answer_id, left_out)) is not None:
            fields = {**context, "answer": edits[-1].text, "why": "edit"}
            said_instead = [[*context["messages"], {"role": "assistant", "content": edits[-1].text}]]
            made_s, known_s = _made(recorded, answer_id), edits[-1].received_s
            yield Example(recorded.row.session_id, made_s, known_s, fields, said_instead)


def _pairs(recorded: Recorded, said: Mapping[str, list[Stored]], left_out: Counter[str]) -> Iterator[Example]:
    """Pairs of a better and a worse answer: compared, edited, or rated apart."""
    texts = {a.answer_id: message_of(recorded.texts[a.text]).content for a in recorded.answers}
    for answer_id, pieces in said.items():
        for one in pieces:
            chosen, rejected = "", ""
            if one.kind == "edit" and one.text:
                chosen, rejected = one.text, texts[answer_id]
            elif one.kind == "comparison" and one.other in texts and one.value != 0.5:
                better = one.value == 1.0
                chosen, rejected = (texts[answer_id], texts[one.other])[:: 1 if better else -1]
            if chosen and rejected and chosen != rejected:
                yield from _pair(recorded, answer_id, chosen, rejected, one.received_s, one.kind, left_out)
    scores = scores_of(said)
    by_turn: dict[str, list[str]] = {}
    for answer in recorded.answers:
        if answer.answer_id in scores:
            by_turn.setdefault(answer.turn_id, []).append(answer.answer_id)
    for answers in by_turn.values():
        best, worst = max(answers, key=lambda a: scores[a].value), min(answers, key=lambda a: scores[a].value)
        if scores[best].value - scores[worst].value >= _CLEAR and texts[best] != texts[worst]:
            known_s = max(scores[best].newest_s, scores[worst].newest_s)
            yield from _pair(recorded, best, texts[best], texts[worst], known_s, "rating", left_out)


def _pair(
    recorded: Recorded, answer_id: str, chosen: str, rejected: str, known_s: float, why: str, left_out: Counter[str]
) -> Iterator[Example]:
    if (context := _context(recorded, answer_id, left_out)) is not None:
        fields = {**context, "answer": chosen, "rejected": rejected, "why": why}
        both = [[*context["messages"], {"role": "assistant", "content": text}] for text in (chosen, rejected)]
        yield Example(recorded.row.session_id, _made(recorded, answer_id), known_s, fields, both)


def why_left_out(verdicts: Sequence[Verdict]) -> str | None:
    """Why what has these verdicts may not be trained on; None where it may."""
    if Verdict.BLOCK in verdicts:
        return "blocked by a guard"
    return "not judged: a guard failed" if Verdict.ERROR in verdicts else None


def conversation_of(recorded: Recorded, answer_id: str) -> Messages:
    """The messages of a session up to an answer, with it, as guards see them."""
    return [
        {"role": message.role, "content": message.content, "tool_calls": [call.as_openai() for call in message.calls]}
        for message in _messages(recorded, answer_id)
    ]


def _messages(recorded: Recorded, answer_id: str) -> list[ChatMessage]:
    """The messages of a session up to an answer, with it."""
    messages: list[ChatMessage] = []
    for turn, answer in path_of(recorded, answer_id):
        messages += [message_of(recorded.texts[digest]) for digest in (*turn.texts, answer.text)]
    return messages


def _context(recorded: Recorded, answer_id: str, left_out: Counter[str]) -> dict[str, Any] | None:
    """What stood before an answer, as messages; None where tools had a part in it."""
    messages = _messages(recorded, answer_id)[:-1]
    if not messages or any(message.role not in _PLAIN_ROLES or message.calls for message in messages):
        left_out["with tools"] += 1
        return None
    told = [{"role": message.role, "content": message.content} for message in messages]
    return {"messages": told}


def _made(recorded: Recorded, answer_id: str) -> float:
    return next(answer.created_s for answer in recorded.answers if answer.answer_id == answer_id)


def _part(example: Example, until_s: float) -> str | None:
    if example.made_s >= until_s:
        return "heldout"
    return "train" if example.known_s < until_s else None


def _lines(examples: Sequence[Example]) -> bytes:
    ordered = sorted(examples, key=lambda example: (example.made_s, example.session_id))
    return b"".join(msgspec.json.encode({"session_id": e.session_id, **e.fields}) + b"\n" for e in ordered)
