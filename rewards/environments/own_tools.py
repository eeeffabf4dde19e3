"""Methods of a user's environment that are tools: declared in its class, called in the processes that play it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from learner_jax.runtime import DoorError
from rewards.contracts import EpisodeState, Message, Outcome, ToolDefinition
from rewards.sandbox import VerifierError, VerifierPool, VerifierStartError, to_json
from rewards.settings import EpisodeSettings
from rewards.tools import (
    Arguments,
    BadCall,
    Call,
    clean,
    complaint,
    definition_of,
    distinct,
    error_message,
    read_definition,
)

#: arguments of a method that the policy does not give: self and state
_OWN_ARGUMENTS = 2


def tools_of_class(found: Any, name: str) -> tuple[ToolDefinition, ...]:
    """What a class declares in `tools`: names of methods, or definitions with the names of methods.

    Raises:
      DoorError: there is no such method, or one can't be a tool.
    """
    what = f"task.environment {name!r}: tools"
    declared = getattr(found, "tools", ())
    if not isinstance(declared, list | tuple):
        raise DoorError(
            f"{what} is a {type(declared).__name__}, expected a list of names of methods, or of definitions"
        )
    return distinct([_definition(found, one, what) for one in declared], what=what)


def _definition(found: Any, declared: Any, what: str) -> ToolDefinition:
    if not isinstance(declared, str):
        definition = read_definition(declared, what=what)
        _method(found, definition.name, what)
        return definition
    return definition_of(_method(found, declared, what), name=declared, skip=_OWN_ARGUMENTS, what=what)


def _method(found: Any, name: str, what: str) -> Any:
    method = getattr(found, name, None)
    if not callable(method):
        raise DoorError(f"{what} names {name!r}, expected a method {name}(state, ...) of the class")
    return method


class OwnTools:
    """Runs calls one after the other, since each may change the state."""

    def __init__(self, tools: Sequence[ToolDefinition], pool: VerifierPool, settings: EpisodeSettings) -> None:
        self._tools = {definition.name: Arguments(definition) for definition in tools}
        self._pool, self._settings = pool, settings

    def run(self, calls: Sequence[Call | BadCall], state: EpisodeState) -> Outcome:
        """What the calls of an answer led to; a tool that raised, died or took too long is told as an error."""
        memory, messages, reward = state.memory, list[Message](), 0.0
        for number, call in enumerate(calls):
            problem = complaint(call, number, self._tools, max_calls=self._settings.max_calls)
            if not problem and isinstance(call, Call):
                try:
                    text, memory, earned = self._called(call, state, memory)
                except VerifierStartError as error:
                    return Outcome(None, {}, "error", None, state, (str(error),))
                except VerifierError as error:
                    problem = f"the tool failed: {error}"
                else:
                    messages.append(Message("tool", text, call.name, call.call_id))
                    reward += earned
            if problem:
                messages.append(error_message(call, problem, self._tools))
                reward -= self._settings.call_cost
        return Outcome(reward, {}, "fail", tuple(messages), replace(state, memory=memory))

    def _called(self, call: Call, state: EpisodeState, memory: Any) -> tuple[str, Any, float]:
        row: Mapping[str, Any] = state.problem.metadata
        asked = {"name": call.name, "arguments": dict(call.arguments)}
        request = {"row": to_json(row), "answer": "", "state": memory, "call": asked}
        verified = self._pool.call(request, key=state.problem.question)
        earned = verified.judged_score
        text = clean(verified.observation or "")[: self._settings.result_characters]
        return text or "(no result)", verified.state, earned
