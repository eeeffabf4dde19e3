"""The page over ASGI: who is let in, what is served, and what a hostile model or visitor can't do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.watched_runs import HOSTILE, append, begun_run, held_out, step_event
from tests.support.written_runs import write_run
from tools.dashboard.access import Access, access_to
from tools.dashboard.app import build_app
from tools.dashboard.watch import Watch

TOKEN = "a-token-that-nobody-guesses"
PAGE = "http://127.0.0.1:8790"
DATA = ("/", "/api/about", "/api/changes", "/api/answers")


def client_of(*directories: Path, token: str | None = None, access: Access | None = None) -> TestClient:
    access = access or access_to("127.0.0.1", 8790, token)
    return TestClient(build_app(Watch(directories), access), base_url=PAGE, follow_redirects=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def open_page(run: Path) -> Iterator[TestClient]:
    with client_of(run) as client:
        yield client


@pytest.fixture
def locked(run: Path) -> Iterator[TestClient]:
    with client_of(run, token=TOKEN) as client:
        yield client


def changes(client: TestClient, have: Any = None) -> dict[str, Any]:
    reply = client.get("/api/changes", params={} if have is None else {"have": json.dumps(have)})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(open_page: TestClient) -> None:
    page = open_page.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?://|<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page.text)
    names = set(re.findall(r'"(/static/[\w.]+)"', page.text))
    modules = names | {f"/static/{name}" for name in ("chart.js", "dom.js", "now.js", "store.js", "words.js")}
    for name in modules:
        reply = open_page.get(name)
        assert reply.status_code == 200
        for taken in re.findall(r'from "\./([\w.]+)"', reply.text):
            assert open_page.get(f"/static/{taken}").headers["content-type"] == "text/javascript; charset=utf-8"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", reply.text)


@pytest.mark.parametrize("path", [*DATA, "/static/main.js", "/nowhere", "/login"])
def test_every_reply_tells_the_browser_what_it_must_not_do(open_page: TestClient, path: str) -> None:
    headers = open_page.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    for name, value in (("x-content-type-options", "nosniff"), ("referrer-policy", "same-origin"),
                        ("cache-control", "no-store"), ("cross-origin-resource-policy", "same-origin")):  # fmt: skip
        assert headers[name] == value
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", [*DATA, "/static/main.js", "/login"])
def test_a_foreign_host_name_is_refused(open_page: TestClient, path: str) -> None:
    reply = open_page.get(path, headers={"host": "evil.example"})
    assert (reply.status_code, "by-hand" in reply.text) == (421, False)


@pytest.mark.parametrize(
    "path",
    ["/static/../view.py", "/static/..%2f..%2fpyproject.toml", "/static//etc/passwd", "/static/%2e%2e/app.py",
     "/static/login_wrong.html/..", "/static/", "/config.toml", "/metrics.jsonl", "/static/style.css%00"],
)  # fmt: skip
def test_no_path_reaches_the_file_system(open_page: TestClient, path: str) -> None:
    assert open_page.get(path).status_code in (404, 405)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", DATA)
def test_nothing_can_be_changed(open_page: TestClient, method: str, path: str) -> None:
    assert open_page.request(method, path).status_code == 405


# With a token


@pytest.mark.parametrize("path", DATA)
def test_without_the_token_nothing_of_a_run_is_shown(locked: TestClient, path: str) -> None:
    reply = locked.get(path)
    assert reply.status_code == (303 if path == "/" else 401)
    assert "by-hand" not in reply.text
    assert locked.get(f"{path}?token={TOKEN}").status_code == reply.status_code
    assert locked.get(path, headers={"authorization": "Bearer wrong-token-wrong-token"}).status_code == 401
    assert locked.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_guesses_are_slowed_down(locked: TestClient) -> None:
    replies = [locked.post("/login", data={"token": f"guess-{guess}"}) for guess in range(11)]
    assert [reply.status_code for reply in replies] == [*[401] * 10, 429]
    assert 50 <= int(replies[-1].headers["retry-after"]) <= 60
    refused = locked.get("/api/about", headers={"authorization": f"Bearer {TOKEN}"})
    assert (refused.status_code, refused.text[:21]) == (429, "too many wrong tokens")
    assert locked.get("/login").status_code == 200


def test_the_login_form_gives_a_cookie_that_scripts_and_other_sites_never_have(locked: TestClient) -> None:
    assert locked.get("/").headers["location"] == "/login"
    assert "Log in" in locked.get("/login").text
    reply = locked.post("/login", data={"token": TOKEN})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert cookie.startswith("weir_view_8790=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert TOKEN not in cookie
    assert (
        "Secure"
        in locked.post("/login", data={"token": TOKEN}, headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    )
    locked.cookies.set("weir_view_8790", cookie.split(";")[0].partition("=")[2])
    assert locked.get("/api/about").json()["locked"] is True
    assert locked.post("/logout").headers["location"] == "/login"


@pytest.mark.parametrize("data", [{"token": "wrong"}, {"token": ""}, {}, {"other": TOKEN}, {"token": f"{TOKEN}x"}])
def test_a_wrong_token_is_told_and_gives_nothing(locked: TestClient, data: dict[str, str]) -> None:
    reply = locked.post("/login", data=data)
    assert reply.status_code == 401
    assert 'id="wrong" role="alert"' in reply.text
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}]
)
def test_another_sites_form_can_neither_log_in_nor_out(locked: TestClient, headers: dict[str, str]) -> None:
    assert locked.post("/login", data={"token": TOKEN}, headers=headers).status_code == 403
    assert locked.post("/logout", headers=headers | {"authorization": f"Bearer {TOKEN}"}).status_code == 403


def test_a_long_form_is_refused(locked: TestClient) -> None:
    assert locked.post("/login", content=b"token=" + b"x" * 10_000).status_code == 413


# What is told of runs


def test_a_finished_run_is_told_whole_and_then_only_what_is_new(run: Path, open_page: TestClient) -> None:
    first = changes(open_page)
    (told,) = first["runs"]
    now = told["now"]
    assert (now["phase"], now["over"], now["step"], now["problem"]) == ("finished", True, 10, "")
    assert (now["held_out"], now["bottleneck"], now["tokens_per_s"]) == ([0.25, 0.75], "rollout-bound", 275.0)
    steps = told["curves"]["steps"]
    rewards = [row[steps["columns"].index("reward")] for row in steps["rows"]]
    assert rewards == [number / 10 for number in range(1, 11)]
    assert len(told["curves"]["heldout"]["rows"]) == 2
    have = [{"life": now["life"], "tables": {name: table["at"] for name, table in told["curves"].items()}}]
    assert changes(open_page, have)["runs"][0]["curves"] == {}


def test_a_running_run_grows(tmp_path: Path) -> None:
    run = begun_run(tmp_path / "run")
    clock = [0.0]
    watch = Watch([run], clock=lambda: 2000.0 + clock[0], monotonic=lambda: clock[0])
    client = TestClient(build_app(watch, access_to("127.0.0.1", 8790, None)), base_url=PAGE)
    (told,) = changes(client)["runs"]
    assert (told["now"]["began"], told["now"]["phase"]) == (None, "starting")
    assert [table["rows"] for table in told["curves"].values()] == [[]] * 6
    have = [{"life": 0, "tables": {name: table["at"] for name, table in told["curves"].items()}}]
    append(run, step_event(1, 2000.0), step_event(2, 2001.0))
    assert changes(client, have)["runs"][0]["curves"] == {}, "the files were read again within a second"
    clock[0] += 2
    (told,) = changes(client)["runs"]
    assert [row[0] for row in told["curves"]["steps"]["rows"]] == [1, 2]
    have = [{"life": 0, "tables": {name: table["at"] for name, table in told["curves"].items()}}]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"t": 2002.0, "process": "learner", "event": "st')
    append_later = 'ep", "step": 3, "reward": 0.25}\n'
    clock[0] += 2
    assert changes(client, have)["runs"][0]["curves"] == {}, "a torn line waits for its end"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(append_later)
    clock[0] += 2
    told = changes(client, have)["runs"][0]["curves"]["steps"]
    assert (told["anew"], [row[0] for row in told["rows"]]) == (False, [3])


@pytest.mark.parametrize("have", ["", "5", "{}", '[{"life":0}]', '[{"life":0,"tables":{"steps":["a",1]}}]', "[" * 5000])
def test_what_a_reader_claims_to_have_is_checked(open_page: TestClient, have: str) -> None:
    assert open_page.get("/api/changes", params={"have": have}).status_code == 400


@pytest.mark.parametrize("name", ["low", "high", "first", "last", "page"])
@pytest.mark.parametrize("value", ["xyz", "1ee", "\u0661\u0662x", "<script>"])
def test_filters_that_are_no_numbers_are_refused(open_page: TestClient, name: str, value: str) -> None:
    reply = open_page.get("/api/answers", params={name: value})
    assert reply.status_code == 400
    assert value not in reply.text


@pytest.mark.parametrize(
    "query", ["low=nan", "low=-inf", "first=-5", "page=99999999999999999999", "runs=", "runs=a,-1"]
)
def test_odd_filters_find_nothing_and_break_nothing(open_page: TestClient, query: str) -> None:
    assert open_page.get(f"/api/answers?{query}").json()["shown"] in ([], open_page.get("/api/answers").json()["shown"])


def test_hostile_answers_arrive_as_plain_text(tmp_path: Path) -> None:
    run = begun_run(tmp_path / "run")
    append(run, step_event(1, 2000.0, reward_parts={HOSTILE[0]: 0.5}), held_out(1, 2001.0, *HOSTILE))
    for text in HOSTILE:
        append(run, {"t": 2002.0, "process": text, "event": "retry", "error": text, "replica": text})
        append(run, {"t": 2002.0, "process": text, "event": "phase", "name": text})
        append(run, {"t": 2002.0, "process": "learner", "event": "waits", "waits": [{"what": text, "on": text,
                     "waited_s": 2.0, "limit_s": 9.0}]})  # fmt: skip
    with client_of(run) as client:
        for path in ("/api/changes", "/api/answers"):
            reply = client.get(path)
            assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
            assert len(reply.content) < 400_000
            for control in "\x1b\x07\x9b\u202e\u2066\u200b\ufeff\x00":
                assert control not in json.dumps(reply.json(), ensure_ascii=False)
        answers = client.get("/api/answers", params={"text": "answer 1: <script>"}).json()["shown"]
        assert answers[0]["answers"][0]["answer"] == f"answer 1: {HOSTILE[0]}"


def test_runs_are_overlaid_and_their_settings_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = begun_run(tmp_path / "b", group_size=16)
    append(second, step_event(1, 5000.0), held_out(1, 5001.0, "2 + 2"))
    with client_of(first, second) as client:
        about = client.get("/api/about").json()
        assert [run["label"] for run in about["runs"]] == ["by-hand (a)", "by-hand (b)"]
        assert about["settings"]["different"] == [["rollout.group_size", "8", "16"]]
        assert [run["now"]["step"] for run in changes(client)["runs"]] == [10, 1]
        runs = {one["run"] for prompt in client.get("/api/answers").json()["shown"] for one in prompt["answers"]}
        assert runs == {0, 1}


def test_figures_without_meaning_are_null(tmp_path: Path) -> None:
    run = begun_run(tmp_path / "run")
    append(run, step_event(1, 2000.0, reward=1e999, kl=float("nan"), entropy="high", grad_norm=True))
    append(run, step_event(2, 2001.0, reward=None, wait_s="x", step_s=[]))
    with client_of(run) as client:
        (told,) = changes(client)["runs"]
        assert told["now"]["problem"] == ""
        assert all(type(cell) in (int, float, type(None)) for row in told["curves"]["steps"]["rows"] for cell in row)
