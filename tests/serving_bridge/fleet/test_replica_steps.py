"""What a replica asks of its process and of its server, and in which order: without either."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.fleet import replica as module
from serving_bridge.fleet.replica import Replica
from serving_bridge.processes import GuardError
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm import Failed, ReplicaStartError
from tests.support.virtual_time import run


class Process:
    """A server's process that ends as it is asked to, or only when it is destroyed."""

    def __init__(self, *, held_up: bool = False) -> None:
        self.asked: list[Any] = []
        self._held_up = held_up

    def kill(self) -> None:
        self.asked.append("kill")

    def terminate(self) -> None:
        self.asked.append("terminate")

    def wait(self, timeout_s: float) -> int:
        self.asked.append(("wait", timeout_s))
        if self._held_up:
            raise GuardError("did not end")
        return 0

    def destroy(self) -> None:
        self.asked.append("destroy")

    def poll(self) -> int | None:
        return None


class Client:
    """A server that answers, or fails at the `failing`-th request."""

    def __init__(self, failing: int = 0, running: tuple[int, ...] = ()) -> None:
        self.asked: list[Any] = []
        self._failing, self._running = failing, list(running)

    async def num_requests(self) -> int:
        """The last number stays."""
        self._ask("requests")
        return self._running.pop(0) if len(self._running) > 1 else self._running[0]

    async def warm_up(self, tokens: list[int], *, n: int, max_tokens: int, timeout_s: float) -> None:
        self._ask(("sample", tokens, n, max_tokens, timeout_s))

    async def prompt_logprobs(self, tokens: list[int], *, timeout_s: float) -> None:
        self._ask(("log-probs", tokens, timeout_s))

    def _ask(self, what: Any) -> None:
        self.asked.append(what)
        if len(self.asked) == self._failing:
            raise Failed("no answer")


def replica(folder: Path, process: Process | None = None, client: Client | None = None, **settings: Any) -> Replica:
    given: dict[str, Any] = {"max_model_len": 100, "drain_timeout_s": 7.0, "start_timeout_s": 60.0} | settings
    made: Any = Replica("host-0", folder, ServingSettings(**given), None, log_path=folder / "log")
    made._process, made._client = process, client
    return made


@pytest.mark.parametrize("held_up", [False, True], ids=["ends", "held up"])
def test_a_server_is_ended_before_its_end_is_waited_for(tmp_path: Path, held_up: bool) -> None:
    more = ["destroy"] if held_up else []
    process = Process(held_up=held_up)
    asyncio.run(replica(tmp_path, process).kill())
    assert process.asked == ["kill", ("wait", module._EXIT_S), *more]
    process = Process(held_up=held_up)
    asyncio.run(replica(tmp_path, process).stop())
    assert process.asked == ["terminate", ("wait", 7.0 + 2 * module._EXIT_S), *more]


def test_a_server_that_was_never_started_has_ended(tmp_path: Path) -> None:
    never = replica(tmp_path)
    asyncio.run(never.kill())
    asyncio.run(never.stop())
    assert never.exit_status() is None


@pytest.mark.parametrize(
    ("settings", "answers", "tokens", "prompt"),
    [
        ({"max_num_seqs": 64}, 8, module._WARM_UP_TOKENS, 8),
        ({"max_num_seqs": 3}, 3, module._WARM_UP_TOKENS, 8),
        ({"max_num_seqs": 8, "max_model_len": 3}, 8, 2, 2),
    ],
)
def test_a_server_is_warm_once_it_has_sampled_and_scored_within_what_it_takes(
    tmp_path: Path, settings: dict[str, int], answers: int, tokens: int, prompt: int
) -> None:
    assert module._WARM_UP_TOKENS > 2
    client = Client()
    asyncio.run(replica(tmp_path, client=client, **settings)._warm_up())
    sampled = [("sample", [0], answers, tokens, 60.0)] * module._WARM_UP_BATCHES
    assert client.asked == [*sampled, ("log-probs", [0] * prompt, 60.0)]


@pytest.mark.parametrize("failing", [1, module._WARM_UP_BATCHES + 1])
def test_a_server_that_does_not_sample_is_told_so_with_its_log(tmp_path: Path, failing: int) -> None:
    with pytest.raises(ReplicaStartError, match=f"host-0 started but does not sample: no answer; see {tmp_path}/log"):
        asyncio.run(replica(tmp_path, client=Client(failing))._warm_up())


@pytest.mark.parametrize(
    ("running", "failing", "is_drained", "looks"),
    [((3, 1, 0), 0, True, 3), ((0,), 0, True, 1), ((2,), 0, False, None), ((2,), 2, False, 2)],
    ids=["ends", "idle", "goes on", "is gone"],
)
def test_a_server_is_drained_once_nothing_runs_and_is_waited_for_up_to_the_bound(
    tmp_path: Path, running: tuple[int, ...], failing: int, is_drained: bool, looks: int | None
) -> None:
    client = Client(failing, running)

    async def story() -> float:
        began_s = asyncio.get_running_loop().time()
        assert await replica(tmp_path, client=client).drain() is is_drained
        return asyncio.get_running_loop().time() - began_s

    seconds = run(story())
    if looks is None:
        assert seconds == pytest.approx(7.0, abs=0.1)
    else:
        assert len(client.asked) == looks
        assert seconds < 2
