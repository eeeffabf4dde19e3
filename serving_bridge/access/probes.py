"""Request ids of golden-prompt probes, which a paused engine runs: nobody can make one without the control token."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid

PREFIX = "weir-probe-"
#: environment variable that hands the control token to all processes of a server
CONTROL_TOKEN = "WEIR_CONTROL_TOKEN"

#: as /inference/v1/generate hands a request's id on (other routes put other words before it)
_PROBE_ID = re.compile(
    rf"generate-tokens-{PREFIX}(([0-9a-f]{{32}})-([0-9]{{1,9}})-[0-9]{{1,9}})-([0-9a-f]{{32}})(?:-|$)"
)


def probe_ids(count: int, control_token: str) -> list[str]:
    """Request ids of prompts whose log-probs are asked for together: a paused server begins when all have come."""
    batch = uuid.uuid4().hex
    names = [f"{batch}-{count}-{index}" for index in range(count)]
    return [f"{PREFIX}{name}-{_seal(name, control_token)}" for name in names]


def batch_of(engine_request_id: str, control_token: str) -> tuple[str, int] | None:
    """(name, number of requests) of the batch that an engine's request belongs to; None if it is no probe."""
    match = _PROBE_ID.match(engine_request_id)
    if match is None or not hmac.compare_digest(match[4], _seal(match[1], control_token)):
        return None
    return match[2], int(match[3])


def _seal(name: str, control_token: str) -> str:
    return hmac.new(control_token.encode(), f"probe\0{name}".encode(), hashlib.sha256).hexdigest()[:32]
