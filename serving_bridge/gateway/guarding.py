"""The guards of `serving_bridge.safety` at the gateway: refused prompts, answers that are cut, guards that fail."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.safety import Decision, Messages, Released, StreamGuard, Verdict
from serving_bridge.safety import Guards as SafetyGuards

_RETRY_S = 1.0


class GuardedGateway:
    """Implements `serving_bridge.gateway.Guards`."""

    def __init__(self, guards: SafetyGuards) -> None:
        self._guards = guards

    def running(self) -> AbstractAsyncContextManager[None]:
        return self._guards.running()

    async def prompt(self, caller: Caller, response_id: str, messages: Messages, param: str) -> None:
        decision = await self._guards.prompt(caller.tenant, messages)
        if not decision.passes:
            raise _refusal(decision, param)

    def stream(self, caller: Caller, response_id: str, messages: Messages) -> GuardedChoice:
        return GuardedChoice(self._guards, caller.tenant, messages)


class GuardedChoice:
    """One choice of an answer under guard; implements `serving_bridge.gateway.answers.TextGuard`.

    Args:
      messages: what it answers.
    """

    def __init__(self, guards: SafetyGuards, tenant: str, messages: Messages) -> None:
        self._guards, self._tenant, self._messages = guards, tenant, messages
        self._stream: StreamGuard = guards.stream(tenant)
        self._said: list[str] = []
        self.has_failed = self.blocks_all = False

    async def push(self, text: str) -> str | None:
        if self._guards.has_models:
            self._said.append(text)
        return self._told(await self._stream.push(text))

    async def end(self) -> str | None:
        """The rest; None where the rules cut it, or a guard model blocks the whole answer."""
        last = self._told(await self._stream.end())
        if last is None or not self._said:
            return last
        self.blocks_all = not await self.passes("".join(self._said))
        return None if self.blocks_all else last

    async def passes(self, text: str) -> bool:
        decision = await self._guards.answer(self._tenant, text, self._messages)
        self.has_failed = self.has_failed or decision.verdict is Verdict.ERROR
        return decision.passes

    def _told(self, released: Released) -> str | None:
        if released.decision is not None and released.decision.verdict is Verdict.ERROR:
            self.has_failed = True
        return None if released.cut else released.text


def _refusal(decision: Decision, param: str) -> GatewayError:
    """Categories are told, so that people learn what to change; what matched is not."""
    if decision.verdict is Verdict.ERROR:
        return GatewayError(
            503, "the prompt could not be judged now; send it again", code="guard_failed", retry_after_s=_RETRY_S
        )
    categories = ", ".join(decision.categories) or "policy"
    return GatewayError(400, f"the prompt is not answered here: {categories}", code="content_filter", param=param)
