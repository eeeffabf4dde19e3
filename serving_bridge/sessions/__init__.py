"""Conversations as exact token ids: what a program says over OpenAI's API, and what the policy sampled for it."""

from serving_bridge.sessions.endpoint import MODEL, SessionEndpoint
from serving_bridge.sessions.errors import SessionError
from serving_bridge.sessions.messages import ChatMessage, ToolCall, read_messages, read_tools
from serving_bridge.sessions.session import Answered, Sample, Session, SessionLimits, Text

__all__ = [
    "MODEL",
    "Answered",
    "ChatMessage",
    "Sample",
    "Session",
    "SessionEndpoint",
    "SessionError",
    "SessionLimits",
    "Text",
    "ToolCall",
    "read_messages",
    "read_tools",
]
