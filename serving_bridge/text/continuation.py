"""What the chat template writes after an answer, so that a dialog goes on from the ids that were sampled.

A template is a program that renders whole dialogs. Its continuation is what it adds to a dialog of a question and an
answer; only that is encoded. What was sampled before stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving_bridge.text.tokenizer_files import TokenizerError

ChatMessage = Mapping[str, Any]
#: (messages, whether the next answer begins) -> the dialog as the template writes it; raises TokenizerError
Render = Callable[[Sequence[ChatMessage], bool], str]

#: stands for an answer, and for a message, while a dialog is rendered
ANSWER, _PROBE = "~answer~", "~said~"
_QUESTION = {"role": "user", "content": "question"}
_NO_DIALOG = (
    "the chat template does not show an answer as it is, so that no dialog can be continued; set task.turns to 1"
)


def continuation(messages: Sequence[ChatMessage], render: Render, ends: Sequence[str], *, has_ended: bool) -> str:
    """The text between an answer's last sampled token and the next answer's first.

    A tool's message follows an answer that called it: some templates refuse another order. A template that has no
    word for tools gets their results as a user's message, in the tags of Hermes.

    Args:
      ends: texts of the tokens that end an answer.
      has_ended: whether the answer's last token is one of these; then it is not written again.

    Raises:
      TokenizerError: the template can't show the dialog.
    """
    if not any(message["role"] == "tool" for message in messages):
        return _after_answer(messages, render, ends, has_ended)
    for form in (_after_calls, _after_answer):
        if _shows(form, messages, render, ends):
            return form(messages, render, ends, has_ended)
    return _after_answer(as_user(messages), render, ends, has_ended)


def as_user(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with results of tools as a user's words; neighbours become one message."""
    texts: list[str] = []
    for message in messages:
        is_result = message["role"] == "tool"
        texts.append(f"<tool_response>\n{message['content']}\n</tool_response>" if is_result else message["content"])
    return [{"role": "user", "content": "\n".join(texts)}]


def _after_answer(messages: Sequence[ChatMessage], render: Render, ends: Sequence[str], has_ended: bool) -> str:
    shown = render([_QUESTION, {"role": "assistant", "content": ANSWER}, *messages], True)
    _, found, rest = shown.partition(ANSWER)
    if not found:
        raise TokenizerError(_NO_DIALOG)
    if has_ended:
        begun = [end for end in ends if rest.lstrip().startswith(end)]
        rest = rest.lstrip()[len(begun[0]) :] if begun else rest
    return rest


def _after_calls(messages: Sequence[ChatMessage], render: Render, ends: Sequence[str], has_ended: bool) -> str:
    calls = [_call(message) for message in messages if message["role"] == "tool"]
    dialog: list[ChatMessage] = [_QUESTION, {"role": "assistant", "content": ANSWER, "tool_calls": calls}]
    before, shown = render(dialog, False), render([*dialog, *messages], True)
    if not shown.startswith(before):
        raise TokenizerError("the chat template writes an answer otherwise when something follows it")
    place, end = max(((before.rfind(end), end) for end in ends), default=(-1, ""))
    tail = "" if place < 0 else before[place + len(end) * has_ended :]
    return tail + shown[len(before) :]


def _call(message: ChatMessage) -> dict[str, Any]:
    function: dict[str, Any] = {"name": message.get("name") or "tool", "arguments": {}}
    return {"id": message.get("tool_call_id") or "call00000", "type": "function", "function": function}


def _shows(
    form: Callable[[Sequence[ChatMessage], Render, Sequence[str], bool], str],
    messages: Sequence[ChatMessage],
    render: Render,
    ends: Sequence[str],
) -> bool:
    """Whether every message's text comes through."""
    probes = [{**message, "content": f"{_PROBE}{number}~"} for number, message in enumerate(messages)]
    try:
        shown = form(probes, render, ends, True)
    except TokenizerError:
        return False
    return all(probe["content"] in shown for probe in probes)
