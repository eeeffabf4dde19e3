"""What users did with recorded answers: once for each request, by arm and version, and without texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import msgspec

from serving_bridge.database import Database, Row, Session, marks, pieces
from serving_bridge.recordings import Span

_LIMIT = 5000
#: Mean of thumbs and ratings, 0 to 1, below which they are bad.
_BAD = 0.5


@dataclass(frozen=True)
class Reaction:
    """What became of one answered request.

    Attributes:
      sequence: of its last recorded answer.
      conversation: names its session's conversation and does not show it.
      arm, version: that answered.
      thumbs_down: whether its verdicts are bad on the whole: voices as `score_of` has them, of thumbs and ratings, are
        below 0.5 on average. False where nobody said anything.
      regenerated: whether its user asked for another answer.
    """

    sequence: int
    tenant: str
    conversation: str
    arm: str
    version: int
    thumbs_down: bool
    regenerated: bool


class _Fields(msgspec.Struct):
    """What is read of a recorded answer; the rest is left."""

    arm: str
    spans: tuple[Span, ...]


def reactions(database: Database, after: int, *, until_s: float, limit: int = _LIMIT) -> tuple[list[Reaction], int]:
    """Reactions to the answers after one, in the order in which these were recorded.

    Requests whose answer is of several versions, or of none that is known, are left out; so are raters that are set
    aside. Feedback that did not join counts nothing.

    Args:
      after: sequence of the last answer that was read before; 0 for all.
      until_s: answers from then on are left for later, with all that follow them: users still react to them.
      limit: recorded answers at most.

    Returns:
      reactions, and the sequence to go on from.
    """

    def work(session: Session) -> tuple[list[Reaction], int]:
        rows = session.execute(
            "SELECT a.sequence, a.answer_id, a.created_s, a.fields, s.tenant, s.conversation FROM recorded_answers a "
            "JOIN recorded_sessions s ON s.session_id = a.session_id WHERE a.sequence > ? ORDER BY a.sequence LIMIT ?",
            (after, limit),
        )
        ready = _whole_requests(_old(rows, until_s), is_cut=len(rows) == limit)
        said = _said(session, [row[1] for row in ready])
        return _merged(ready, said), ready[-1][0] if ready else after

    return database.read(work)


def _old(rows: Sequence[Row], until_s: float) -> list[Row]:
    young = next((place for place, row in enumerate(rows) if row[2] >= until_s), len(rows))
    return list(rows[:young])


def _whole_requests(rows: list[Row], *, is_cut: bool) -> list[Row]:
    """Rows without the last request's, where more of its choices may follow."""
    if not is_cut or not rows:
        return rows
    last = _request(rows[-1][1])
    whole = [row for row in rows if _request(row[1]) != last]
    return whole or rows


def _request(answer_id: str) -> str:
    """The response's id of `{response id}/{choice}`."""
    return answer_id.rpartition("/")[0]


def _said(session: Session, answer_ids: Sequence[str]) -> dict[str, tuple[bool, bool]]:
    """answer -> (its verdicts are bad, it was regenerated), of those that somebody reacted to."""
    verdicts: dict[str, dict[str, dict[tuple[str, int], float]]] = {}
    regenerated: set[str] = set()
    for piece in pieces(answer_ids):
        rows = session.execute(
            "SELECT sequence, answer_id, kind, rater, value FROM feedback WHERE outcome = 'joined' "
            f"AND kind IN ('thumbs', 'rating', 'regenerate') AND answer_id IN ({marks(piece)}) "
            "AND NOT EXISTS (SELECT 1 FROM quarantined_raters q WHERE q.tenant = feedback.tenant "
            "AND q.rater = feedback.rater) ORDER BY sequence",
            piece,
        )
        for sequence, answer_id, kind, rater, value in rows:
            if kind == "regenerate":
                regenerated.add(answer_id)
            elif value is not None:
                voice = verdicts.setdefault(answer_id, {}).setdefault(rater, {})
                voice[kind, 0 if rater else sequence] = value
    bad = {name for name, voices in verdicts.items() if fmean(map(_mean, voices.values())) < _BAD}
    return {name: (name in bad, name in regenerated) for name in bad | regenerated}


def _mean(voice: dict[tuple[str, int], float]) -> float:
    return fmean(voice.values())


def _merged(rows: Sequence[Row], said: dict[str, tuple[bool, bool]]) -> list[Reaction]:
    found: dict[str, Reaction] = {}
    for sequence, answer_id, _, fields, tenant, conversation in rows:
        answer = msgspec.json.decode(fields, type=_Fields)
        versions = {span.version for span in answer.spans}
        if len(versions) != 1:
            continue
        down, again = said.get(answer_id, (False, False))
        one = Reaction(sequence, tenant, conversation, answer.arm, versions.pop(), down, again)
        before = found.get(_request(answer_id))
        if before is not None:
            one = replace(one, thumbs_down=down or before.thumbs_down, regenerated=again or before.regenerated)
        found[_request(answer_id)] = one
    return list(found.values())
