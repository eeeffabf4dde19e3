"""Recorded conversations of users who consent: exact token ids, each message once, kept for a bounded time."""

from serving_bridge.recordings.asked import Made, Request, Sampled
from serving_bridge.recordings.left_behind import settle_journals
from serving_bridge.recordings.live import Live, path_of
from serving_bridge.recordings.recorder import Recorder, Recording
from serving_bridge.recordings.records import (
    Answer,
    Kept,
    RecordingError,
    SessionHead,
    Span,
    Turn,
    ids_of,
    int32,
    message_of,
    name_of,
    text_of,
    user_of,
    versions_of,
)
from serving_bridge.recordings.redaction import Redaction, cleaned
from serving_bridge.recordings.rows import Recorded, SessionRow
from serving_bridge.recordings.schema import RECORDINGS
from serving_bridge.recordings.store import Found, RecordingStore

__all__ = [
    "RECORDINGS",
    "Answer",
    "Found",
    "Kept",
    "Live",
    "Made",
    "Recorded",
    "Recorder",
    "Recording",
    "RecordingError",
    "RecordingStore",
    "Redaction",
    "Request",
    "Sampled",
    "SessionHead",
    "SessionRow",
    "Span",
    "Turn",
    "cleaned",
    "ids_of",
    "int32",
    "message_of",
    "name_of",
    "path_of",
    "settle_journals",
    "text_of",
    "user_of",
    "versions_of",
]
