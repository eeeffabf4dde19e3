"""What each fallback leaves: a line in a chain of hashes, a share marked for people, and examples to learn from.

Texts are kept only where tenant and request both consent, after redaction, and for the tenant's days. They are not in
the chain, so that they can be removed (`texts`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from learner_jax.runtime import FOLDER_MODE
from serving_bridge.fallback.texts import append
from serving_bridge.safety import AuditError, AuditLog
from serving_bridge.settings import Case, Policy

#: gives a text without personal data, or None where it must not be kept; called in a thread
Redact = Callable[[str], str | None]
#: cases that say something about the question; what a dead replica did is nothing to learn from
_LEARNED_FROM = frozenset({"low_confidence", "unknown"})
_RANGE = 2**64
_DAY_S = 86_400.0
_MAX_WAITING = 1_000


@dataclass(frozen=True)
class Fell:
    """One fallback.

    Attributes:
      response_id: of the model's own answer; `told_id` is that of the answer that was told.
      reason: why, in words without any of the texts.
      tried: (policy, what came of it), in order.
      policy: whose answer was told; None where the error, or the model's own answer, was.
      confidence: of the model's own answer; None where it has none.
      user: hash of the tenant's user; "" where it named none.
      session_id: of the recorded session; "" where there is none.
      consents: whether its texts may be kept.
      retention_days: for which they may be kept.
      answer: what was told.
      dropped: the model's own answer; "" where there was none.
      teaches: whether `answer` is one to learn from, and no text of the settings.
    """

    response_id: str
    told_id: str
    tenant: str
    case: Case
    reason: str
    tried: Sequence[tuple[str, str]]
    policy: Policy | None
    confidence: float | None
    version: int | None
    seconds: float
    user: str
    session_id: str
    consents: bool
    retention_days: int
    messages: Sequence[Mapping[str, Any]]
    answer: str
    dropped: str
    citations: Sequence[str] = ()
    teaches: bool = False


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A labelled example; producer: the gateway, consumer: [supervised] or a person who labels.

    Attributes:
      messages: of the conversation, redacted.
      answer: that was told: better than `rejected` by the judgement of the policy alone.
      rejected: the model's own answer.
      label: the case.
      user, session_id: whose it is, for withdrawals; None in lines of earlier builds.
      asked_s, kept_until_s: when the request came, and when the line goes, wall clock.
    """

    schema: int = 2
    response_id: str
    tenant: str
    time_s: float
    messages: list[dict[str, str]]
    answer: str
    rejected: str
    label: str
    policy: str
    confidence: float | None
    version: int | None
    citations: list[str]
    user: str | None = None
    session_id: str | None = None
    asked_s: float = 0.0
    kept_until_s: float | None = None


class Records:
    """Writes to a folder: `NAME.jsonl` and `NAME.head` (see `safety.AuditLog`), `samples/` and `examples/`.

    Args:
      name: of the process; no other one writes the same files.
      sample_share: of fallbacks that are marked.

    Raises:
      AuditError: the log can't be gone on with.
    """

    def __init__(
        self, folder: Path, name: str, *, sample_share: float, redact: Redact, clock: Callable[[], float] = time.time
    ) -> None:
        self._log = AuditLog(folder, name)
        self._samples, self._examples = (folder / kind / f"{name}.jsonl" for kind in ("samples", "examples"))
        self._share, self._redact, self._clock = sample_share, redact, clock
        for path in (self._samples, self._examples):
            path.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weir-fallbacks")
        self._room = threading.BoundedSemaphore(_MAX_WAITING)

    def close(self) -> None:
        """Writes what waits."""
        self._thread.shutdown()
        self._log.close()

    def add(self, fell: Fell) -> None:
        """Records a fallback, beside the answer. What can't be written is left out: users are not refused for it."""
        is_sampled = is_chosen(fell.response_id, self._share)
        teaches = fell.teaches and fell.case in _LEARNED_FROM
        with suppress(AuditError):
            self._log.add(self._line(fell, is_sampled))
        wanted = [path for path, wants in ((self._samples, is_sampled), (self._examples, teaches)) if wants]
        keeps = fell.consents and fell.retention_days > 0
        if keeps and wanted and self._room.acquire(blocking=False):
            self._thread.submit(self._keep, fell, wanted, self._clock())

    def _line(self, fell: Fell, is_sampled: bool) -> dict[str, Any]:
        return {
            "time": round(self._clock(), 3),
            "response_id": fell.response_id,
            "told_id": fell.told_id,
            "tenant": fell.tenant,
            "case": fell.case,
            "reason": fell.reason,
            "tried": [list(pair) for pair in fell.tried],
            "policy": fell.policy,
            "confidence": fell.confidence,
            "version": fell.version,
            "seconds": round(fell.seconds, 4),
            "citations": list(fell.citations),
            "answer_sha256": hashlib.sha256(fell.answer.encode("utf-8", "surrogatepass")).hexdigest(),
            "sampled": is_sampled,
        }

    def _keep(self, fell: Fell, paths: Sequence[Path], told_s: float) -> None:
        try:
            if (example := self._example(fell, told_s)) is not None:
                line = msgspec.json.encode(example) + b"\n"
                for path in paths:
                    with suppress(OSError):
                        append(path, line)
        finally:
            self._room.release()

    def _example(self, fell: Fell, told_s: float) -> Example | None:
        """The texts without personal data; None where a guard holds one of them back."""
        contents = [str(message.get("content") or "") for message in fell.messages]
        kept = [self._redact(text) for text in (*contents, fell.answer, fell.dropped)]
        found = [text for text in kept if text is not None]
        if len(found) < len(kept):
            return None
        *contents, answer, dropped = found
        messages = [
            {"role": str(message.get("role")), "content": content}
            for message, content in zip(fell.messages, contents, strict=True)
        ]
        return Example(
            response_id=fell.told_id,
            tenant=fell.tenant,
            time_s=round(told_s, 3),
            messages=messages,
            answer=answer,
            rejected=dropped,
            label=fell.case,
            policy=fell.policy or "",
            confidence=fell.confidence,
            version=fell.version,
            citations=list(fell.citations),
            user=fell.user,
            session_id=fell.session_id,
            asked_s=told_s - fell.seconds,
            kept_until_s=told_s + fell.retention_days * _DAY_S,
        )


def is_chosen(response_id: str, share: float) -> bool:
    """Whether a response is in the sample: the same wherever it is asked."""
    point = int.from_bytes(hashlib.blake2b(response_id.encode(), digest_size=8, person=b"fallback").digest())
    return point / _RANGE < share
