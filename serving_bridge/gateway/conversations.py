"""What a request's prefix belongs to: requests of one conversation go to one replica, and to one arm."""

from __future__ import annotations

import hashlib

from serving_bridge.gateway.requests import Asked

#: of a completion's prompt
_PREFIX = 256


def conversation_of(asked: Asked, tenant: str) -> str:
    """Names the conversation: by the client's own name for it, else by what stays the same while it goes on."""
    parts = [tenant]
    if asked.conversation:
        parts += ["named", asked.conversation]
    elif asked.kind == "chat":
        first = next((index for index, message in enumerate(asked.messages) if message.role == "user"), 0)
        parts += [message.key for message in asked.messages[: first + 1]]
    else:
        parts += [str(asked.prompts[0][:_PREFIX])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
