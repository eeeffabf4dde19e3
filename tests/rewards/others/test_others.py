"""Environments of other libraries against a real session: what they are told, what they pay, how they fail."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import TaskError
from rewards.others import MissingLibraryError, needed
from rewards.others.dialog import Shown, played
from rewards.settings import TaskSettings
from serving_bridge.processes import free_port
from serving_bridge.sessions import Session
from serving_bridge.text import Tokenizer
from tests.conftest import REPOSITORY
from tests.support.extend_pages import files_of
from tests.support.session_world import served, session_of
from tests.support.session_world import tokenizer as tokenizer

TASKSETS = Path(__file__).parents[2] / "support" / "tasksets"


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TASKSETS)


def played_over(session: Session, play: Callable[[str], Any]) -> Any:
    async def work(client: Any, url: str) -> Any:
        return await play(url)

    return served(session, work)


def test_the_settings_that_the_page_shows_fit_the_functions_that_they_name() -> None:
    for name, text in files_of("others").items():
        task = TaskSettings.model_validate(tomllib.loads(text)["task"])
        module = task.data.partition(":")[0]
        source = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text())
        functions = {
            node.name: node for node in source.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert {"rows", "play"} <= set(functions), name
        assert task.episode.agent == f"{module}:play"
        arguments = functions["rows"].args
        required = [one.arg for one in arguments.args][: len(arguments.args) - len(arguments.defaults)]
        assert set(required) <= set(task.options) <= {one.arg for one in arguments.args}


def test_a_library_that_is_not_there_names_the_extra() -> None:
    with pytest.raises(MissingLibraryError, match=r"pip install 'weir\[verifiers\]'"):
        needed("verifiers_of_nobody", extra="verifiers")


def test_an_episode_of_texts_goes_on_from_recorded_ids(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, "one", "two", "three")
    actions = []

    async def step(action: str) -> Shown:
        actions.append(action)
        return Shown(f"after {action}", 0.5, len(actions) == 3)

    earned = played_over(session, lambda url: played(url, Shown("begin", 0.25), step, system="Be brief."))
    assert earned == {"score": 1.75, "turns": 3.0, "ended": 1.0}
    assert actions == ["one", "two", "three"]
    assert [a.parent for a in session.answers] == [None, 0, 1]
    assert session.rebuilt == 0


def test_a_session_that_is_full_ends_the_episode(tokenizer: Tokenizer) -> None:
    async def step(action: str) -> Shown:
        return Shown("more", 1.0)

    for bound in ({"max_answers": 2}, {"max_context": 90}):
        session, _ = session_of(tokenizer, *["on"] * 9, **bound)
        earned = played_over(session, lambda url: played(url, Shown("begin"), step))
        assert earned == {"score": float(len(session.answers)), "turns": float(len(session.answers)), "ended": 0.0}
        assert len(session.answers) >= 2


def test_a_first_prompt_that_does_not_fit_is_an_error(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, "on", max_context=5)

    async def step(action: str) -> Shown:
        raise AssertionError

    with pytest.raises(RuntimeError, match="no answer fits into 5"):
        played_over(session, lambda url: played(url, Shown("begin"), step))


def test_a_game_of_gymnasium(tokenizer: Tokenizer) -> None:
    pytest.importorskip("gymnasium", reason="needs weir[gymnasium]")
    from rewards.others import gymnasium

    rows = list(gymnasium.rows("text_game:Guess-v0", 2, kwargs={"most": 4}, first_seed=5))
    assert [row["seed"] for row in rows] == [5, 6]
    json.dumps(rows)
    session, _ = session_of(tokenizer, "none", "none", "none")
    lost = played_over(session, lambda url: gymnasium.play(url, rows[0]))
    assert (lost["score"], lost["turns"]) == (pytest.approx(-0.3), 3.0)
    session, _ = session_of(tokenizer, "1", "2", "3")
    won = played_over(session, lambda url: gymnasium.play(url, rows[0]))
    assert won["score"] == pytest.approx(1.0 - 0.1 * (won["turns"] - 1))
    assert session.answers[-1].parent == (len(session.answers) - 2 if won["turns"] > 1 else None)
    with pytest.raises(TypeError, match="its action space is Discrete, expected Text"):
        list(gymnasium.rows("text_game:Guess-v0", 1, kwargs={"in_numbers": True}))


def test_a_server_of_openenv(tokenizer: Tokenizer) -> None:
    pytest.importorskip("openenv.core.env_server.http_server", reason="needs weir[openenv]", exc_type=ImportError)
    from rewards.others import openenv

    with closing(_openenv_server()) as urls:
        url = next(urls)
        (row,) = openenv.rows(url, 1, "message", "echoed", seeded=True, reset={"greeting": "hello"})
        session, _ = session_of(tokenizer, "aa", "bbb")
        earned = played_over(session, lambda where: openenv.play(where, row))
        assert earned == {"score": 5.0, "turns": 2.0, "ended": 1.0}
        assert tokenizer.backend.decode(list(session.answers[0].given)).count("hello 0") == 1
        (row,) = openenv.rows(url, 1, "message", "nothing")
        with pytest.raises(KeyError, match="no field 'nothing', only 'echoed'"):
            played_over(session, lambda where: openenv.play(where, row))


def _openenv_server() -> Iterator[str]:
    """A real server on loopback; closes at the end."""
    import uvicorn
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Said(Action):
        message: str

    class Echoed(Observation):
        echoed: str

    class Echo(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: Any = None, greeting: str = "", **_: Any) -> Echoed:
            self._steps = 0
            return Echoed(echoed=f"{greeting} {seed}", done=False, reward=0.0)

        def step(self, action: Said, timeout_s: Any = None, **_: Any) -> Echoed:
            self._steps += 1
            return Echoed(echoed=action.message, done=self._steps == 2, reward=float(len(action.message)))

        @property
        def state(self) -> State:
            return State()

    port = free_port()
    app = create_fastapi_app(Echo, Said, Echoed, max_concurrent_envs=4)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def _verifiers() -> Any:
    pytest.importorskip("verifiers.v1", reason="needs weir[verifiers]")
    from rewards.others import verifiers

    return verifiers


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def test_a_taskset_of_verifiers_with_a_tool(tokenizer: Tokenizer) -> None:
    verifiers = _verifiers()
    rows = list(verifiers.rows("vf_adding", turns=4))
    assert [row["question"] for row in rows] == ["0 + 2?", "1 + 2?", "2 + 2?"]
    json.dumps(rows)
    session, _ = session_of(tokenizer, CALL, "It is 3.")
    earned = played_over(session, lambda url: verifiers.play(url, rows[1]))
    assert earned == {"right": 1.0, "turns": 2.0, "score": 2.0}
    assert [a.parent for a in session.answers] == [None, 0]
    assert session.rebuilt == 0
    told = tokenizer.backend.decode(list(session.answers[1].given), skip_special_tokens=False)
    assert "<tool_response>\n3\n</tool_response>" in told


def test_ten_turns_of_verifiers_with_calls_go_on_from_recorded_ids(tokenizer: Tokenizer) -> None:
    verifiers = _verifiers()
    row = next(iter(verifiers.rows("vf_adding", env={"agent": {"harness": {"id": "vf_adding", "insists": 9}}})))
    session, scripted = session_of(tokenizer, *[f"It is {number}." for number in range(10)])
    earned = played_over(session, lambda url: verifiers.play(url, row))
    assert earned == {"right": 0.0, "turns": 10.0, "score": 0.0}
    assert [a.parent for a in session.answers] == [None, *range(9)]
    for before, after in zip(range(9), range(1, 10), strict=True):
        assert scripted.contexts[after][: len(session.ids(before))] == session.ids(before)


def test_an_episode_that_stops_at_its_turns_is_scored(tokenizer: Tokenizer) -> None:
    verifiers = _verifiers()
    row = next(iter(verifiers.rows("vf_adding", turns=2)))
    session, _ = session_of(tokenizer, CALL, CALL, CALL)
    earned = played_over(session, lambda url: verifiers.play(url, row))
    assert (earned["turns"], len(session.answers)) == (2.0, 2)


def test_an_environment_of_earlier_verifiers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifiers = _verifiers()
    (tmp_path / "old_env.py").write_text("import verifiers as vf\n\ndef load_environment(**given):\n    return vf\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match="'old-env' is an environment of verifiers before 0.4: .*Port it to a Taskset"):
        next(iter(verifiers.rows("old-env")))


def test_a_harness_that_needs_uv_says_so_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    verifiers = _verifiers()
    monkeypatch.setattr(verifiers.shutil, "which", lambda program, path: None)
    with pytest.raises(MissingLibraryError, match="'bash' is a program that uv runs, .*pip install uv"):
        next(iter(verifiers.rows("vf_adding", harness="bash")))
    in_container = {"agent": {"runtime": {"type": "docker"}}}
    assert next(iter(verifiers.rows("vf_adding", harness="bash", env=in_container)))
    assert next(iter(verifiers.rows("vf_adding")))


def test_uv_is_found_beside_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    verifiers = _verifiers()
    monkeypatch.setenv("PATH", "/usr/bin")
    for _ in range(2):  # each episode sets it
        os.environ["PATH"] = verifiers._path()
        assert os.environ["PATH"].split(":") == ["/usr/bin", str(Path(sys.executable).parent)]


def test_what_verifiers_calls_a_failure_is_none_of_the_policy_s(tokenizer: Tokenizer) -> None:
    verifiers = _verifiers()
    row = next(iter(verifiers.rows("vf_adding", env={"agent": {"harness": {"id": "vf_adding", "fails": True}}})))
    session, _ = session_of(tokenizer, "one")
    with pytest.raises(RuntimeError, match="verifiers: HarnessError: harness 'vf_adding' exited 3: broken"):
        played_over(session, lambda url: verifiers.play(url, row))
    with pytest.raises(ModuleNotFoundError, match="of_nobody"):
        list(verifiers.rows("of_nobody"))


def test_its_token_client_continues_recorded_ids(tokenizer: Tokenizer) -> None:
    """`renderers`, by which verifiers' TrainClient speaks, posts ids to `/inference/v1/generate`."""
    pytest.importorskip("renderers.client", reason="needs weir[verifiers]")
    from renderers.client import generate

    session, _ = session_of(tokenizer, "It is twelve.", "Yes.", vocab_size=600)

    class Renderer:
        supports_tools = True

        def get_stop_token_ids(self) -> list[int]:
            return list(tokenizer.eos_ids)

        def parse_response(self, ids: list[int], **_: Any) -> Any:
            fields = {"content": tokenizer.decode(ids), "reasoning_content": None, "reasoning_complete": True}
            return type("Parsed", (), fields | {"tool_calls": []})

    async def asked(client: Any, prompt: list[int]) -> dict[str, Any]:
        options: Any = {"messages": [], "model": "policy", "prompt_ids": prompt, "sampling_params": {"max_tokens": 50}}
        found: dict[str, Any] = await generate(client=client, renderer=Renderer(), **options)
        return found

    async def work(client: Any, url: str) -> list[dict[str, Any]]:
        first = await asked(client, [1, 40, 41])
        return [first, await asked(client, [1, 40, 41, *first["completion_ids"], 50])]

    first, second = served(session, work)
    for told, answered in zip((first, second), session.answers, strict=True):
        assert told["completion_ids"] == answered.answer.tokens.tolist()
        assert told["completion_logprobs"] == answered.answer.logprobs.tolist()
    assert (first["content"], session.answers[1].parent, session.answers[1].given) == ("It is twelve.", 0, (50,))
    assert asyncio.iscoroutinefunction(generate)
