"""A taskset of `verifiers` as its users write them: a task with a tool, and a harness that plays in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import verifiers.v1 as vf

__all__ = ["AddingHarness", "AddingTaskset"]

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


class AddingData(vf.TaskData):
    answer: str


class AddingTask(vf.Task[AddingData]):
    @vf.reward(weight=2.0)
    async def right(self, task: AddingData, trace: vf.Trace) -> float:
        return float(task.answer in (trace.branches[-1].messages[-1].content or ""))

    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return float(trace.num_turns)


class AddingTasksetConfig(vf.TasksetConfig):
    num_tasks: int = 3


class AddingTaskset(vf.Taskset[AddingTask, AddingTasksetConfig]):
    def load(self) -> Iterator[AddingTask]:
        for a in range(self.config.num_tasks):
            data = AddingData(prompt=f"{a} + 2?", answer=str(a + 2))
            yield AddingTask(data, self.config.task)


class AddingConfig(vf.HarnessConfig):
    insists: int = 0
    shows_tools: bool = True
    fails: bool = False


class AddingHarness(vf.Harness[AddingConfig]):
    """A loop over OpenAI's client: answers with calls are run, and what they gave is told.

    With `insists` so many answers without a call are taken for one, of their length and 1.
    """

    APPENDS_SYSTEM_PROMPT = True
    NEEDS_CONTAINER = False
    EXECUTES_CODE = False

    async def launch(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any
    ) -> vf.ProgramResult:
        messages: list[Any] = [{"role": "user", "content": data.prompt}]
        async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            for turn in range(100):
                given: Any = {"model": ctx.model, "messages": messages}
                if self.config.shows_tools:
                    given["tools"] = [TOOL]
                message = (await client.chat.completions.create(**given)).choices[0].message
                messages.append(message.model_dump(exclude_none=True))
                if self.config.fails:
                    return vf.ProgramResult(exit_code=3, stdout="", stderr="broken\x1b[31m")
                calls: list[tuple[str, dict[str, int]]] = [
                    (call.id, json.loads(call.function.arguments)) for call in message.tool_calls or []
                ]
                if not calls and turn < self.config.insists:
                    calls = [("call00000", {"a": len(message.content or ""), "b": 1})]
                if not calls:
                    break
                for name, arguments in calls:
                    said = str(arguments["a"] + arguments["b"])
                    messages.append({"role": "tool", "tool_call_id": name, "content": said})
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")
