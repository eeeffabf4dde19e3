"""The tools of an episode: calls are checked, run with a deadline, and always end in a text for the policy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learner_jax.runtime import SlowPatternError, WeirError, printable
from rewards.contracts import Message, ToolDefinition
from rewards.tools.calls import BadCall, Call

_MAX_COMPLAINT = 300


class ToolError(WeirError):
    """A call can't be answered: the text is shown to the policy."""


class BrokenToolError(WeirError):
    """A tool can't work at all: the episode fails, and is no sample."""


@dataclass(frozen=True)
class Used:
    """What a tool gave.

    Attributes:
      documents: ids of documents that the text shows.
    """

    text: str
    documents: tuple[str, ...] = ()


#: arguments, and the row of the problem -> what the tool gave
Run = Callable[[Mapping[str, Any], Mapping[str, Any]], Awaitable[Used | str]]


class Arguments:
    """What a tool takes.

    Args:
      definition: whose parameters were checked to be JSON schema.
    """

    def __init__(self, definition: ToolDefinition) -> None:
        from rewards.tools.schemas import validator_of  # takes long to import, and most runs have no tools

        self._validator = validator_of(definition.parameters)

    def complaint(self, arguments: Mapping[str, Any]) -> str:
        """What is wrong with the arguments; "" if nothing is."""
        from jsonschema.exceptions import best_match

        try:
            error = best_match(self._validator.iter_errors(dict(arguments)))
        except RecursionError:
            return "the arguments are nested too deeply"
        except SlowPatternError as slow:
            return str(slow)
        if error is None:
            return ""
        where = "/".join(map(str, error.absolute_path))
        return f"{where}: {error.message}" if where else str(error.message)


def complaint(call: Call | BadCall, number: int, tools: Mapping[str, Arguments], *, max_calls: int) -> str:
    """Why a call can't be run, for the policy; "" if it can.

    Args:
      number: of the call in its answer, from 0.
    """
    if number >= max_calls:
        return f"an answer may hold {max_calls} calls, and this is one more"
    if isinstance(call, BadCall):
        return f"the tool call can't be read: {call.problem}"
    if call.name not in tools:
        return f"there is no tool {call.name!r:.80}; there are: {', '.join(tools)}"
    wrong = tools[call.name].complaint(call.arguments)
    return f"the arguments don't fit the tool's parameters: {wrong}" if wrong else ""


def error_message(call: Call | BadCall, problem: str, known: Collection[str]) -> Message:
    """What the policy is told of a call that failed."""
    name = call.name if isinstance(call, Call) and call.name in known else ""
    return Message("tool", f"Error: {printable(problem[:_MAX_COMPLAINT])}", name, call.call_id)


@dataclass(frozen=True)
class Tool:
    """A tool that can be called.

    Attributes:
      run: may raise anything; `ToolError` says something to the policy, the rest is shown as an error by its name.
      keeps_time: it keeps its deadline itself, from when it begins; waiting for a free process is not its time.
      end: frees what the tool holds.
    """

    definition: ToolDefinition
    run: Run
    keeps_time: bool = False
    end: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Result:
    """The answer to one call.

    Attributes:
      failed: the call was malformed, or its tool failed.
    """

    message: Message
    failed: bool
    documents: tuple[str, ...] = ()


class Toolbox:
    """Runs calls.

    Args:
      timeout_s: bound on each call of a tool that does not keep its deadline itself.
      max_calls: of one answer; the others are answered by an error.
      max_characters: of each result.
    """

    def __init__(self, tools: Sequence[Tool], *, timeout_s: float, max_calls: int, max_characters: int) -> None:
        self._tools = {tool.definition.name: tool for tool in tools}
        self._arguments = {tool.definition.name: Arguments(tool.definition) for tool in tools}
        self._timeout_s, self._max_calls, self._max_characters = timeout_s, max_calls, max_characters

    async def run(self, calls: Sequence[Call | BadCall], row: Mapping[str, Any]) -> list[Result]:
        """One result a call, in their order; all run at the same time.

        Raises:
          BrokenToolError: a tool can't work.
        """
        return await asyncio.gather(*(self._one(number, call, row) for number, call in enumerate(calls)))

    async def _one(self, number: int, call: Call | BadCall, row: Mapping[str, Any]) -> Result:
        problem = complaint(call, number, self._arguments, max_calls=self._max_calls)
        if problem or isinstance(call, BadCall):
            return self._failed(call, problem)
        tool = self._tools[call.name]
        try:
            async with asyncio.timeout(None if tool.keeps_time else self._timeout_s) as deadline:
                used = await tool.run(call.arguments, row)
        except TimeoutError:
            late = f"the tool gave no result within {self._timeout_s:g} s"
            return self._failed(call, late if deadline.expired() else "the tool waited for too long")
        except ToolError as error:
            return self._failed(call, str(error))
        except BrokenToolError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  (isolation: a tool must not end the episode)
            return self._failed(call, f"the tool failed: {type(error).__name__}: {error}")
        used = used if isinstance(used, Used) else Used(str(used))
        text = clean(used.text)[: self._max_characters]
        return Result(Message("tool", text or "(no result)", call.name, call.call_id), False, used.documents)

    def _failed(self, call: Call | BadCall, problem: str) -> Result:
        return Result(error_message(call, problem, self._tools), True)


def clean(text: str) -> str:
    """`text` without control characters but line breaks and tabs."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")
