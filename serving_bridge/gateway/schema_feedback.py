"""Schemas of the feedback routes: what they take, made from the types that read it, and what they answer."""

from __future__ import annotations

from typing import Any

import msgspec

from serving_bridge.feedback import KINDS, OUTCOMES, FeedbackPiece
from serving_bridge.gateway.feedback_routes import MAX_PIECES, EndSession, SetReward, StartSession
from serving_bridge.gateway.schema_answers import object_of, ref

_TEXT = {"type": "string"}
_OUTCOME = {"enum": list(OUTCOMES)}
#: (path, operation, body, answer)
FEEDBACK_ROUTES = (
    ("/v1/feedback", "feedback", "FeedbackRequest", "FeedbackOutcome"),
    ("/rl/start_session", "start_session", "StartSession", "SessionStarted"),
    ("/rl/set_reward", "set_reward", "SetReward", "FeedbackOutcome"),
    ("/rl/end_session", "end_session", "EndSession", "SessionEnded"),
)


def feedback_schemas() -> dict[str, Any]:
    """Components by name."""
    types = [FeedbackPiece, StartSession, SetReward, EndSession]
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    found["FeedbackPiece"]["properties"]["kind"] = {"enum": [kind for kind in KINDS if kind != "next_turn"]}
    pieces = {"type": "array", "items": ref("FeedbackPiece"), "minItems": 1, "maxItems": MAX_PIECES}
    one, many = object_of({"outcome": _OUTCOME, "id": _TEXT}), {"type": "array", "items": _OUTCOME}
    headers = object_of({"X-Weir-Session": _TEXT, "X-Weir-Consent": _TEXT})
    return {
        **found,
        "FeedbackRequest": {"anyOf": [ref("FeedbackPiece"), object_of({"feedback": pieces})]},
        "FeedbackOutcome": {"anyOf": [one, object_of({"outcomes": many})]},
        "SessionStarted": object_of({"session_id": _TEXT, "headers": headers}),
        "SessionEnded": object_of({"session_id": _TEXT, "ended": {"const": True}}),
    }
