"""The routes by which a weight round changes the fake engine: vLLM's own of an update, and the plugin's swap."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from serving_bridge.access import UNPROVEN, probe_ids
from tools.testing.fake_vllm.answers import Answer, json_answer, swap_answer
from tools.testing.fake_vllm.core import EngineCore, EngineDiedError
from tools.testing.fake_vllm.weights import Worker

Fields = dict[str, Any]


class RoundRoutes:
    """Holds whether an update session is open.

    Args:
      generate: packed answers to several requests, together.
      control_s: seconds that a pause and an update take.
      control_token: seals the ids of probes.
      on_name: told of each name that the weights get.
    """

    def __init__(
        self,
        worker: Worker,
        core: EngineCore,
        generate: Callable[[Sequence[Fields]], Awaitable[bytes]],
        *,
        control_s: float,
        control_token: str,
        on_name: Callable[[str], None],
    ) -> None:
        self._worker, self._core, self._generate = worker, core, generate
        self._control_s, self._control_token, self._on_name = control_s, control_token, on_name
        self._session_open = False

    async def start_update(self, body: Fields, params: Mapping[str, str]) -> Answer:
        if self._session_open:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        self._session_open = True
        return json_answer({"message": "Weight update started"})

    async def update(self, body: Fields, params: Mapping[str, str]) -> Answer:
        if not self._session_open:
            raise RuntimeError("start_weight_update must be called before update_weights")
        try:
            info = body["update_info"]
            await asyncio.sleep(self._control_s)
            self._worker.update(int(info["version"]), str(info["content_sha256"]), str(info["round_id"]))
        except BaseException:
            self._session_open = False  # a failing update ends the session, a failing finish does not
            raise
        return json_answer({"message": "Weights updated"})

    async def name_version(self, body: Fields, params: Mapping[str, str]) -> Answer:
        self._named(str(body["new_version"]))
        return json_answer({"success": True, "new_version": self._core.version_name})

    async def swap(self, check: Callable[[], None], body: Fields, params: Mapping[str, str]) -> Answer:
        """`check` raises once another round than that of the request is to be obeyed."""
        num_running = len(self._core.requests)
        self._core.pause("keep", clears_cache=True)
        await asyncio.sleep(self._control_s)
        is_applied, error, proof = False, "", b""
        try:
            check()
            await self._apply(check, body)
            is_applied = True
            proof = await self._generate(self._probes(body["golden"]))
        except EngineDiedError:
            raise
        except Exception as caught:  # noqa: BLE001 - as the plugin: who asked judges by how far it came
            error = str(caught) or repr(caught)
        return 200, swap_answer(is_applied, error, proof, num_running)

    async def serve(self, check: Callable[[], None], body: Fields, params: Mapping[str, str]) -> Answer:
        """As `swap` of `check`."""
        self._named(str(body["version"]))
        await asyncio.sleep(0)
        check()
        self._core.resume()
        return json_answer({})

    async def _apply(self, check: Callable[[], None], body: Fields) -> None:
        if body["applies"]:
            if self._core.disturbance.shall_fail("/update_weights"):
                raise RuntimeError("the update failed on purpose")
            info = {name: body[name] for name in ("version", "content_sha256", "round_id")}
            await self.update({"update_info": info}, {})
            check()
            self._session_open = False
        self._named(UNPROVEN)

    def _probes(self, golden: Sequence[Sequence[int]]) -> list[Fields]:
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        return [
            {"token_ids": tokens, "request_id": name, "sampling_params": sampling, "priority": -1}
            for tokens, name in zip(golden, probe_ids(len(golden), self._control_token), strict=True)
        ]

    def _named(self, name: str) -> None:
        self._core.version_name = name
        self._on_name(name)
