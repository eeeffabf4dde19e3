"""The rollout benchmark: what its figures say, and that all its sides ask the same of the server, as much at once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import ClientSession, web

from serving_bridge.access.gate import ALSO_OPEN, BASE_URL, INFERENCE_TOKEN, Gate
from serving_bridge.access.keys import ROLES, Keys
from serving_bridge.access.probes import CONTROL_TOKEN
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm.client import VllmClient
from serving_bridge.vllm.server_checks import claim_port
from tools.bench import BenchmarkError
from tools.bench.__main__ import main
from tools.bench.rollout import rollout
from tools.bench.rollout.rollout import Cost, Result, Work
from tools.bench.timing import Spread
from tools.testing.fake_vllm.core import EngineSettings
from tools.testing.fake_vllm.engine import Engine
from tools.testing.fake_vllm.server import application
from tools.testing.fake_vllm.weights import ModelWeights, Worker

GENERATE, COMPLETIONS = "/inference/v1/generate", "/v1/completions"
WORK = Work(groups=6, group_size=2, tokens=3, concurrency=3)
#: In flight, a request waits so long for more of them to come than may.
_LINGER_S = 0.1


class Recorded:
    """A server on the fake engine, in the benchmark's own loop. It has vLLM's route for completions too.

    None is answered before as many are in flight as `WORK` says are at once.

    Attributes:
      asked: route and body of every request for answers.
      most: in flight at once.
      lacks_tokens: how many fewer tokens than it sampled it says that a completion has.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.most = 0
        self.lacks_tokens = 0
        self._in_flight = 0
        self._enough = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.base_url = ""

    def __call__(
        self,
        name: str,
        model_dir: Path,
        settings: ServingSettings,
        session: ClientSession,
        *,
        log_path: Path,
        keys: Keys,
        also_open: Sequence[str],
    ) -> Recorded:
        """Stands for making a `Replica`."""
        self._model_dir, self._settings, self._session = model_dir, settings, session
        self._keys, self._also_open = keys, also_open
        return self

    @property
    def start_id(self) -> str:
        return "the only one"

    async def start(self) -> None:
        root = self._model_dir.parent
        worker = Worker(ModelWeights(self._model_dir), root=root, clock=asyncio.get_running_loop().time)
        engine_settings = EngineSettings(self._settings.max_model_len, self._settings.max_num_seqs)
        self.base_url = f"http://127.0.0.1:{claim_port('127.0.0.1', 0)}"
        control, inference = (self._keys.token(role, self.base_url, self.start_id) for role in ROLES)
        environment = {CONTROL_TOKEN: control, INFERENCE_TOKEN: inference, BASE_URL: self.base_url}
        gate = Gate.of_environment(environment | {ALSO_OPEN: " ".join(self._also_open)})
        self.engine = Engine(worker, engine_settings, draws=random.Random(0), control_token=control)
        app = application(self.engine, gate)
        app.middlewares.append(self._recording)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", int(self.base_url.rpartition(":")[2])).start()
        self.client = VllmClient(self.base_url, self._session, token=control)

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def taken(self) -> tuple[list[tuple[str, dict[str, Any]]], int]:
        """What was asked since the last call, and how much of it at once."""
        found = self.asked, self.most
        self.asked, self.most = [], 0
        self._enough.clear()
        return found

    @web.middleware
    async def _recording(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path not in (GENERATE, COMPLETIONS):
            return await handler(request)
        body = json.loads(await request.read())
        self.asked.append((request.path, body))
        self._in_flight += 1
        self.most = max(self.most, self._in_flight)
        try:
            if self._in_flight >= WORK.concurrency:
                self._enough.set()
            async with asyncio.timeout(20):
                await self._enough.wait()
            await asyncio.sleep(_LINGER_S)
            return await (handler(request) if request.path == GENERATE else self._complete(request, body))
        finally:
            self._in_flight -= 1

    async def _complete(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["n"] * body["max_tokens"]}
        usage["completion_tokens"] -= self.lacks_tokens
        for chunk in ({"choices": [{"index": 0, "text": "x"}]}, {"choices": [], "usage": usage}):
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def wanted(route: str, body: dict[str, Any]) -> tuple[Any, ...]:
    """What a request asks for, in whichever form: prompt, answers, tokens of each, how they are drawn and end."""
    parameters = body if route == COMPLETIONS else body["sampling_params"]
    prompt = body["prompt"] if route == COMPLETIONS else body["token_ids"]
    stops = parameters.get("stop_token_ids") or parameters.get("stop") or []
    named = [parameters[name] for name in ("n", "max_tokens", "temperature", "ignore_eos")]
    return (tuple(prompt), *named, parameters.get("top_p", 1.0), parameters.get("top_k", 0), tuple(stops))


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    pytest.importorskip("vllm.benchmarks.serve", reason="vLLM is not installed")
    server = Recorded()
    monkeypatch.setattr(rollout, "Replica", server)
    yield server


def test_all_sides_ask_for_the_same_as_much_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as server:
        seen: list[tuple[str, list[tuple[str, dict[str, Any]]], int]] = []
        result = asyncio.run(rollout.measure(WORK, 1, tmp_path, lambda side: seen.append((side, *server.taken()))))
    assert [side for side, _, _ in seen] == ["weir", "vllm", "bare", "vllm", "bare", "weir"]
    assert [most for _, _, most in seen] == [WORK.concurrency] * 6
    by_round = [{side: asked for side, asked, _ in part} for part in (seen[:3], seen[3:])]
    for asked in by_round:
        assert {route for route, _ in asked["vllm"]} == {COMPLETIONS}
        assert {route for side in ("weir", "bare") for route, _ in asked[side]} == {GENERATE}
        wishes = {side: sorted(wanted(*request) for request in asked[side]) for side in rollout.SIDES}
        assert wishes["weir"] == wishes["vllm"] == wishes["bare"]
        assert len({wish[0] for wish in wishes["weir"]}) == WORK.groups
        assert {wish[1:] for wish in wishes["weir"]} == {(WORK.group_size, WORK.tokens, 1.0, True, 1.0, 0, ())}
    first, second = ({tuple(body["token_ids"]) for _, body in asked["bare"]} for asked in by_round)
    assert not first & second  # no round finds the cache of another
    assert set(result.tokens_per_s) == set(rollout.SIDES)
    assert all(rate.p10 == rate.p90 > 0 for rate in result.tokens_per_s.values())  # of one round: the first warmed up


def measured(server: Recorded, folder: Path, *, fails_after: int | None = None) -> Result:
    """One round; once so many sides are done, the engine fails a request."""
    sides: list[str] = []

    def done(side: str) -> None:
        server.taken()
        sides.append(side)
        if len(sides) == fails_after:
            server.engine.disturbance.failures[GENERATE] = 1

    return asyncio.run(rollout.measure(WORK, 1, folder, done))


def test_a_client_that_got_fewer_tokens_is_no_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as server:
        server.lacks_tokens = 1
        with pytest.raises(BenchmarkError, match="vLLM's client got 30 tokens, expected 36"):
            measured(server, tmp_path)


@pytest.mark.parametrize(
    ("fails_after", "message"),
    [
        (2, "the server answered 500"),
        (5, "1 requests were tried again, or groups unjudged, the first: .*failed on purpose"),
    ],
    ids=["bare", "weir"],
)
def test_a_round_with_a_failed_request_gives_no_figure(
    fails_after: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as server, pytest.raises(BenchmarkError, match=message):
        measured(server, tmp_path, fails_after=fails_after)


RATES = {"weir": [90.0, 110.0, 200.0], "vllm": [100.0, 100.0, 250.0], "bare": [180.0, 110.0, 400.0]}
CLIENT = {"weir": [1.0, 2.0, 8.0], "vllm": [2.0, 5.0, 10.0], "bare": [0.5, 0.5, 0.5]}
TOKENS = 1000
COSTS = {
    side: [Cost(TOKENS / rate, client, 1.0) for rate, client in zip(RATES[side], CLIENT[side], strict=True)]
    for side in RATES
}
RESULT = rollout.summarized(COSTS, TOKENS)


def test_the_ratios_are_of_throughputs_within_a_round() -> None:
    result = RESULT
    medians = {side: result.tokens_per_s[side].median for side in RATES}
    assert medians == pytest.approx({"weir": 110.0, "vllm": 100.0, "bare": 180.0})
    assert result.of_vllm.median == pytest.approx(0.9)  # of 0.9, 1.1 and 0.8, not 110 / 100
    assert (result.of_vllm.p10, result.of_vllm.p90) == pytest.approx((0.82, 1.06))
    assert result.of_bare.median == pytest.approx(0.5)


def test_cpu_time_is_per_token_and_compared_within_a_round() -> None:
    assert {side: tuple(cost.median for cost in costs) for side, costs in RESULT.cpu_us.items()} == {
        "weir": (2000.0, 1000.0),
        "vllm": (5000.0, 1000.0),
        "bare": (500.0, 1000.0),
    }
    assert RESULT.client_cpu_of_vllm.median == pytest.approx(0.5)  # of 0.5, 0.4 and 0.8
    assert RESULT.all_cpu_of_vllm.median == pytest.approx(2 / 3)  # of 2/3, 3/6 and 9/11


def test_throughput_counts_the_tokens_of_all_answers() -> None:
    assert Work(groups=6, group_size=2, tokens=3, concurrency=3).total_tokens == 36


@pytest.mark.parametrize(("median", "met"), [(1.001, "met"), (1.0, "met"), (0.999, "NOT met"), (1.2, "met")])
def test_the_verdict_is_of_the_median(median: float, met: str) -> None:
    of_vllm = Spread(median, 0.1, 9.0)
    first, second, _ = rollout.verdict(dataclasses.replace(RESULT, of_vllm=of_vllm)).splitlines()
    assert first == f"throughput relative to vLLM's client: {of_vllm.show()} (aim 1.0): {met}"
    assert "(aim 0.95): met" in rollout.verdict(dataclasses.replace(RESULT, of_vllm=of_vllm), aim=0.95)
    assert second.endswith("(aim below 1): met")
    dear = rollout.verdict(dataclasses.replace(RESULT, client_cpu_of_vllm=of_vllm)).splitlines()[1]
    assert dear.endswith("NOT met" if median >= 1 else ": met")


def test_it_prints_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[Work, int]] = []

    async def measure(work: Work, rounds: int, folder: Path, done: Callable[[str], object]) -> Result:
        given.append((work, rounds))
        done("weir")
        return RESULT

    monkeypatch.setattr(rollout, "measure", measure)
    monkeypatch.setattr(rollout, "collect_garbage_less_often", lambda: None)
    monkeypatch.setitem(sys.modules, "vllm.benchmarks.serve", ModuleType("vllm.benchmarks.serve"))
    monkeypatch.setitem(sys.modules, "vllm.benchmarks", ModuleType("vllm.benchmarks"))
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    out = tmp_path / "rollout.json"
    arguments = ["--groups", "6", "--group-size", "2", "--tokens", "3", "--concurrency", "4", "--rounds", "3"]
    assert main(["rollout", *arguments, "--json", str(out)]) == 0
    assert given == [(Work(6, 2, 3, 4), 3)]
    printed = capsys.readouterr().out
    assert "(aim 1.0): NOT met" in printed
    record = json.loads(out.read_text())
    assert record["benchmark"] == "rollout"
    assert record["settings"] == {"groups": 6, "group_size": 2, "tokens": 3, "concurrency": 4, "rounds": 3}
    assert record["results"]["of_vllm"]["median"] == pytest.approx(0.9)
    assert record["results"]["tokens_per_s"]["bare"]["median"] == pytest.approx(180.0)


def test_the_table_has_a_row_for_each_side() -> None:
    found = rollout.table(RESULT)
    cells = [list(column.cells) for column in found.columns]
    assert cells[0] == ["weir", "vllm", "bare"]
    assert [str(cell).split()[0] for cell in cells[1]] == ["110", "100", "180"]
    assert [str(cell).split()[:1] for cell in cells[2]] == [[], ["0.900"], ["0.500"]]
    assert [str(cell).split()[0] for cell in cells[3]] == ["2000", "5000", "500"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "0"], "--groups: expected a whole number of at least 1, got '0'"),
        (["--group-size", "x"], "--group-size: expected a whole number of at least 1, got 'x'"),
        (["--tokens", "-1"], "--tokens: expected a whole number of at least 1, got '-1'"),
        (["--concurrency", "1.5"], "--concurrency: expected a whole number of at least 1, got '1.5'"),
        (["--rounds", "0"], "--rounds: expected a whole number of at least 1, got '0'"),
        (["--json", "nowhere/a.json"], "--json: expected a file in an existing folder, got 'nowhere/a.json'"),
        (["--model", "a"], "unrecognized arguments: --model"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rollout", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_vllm_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vllm", "vllm.benchmarks", "vllm.benchmarks.serve"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["rollout"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the peer needs vLLM (")
    assert last.endswith("): run tools/install.sh demo")
