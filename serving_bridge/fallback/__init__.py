"""What stands in for the model's answer: documents, a webhook, and the records of both."""

from serving_bridge.fallback.library import Found, Library, asked_with, question_of
from serving_bridge.fallback.records import Example, Fell, Records, Redact
from serving_bridge.fallback.texts import Withdrawn, clean_texts
from serving_bridge.fallback.webhook import HandedOver, Webhook, WebhookError

__all__ = [
    "Example",
    "Fell",
    "Found",
    "HandedOver",
    "Library",
    "Records",
    "Redact",
    "Webhook",
    "WebhookError",
    "Withdrawn",
    "asked_with",
    "clean_texts",
    "question_of",
]
