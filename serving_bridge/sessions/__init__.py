"""Conversations as exact token ids: what a program says over OpenAI's API, and what the policy sampled for it."""

from serving_bridge.sessions.endpoint import MODEL, SessionEndpoint
from serving_bridge.sessions.errors import SessionError
from serving_bridge.sessions.messages import ChatMessage, ToolCall, harmless_value, read_messages, read_tools, tools_key
from serving_bridge.sessions.session import Sample, Session, SessionLimits
from serving_bridge.sessions.tree import Answered, Place, Text, Tree

__all__ = [
    "MODEL",
    "Answered",
    "ChatMessage",
    "Place",
    "Sample",
    "Session",
    "SessionEndpoint",
    "SessionError",
    "SessionLimits",
    "Text",
    "ToolCall",
    "Tree",
    "harmless_value",
    "read_messages",
    "read_tools",
    "tools_key",
]
